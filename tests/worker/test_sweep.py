"""A pass of the sweep: what is due is served, what cannot be served stays due, and nothing stays for ever."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.cancellation import cancel
from shared.errors import LedgerUnavailable, StorageUnavailable
from shared.images import Image, Owed, Status, original_key
from shared.ledger import LEASE_SECONDS, MOST_LOSSES, PAUSE_SECONDS, WAKE_SECONDS, Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.settling import Settling
from shared.storage.disk import DiskStorage
from tests.databases import database
from tests.ledgers import (
    alter,
    claimed,
    claimed_thumbnails,
    latest,
    let_pass,
    published,
    published_again,
    queued,
    ready,
    wanting_thumbnails,
)
from tests.services import LEDGER_NAME, put_original, put_rendition
from tests.waiting import until
from worker.sweep import Sweep

__all__ = ["database"]


@pytest.fixture
def sweep(ledger: Ledger, storage: DiskStorage, queue: Queue, settling: Settling) -> Sweep:
    return Sweep(ledger, storage, queue, settling)


@pytest.fixture
def never_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a Redis that failed alone for the rest of the test."""
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 3600)


async def jobs_in(redis: Redis) -> list[str]:
    return [job.decode() for job in await redis.zrange(f"arq:queue:{LEDGER_NAME}", 0, -1)]


async def owing_leftovers(ledger: Ledger) -> Image:
    row = await ledger.tokens_changed(await published_again(ledger))
    assert row is not None
    return row


async def test_a_queued_image_whose_wake_up_was_lost_is_enqueued_again(
    ledger: Ledger, sweep: Sweep, redis: Redis
) -> None:
    """Promise 2: FLUSHALL loses no image."""
    image = await queued(ledger)

    await sweep.pass_once()
    too_early = await jobs_in(redis)
    await let_pass(ledger, WAKE_SECONDS + 1)
    await sweep.pass_once()

    assert too_early == []
    assert await jobs_in(redis) == [f"convert:{LEDGER_NAME}:{image.id}:2"]
    assert (await latest(ledger, image)).losses == 0


async def test_an_image_whose_lease_is_over_is_enqueued_at_once(ledger: Ledger, sweep: Sweep, redis: Redis) -> None:
    attempt = await claimed(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    await sweep.pass_once()

    row = await latest(ledger, attempt)
    assert (row.status, row.losses) == (Status.QUEUED, 1)
    assert await jobs_in(redis) == [f"convert:{LEDGER_NAME}:{attempt.id}:2"]


async def test_an_image_lost_for_the_twentieth_time_is_failed_and_settled(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, redis: Redis
) -> None:
    """Promise 3: nothing stays queued or processing for ever."""
    attempt = await claimed(ledger)
    key = await put_rendition(storage, attempt, 1)
    await alter(ledger, losses=MOST_LOSSES - 1)
    await let_pass(ledger, LEASE_SECONDS + 1)

    await sweep.pass_once()

    row = await latest(ledger, attempt)
    assert (row.status, row.error_type, row.owed, row.due) == (Status.FAILED, "worker-lost", None, None)
    assert await redis.exists(f"asgilook:{LEDGER_NAME}:token:{attempt.id}")
    assert not await storage.exists(key)
    assert await jobs_in(redis) == []


@pytest.mark.parametrize("arrange", [wanting_thumbnails, claimed_thumbnails])
async def test_thumbnails_that_nobody_makes_are_enqueued_again(
    ledger: Ledger, sweep: Sweep, redis: Redis, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    image = await arrange(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    await sweep.pass_once()

    assert await jobs_in(redis) == [f"thumbnails:{LEDGER_NAME}:{image.id}:{image.wake + 1}"]


async def test_what_an_image_owes_is_paid(ledger: Ledger, storage: DiskStorage, sweep: Sweep, redis: Redis) -> None:
    tokens, leftovers = await published_again(ledger), await owing_leftovers(ledger)
    keys = [await put_rendition(storage, image, 0) for image in (tokens, leftovers)]
    await let_pass(ledger, WAKE_SECONDS + 1)

    await sweep.pass_once()

    assert [(await latest(ledger, image)).owed for image in (tokens, leftovers)] == [None, None]
    assert [await storage.exists(key) for key in keys] == [False, False]
    assert await redis.exists(f"asgilook:{LEDGER_NAME}:token:{tokens.id}")


async def test_thumbnails_given_up_may_be_asked_for_again_after_a_minute(ledger: Ledger, sweep: Sweep) -> None:
    attempt = await claimed_thumbnails(ledger)
    await ledger.give_up_thumbnails(attempt)

    await sweep.pass_once()
    too_early = await ledger.request_thumbnails(attempt.id)
    await let_pass(ledger, PAUSE_SECONDS + 1)
    await sweep.pass_once()

    assert too_early is None
    assert await ledger.request_thumbnails(attempt.id) is not None


async def test_a_ready_image_that_owes_nothing_is_left_alone(ledger: Ledger, sweep: Sweep, redis: Redis) -> None:
    image = await ready(ledger)
    await let_pass(ledger, 1000)
    before = await latest(ledger, image)

    await sweep.pass_once()

    assert await latest(ledger, image) == before
    assert await redis.keys() == []


# Redis away


@pytest.mark.usefixtures("never_back")
async def test_without_redis_only_leftovers_are_paid_and_the_rest_stays_due(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, redis_server: fakeredis.FakeServer
) -> None:
    arrangements = (queued, claimed, published, wanting_thumbnails, claimed_thumbnails)
    images = [await arrange(ledger) for arrange in arrangements]
    leftovers = await owing_leftovers(ledger)
    key = await put_rendition(storage, leftovers, 0)
    await let_pass(ledger, 100)
    before = [await latest(ledger, image) for image in images]
    redis_server.connected = False

    await sweep.pass_once()

    assert [await latest(ledger, image) for image in images] == before
    assert (await latest(ledger, leftovers)).owed is None
    assert not await storage.exists(key)


@pytest.mark.usefixtures("never_back")
@pytest.mark.parametrize("arrange", [queued, claimed, published, wanting_thumbnails, claimed_thumbnails])
async def test_what_was_taken_when_redis_went_away_gets_its_due_back(
    ledger: Ledger,
    sweep: Sweep,
    queue: Queue,
    redis_server: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[Ledger], Awaitable[Image]],
) -> None:
    image = await arrange(ledger)
    await let_pass(ledger, 100)
    due = (await latest(ledger, image)).due

    async def depth() -> int:
        redis_server.connected = False
        return 0

    monkeypatch.setattr(queue, "depth", depth)

    await sweep.pass_once()

    row = await latest(ledger, image)
    assert row.due == due
    assert row.status is not Status.PROCESSING


async def test_a_second_pass_serves_what_the_first_could_not(
    ledger: Ledger, sweep: Sweep, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [await queued(ledger) for _ in range(3)]
    await let_pass(ledger, 100)
    real, refused = queue.enqueue, images[1].id

    async def refuse_one(image: Image) -> None:
        if image.id == refused:
            raise RedisAway("away for this one")
        await real(image)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(queue, "enqueue", refuse_one)
        await sweep.pass_once()
    first = len(await jobs_in(redis))

    await sweep.pass_once()

    assert first == 2
    assert f"convert:{LEDGER_NAME}:{refused}:3" in await jobs_in(redis)


# Trouble of others


async def test_leftovers_that_storage_refuses_to_remove_stay_due_and_hinder_nobody(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, fine = await owing_leftovers(ledger), await owing_leftovers(ledger)
    for image in (stuck, fine):
        await put_rendition(storage, image, 0)
    await let_pass(ledger, 100)
    due = (await latest(ledger, stuck)).due
    real = storage.delete_folder

    async def delete_folder(prefix: str) -> None:
        if stuck.id in prefix:
            raise StorageUnavailable("stale handle")
        await real(prefix)

    monkeypatch.setattr(storage, "delete_folder", delete_folder)

    await sweep.pass_once()

    row = await latest(ledger, stuck)
    assert (row.owed, row.due) == (Owed.LEFTOVERS, due)
    assert (await latest(ledger, fine)).owed is None


async def test_a_pass_that_fails_is_not_the_last(
    ledger: Ledger, sweep: Sweep, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sweep.EVERY_SECONDS", 0.001)
    image = await queued(ledger)
    await let_pass(ledger, 100)
    troubles: list[Exception] = [RuntimeError("a bug"), LedgerUnavailable("locked")]

    async def depth() -> int:
        if troubles:
            raise troubles.pop()
        return 0

    monkeypatch.setattr(queue, "depth", depth)
    running = asyncio.create_task(sweep.run())

    async def is_enqueued() -> bool:
        return bool(await jobs_in(redis))

    await until(is_enqueued)
    await cancel(running)

    assert await jobs_in(redis) == [f"convert:{LEDGER_NAME}:{image.id}:2"]


# How much


@pytest.mark.parametrize(("waiting", "taken"), [(0, 5), (297, 3), (300, 0), (1000, 0)])
async def test_the_queue_is_filled_to_three_hundred_and_the_rest_waits_in_the_ledger(
    ledger: Ledger, sweep: Sweep, redis: Redis, waiting: int, taken: int
) -> None:
    if waiting:
        await redis.zadd(f"arq:queue:{LEDGER_NAME}", {f"somebody's:{i}": i for i in range(waiting)})
    for _ in range(5):
        await queued(ledger)
    await let_pass(ledger, 100)

    await sweep.pass_once()

    assert len(await jobs_in(redis)) == waiting + taken
    assert len(await ledger.take_queued(300)) == 5 - taken


async def test_lost_leases_are_enqueued_whatever_the_queues_depth(ledger: Ledger, sweep: Sweep, redis: Redis) -> None:
    await redis.zadd(f"arq:queue:{LEDGER_NAME}", {f"somebody's:{i}": 9e15 for i in range(400)})
    attempt = await claimed(ledger)
    await let_pass(ledger, 100)

    await sweep.pass_once()

    # In order of creation: in front of what others have waiting.
    assert (await jobs_in(redis))[0] == f"convert:{LEDGER_NAME}:{attempt.id}:2"


async def test_sweeps_at_once_serve_each_row_once(
    settings: object, ledger: Ledger, storage: DiskStorage, queue: Queue, settling: Settling, redis: Redis
) -> None:
    images = [await claimed(ledger) for _ in range(20)]
    await let_pass(ledger, 100)

    await asyncio.gather(*(Sweep(ledger, storage, queue, settling).pass_once() for _ in range(4)))

    assert {(await latest(ledger, image)).losses for image in images} == {1}
    assert len(await jobs_in(redis)) == 20


# Drafts


async def test_forgotten_drafts_go_and_originals_without_a_row_stay(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, tmp_path: Path
) -> None:
    """An original without a row may be one whose ledger was lost: only a person removes it."""
    forgotten, fresh = await storage.draft(), await storage.draft()
    os.utime(forgotten.fileno(), (0, 0))
    stray = await queued(ledger)
    await put_original(storage, stray)
    await ledger.delete(stray.id)
    async with ledger._engine.begin() as connection:
        await connection.exec_driver_sql("DELETE FROM images")

    await sweep.pass_once()

    assert (forgotten.path.exists(), fresh.path.exists()) == (False, True)
    assert await storage.exists(original_key(stray.id))
    await forgotten.discard()
    await fresh.discard()


async def test_drafts_are_looked_through_now_and_then_and_not_at_every_pass(storage: DiskStorage, sweep: Sweep) -> None:
    await sweep.pass_once()
    draft = await storage.draft()
    os.utime(draft.fileno(), (0, 0))

    await sweep.pass_once()

    assert draft.path.exists()
    await draft.discard()
