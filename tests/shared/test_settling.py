"""Settling: each debt may be paid alone, in any order and again; what a payer that died left is paid by the sweep."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import permutations
from typing import Any

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.errors import AsgilookError, LedgerUnavailable, StorageUnavailable
from shared.images import DebtKind, Image, Lane, Status
from shared.ledger import DELETED_SECONDS, Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.notices import channel_of
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache, Slot
from shared.renditions import original_key, renditions_prefix
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import Storage
from tests.databases import database
from tests.ledgers import (
    SIZE,
    claimed,
    claimed_renditions,
    failed,
    latest,
    let_pass,
    made_by,
    published,
    published_again,
    queued,
    ready,
    settled,
    wanting_renditions,
)
from tests.services import LEDGER_NAME, put_original, put_rendition
from worker.sweep import Sweep

__all__ = ["database"]


@pytest.fixture
def keep_originals() -> bool:
    return True


@pytest.fixture
def settings(settings: Settings, keep_originals: bool) -> Settings:
    return replace(settings, keep_originals=keep_originals)


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

    await settling.settle(image)

    for topic, token in before.items():
        assert await token_of(redis, topic) not in (token, None)
    assert (await latest(ledger, image)).debts == ()


@pytest.mark.parametrize(
    ("arrange", "keep_originals", "leftovers"),
    [
        (published, True, []),
        (published, False, ["folders", "paid"]),
        (published_again, True, ["folders", "paid"]),
    ],
    ids=["first attempt", "original not kept", "second attempt"],
)
async def test_the_token_is_changed_before_its_debt_goes_and_the_notice_comes_after_that(
    ledger: Ledger,
    settling: Settling,
    monkeypatch: pytest.MonkeyPatch,
    arrange: Callable[[Ledger], Any],
    leftovers: list[str],
) -> None:
    """A client that hears the notice, or reads a row that owes nothing, must not be answered from an older copy.

    Leftovers are looked for where there may be some.
    """
    image = await arrange(ledger)
    steps: list[str] = []

    def recorded(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        async def step(*arguments: Any, **named: Any) -> Any:
            steps.append(name)
            return await real(*arguments, **named)

        monkeypatch.setattr(owner, name, step)

    recorded(settling._cache, "change_tokens")
    recorded(settling._announcer, "announce")
    recorded(settling._storage, "folders")
    recorded(settling._ledger, "paid")

    await settling.settle(image)

    assert steps == ["change_tokens", "paid", "announce", "paid", *leftovers]
    assert (await latest(ledger, image)).debts == ()


@pytest.mark.parametrize("kinds", list(permutations(DebtKind)), ids=" ".join)
async def test_each_debt_may_be_paid_alone_in_any_order_and_again(
    ledger: Ledger,
    storage: Storage,
    settling: Settling,
    redis: Redis,
    notices: Callable[[], Any],
    kinds: tuple[DebtKind, ...],
) -> None:
    image = await published_again(ledger)
    superseded, kept = [await put_rendition(storage, image, attempt) for attempt in (1, 2)]
    owed = set(DebtKind)
    assert {debt.kind for debt in image.debts} == owed

    for kind in kinds:
        for _ in range(2):
            await settling.pay(replace(image, debts=tuple(image.owes(kind))))
        owed.remove(kind)

        assert {debt.kind for debt in (await latest(ledger, image)).debts} == owed
        assert (await token_of(redis, image.id) is None) is (DebtKind.TOKENS in owed)
        assert await storage.exists(superseded) is (DebtKind.LEFTOVERS in owed)

    assert [(await notices())["data"] for _ in range(2)] == [image.id.encode()] * 2
    assert await storage.exists(kept)


async def test_a_debt_of_a_later_commit_stays_when_an_earlier_one_is_paid(
    ledger: Ledger, settling: Settling, redis: Redis
) -> None:
    """A payer that was frozen pays what it has read, whatever has been committed since."""
    image = await published_again(ledger)
    deleted = await ledger.delete(image.id)
    assert deleted is not None

    await settling.settle(image)

    assert (await latest(ledger, image)).debts == deleted.debts


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
    attempt = await claimed_renditions(ledger, await _lost_once(ledger))
    keys = [await put_rendition(storage, attempt, number) for number in range(1, 6)]
    image = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)
    assert image is not None
    await put_original(storage, image)

    await settling.settle(image)

    # Later attempts than the one that was read may be at work by now.
    assert image.attempt == 3
    assert [await storage.exists(key) for key in keys] == [False, False, True, True, True]
    assert await storage.exists(original_key(image.id))


async def _lost_once(ledger: Ledger) -> Image:
    """Return a ready image whose renditions are wanted at the second try: attempt 2 is over."""
    await claimed_renditions(ledger)
    await let_pass(ledger, 100)
    [image] = await ledger.take_lost()
    return image


async def test_of_a_folder_in_use_only_the_files_that_no_rendition_names_are_removed(
    ledger: Ledger, storage: Storage, settling: Settling
) -> None:
    """Publishing merges: an image's files may be those of several attempts."""
    image = await settled(ledger, await published_again(ledger))
    again = await ledger.request_renditions(image, Lane.DEMAND, ["320x180.jpeg"])
    attempt = await claimed_renditions(ledger, again)
    names = [*image.renditions, "not-named.jpeg"]
    former = {name: await put_rendition(storage, image, 2, name) for name in names}
    new = {name: await put_rendition(storage, image, 3, name) for name in ("320x180.jpeg", "not-named.jpeg")}
    now_published = await ledger.publish(
        attempt, SIZE, [one for one in made_by(attempt) if one.file in new], seconds=0.1
    )
    assert now_published is not None

    await settling.settle(now_published)

    assert [name for name, key in former.items() if await storage.exists(key)] == ["image.jpeg", "160x90.jpeg"]
    assert [name for name, key in new.items() if await storage.exists(key)] == ["320x180.jpeg"]


async def test_a_replaced_rendition_is_announced(
    ledger: Ledger, settling: Settling, notices: Callable[[], Any]
) -> None:
    """Other processes have the superseded file in memory."""
    attempt = await claimed_renditions(ledger)
    image = await ledger.publish(attempt, SIZE, made_by(attempt)[:1], seconds=0.1)
    assert image is not None

    await settling.settle(image)

    assert (await notices())["data"] == image.id.encode()


async def test_files_of_the_attempt_that_holds_the_image_are_no_leftovers(
    ledger: Ledger, storage: Storage, settling: Settling
) -> None:
    handed_back = await ledger.hand_back(await claimed_renditions(ledger), 0.0)
    assert handed_back is not None
    attempt = await claimed_renditions(ledger, handed_back)
    keys = [await put_rendition(storage, attempt, number) for number in (1, 2, 3)]

    await settling.settle(await latest(ledger, attempt))

    assert (await latest(ledger, attempt)).debts == ()
    assert [await storage.exists(key) for key in keys] == [True, False, True]


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


@pytest.mark.parametrize("keep_originals", [True, False])
async def test_an_original_stays_once_ready_if_originals_are_kept(
    ledger: Ledger, storage: Storage, settling: Settling, keep_originals: bool
) -> None:
    image = await published(ledger)
    await put_original(storage, image)
    key = await put_rendition(storage, image, 1)

    await settling.settle(image)

    assert await storage.exists(original_key(image.id)) is keep_originals
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
    await let_pass(ledger, DELETED_SECONDS + 1)
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


async def test_an_image_that_owes_nothing_is_left_alone(ledger: Ledger, settling: Settling, redis: Redis) -> None:
    for image in (await queued(ledger), await ready(ledger), await failed(ledger), await wanting_renditions(ledger)):
        await settling.settle(image)
        assert await latest(ledger, image) == image

    assert await redis.keys() == []


# What may come between


async def test_without_redis_tokens_and_notice_stay_owed_and_leftovers_are_removed(
    ledger: Ledger, storage: Storage, settling: Settling, redis_server: fakeredis.FakeServer
) -> None:
    image = await published_again(ledger)
    superseded = await put_rendition(storage, image, 1)
    redis_server.connected = False

    await settling.settle(image)

    assert [debt.kind for debt in (await latest(ledger, image)).debts] == [DebtKind.TOKENS, DebtKind.NOTICE]
    assert not await storage.exists(superseded)


async def test_a_notice_that_cannot_go_out_stays_owed_and_hinders_nothing(
    ledger: Ledger, settling: Settling, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that waits gets the ledger read every second."""
    image = await published_again(ledger)

    async def away(*arguments: object, **named: object) -> None:
        raise RedisAway("away")

    monkeypatch.setattr(settling._announcer, "announce", away)

    await settling.settle(image)

    assert [debt.kind for debt in (await latest(ledger, image)).debts] == [DebtKind.NOTICE]


async def test_settling_again_with_what_was_read_before_harms_nothing(
    ledger: Ledger, storage: Storage, settling: Settling
) -> None:
    """A process that was frozen in the middle goes on with an old row, whatever has happened since."""
    image = await published_again(ledger)
    row = await ledger.request_renditions(await settled(ledger, image), Lane.DEMAND)
    assert row is not None
    attempt = await claimed_renditions(ledger, row)
    key = await put_rendition(storage, attempt, attempt.attempt)
    now_published = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)
    assert now_published is not None

    await settling.settle(image)

    assert await latest(ledger, image) == now_published
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


#: The part, its method, the number of the call, and whether the process dies before or after it.
STEPS = {
    "before the tokens": ("_cache", "change_tokens", 1, False),
    "after the tokens": ("_cache", "change_tokens", 1, True),
    "after the tokens were paid": ("_ledger", "paid", 1, True),
    "after the notice": ("_announcer", "announce", 1, True),
    "after the notice was paid": ("_ledger", "paid", 2, True),
    "before a folder": ("_storage", "delete_folder", 1, False),
    "after a folder": ("_storage", "delete_folder", 1, True),
    "before the end": ("_ledger", "end", 3, False),
    "after the end": ("_ledger", "end", 3, True),
}


@pytest.mark.parametrize(("part", "name", "number", "after"), STEPS.values(), ids=STEPS)
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
    number: int,
    after: bool,
) -> None:
    image: Image = await arrange(ledger)
    await put_original(storage, image)
    superseded = await put_rendition(storage, image, 0)
    await redis.set(f"asgilook:{LEDGER_NAME}:token:{image.id}", b"old")
    if name == "end":
        name, number = ("remove", 1) if image.status is Status.DELETING else ("paid", 3)
    with pytest.MonkeyPatch.context() as patched:
        real = getattr(getattr(settling, part), name)
        calls = 0

        async def crash(*arguments: Any, **named: Any) -> None:
            nonlocal calls
            calls += 1
            if after or calls < number:
                await real(*arguments, **named)
            if calls == number:
                raise Crash

        patched.setattr(getattr(settling, part), name, crash)
        with pytest.raises(Crash):
            await settling.settle(image)

    for _ in range(3):
        await let_pass(ledger, DELETED_SECONDS + 1)
        await sweep.pass_once()

    row = await ledger.get(image.id)
    assert await token_of(redis, image.id) != b"old"
    assert not await storage.exists(superseded)
    if image.status is Status.DELETING:
        assert row is None
        assert not await storage.exists(original_key(image.id))
    else:
        assert row is not None
        assert (row.status, row.debts) == (image.status, ())


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

    assert [debt.kind for debt in (await latest(ledger, image)).debts] == [DebtKind.LEFTOVERS]


async def test_all_tokens_owed_are_paid_before_redis_is_trusted_again(
    ledger: Ledger, settling: Settling, redis: Redis
) -> None:
    images = [await published(ledger) for _ in range(3)]
    images.append(await deleted_image(ledger))

    await settling.settle_all_tokens(even_if_open=True)

    assert await ledger.owing_tokens() == []
    assert None not in [await token_of(redis, image.id) for image in images]
    owed = [[debt.kind for debt in (await latest(ledger, image)).debts] for image in images]
    assert owed == [[], [], [], [DebtKind.LEFTOVERS]]


async def test_only_images_that_owe_a_notice_are_announced(
    ledger: Ledger, settling: Settling, notices: Callable[[], Any]
) -> None:
    told, untold = await published(ledger), await published(ledger)
    await ledger.paid(told.owes(DebtKind.NOTICE))

    await settling.settle_all_tokens()

    assert (await notices())["data"] == untold.id.encode()
    assert await notices() is None


async def test_tokens_that_cannot_be_changed_keep_redis_from_being_trusted(
    ledger: Ledger, settling: Settling, redis_server: fakeredis.FakeServer
) -> None:
    await published(ledger)
    redis_server.connected = False

    with pytest.raises(RedisAway):
        await settling.settle_all_tokens(even_if_open=True)
