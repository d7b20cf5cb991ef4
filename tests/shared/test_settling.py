"""Settling: tokens, then the notice, then leftovers; each step may be repeated, and whatever dies is finished."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.errors import AsgilookError, LedgerUnavailable, StorageUnavailable
from shared.images import Image, Owed, Status, original_key, renditions_prefix
from shared.ledger import PAUSE_SECONDS, Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.notices import Announcer, channel_of
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache, Slot
from shared.settling import Settling
from shared.storage import Storage
from tests.databases import database
from tests.ledgers import (
    RENDITIONS,
    SIZE,
    claimed,
    claimed_thumbnails,
    failed,
    latest,
    let_pass,
    published,
    published_again,
    queued,
    ready,
)
from tests.services import LEDGER_NAME, put_original, put_rendition
from worker.sweep import Sweep

__all__ = ["database"]


@pytest.fixture
def sweep(ledger: Ledger, storage: Storage, queue: Queue, settling: Settling) -> Sweep:
    return Sweep(ledger, storage, queue, settling)


async def token_of(redis: Redis, topic: str) -> bytes | None:
    token: bytes | None = await redis.get(f"asgilook:{LEDGER_NAME}:token:{topic}")
    return token


# What is paid


async def test_a_published_image_changes_its_token_and_the_lists(
    ledger: Ledger, settling: Settling, cache: ResponseCache, redis: Redis
) -> None:
    image = await published(ledger)
    before = {topic: (await cache.read(Slot("/x", topic, 60))).token for topic in (image.id, "list")}

    assert await settling.settle(image)

    for topic, token in before.items():
        assert await token_of(redis, topic) not in (token, None)
    row = await latest(ledger, image)
    assert (row.owed, row.due) == (None, None)


@pytest.mark.parametrize(
    ("arrange", "keep_originals", "leftovers"),
    [
        (published, True, []),
        (published, False, ["folders", "leftovers_removed"]),
        (published_again, True, ["folders", "leftovers_removed"]),
    ],
    ids=["first attempt", "original not kept", "second attempt"],
)
async def test_the_token_is_changed_before_the_row_says_so_and_the_notice_goes_out_last(
    ledger: Ledger,
    storage: Storage,
    cache: ResponseCache,
    announcer: Announcer,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[Ledger], Any],
    keep_originals: bool,
    leftovers: list[str],
) -> None:
    """Who hears the notice, or reads a row that owes nothing, must not be answered from an older copy.

    Leftovers are looked for where there may be some.
    """
    settling = Settling(ledger, storage, cache, announcer, keep_originals)
    image = await arrange(ledger)
    steps: list[str] = []

    def recorded(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        async def step(*arguments: Any, **named: Any) -> Any:
            steps.append(name)
            return await real(*arguments, **named)

        monkeypatch.setattr(owner, name, step)

    recorded(settling._cache, "change_tokens")
    recorded(settling._ledger, "tokens_changed")
    recorded(settling._announcer, "announce")
    recorded(settling._storage, "folders")
    recorded(settling._ledger, "leftovers_removed")

    await settling.settle(image)

    assert steps == ["change_tokens", "tokens_changed", "announce", *leftovers]
    row = await latest(ledger, image)
    assert (row.owed, row.due) == (None, None)


@pytest.fixture
async def notices(redis: Redis) -> AsyncIterator[Callable[[], Any]]:
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(channel_of(LEDGER_NAME))
        await pubsub.get_message(timeout=1)
        yield lambda: pubsub.get_message(timeout=1)


async def test_a_settled_image_is_announced(ledger: Ledger, settling: Settling, notices: Callable[[], Any]) -> None:
    image = await published(ledger)

    await settling.settle(image)

    assert (await notices())["data"] == image.id.encode()


async def test_superseded_attempts_and_nothing_else_are_removed_of_a_ready_image(
    ledger: Ledger, storage: Storage, settling: Settling
) -> None:
    attempt = await claimed_thumbnails(ledger, await _lost_once(ledger))
    keys = [await put_rendition(storage, attempt, number) for number in range(1, 6)]
    image = await ledger.publish(attempt, SIZE, RENDITIONS)
    assert image is not None
    await put_original(storage, image)

    await settling.settle(image)

    # Past the attempt that was read somebody may be at work by now.
    assert image.attempt == image.published == 4
    assert [await storage.exists(key) for key in keys] == [False, False, False, True, True]
    assert await storage.exists(original_key(image.id))


async def _lost_once(ledger: Ledger) -> Image:
    """Return a ready image whose thumbnails are wanted at the second try: attempts 2 and 3 are over."""
    row = await ledger.request_thumbnails((await ready(ledger)).id)
    assert row is not None
    await claimed_thumbnails(ledger, row)
    await let_pass(ledger, 100)
    [taken] = await ledger.take_thumbnails()
    return taken.image


async def test_all_attempts_of_a_failed_image_are_removed_and_its_original_stays_for_a_retry(
    ledger: Ledger, storage: Storage, settling: Settling
) -> None:
    attempt = await claimed(ledger)
    await put_original(storage, attempt)
    key = await put_rendition(storage, attempt, 1)
    image = await ledger.fail(attempt, "unreadable-image", "This is no picture.")
    assert image is not None

    await settling.settle(image)

    assert not await storage.exists(key)
    assert await storage.exists(original_key(image.id))


@pytest.mark.parametrize("keep", [True, False])
async def test_an_original_stays_once_ready_if_originals_are_kept(
    ledger: Ledger, storage: Storage, cache: ResponseCache, settling: Settling, keep: bool
) -> None:
    settling = Settling(ledger, storage, cache, settling._announcer, keep_originals=keep)
    image = await published(ledger)
    await put_original(storage, image)
    key = await put_rendition(storage, image, 1)

    await settling.settle(image)

    assert await storage.exists(original_key(image.id)) is keep
    assert await storage.exists(key)


async def test_everything_of_a_deleted_image_is_removed_at_once_and_again_a_minute_later(
    ledger: Ledger, storage: Storage, settling: Settling, sweep: Sweep
) -> None:
    image = await ready(ledger)
    await put_original(storage, image)
    await put_rendition(storage, image, 1)
    deleted = await ledger.delete(image.id)
    assert deleted is not None

    await settling.settle(deleted)
    gone_at_once = not await storage.exists(original_key(image.id)), await storage.folders(renditions_prefix(image.id))
    late = await put_rendition(storage, image, 2)
    await sweep.pass_once()
    still_there = await storage.exists(late)
    await let_pass(ledger, PAUSE_SECONDS + 1)
    await sweep.pass_once()

    assert gone_at_once == (True, [])
    assert still_there
    assert not await storage.exists(late)
    assert await ledger.get(image.id) is None


async def test_folders_that_are_no_attempts_are_left(ledger: Ledger, storage: Storage, settling: Settling) -> None:
    image = await published(ledger)
    prefix = renditions_prefix(image.id)
    await storage.keep({f"{prefix}/not-ours/file": (draft := await storage.draft())})
    await draft.discard()

    await settling.settle(image)

    assert await storage.folders(prefix) == ["not-ours"]


async def test_who_owes_nothing_is_left_alone(ledger: Ledger, settling: Settling, redis: Redis) -> None:
    for image in (await queued(ledger), await ready(ledger), await failed(ledger)):
        assert await settling.settle(image)
        assert await latest(ledger, image) == image

    assert await redis.keys() == []


# What may come between


async def test_without_redis_tokens_stay_owed_and_so_do_leftovers(
    ledger: Ledger, storage: Storage, settling: Settling, redis_server: fakeredis.FakeServer
) -> None:
    image = await published(ledger)
    redis_server.connected = False

    assert not await settling.settle(image)

    assert await latest(ledger, image) == image


async def test_a_notice_that_cannot_go_out_keeps_nobody(
    ledger: Ledger, settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits reads the ledger every second."""
    image = await published(ledger)

    async def away(*arguments: object, **named: object) -> None:
        raise RedisAway("away")

    monkeypatch.setattr(settling._announcer, "announce", away)

    assert await settling.settle(image)
    assert (await latest(ledger, image)).owed is None


async def test_settling_again_with_what_was_read_before_harms_nothing(
    ledger: Ledger, storage: Storage, settling: Settling
) -> None:
    """Whoever was frozen in the middle goes on with an old row, whatever has happened since."""
    image = await published(ledger)
    await put_rendition(storage, image, 1)
    stale = await ledger.tokens_changed(image)
    assert stale is not None
    await ledger.leftovers_removed(stale)
    row = await ledger.request_thumbnails(image.id)
    assert row is not None
    attempt = await claimed_thumbnails(ledger, row)
    key = await put_rendition(storage, attempt, 2)
    now_published = await ledger.publish(attempt, SIZE, RENDITIONS)

    await settling.settle(image)
    await settling.settle(stale)

    assert await ledger.get(image.id) == now_published
    assert await storage.exists(key)


class Crash(Exception):
    """The process ends here."""


async def failed_image(ledger: Ledger) -> Image:
    row = await ledger.fail(await claimed(ledger), "unreadable-image", "This is no picture.")
    assert row is not None
    return row


async def deleted_image(ledger: Ledger) -> Image:
    row = await ledger.delete((await ready(ledger)).id)
    assert row is not None
    return row


STEPS = {
    "before the tokens": ("_cache", "change_tokens", False),
    "after the tokens": ("_cache", "change_tokens", True),
    "after the row moved on": ("_ledger", "tokens_changed", True),
    "after the notice": ("_announcer", "announce", True),
    "before a folder": ("_storage", "delete_folder", False),
    "after a folder": ("_storage", "delete_folder", True),
    "before the end": ("_ledger", "leftovers_removed", False),
    "after the end": ("_ledger", "leftovers_removed", True),
}


@pytest.mark.parametrize(("part", "name", "after"), STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("arrange", [published_again, failed_image, deleted_image])
async def test_the_sweep_finishes_whatever_step_the_settling_died_at(
    ledger: Ledger,
    storage: Storage,
    settling: Settling,
    sweep: Sweep,
    redis: Redis,
    arrange: Callable[[Ledger], Any],
    part: str,
    name: str,
    after: bool,
) -> None:
    image: Image = await arrange(ledger)
    await put_original(storage, image)
    superseded = await put_rendition(storage, image, 0)
    await redis.set(f"asgilook:{LEDGER_NAME}:token:{image.id}", b"old")
    with pytest.MonkeyPatch.context() as patched:
        real = getattr(getattr(settling, part), name)

        async def crash(*arguments: Any, **named: Any) -> None:
            if after:
                await real(*arguments, **named)
            raise Crash

        patched.setattr(getattr(settling, part), name, crash)
        with pytest.raises(Crash):
            await settling.settle(image)

    for _ in range(3):
        await let_pass(ledger, PAUSE_SECONDS + 1)
        await sweep.pass_once()

    row = await ledger.get(image.id)
    assert await token_of(redis, image.id) != b"old"
    assert not await storage.exists(superseded)
    if image.status is Status.DELETING:
        assert row is None
        assert not await storage.exists(original_key(image.id))
    else:
        assert row is not None
        assert (row.status, row.owed, row.due) == (image.status, None, None)


@pytest.mark.parametrize("trouble", [StorageUnavailable("stale handle"), LedgerUnavailable("locked")])
async def test_trouble_on_the_way_is_told_and_what_is_owed_stays_owed(
    ledger: Ledger, settling: Settling, monkeypatch: pytest.MonkeyPatch, trouble: AsgilookError
) -> None:
    image = await published_again(ledger)

    async def fail(prefix: str) -> list[str]:
        raise trouble

    monkeypatch.setattr(settling._storage, "folders", fail)

    with pytest.raises(type(trouble)):
        await settling.settle(image)

    assert (await latest(ledger, image)).owed is Owed.LEFTOVERS


async def test_all_tokens_owed_are_paid_before_redis_is_trusted_again(
    ledger: Ledger, settling: Settling, redis: Redis
) -> None:
    images = [await published(ledger) for _ in range(3)]
    images.append(await deleted_image(ledger))

    await settling.settle_all_tokens(even_if_open=True)

    assert await ledger.owing_tokens() == []
    assert None not in [await token_of(redis, image.id) for image in images]
    assert [(await latest(ledger, image)).owed for image in images] == [Owed.LEFTOVERS] * 4


async def test_tokens_that_cannot_be_changed_keep_redis_from_being_trusted(
    ledger: Ledger, settling: Settling, redis_server: fakeredis.FakeServer
) -> None:
    await published(ledger)
    redis_server.connected = False

    with pytest.raises(RedisAway):
        await settling.settle_all_tokens(even_if_open=True)
