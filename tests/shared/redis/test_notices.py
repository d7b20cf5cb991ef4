"""Notices wake the requests that wait for an image; so does each gap in which a notice may have been missed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.cancellation import cancel
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway
from shared.redis.clients import listening_client, worker_client
from shared.redis.notices import Announcer, Listener, channel_of
from tests.services import LEDGER_NAME, ledger_name
from tests.valkey import Valkey
from tests.waiting import until


@pytest.fixture
async def announcing(valkey: Valkey) -> AsyncIterator[Redis]:
    client = worker_client(valkey.url)
    yield client
    await client.aclose()


@pytest.fixture
async def announcer(announcing: Redis) -> AsyncIterator[Announcer]:
    breaker = CircuitBreaker(announcing, 5.0)
    yield Announcer(announcing, breaker, ledger_name)
    await breaker.close()


@pytest.fixture
async def listener(valkey: Valkey) -> AsyncIterator[Listener]:
    """A listener that is subscribed."""
    client = listening_client(valkey.url)
    listener = Listener(client, ledger_name)
    with listener.listen("anything") as subscribed:
        running = asyncio.create_task(listener.run())
        await heard(subscribed)
    yield listener
    running.cancel()
    await asyncio.wait([running])
    await client.aclose()


async def heard(event: asyncio.Event) -> None:
    async with asyncio.timeout(20):
        await event.wait()


async def test_a_notice_wakes_all_that_wait_for_its_image(announcer: Announcer, listener: Listener) -> None:
    with listener.listen("image-1") as one, listener.listen("image-1") as two:
        await announcer.announce("image-1")

        await heard(one)
        await heard(two)


async def test_a_notice_wakes_none_that_wait_for_another_image(announcer: Announcer, listener: Listener) -> None:
    with listener.listen("image-1") as ours, listener.listen("image-2") as theirs:
        await announcer.announce("image-2")
        await heard(theirs)

        assert not ours.is_set()


async def test_a_notice_of_another_ledger_is_not_heard(
    announcer: Announcer, announcing: Redis, listener: Listener
) -> None:
    with listener.listen("image-1") as ours, listener.listen("image-2") as theirs:
        await announcing.publish(channel_of("another"), "image-1")
        await announcer.announce("image-2")
        await heard(theirs)

        assert not ours.is_set()


async def test_a_wait_that_has_ended_is_forgotten(announcer: Announcer, listener: Listener) -> None:
    with listener.listen("image-1") as gone:
        pass
    with listener.listen("image-1") as waiting:
        await announcer.announce("image-1")
        await heard(waiting)

    assert not gone.is_set()
    assert listener._waiting == {}


async def test_every_new_subscription_wakes_all_that_wait(
    valkey: Valkey, announcer: Announcer, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was announced while the connection was down is lost: all must look for themselves."""
    with listener.listen("image-1") as one, listener.listen("image-2") as two:
        valkey.cut_connections()

        await heard(one)
        await heard(two)
        one.clear()
        await announcer.announce("image-1")
        await heard(one)


async def test_callbacks_get_each_image_that_changed_and_each_gap(valkey: Valkey, announcer: Announcer) -> None:
    told: list[str] = []

    async def take_long(image_id: str) -> None:
        told.append(f"after {image_id}")

    client = listening_client(valkey.url)
    listener = Listener(
        client, ledger_name, on_change=told.append, after_change=take_long, on_gap=lambda: told.append("gap")
    )
    running = asyncio.create_task(listener.run())
    await until(lambda: told)

    await announcer.announce("image-1", "image-2")
    await until(lambda: len(told) == 5)
    valkey.cut_connections()
    await until(lambda: len(told) == 6)

    assert told == ["gap", "image-1", "after image-1", "image-2", "after image-2", "gap"]
    await cancel(running)
    await client.aclose()


async def test_odd_messages_wake_nobody_and_do_no_harm(
    announcer: Announcer, announcing: Redis, listener: Listener
) -> None:
    with listener.listen("image-1") as waiting:
        await announcing.publish(channel_of(LEDGER_NAME), b"\xff\xfe\x00")
        await announcing.publish(channel_of(LEDGER_NAME), b"")
        await announcer.announce("image-1")

        await heard(waiting)


async def test_an_announcement_that_cannot_be_made_is_told() -> None:
    client = worker_client("redis://127.0.0.1:1/0")
    breaker = CircuitBreaker(client, 5.0)

    with pytest.raises(RedisAway):
        await Announcer(client, breaker, ledger_name).announce("image-1")

    await breaker.close()
    await client.aclose()
