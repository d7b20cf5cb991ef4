"""Every transition of the ledger: what it does, and that an attempt that lost its image changes nothing."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from sqlalchemy import make_url, select, update

from shared.errors import LedgerUnavailable
from shared.images import DebtKind, Image, Lane, Original, Status, Work
from shared.ledger import (
    DELETED_SECONDS,
    LEASE_SECONDS,
    MOST_LOSSES,
    PAUSE_SECONDS,
    SETTLE_SECONDS,
    TAKE_AT_MOST,
    Ledger,
    schema,
)
from shared.renditions import FULL, Rendition
from shared.settings import Settings
from tests.databases import database
from tests.ledgers import (
    ORIGINAL,
    SIZE,
    alter,
    claimed,
    claimed_renditions,
    failed,
    latest,
    let_pass,
    made_by,
    new_id,
    published,
    published_again,
    queued,
    ready,
    settled,
    wanting_renditions,
)

__all__ = ["database"]

Arrange = Callable[[Ledger], Awaitable[Image]]
Transition = Callable[[Ledger, Image], Awaitable[object]]

TOKENS, NOTICE, LEFTOVERS = DebtKind.TOKENS, DebtKind.NOTICE, DebtKind.LEFTOVERS
#: A picture of which rendering is expected to take a tenth of a second.
LARGE = Original("image/png", 700_000, "0a" * 32)


async def is_due_in(ledger: Ledger, seconds: float, image: Image, *, since: float) -> bool:
    """Return whether a commit after `since` has made the image due in so many seconds."""
    assert image.due is not None
    return since + seconds <= image.due <= await ledger.now() + seconds


def kinds(image: Image) -> list[DebtKind]:
    """Return what an image owes, in alphabetical order."""
    return sorted(debt.kind for debt in image.debts)


async def all_rows(ledger: Ledger) -> dict[str, list[Any]]:
    """Return all rows of all tables."""
    rows = {}
    async with ledger._database._engine.connect() as connection:
        for table in schema.metadata.sorted_tables:
            found = await connection.execute(select(table))
            rows[table.name] = sorted((tuple(row) for row in found), key=repr)
    return rows


async def stored_by(ledger: Ledger, owner: str = "") -> tuple[int, int]:
    """Return how many images an owner has, and their bytes."""
    async with ledger._database._engine.connect() as connection:
        rows = await connection.execute(select(schema.owners).where(schema.owners.c.owner == owner))
        return next(((row.images, row.bytes) for row in rows), (0, 0))


async def added(ledger: Ledger, owner: str | None = None, original: Original = ORIGINAL) -> Image:
    """Return a new image of an owner."""
    return await ledger.add(new_id(), original, None, owner=owner)


async def deleting(ledger: Ledger) -> Image:
    """Return an image that was deleted and owes all that this leaves to be done."""
    row = await ledger.delete((await ready(ledger)).id)
    assert row is not None
    return row


@pytest.fixture
async def other_ledgers(settings: Settings) -> AsyncIterator[list[Ledger]]:
    """The same ledger as other processes see it: over connections of their own."""
    async with AsyncExitStack() as stack:
        ledgers = [Ledger.connect(settings) for _ in range(3)]
        for other in ledgers:
            stack.push_async_callback(other.close)
        yield ledgers


# Adding and claiming


async def test_an_added_image_waits_for_its_conversion(ledger: Ledger) -> None:
    before = await ledger.now()

    image = await ledger.add(new_id(), ORIGINAL, "request-1")

    assert (image.status, image.work, image.lane) == (Status.QUEUED, Work.CONVERT, Lane.UPLOAD)
    assert (image.attempt, image.failures, image.losses, image.debts) == (0, 0, 0, ())
    assert (image.original, image.request, image.renditions, image.owner) == (ORIGINAL, "request-1", {}, None)
    assert (image.sequence, image.size, image.worker, image.wanted) == (None, None, None, None)
    assert await is_due_in(ledger, 0, image, since=before)
    assert await ledger.get(image.id) == image


async def test_an_id_is_added_once(ledger: Ledger) -> None:
    image = await queued(ledger)
    before = await all_rows(ledger)

    with pytest.raises(LedgerUnavailable):
        await ledger.add(image.id, ORIGINAL, None)

    assert await all_rows(ledger) == before


async def test_an_unknown_image_is_none_and_takes_no_transition(ledger: Ledger) -> None:
    unknown = replace(await ready(ledger), id=new_id())

    assert await ledger.get(new_id()) is None
    assert await ledger.claim(new_id(), "host:1") is None
    assert await ledger.delete(new_id()) is None
    assert await ledger.retry(new_id()) is None
    assert await ledger.request_renditions(unknown, Lane.DEMAND) is None
    assert await ledger.owe_leftovers(unknown, 1) is None


async def test_a_claim_begins_an_attempt_with_a_lease(ledger: Ledger) -> None:
    image, before = await queued(ledger), await ledger.now()

    attempt = await ledger.claim(image.id, "host:1")

    assert attempt is not None
    assert (attempt.status, attempt.attempt, attempt.worker) == (Status.PROCESSING, 1, "host:1")
    assert await is_due_in(ledger, LEASE_SECONDS, attempt, since=before)


@pytest.mark.parametrize(("arrange", "number"), [(queued, 1), (wanting_renditions, 2)])
async def test_of_many_claims_at_once_one_gets_the_image(ledger: Ledger, arrange: Arrange, number: int) -> None:
    image = await arrange(ledger)

    by_id = (ledger.claim(image.id, f"host:{i}") for i in range(8))
    claims = await asyncio.gather(*by_id, *(ledger.claim_next(f"host:{i}") for i in range(8, 16)))

    winners = [attempt for attempt in claims if attempt is not None]
    assert [winner.attempt for winner in winners] == [number]
    assert await ledger.get(image.id) == winners[0]


@pytest.mark.parametrize("arrange", [claimed, published, ready, failed, deleting, claimed_renditions])
async def test_only_work_that_waits_is_claimed(ledger: Ledger, arrange: Arrange) -> None:
    image = await arrange(ledger)

    assert await ledger.claim(image.id, "host:2") is None
    assert await ledger.claim_next("host:2") is None
    assert await ledger.get(image.id) == image


# The order of work


async def ids_in_order(ledger: Ledger) -> list[str]:
    """Return the ids of the images whose work waits, in the order of work."""
    return [image.id for image in await ledger.waiting(1000)]


async def test_work_waits_in_the_order_in_which_one_owner_has_queued_it(ledger: Ledger) -> None:
    images = [await queued(ledger) for _ in range(5)]

    assert await ids_in_order(ledger) == [image.id for image in images]


async def test_all_work_of_a_lane_comes_before_that_of_a_less_urgent_one(ledger: Ledger) -> None:
    finished = [await ready(ledger) for _ in Lane]
    asked = {lane: await ledger.request_renditions(finished[lane], lane) for lane in sorted(Lane, reverse=True)}
    upload = await queued(ledger)

    waiting = await ledger.waiting(100)

    assert None not in asked.values()
    assert [image.lane for image in waiting] == [Lane.UPLOAD, *sorted(Lane)]
    assert [image.id for image in waiting] == [finished[0].id, upload.id, *(image.id for image in finished[1:])]


async def test_the_first_work_in_order_is_claimed_next(ledger: Ledger) -> None:
    bulk = await wanting_renditions(ledger, Lane.BULK)
    demanded = await wanting_renditions(ledger, Lane.DEMAND)
    uploads = [await queued(ledger) for _ in range(3)]
    before = await ledger.now()

    claims = [await ledger.claim_next("host:1") for _ in range(6)]

    assert claims.pop() is None
    attempts = [attempt for attempt in claims if attempt is not None]
    assert [attempt.id for attempt in attempts] == [*(image.id for image in uploads), demanded.id, bulk.id]
    assert [attempt.attempt for attempt in attempts] == [1, 1, 1, 2, 2]
    assert {attempt.status for attempt in attempts[:3]} == {Status.PROCESSING}
    assert {attempt.status for attempt in attempts[3:]} == {Status.READY}
    assert [await latest(ledger, attempt) for attempt in attempts] == attempts
    assert all([await is_due_in(ledger, LEASE_SECONDS, attempt, since=before) for attempt in attempts])


async def test_owners_work_is_claimed_next_in_the_order_of_its_turns(ledger: Ledger) -> None:
    added = [await ledger.add(new_id(), ORIGINAL, None, owner=owner) for owner in ("many", "many", "many", "one")]

    claims = [await ledger.claim_next("host:1") for _ in added]

    by_turn = sorted(added, key=lambda image: image.turn or 0.0)
    assert by_turn != added
    assert [attempt and attempt.id for attempt in claims] == [image.id for image in by_turn]


async def test_workers_that_claim_at_once_get_each_work_once(ledger: Ledger, other_ledgers: list[Ledger]) -> None:
    images = [await queued(ledger) for _ in range(20)] + [await wanting_renditions(ledger) for _ in range(4)]

    async def claim_all(worker: Ledger, name: str) -> list[str]:
        claims = []
        while (attempt := await worker.claim_next(name)) is not None:
            claims.append(attempt.id)
        return claims

    workers = (ledger, *other_ledgers) * 2
    claims = await asyncio.gather(*(claim_all(worker, f"host:{i}") for i, worker in enumerate(workers)))

    assert sorted(itertools.chain(*claims)) == sorted(image.id for image in images)


async def test_work_is_claimed_next_only_once_it_is_due(ledger: Ledger) -> None:
    """What was handed back in trouble would come back at once, again and again."""
    first, second = [await queued(ledger) for _ in range(2)]
    await ledger.hand_back(await claimed(ledger, first), 2.0)

    assert await ids_in_order(ledger) == [second.id]
    claims = [await ledger.claim_next("host:1") for _ in range(2)]
    assert [attempt and attempt.id for attempt in claims] == [second.id, None]

    await let_pass(ledger, 2.1, first.id)
    again = await ledger.claim_next("host:1")
    assert again is not None
    assert (again.id, again.attempt) == (first.id, 2)


@pytest.mark.parametrize("end", ["hand_back", "count_failure", "count_loss", "take_lost"])
async def test_work_that_an_attempt_has_not_done_keeps_its_place(ledger: Ledger, end: str) -> None:
    images = [await queued(ledger) for _ in range(3)]
    attempt = await claimed(ledger, images[0])

    await ENDS[end](ledger, attempt)

    assert await ids_in_order(ledger) == [image.id for image in images]


async def take_lost(ledger: Ledger, attempt: Image) -> Image | None:
    await let_pass(ledger, LEASE_SECONDS + 1, attempt.id)
    [taken] = await ledger.take_lost()
    return taken


#: What ends an attempt whose work is to be done again.
ENDS: Mapping[str, Callable[[Ledger, Image], Awaitable[Image | None]]] = {
    "hand_back": lambda ledger, attempt: ledger.hand_back(attempt, 0.0),
    "count_failure": lambda ledger, attempt: ledger.count_failure(attempt),
    "count_loss": lambda ledger, attempt: ledger.count_loss(attempt),
    "take_lost": take_lost,
}


async def let_wait(ledger: Ledger, seconds: float) -> None:
    """Let all work have waited for so much longer."""
    for table in (schema.images, schema.owners):
        async with ledger._database._engine.begin() as connection:
            await connection.execute(update(table).values(turn=table.c.turn - seconds))


@pytest.mark.parametrize("seconds", [0, 3600])
async def test_owners_are_served_in_turn_however_long_their_work_waits(ledger: Ledger, seconds: float) -> None:
    """Promise 8: a hundred images of one owner do not put off the first ones of another."""
    many = [await added(ledger, "busy") for _ in range(100)]
    await let_wait(ledger, seconds)
    few = [await added(ledger, "other") for _ in range(3)]
    more = [await added(ledger, "busy") for _ in range(2)]

    order = await ids_in_order(ledger)

    assert [order.index(image.id) for image in few] == pytest.approx([1, 3, 5], abs=1)
    others = {image.id for image in few}
    assert [image_id for image_id in order if image_id not in others] == [image.id for image in (*many, *more)]


async def test_an_owner_of_large_images_has_fewer_turns(ledger: Ledger) -> None:
    """Turns are shares of the time that rendering is expected to take: 0.03 s, and 0.1 s per million bytes."""
    await queued(ledger)
    await let_wait(ledger, 3600)
    large = [await added(ledger, "large", LARGE) for _ in range(2)]
    small = [await added(ledger, "small") for _ in range(6)]

    order = await ids_in_order(ledger)

    costs = [(second.turn or 0) - (first.turn or 0) for first, second in itertools.pairwise((*large, *small))]
    assert costs == pytest.approx([0.1, -0.17, *[0.03] * 5], abs=0.001)
    expected = [*small[:3], large[0], *small[3:], large[1]]
    assert order[1:] == [image.id for image in expected]


async def test_an_owner_whose_work_is_done_begins_at_the_present_moment(ledger: Ledger) -> None:
    """Time in which an owner queued nothing is no credit: others would wait until it is used up."""
    before = await ledger.now()
    image = await queued(ledger)

    assert image.turn is not None
    assert before + 0.03 <= image.turn <= await ledger.now() + 0.04


async def test_a_renditions_turn_is_its_owners(ledger: Ledger) -> None:
    image = await ready(ledger)
    before = await queued(ledger)

    asked = await ledger.request_renditions(image, Lane.DEMAND)
    after = await queued(ledger)

    assert asked is not None
    assert before.turn is not None
    assert asked.turn is not None
    assert after.turn is not None
    assert before.turn < asked.turn < after.turn


async def test_a_request_that_queues_nothing_takes_no_turn(ledger: Ledger) -> None:
    """A missing rendition that is asked for a thousand times would put its owner behind all others."""
    waiting = await wanting_renditions(ledger)
    before = await all_rows(ledger)

    for _ in range(10):
        assert await ledger.request_renditions(waiting, Lane.DEMAND) is None
        assert await ledger.retry(waiting.id) is None

    assert await all_rows(ledger) == before


async def test_rendering_that_takes_longer_than_expected_puts_its_owners_next_work_off(ledger: Ledger) -> None:
    before = await ledger.now()
    attempt = await claimed(ledger, await added(ledger, "slow"))
    after = await ledger.now()
    await ledger.publish(attempt, SIZE, made_by(attempt), seconds=10.0)

    slow, other = await added(ledger, "slow"), await added(ledger, "other")

    assert slow.turn is not None
    assert before + 10 <= slow.turn <= after + 10.1
    assert await ids_in_order(ledger) == [other.id, slow.id]


async def test_rendering_that_takes_hardly_longer_than_expected_changes_no_turn(ledger: Ledger) -> None:
    """Most pictures take a little longer. A second update for each of them would only cost time."""
    attempt = await claimed(ledger, await added(ledger, "owner"))
    owners = (await all_rows(ledger))["owners"]

    await ledger.publish(attempt, SIZE, made_by(attempt), seconds=1.0)

    assert (await all_rows(ledger))["owners"] == owners


async def test_rendering_that_takes_less_than_expected_lets_no_work_overtake_what_its_owner_queued_before(
    ledger: Ledger,
) -> None:
    images = [await added(ledger, "owner", LARGE) for _ in range(6)]
    for image in images[:3]:
        attempt = await claimed(ledger, image)
        await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.0)

    later = await added(ledger, "owner", LARGE)

    assert await ids_in_order(ledger) == [image.id for image in (*images[3:], later)]


async def test_work_waits_or_not_in_a_lane_or_a_more_urgent_one(ledger: Ledger) -> None:
    assert [await ledger.is_waiting(lane) for lane in Lane] == [False] * 4

    await wanting_renditions(ledger, Lane.AHEAD)
    assert [await ledger.is_waiting(lane) for lane in Lane] == [False, False, True, True]

    image = await queued(ledger)
    assert [await ledger.is_waiting(lane) for lane in Lane] == [True] * 4

    await ledger.hand_back(await claimed(ledger, image), 2.0)
    assert [await ledger.is_waiting(lane) for lane in Lane] == [False, False, True, True]


async def test_waiting_work_is_listed_up_to_a_bound(ledger: Ledger) -> None:
    images = [await queued(ledger) for _ in range(3)] + [await wanting_renditions(ledger)]
    await claimed(ledger)
    await claimed_renditions(ledger)
    await failed(ledger)

    assert [image.id for image in await ledger.waiting(100)] == [image.id for image in images]
    assert [image.id for image in await ledger.waiting(2)] == [image.id for image in images[:2]]


# Owners


async def test_an_owners_images_and_bytes_are_counted_until_they_are_deleted(ledger: Ledger) -> None:
    small, large = await added(ledger, "owner"), await added(ledger, "owner", LARGE)
    assert await stored_by(ledger, "owner") == (2, 700_068)
    await queued(ledger)
    assert await stored_by(ledger) == (1, 68)

    for _ in range(2):
        await ledger.delete(large.id)
        assert await stored_by(ledger, "owner") == (1, 68)
    await ledger.fail(await claimed(ledger, small), "unreadable-image", "This is no picture.")
    await ledger.retry(small.id)
    await settled(ledger, await published(ledger, small))
    assert await stored_by(ledger, "owner") == (1, 68)
    await ledger.delete(small.id)
    assert await stored_by(ledger, "owner") == (0, 0)
    assert await stored_by(ledger) == (1, 68)


async def test_an_upload_that_is_certainly_absent_is_counted_for_nobody(ledger: Ledger) -> None:
    assert await ledger.get_certainly(new_id(), ORIGINAL) is None

    assert await stored_by(ledger) == (0, 0)


async def test_the_first_images_of_an_owner_may_come_at_once(ledger: Ledger, other_ledgers: list[Ledger]) -> None:
    ledgers = (ledger, *other_ledgers)

    images = await asyncio.gather(*(added(uploaded, "owner") for uploaded in ledgers * 2))

    assert len({image.turn for image in images}) == 8
    assert await stored_by(ledger, "owner") == (8, 8 * 68)


# What a conversion's attempt does


@pytest.mark.parametrize("arrange", [claimed, claimed_renditions])
async def test_a_renewed_lease_begins_anew(ledger: Ledger, arrange: Arrange) -> None:
    attempt = await arrange(ledger)
    await let_pass(ledger, LEASE_SECONDS - 1)
    before = await ledger.now()

    renewed = await ledger.renew(attempt)

    assert renewed is not None
    assert await is_due_in(ledger, LEASE_SECONDS, renewed, since=before)
    assert await ledger.take_lost() == []


@pytest.mark.parametrize("arrange", [claimed, claimed_renditions])
async def test_a_lease_may_be_renewed_and_published_late_while_nobody_has_taken_the_image(
    ledger: Ledger, arrange: Arrange
) -> None:
    attempt = await arrange(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    assert await ledger.renew(attempt) is not None
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1) is not None


async def test_publishing_makes_the_attempts_renditions_the_images(ledger: Ledger) -> None:
    attempt = await claimed(ledger)
    await alter(ledger, failures=1, losses=3)

    image = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)

    assert image is not None
    assert (image.status, image.work, image.lane, image.turn) == (Status.READY, None, None, None)
    assert (image.size, image.sequence, image.worker, image.due) == (SIZE, 1, None, None)
    assert list(image.renditions.values()) == made_by(attempt)
    assert (image.failures, image.losses) == (0, 0)
    assert image.has_published(1)
    assert [thumbnail.size for thumbnail in image.thumbnails] == [(320, 180), (160, 90)]
    assert await ledger.get(image.id) == image


async def test_handing_back_counts_nowhere(ledger: Ledger) -> None:
    attempt, before = await claimed(ledger), await ledger.now()

    image = await ledger.hand_back(attempt, 2.0)

    assert image is not None
    assert (image.status, image.work, image.attempt, image.worker) == (Status.QUEUED, Work.CONVERT, 1, None)
    assert (image.failures, image.losses, image.debts) == (0, 0, ())
    assert await is_due_in(ledger, 2, image, since=before)


async def test_a_failure_is_final_and_has_its_reason(ledger: Ledger) -> None:
    image = await ledger.fail(await claimed(ledger), "unreadable-image", "This is no picture.")

    assert image is not None
    assert (image.status, image.work, image.turn, image.due) == (Status.FAILED, None, None, None)
    assert (image.worker, kinds(image)) == (None, [LEFTOVERS, NOTICE, TOKENS])
    assert (image.error_type, image.error_detail) == ("unreadable-image", "This is no picture.")


async def test_a_counted_failure_queues_the_image_again(ledger: Ledger) -> None:
    image = await ledger.count_failure(await claimed(ledger))

    assert image is not None
    assert (image.status, image.failures, image.losses, image.worker) == (Status.QUEUED, 1, 0, None)
    assert await ids_in_order(ledger) == [image.id]


async def test_a_counted_loss_queues_the_image_again(ledger: Ledger) -> None:
    image = await ledger.count_loss(await claimed(ledger))

    assert image is not None
    assert (image.status, image.failures, image.losses, image.worker) == (Status.QUEUED, 0, 1, None)
    assert await ids_in_order(ledger) == [image.id]


async def test_the_twentieth_loss_fails_the_image_and_says_that_it_was_ours(ledger: Ledger) -> None:
    image = await queued(ledger)
    for _ in range(MOST_LOSSES - 1):
        lost = await ledger.count_loss(await claimed(ledger, image))
        assert lost is not None
        assert lost.status is Status.QUEUED

    last = await ledger.count_loss(await claimed(ledger, image))

    assert last is not None
    assert (MOST_LOSSES, last.losses, last.attempt) == (20, 20, 20)
    assert (last.status, last.error_type) == (Status.FAILED, "worker-lost")
    assert kinds(last) == [LEFTOVERS, NOTICE, TOKENS]
    assert last.error_detail is not None
    assert "by no fault of the file" in last.error_detail


# How an attempt loses its image


async def lose_the_lease(ledger: Ledger, attempt: Image) -> None:
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert len(await ledger.take_lost()) == 1


async def lose_to_a_later_attempt(ledger: Ledger, attempt: Image) -> None:
    await lose_the_lease(ledger, attempt)
    await claimed(ledger, attempt, worker="host:2")


async def lose_to_who_claims_next(ledger: Ledger, attempt: Image) -> None:
    await lose_the_lease(ledger, attempt)
    assert await ledger.claim_next("host:2") is not None


async def lose_to_a_later_publication(ledger: Ledger, attempt: Image) -> None:
    await lose_the_lease(ledger, attempt)
    await published(ledger, attempt)


async def lose_to_delete(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.delete(attempt.id) is not None


async def lose_to_the_end(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.delete(attempt.id) is not None
    await let_pass(ledger, DELETED_SECONDS + 1)
    deleted = await latest(ledger, attempt)
    await ledger.paid(deleted.owes(TOKENS, NOTICE))
    await ledger.remove(deleted)
    assert await ledger.get(attempt.id) is None


async def lose_by_own_publication(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1) is not None


async def lose_by_own_failure(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.fail(attempt, "unreadable-image", "This is no picture.") is not None


async def lose_by_own_loss(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.count_loss(attempt) is not None


async def lose_to_retry(ledger: Ledger, attempt: Image) -> None:
    await lose_by_own_failure(ledger, attempt)
    assert await ledger.retry(attempt.id) is not None


async def lose_to_an_attempt_after_a_retry(ledger: Ledger, attempt: Image) -> None:
    await lose_to_retry(ledger, attempt)
    await claimed(ledger, attempt)


async def lose_by_handing_back(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.hand_back(attempt, 0.0) is not None


async def lose_by_giving_up(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.give_up(attempt) is not None


async def lose_to_an_attempt_after_the_pause(ledger: Ledger, attempt: Image) -> None:
    await lose_by_giving_up(ledger, attempt)
    await let_pass(ledger, PAUSE_SECONDS + 1)
    assert await ledger.request_renditions(await latest(ledger, attempt), Lane.DEMAND) is not None
    await claimed(ledger, attempt)


async def lose_to_leftovers_of_later_attempts(ledger: Ledger, attempt: Image) -> None:
    await lose_by_giving_up(ledger, attempt)
    assert await ledger.owe_leftovers(await latest(ledger, attempt), 7) is not None


TRANSITIONS: dict[str, Transition] = {
    "renew": lambda ledger, attempt: ledger.renew(attempt),
    "publish": lambda ledger, attempt: ledger.publish(attempt, (8, 8), made_by(attempt)[:1], seconds=100.0),
    "hand_back": lambda ledger, attempt: ledger.hand_back(attempt, 0.0),
    "fail": lambda ledger, attempt: ledger.fail(attempt, "render-timed-out", "Too long."),
    "count_failure": lambda ledger, attempt: ledger.count_failure(attempt),
    "count_loss": lambda ledger, attempt: ledger.count_loss(attempt),
    "last_loss": lambda ledger, attempt: ledger.count_loss(replace(attempt, losses=MOST_LOSSES - 1)),
    "give_up": lambda ledger, attempt: ledger.give_up(attempt),
}
ANY_WORK: list[Transition] = [
    lose_the_lease,
    lose_to_a_later_attempt,
    lose_to_who_claims_next,
    lose_to_a_later_publication,
    lose_to_delete,
    lose_to_the_end,
    lose_by_own_publication,
    lose_by_own_loss,
    lose_by_handing_back,
]
A_CONVERSION: list[Transition] = [lose_by_own_failure, lose_to_retry, lose_to_an_attempt_after_a_retry]
RENDITIONS_WORK: list[Transition] = [
    lose_by_giving_up,
    lose_to_an_attempt_after_the_pause,
    lose_to_leftovers_of_later_attempts,
]


@pytest.mark.parametrize(
    ("arrange", "rival"),
    [
        *((claimed, rival) for rival in (*ANY_WORK, *A_CONVERSION)),
        *((claimed_renditions, rival) for rival in (*ANY_WORK, *RENDITIONS_WORK)),
    ],
)
async def test_an_attempt_that_lost_its_image_changes_nothing(
    ledger: Ledger, arrange: Arrange, rival: Transition
) -> None:
    """Promise 4: a late attempt can neither overwrite nor publish anything, nor owe anything for it."""
    attempt = await arrange(ledger)
    await rival(ledger, attempt)
    before = await all_rows(ledger)

    outcomes = {name: await transition(ledger, attempt) for name, transition in TRANSITIONS.items()}

    assert outcomes == dict.fromkeys(TRANSITIONS)
    assert await all_rows(ledger) == before


async def test_an_attempts_number_only_rises(ledger: Ledger) -> None:
    """The number is the fence: one that came twice would let a late attempt publish."""
    attempt = await claimed(ledger)
    seen = [attempt.attempt]
    for end in ENDS.values():
        assert await end(ledger, attempt) is not None
        attempt = await claimed(ledger, attempt)
        seen.append(attempt.attempt)
    await ledger.fail(attempt, "unreadable-image", "This is no picture.")
    await ledger.retry(attempt.id)
    attempt = await claimed(ledger, attempt)
    seen.append(attempt.attempt)
    image = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)
    assert image is not None
    await ledger.request_renditions(image, Lane.DEMAND)
    attempt = await claimed(ledger, image)
    seen.append(attempt.attempt)
    for end in ENDS.values():
        assert await end(ledger, attempt) is not None
        attempt = await claimed(ledger, attempt)
        seen.append(attempt.attempt)

    assert seen == list(range(1, 12))


# The list


async def test_images_are_listed_in_the_order_of_their_publication(ledger: Ledger) -> None:
    first, second, third = [await claimed(ledger) for _ in range(3)]
    for attempt in (second, third, first):
        await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)

    rows = await ledger.list_ready(None, 10, newest_first=False)

    assert [(row.id, row.sequence) for row in rows] == [(second.id, 1), (third.id, 2), (first.id, 3)]


async def test_pages_begin_behind_a_sequence_or_an_id_that_need_not_exist(ledger: Ledger) -> None:
    rows = [await published(ledger) for _ in range(4)]
    waiting = [await queued(ledger) for _ in range(3)]
    await ledger.delete(rows[1].id)

    assert [row.sequence for row in await ledger.list_ready(2, 10, newest_first=False)] == [3, 4]
    assert [row.sequence for row in await ledger.list_ready(4, 10, newest_first=True)] == [3, 1]
    assert [row.sequence for row in await ledger.list_ready(None, 2, newest_first=True)] == [4, 3]
    behind = await ledger.list_with_status(Status.QUEUED, waiting[0].id, 1, newest_first=False)
    assert [row.id for row in behind] == [waiting[1].id]
    before = await ledger.list_with_status(Status.QUEUED, waiting[2].id, 10, newest_first=True)
    assert [row.id for row in before] == [waiting[1].id, waiting[0].id]


async def test_each_image_of_a_list_is_as_it_is_read_alone_but_for_its_debts(ledger: Ledger) -> None:
    for arrange in (published, ready, claimed_renditions, wanting_renditions, published_again):
        await arrange(ledger)

    rows = await ledger.list_ready(None, 10, newest_first=False)

    assert len(rows) == 5
    assert [replace(await latest(ledger, row), debts=()) for row in rows] == rows
    assert [await ledger.get(row.id) for row in await ledger.list_all(None, 10)] == await ledger.list_all(None, 10)


async def test_a_client_that_reads_on_from_the_last_image_misses_none_that_is_published_meanwhile(
    ledger: Ledger, other_ledgers: list[Ledger]
) -> None:
    """Commit order is list order: a later commit never appears in front of what a client has read."""
    attempts = [await claimed(ledger) for _ in range(24)]
    seen: list[int] = []

    async def publish_every_third(publisher: int) -> None:
        for attempt in attempts[publisher::3]:
            await other_ledgers[publisher].publish(attempt, SIZE, made_by(attempt), seconds=0.1)

    async def read_on() -> None:
        while len(seen) < len(attempts):
            rows = await ledger.list_ready(seen[-1] if seen else None, 100, newest_first=False)
            seen.extend(row.sequence for row in rows if row.sequence is not None)

    async with asyncio.timeout(30):
        await asyncio.gather(read_on(), *(publish_every_third(publisher) for publisher in range(3)))

    assert seen == list(range(1, 25))


async def test_a_publication_that_lost_takes_no_place_in_the_list(ledger: Ledger) -> None:
    attempt = await claimed(ledger)
    await lose_to_delete(ledger, attempt)
    await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)

    assert (await published(ledger)).sequence == 1


async def test_queued_images_are_counted_up_to_a_bound(ledger: Ledger) -> None:
    for _ in range(3):
        await queued(ledger)
    await claimed(ledger)
    await wanting_renditions(ledger)

    assert await ledger.count_queued(100) == 3
    assert await ledger.count_queued(2) == 2


async def test_figures_tell_what_is_queued_and_processed_and_for_how_long_the_oldest_waits(ledger: Ledger) -> None:
    nothing = await ledger.figures()
    oldest, *_ = [await queued(ledger) for _ in range(3)]
    await let_pass(ledger, 5000, oldest.id)
    await claimed(ledger)
    await claimed_renditions(ledger)

    figures = await ledger.figures()

    assert (nothing.queued, nothing.processing, nothing.seconds) == (0, 0, 0)
    assert (figures.queued, figures.processing) == (3, 1)
    assert figures.seconds == pytest.approx(5000, abs=500)


# More renditions of a ready image


async def test_renditions_asked_for_wait_while_the_image_stays_ready(ledger: Ledger) -> None:
    before = await ready(ledger)

    image = await ledger.request_renditions(before, Lane.DEMAND, ["image.webp", "320x180.webp"])

    assert image is not None
    assert (image.status, image.work, image.lane) == (Status.READY, Work.RENDITIONS, Lane.DEMAND)
    assert image.wanted == ("image.webp", "320x180.webp")
    assert (image.worker, image.attempt, image.debts) == (None, before.attempt, ())
    assert (image.renditions, image.modified) == (before.renditions, before.modified)
    assert await ids_in_order(ledger) == [image.id]
    assert await ledger.get(image.id) == image


async def test_without_names_the_jpeg_and_its_ladder_are_asked_for(ledger: Ledger) -> None:
    image = await ledger.request_renditions(await ready(ledger), Lane.BULK)

    assert image is not None
    assert (image.lane, image.wanted) == (Lane.BULK, None)


@pytest.mark.parametrize("arrange", [queued, claimed, failed, deleting, wanting_renditions, claimed_renditions])
async def test_renditions_are_asked_for_once_and_of_a_ready_image(ledger: Ledger, arrange: Arrange) -> None:
    image = await arrange(ledger)
    before = await all_rows(ledger)

    assert await ledger.request_renditions(image, Lane.DEMAND) is None
    assert await all_rows(ledger) == before


@pytest.mark.parametrize(
    ("waits_for", "asked_for", "made"),
    [
        (None, None, None),
        (["image.webp"], ["320x180.webp", "image.webp"], ("320x180.webp", "image.webp")),
        (["image.webp"], None, None),
        (None, ["image.webp"], None),
    ],
)
async def test_renditions_that_wait_in_a_later_lane_are_made_in_the_lane_that_they_are_asked_for_in(
    ledger: Ledger, waits_for: list[str] | None, asked_for: list[str] | None, made: tuple[str, ...] | None
) -> None:
    """A reader would wait behind all uploads for what the doctor has asked for."""
    image = await ledger.request_renditions(await ready(ledger), Lane.BULK, waits_for)
    assert image is not None
    upload = await queued(ledger)

    urgent = await ledger.request_renditions(image, Lane.DEMAND, asked_for)

    assert urgent is not None
    assert (urgent.work, urgent.lane, urgent.wanted, urgent.attempt) == (Work.RENDITIONS, Lane.DEMAND, made, 1)
    assert (urgent.turn or 0.0) > (upload.turn or 0.0)
    assert await latest(ledger, image) == urgent
    assert await ids_in_order(ledger) == [upload.id, image.id]


async def test_renditions_that_move_to_an_earlier_lane_keep_the_count_of_their_losses(ledger: Ledger) -> None:
    """What a lost attempt has left is owed with the publication."""
    lost = await ledger.count_loss(await claimed_renditions(ledger, await wanting_renditions(ledger, Lane.BULK)))
    assert lost is not None

    urgent = await ledger.request_renditions(lost, Lane.DEMAND)

    assert urgent is not None
    assert (urgent.lane, urgent.losses) == (Lane.DEMAND, 1)


@pytest.mark.parametrize("lane", Lane)
async def test_renditions_that_are_asked_for_again_in_the_same_lane_keep_their_turn(ledger: Ledger, lane: Lane) -> None:
    image = await wanting_renditions(ledger, lane)
    before = await all_rows(ledger)

    for later in list(Lane)[lane:]:
        assert await ledger.request_renditions(image, later, ["image.webp"]) is None

    assert await all_rows(ledger) == before


async def begun(ledger: Ledger, image: Image) -> None:
    await claimed(ledger, image)


async def begun_and_handed_back(ledger: Ledger, image: Image) -> None:
    await ledger.hand_back(await claimed(ledger, image), 0.0)


async def made(ledger: Ledger, image: Image) -> None:
    await published(ledger, image)


async def moved_to_another_lane(ledger: Ledger, image: Image) -> None:
    assert await ledger.request_renditions(image, Lane.AHEAD, ["320x180.webp"]) is not None


@pytest.mark.parametrize("meanwhile", [begun, begun_and_handed_back, made, moved_to_another_lane])
async def test_renditions_move_to_an_earlier_lane_only_as_they_were_read(
    ledger: Ledger, meanwhile: Callable[[Ledger, Image], Awaitable[None]]
) -> None:
    image = await ledger.request_renditions(await ready(ledger), Lane.BULK, ["image.webp"])
    assert image is not None
    await meanwhile(ledger, image)
    before = await all_rows(ledger)

    assert await ledger.request_renditions(image, Lane.DEMAND, ["image.webp"]) is None
    assert await all_rows(ledger) == before


async def test_renditions_are_asked_for_at_once_by_many_and_queued_once(
    ledger: Ledger, other_ledgers: list[Ledger]
) -> None:
    image = await ready(ledger)

    asked = await asyncio.gather(*(other.request_renditions(image, Lane.DEMAND) for other in other_ledgers * 3))

    assert [found.id for found in asked if found is not None] == [image.id]


async def test_renditions_are_asked_for_of_an_image_that_owes_something(ledger: Ledger) -> None:
    image = await published_again(ledger)

    assert await ledger.request_renditions(image, Lane.DEMAND) is not None

    wanted = await latest(ledger, image)
    assert wanted.debts == image.debts
    attempt = await claimed(ledger, wanted)
    assert (await latest(ledger, attempt)).debts == image.debts
    assert await ledger.publish(attempt, SIZE, [], seconds=0.1) is not None
    assert (await latest(ledger, attempt)).debts == image.debts


async def test_renditions_that_another_attempt_has_made_meanwhile_are_not_asked_for(ledger: Ledger) -> None:
    """A reader that missed a file, and was slow to say so, would have it made once more."""
    before = await ready(ledger)
    attempt = await claimed_renditions(ledger, await ledger.request_renditions(before, Lane.DEMAND))
    meanwhile = await latest(ledger, attempt)
    after = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)
    assert after is not None

    assert await ledger.request_renditions(before, Lane.DEMAND) is None
    assert await ledger.request_renditions(meanwhile, Lane.DEMAND) is None
    assert await ledger.request_renditions(after, Lane.DEMAND) is not None


async def test_claimed_renditions_leave_the_image_ready_and_served(ledger: Ledger) -> None:
    wanted, before = await wanting_renditions(ledger), await ledger.now()

    attempt = await ledger.claim(wanted.id, "host:1")

    assert attempt is not None
    assert (attempt.status, attempt.work, attempt.attempt) == (Status.READY, Work.RENDITIONS, 2)
    assert (attempt.worker, attempt.modified) == ("host:1", wanted.modified)
    assert (attempt.renditions, attempt.sequence) == (wanted.renditions, wanted.sequence)
    assert await is_due_in(ledger, LEASE_SECONDS, attempt, since=before)


def new_renditions(attempt: Image) -> list[Rendition]:
    """Return renditions that no image of these tests has."""
    files = {"image.jpeg": "image.webp", "320x180.jpeg": "320x180.webp", "160x90.jpeg": "160x90.webp"}
    return [replace(rendition, file=files[rendition.file]) for rendition in made_by(attempt)]


async def test_publishing_adds_renditions_and_changes_nothing_that_is_told_of_the_image(ledger: Ledger) -> None:
    before = await wanting_renditions(ledger)
    await published(ledger)
    attempt = await claimed_renditions(ledger, before)

    image = await ledger.publish(attempt, SIZE, new_renditions(attempt), seconds=0.1)

    assert image is not None
    assert image.renditions == {**before.renditions, **{made.file: made for made in new_renditions(attempt)}}
    assert {rendition.attempt for rendition in image.renditions.values()} == {1, 2}
    assert (image.sequence, image.created, image.modified) == (before.sequence, before.created, before.modified)
    assert (image.status, image.work, image.wanted, image.turn) == (Status.READY, None, None, None)
    assert (image.due, image.worker, image.debts) == (None, None, ())
    assert await ledger.get(image.id) == image


async def test_publishing_replaces_renditions_of_the_same_name_and_owes_what_they_leave(ledger: Ledger) -> None:
    attempt = await claimed_renditions(ledger)
    remade = made_by(attempt)[1]

    image = await ledger.publish(attempt, SIZE, [remade, *new_renditions(attempt)], seconds=0.1)

    assert image is not None
    assert image.renditions[remade.file] == remade
    assert image.renditions[FULL] == attempt.renditions[FULL]
    assert sorted(image.renditions) == sorted({*attempt.renditions, "image.webp", "320x180.webp", "160x90.webp"})
    assert kinds(image) == [LEFTOVERS, NOTICE, TOKENS]
    assert (image.sequence, image.modified) == (attempt.sequence, attempt.modified)


async def test_publishing_adds_a_thumbnail_and_tells_since_the_record_names_it(ledger: Ledger) -> None:
    attempt = await claimed_renditions(ledger)
    smaller = replace(made_by(attempt)[2], file="80x45.jpeg", size=(80, 45))

    image = await ledger.publish(attempt, SIZE, [smaller], seconds=0.1)

    assert image is not None
    assert kinds(image) == [NOTICE, TOKENS]


@pytest.mark.parametrize("end", ENDS)
async def test_renditions_added_after_an_attempt_that_was_lost_owe_the_files_of_that_one(
    ledger: Ledger, end: str
) -> None:
    await ENDS[end](ledger, await claimed_renditions(ledger))
    [waiting] = await ledger.waiting(10)
    attempt = await claimed(ledger, waiting)

    await ledger.publish(attempt, SIZE, new_renditions(attempt), seconds=0.1)

    assert kinds(await latest(ledger, attempt)) == [LEFTOVERS]


@pytest.mark.parametrize("end", ENDS)
async def test_renditions_that_an_attempt_has_not_made_wait_again_while_the_image_stays_ready(
    ledger: Ledger, end: str
) -> None:
    wanted = await ledger.request_renditions(await ready(ledger), Lane.AHEAD, ["image.webp"])
    attempt = await claimed_renditions(ledger, wanted)

    image = await ENDS[end](ledger, attempt)

    assert image is not None
    assert (image.status, image.work, image.lane) == (Status.READY, Work.RENDITIONS, Lane.AHEAD)
    assert (image.wanted, image.turn, image.worker) == (("image.webp",), attempt.turn, None)
    assert image.renditions == attempt.renditions
    assert (image.losses, image.failures) == (int("los" in end), int(end == "count_failure"))
    assert await ids_in_order(ledger) == [image.id]


async def test_renditions_given_up_are_not_asked_for_again_for_a_minute(ledger: Ledger) -> None:
    attempt = await claimed_renditions(ledger)

    image = await ledger.give_up(attempt)

    assert image is not None
    assert (image.status, image.work, image.renditions) == (Status.READY, None, attempt.renditions)
    assert (image.turn, image.wanted, image.due, kinds(image)) == (None, None, None, [LEFTOVERS])
    await settled(ledger, image)
    await let_pass(ledger, PAUSE_SECONDS - 30)
    assert await ledger.request_renditions(image, Lane.DEMAND) is None
    await let_pass(ledger, 30)
    assert await ledger.request_renditions(image, Lane.DEMAND) is not None


async def test_a_publication_ends_the_pause(ledger: Ledger) -> None:
    """The pause is for renditions that fail, and these did not."""
    image = await ledger.give_up(await claimed_renditions(ledger))
    assert image is not None
    await let_pass(ledger, PAUSE_SECONDS + 1)
    await ledger.request_renditions(image, Lane.DEMAND)
    attempt = await claimed(ledger, image)

    ready_again = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)

    assert ready_again is not None
    assert ready_again.paused_until is None
    assert await ledger.request_renditions(ready_again, Lane.DEMAND) is not None


async def test_the_twentieth_loss_gives_renditions_up_and_the_next_request_has_twenty_more(ledger: Ledger) -> None:
    attempt = await claimed_renditions(ledger)
    for _ in range(MOST_LOSSES - 1):
        assert await ledger.count_loss(attempt) is not None
        attempt = await claimed(ledger, attempt)

    image = await ledger.count_loss(attempt)

    assert image is not None
    assert (image.status, image.work, image.losses, image.error_type) == (Status.READY, None, 0, None)
    assert (image.renditions, kinds(image)) == (attempt.renditions, [LEFTOVERS])
    assert await ledger.request_renditions(image, Lane.DEMAND) is None
    await let_pass(ledger, PAUSE_SECONDS + 1)
    again = await ledger.request_renditions(image, Lane.DEMAND)
    assert again is not None
    assert (again.losses, again.failures) == (0, 0)


async def test_renditions_given_up_by_the_sweep_are_not_published_by_an_attempt_that_was_only_frozen(
    ledger: Ledger,
) -> None:
    """The folder of that attempt has gone as a leftover: published, its files would be missing."""
    await alter(ledger, (await wanting_renditions(ledger)).id, losses=MOST_LOSSES - 1)
    [wanted] = await ledger.list_ready(None, 1, newest_first=False)
    frozen = await claimed_renditions(ledger, wanted)
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert [image.work for image in await ledger.take_lost()] == [None]
    await ledger.paid((await latest(ledger, frozen)).debts)
    await let_pass(ledger, PAUSE_SECONDS + 1)
    assert await ledger.request_renditions(await latest(ledger, frozen), Lane.DEMAND) is not None

    published_late = await ledger.publish(frozen, SIZE, made_by(frozen), seconds=0.1)

    assert published_late is None
    assert (await latest(ledger, frozen)).renditions == wanted.renditions


@pytest.mark.parametrize("arrange", [queued, claimed, failed])
async def test_only_renditions_are_given_up(ledger: Ledger, arrange: Arrange) -> None:
    """A conversion that nobody wants to try again fails, with a reason."""
    image = await arrange(ledger)
    before = await all_rows(ledger)

    assert await ledger.give_up(image) is None
    assert await all_rows(ledger) == before


async def test_an_attempt_at_renditions_does_not_fail_the_image(ledger: Ledger) -> None:
    """What is ready stays ready."""
    attempt = await claimed_renditions(ledger)
    before = await all_rows(ledger)

    assert await ledger.fail(attempt, "render-timed-out", "Too long.") is None
    assert await all_rows(ledger) == before


# Deleting and retrying

ANY_STATUS = [queued, claimed, published, ready, failed, wanting_renditions, claimed_renditions]


@pytest.mark.parametrize("arrange", ANY_STATUS)
async def test_delete_wins_whatever_the_status(ledger: Ledger, arrange: Arrange) -> None:
    image = await arrange(ledger)

    deleted = await ledger.delete(image.id)

    assert deleted is not None
    assert (deleted.status, deleted.work, deleted.lane, deleted.turn) == (Status.DELETING, None, None, None)
    assert (deleted.worker, deleted.due, kinds(deleted)) == (None, None, [LEFTOVERS, NOTICE, TOKENS])
    before = await all_rows(ledger)
    assert await ledger.claim(image.id, "host:2") is None
    assert await ledger.claim_next("host:2") is None
    assert await ledger.retry(image.id) is None
    assert await ledger.request_renditions(deleted, Lane.DEMAND) is None
    assert await ledger.owe_leftovers(deleted, 9) is None
    assert await ledger.delete(image.id) is None
    assert await all_rows(ledger) == before


@pytest.mark.parametrize("arrange", ANY_STATUS)
async def test_nothing_is_left_of_a_deleted_image_but_its_debts(ledger: Ledger, arrange: Arrange) -> None:
    image = await arrange(ledger)
    await ledger.delete(image.id)
    await let_pass(ledger, 1000)

    assert await ledger.take_lost() == []
    assert await ledger.waiting(300) == []
    for kind in DebtKind:
        assert [taken.id for taken in await ledger.take_debts(kind)] == [image.id]


@pytest.mark.parametrize("arrange", ANY_STATUS)
async def test_only_the_image_that_is_meant_is_deleted(ledger: Ledger, arrange: Arrange) -> None:
    meant = await arrange(ledger)
    await let_pass(ledger, 1, meant.id)  # `modified` is another one now
    before = await all_rows(ledger)

    assert await ledger.delete(meant.id, meant) is None
    assert await all_rows(ledger) == before
    assert await ledger.delete(meant.id, await latest(ledger, meant)) is not None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            lambda ledger, image: ledger.delete(image.id),
            lambda ledger, image: ledger.publish(image, SIZE, made_by(image), seconds=0.1),
        ),
        (
            lambda ledger, image: ledger.publish(image, SIZE, made_by(image), seconds=0.1),
            lambda ledger, image: ledger.delete(image.id),
        ),
    ],
    ids=["delete first", "publish first"],
)
async def test_delete_and_publish_at_once_leave_the_image_deleting(
    ledger: Ledger, first: Transition, second: Transition
) -> None:
    attempt = await claimed(ledger)

    await asyncio.gather(first(ledger, attempt), second(ledger, attempt))

    assert (await latest(ledger, attempt)).status is Status.DELETING
    assert await stored_by(ledger) == (0, 0)


async def test_a_retry_queues_a_failed_image_and_resets_what_was_counted(ledger: Ledger) -> None:
    image = await failed(ledger)
    await alter(ledger, failures=2, losses=7)
    earlier = await queued(ledger)

    again = await ledger.retry(image.id)

    assert again is not None
    assert (again.status, again.work, again.lane) == (Status.QUEUED, Work.CONVERT, Lane.UPLOAD)
    assert (again.attempt, again.failures, again.losses) == (image.attempt, 0, 0)
    assert (again.error_type, again.error_detail, again.debts) == (None, None, ())
    assert await ids_in_order(ledger) == [earlier.id, again.id]


@pytest.mark.parametrize("arrange", [queued, claimed, published, ready, wanting_renditions, claimed_renditions])
async def test_only_a_failed_image_is_retried(ledger: Ledger, arrange: Arrange) -> None:
    image = await arrange(ledger)
    before = await all_rows(ledger)

    assert await ledger.retry(image.id) is None
    assert await all_rows(ledger) == before


async def test_of_many_retries_at_once_one_queues_the_image(ledger: Ledger, other_ledgers: list[Ledger]) -> None:
    image = await failed(ledger)

    retried = await asyncio.gather(*(other.retry(image.id) for other in other_ledgers * 2))

    assert [again.id for again in retried if again is not None] == [image.id]


# Debts


async def test_a_publication_owes_tokens_and_a_notice(ledger: Ledger) -> None:
    assert kinds(await published(ledger)) == [NOTICE, TOKENS]


async def test_a_publication_after_an_earlier_attempt_owes_what_that_one_left(ledger: Ledger) -> None:
    assert kinds(await published_again(ledger)) == [LEFTOVERS, NOTICE, TOKENS]


async def test_a_publication_owes_the_original_where_originals_are_not_kept(settings: Settings) -> None:
    ledger = Ledger.connect(replace(settings, keep_originals=False))

    image = await published(ledger)

    assert kinds(image) == [LEFTOVERS, NOTICE, TOKENS]
    await ledger.close()


async def test_debts_are_paid_alone_in_any_order_and_any_number_of_times(ledger: Ledger) -> None:
    image = await published_again(ledger)

    for left, kind in (([NOTICE, TOKENS], LEFTOVERS), ([TOKENS], NOTICE), ([], TOKENS)):
        for _ in range(2):
            await ledger.paid(image.owes(kind))
            assert kinds(await latest(ledger, image)) == left
    await ledger.paid([])
    await ledger.paid(image.debts)

    assert (await latest(ledger, image)).debts == ()


async def test_who_pays_for_an_earlier_commit_does_not_pay_for_a_later_one(ledger: Ledger) -> None:
    image = await published_again(ledger)
    deleted = await ledger.delete(image.id)
    assert deleted is not None

    await ledger.paid(image.debts)

    row = await latest(ledger, image)
    assert row == deleted
    assert await ledger.owing_tokens() == [deleted]


async def test_the_number_of_a_debt_is_never_used_again(ledger: Ledger) -> None:
    """A slow payer would pay for a later commit, of which nobody would be told."""
    former = [await published(ledger) for _ in range(3)]
    for image in former:
        await settled(ledger, image)

    later = await published(ledger)
    await ledger.paid([debt for image in former for debt in image.debts])

    assert min(debt.id for debt in later.debts) > max(debt.id for image in former for debt in image.debts)
    assert (await latest(ledger, later)).debts == later.debts


async def test_images_that_owe_tokens_are_told_with_all_that_they_owe(ledger: Ledger) -> None:
    """Readers pay them before they answer from a list, due or not."""
    owing = [await published(ledger), await published_again(ledger)]
    await ready(ledger)
    paid = await published(ledger)
    await ledger.paid(paid.owes(TOKENS))

    found = await ledger.owing_tokens()

    assert sorted(found, key=lambda image: image.id) == owing


async def test_a_deleted_images_row_stays_for_a_minute_and_is_due_at_its_end(ledger: Ledger) -> None:
    """What a late attempt wrote after the first look at its folders is found by the second."""
    deleted = await deleting(ledger)

    row = await settled(ledger, deleted)

    assert (row.status, kinds(row)) == (Status.DELETING, [LEFTOVERS])
    await let_pass(ledger, DELETED_SECONDS - 30)
    assert await ledger.take_debts(LEFTOVERS) == []
    await let_pass(ledger, 30)
    [taken] = await ledger.take_debts(LEFTOVERS)
    await ledger.remove(taken)
    assert await ledger.get(row.id) is None
    assert (await all_rows(ledger))["debts"] == []


@pytest.mark.parametrize("kind", [TOKENS, NOTICE])
async def test_a_deleted_images_row_stays_while_it_owes_anything_else(ledger: Ledger, kind: DebtKind) -> None:
    """Nobody would be told of the DELETE, or copies of the image would be served until they expire."""
    deleted = await deleting(ledger)
    await ledger.paid([debt for debt in deleted.debts if debt.kind not in (kind, LEFTOVERS)])
    await let_pass(ledger, DELETED_SECONDS + 1)
    row = await latest(ledger, deleted)

    await ledger.remove(row)

    assert kinds(await latest(ledger, row)) == sorted([kind, LEFTOVERS])
    assert await ledger.take_debts(LEFTOVERS) == []
    await ledger.paid(row.owes(kind))
    await let_pass(ledger, 11)
    [taken] = await ledger.take_debts(LEFTOVERS)
    await ledger.remove(taken)
    assert await ledger.get(row.id) is None


async def test_only_a_deleted_images_row_is_removed(ledger: Ledger) -> None:
    image = await published_again(ledger)
    await let_pass(ledger, DELETED_SECONDS + 1)
    image = await latest(ledger, image)
    await ledger.paid(image.owes(TOKENS, NOTICE))

    await ledger.remove(image)

    assert await latest(ledger, image) == replace(image, debts=tuple(image.owes(LEFTOVERS)))


@pytest.mark.parametrize("arrange", [ready, failed, published])
async def test_a_final_image_may_owe_folders_past_its_attempt_and_no_attempt_writes_to_them_again(
    ledger: Ledger, arrange: Arrange
) -> None:
    """A ledger that is older than its storage does not know of them, and would number its next attempt like them."""
    image = await arrange(ledger)

    owing = await ledger.owe_leftovers(image, 7)

    assert owing is not None
    assert (owing.status, owing.renditions, owing.attempt) == (image.status, image.renditions, 7)
    assert kinds(owing) == [LEFTOVERS]
    assert kinds(await latest(ledger, image)) == sorted([*kinds(image), LEFTOVERS])
    lower = await ledger.owe_leftovers(await latest(ledger, image), 3)
    assert lower is not None
    assert lower.attempt == 7


@pytest.mark.parametrize("arrange", [queued, claimed, deleting, wanting_renditions, claimed_renditions])
async def test_an_image_that_is_at_work_is_not_made_to_owe_leftovers(ledger: Ledger, arrange: Arrange) -> None:
    image = await arrange(ledger)
    before = await all_rows(ledger)

    assert await ledger.owe_leftovers(image, 7) is None
    assert await all_rows(ledger) == before


async def test_an_image_that_has_moved_on_is_not_made_to_owe_leftovers_of_an_earlier_state(ledger: Ledger) -> None:
    image = await ready(ledger)
    attempt = await claimed_renditions(ledger, await ledger.request_renditions(image, Lane.DEMAND))
    await ledger.publish(attempt, SIZE, new_renditions(attempt), seconds=0.1)
    before = await all_rows(ledger)

    assert await ledger.owe_leftovers(image, 1) is None
    assert await all_rows(ledger) == before


# What the sweep takes

Take = Callable[[Ledger], Awaitable[list[Image]]]

#: What is taken, of which image, and the seconds after which it is due.
TAKES: dict[str, tuple[Arrange, Take, float]] = {
    "tokens": (published_again, lambda ledger: ledger.take_debts(TOKENS), SETTLE_SECONDS),
    "notices": (published_again, lambda ledger: ledger.take_debts(NOTICE), SETTLE_SECONDS),
    "leftovers": (published_again, lambda ledger: ledger.take_debts(LEFTOVERS), 10.0),
    "lost conversions": (claimed, lambda ledger: ledger.take_lost(), LEASE_SECONDS),
    "lost renditions": (claimed_renditions, lambda ledger: ledger.take_lost(), LEASE_SECONDS),
}
every_take = pytest.mark.parametrize(("arrange", "take", "seconds"), TAKES.values(), ids=TAKES)


@every_take
async def test_the_sweep_leaves_what_is_not_due(ledger: Ledger, arrange: Arrange, take: Take, seconds: float) -> None:
    await arrange(ledger)
    await let_pass(ledger, seconds - 60)
    before = await all_rows(ledger)

    assert await take(ledger) == []
    assert await all_rows(ledger) == before

    await let_pass(ledger, 60)
    assert len(await take(ledger)) == 1


async def test_what_a_commit_owes_is_due_once_its_process_has_had_time_to_pay(ledger: Ledger) -> None:
    before = await ledger.now()
    await published_again(ledger)
    after = await ledger.now()

    times = {TOKENS: SETTLE_SECONDS, NOTICE: SETTLE_SECONDS, LEFTOVERS: 10.0}
    due = {DebtKind(kind): due for _, _, kind, due in (await all_rows(ledger))["debts"]}
    assert due.keys() == times.keys()
    assert [kind for kind in due if not before <= due[kind] - times[kind] <= after] == []


@every_take
async def test_the_sweep_takes_at_most_two_hundred_of_a_kind_the_oldest_first(
    ledger: Ledger, arrange: Arrange, take: Take, seconds: float
) -> None:
    images = [await arrange(ledger) for _ in range(TAKE_AT_MOST + 2)]
    await let_pass(ledger, 100)
    young = {images[0].id, images[100].id}
    for image_id in young:
        await let_pass(ledger, -50, image_id)

    first, second, third = [await take(ledger) for _ in range(3)]

    assert (len(first), {image.id for image in second}, third) == (200, young, [])
    assert not young & {image.id for image in first}


@every_take
async def test_what_one_sweep_took_no_other_takes(
    ledger: Ledger, other_ledgers: list[Ledger], arrange: Arrange, take: Take, seconds: float
) -> None:
    images = [await arrange(ledger) for _ in range(5)]
    await let_pass(ledger, 100)

    taken = await asyncio.gather(*(take(other) for other in (ledger, *other_ledgers)))

    assert sorted(row.id for rows in taken for row in rows) == sorted(image.id for image in images)


@pytest.mark.parametrize("kind", DebtKind)
async def test_a_debt_that_was_taken_and_not_paid_is_due_again_after_ten_seconds(
    ledger: Ledger, kind: DebtKind
) -> None:
    """Whoever took it may have died, or found Redis or the storage away."""
    image = await published_again(ledger)
    await let_pass(ledger, 100)
    [taken] = await ledger.take_debts(kind)

    await let_pass(ledger, 10 - 60)
    assert await ledger.take_debts(kind) == []
    await let_pass(ledger, 60)
    [again] = await ledger.take_debts(kind)
    await ledger.paid(again.debts)
    await let_pass(ledger, 100)

    assert taken.debts == again.debts == tuple(image.owes(kind))
    assert await ledger.take_debts(kind) == []


async def test_debts_are_taken_with_the_image_as_it_is_and_without_its_other_debts(ledger: Ledger) -> None:
    image = await published_again(ledger)
    deleted = await ledger.delete(image.id)
    assert deleted is not None
    await let_pass(ledger, 100)

    [taken] = await ledger.take_debts(TOKENS)

    assert taken.status is Status.DELETING
    assert sorted(taken.debts, key=lambda debt: debt.id) == [*image.owes(TOKENS), *deleted.owes(TOKENS)]


async def test_a_lost_lease_is_a_loss_and_the_work_waits_again(ledger: Ledger) -> None:
    attempt = await claimed(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    [image] = await ledger.take_lost()

    assert (image.status, image.losses, image.attempt, image.worker) == (Status.QUEUED, 1, attempt.attempt, None)
    assert await ledger.get(image.id) == image
    assert await ids_in_order(ledger) == [image.id]


async def test_the_twentieth_lost_lease_fails_the_image(ledger: Ledger) -> None:
    await claimed(ledger)
    await alter(ledger, losses=MOST_LOSSES - 1)
    still_trying = await claimed(ledger)
    await alter(ledger, still_trying.id, losses=MOST_LOSSES - 2)
    await let_pass(ledger, LEASE_SECONDS + 1)

    taken = await ledger.take_lost()

    outcomes = {image.losses: (image.status, image.error_type, kinds(image)) for image in taken}
    assert outcomes == {
        20: (Status.FAILED, "worker-lost", [LEFTOVERS, NOTICE, TOKENS]),
        19: (Status.QUEUED, None, []),
    }


async def test_the_twentieth_lost_lease_gives_renditions_up(ledger: Ledger) -> None:
    attempt = await claimed_renditions(ledger)
    await alter(ledger, losses=MOST_LOSSES - 1)
    await let_pass(ledger, LEASE_SECONDS + 1)

    [image] = await ledger.take_lost()

    assert (image.status, image.work, image.losses, kinds(image)) == (Status.READY, None, 0, [LEFTOVERS])
    assert image.renditions == attempt.renditions
    assert await ledger.request_renditions(image, Lane.DEMAND) is None


async def test_work_that_waits_is_never_lost(ledger: Ledger) -> None:
    await queued(ledger)
    await wanting_renditions(ledger)
    await let_pass(ledger, 1000)

    assert await ledger.take_lost() == []
    assert len(await ledger.waiting(10)) == 2


# Trouble


Hold = Callable[[], AbstractAsyncContextManager[None]]


@pytest.fixture
def hold_write_lock(settings: Settings) -> Hold:
    """Keep every writer of the ledger waiting for the block."""

    @asynccontextmanager
    async def hold() -> AsyncIterator[None]:
        if settings.is_on_postgresql:
            other = await asyncpg.connect(settings.database_url)
            async with other.transaction():
                await other.execute("LOCK TABLE images IN EXCLUSIVE MODE")
                yield
            await other.close()
            return
        with closing(
            sqlite3.connect(str(make_url(settings.database_url).database), isolation_level=None)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    return hold


async def test_a_cancellation_in_a_transaction_is_raised_once_the_outcome_is_certain(
    ledger: Ledger, hold_write_lock: Hold
) -> None:
    attempt = await claimed(ledger)
    async with hold_write_lock():
        publishing = asyncio.create_task(ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1))
        await asyncio.sleep(0)
        publishing.cancel()
        await asyncio.wait([publishing], timeout=0.05)
        still_uncertain = not publishing.done()
    with pytest.raises(asyncio.CancelledError):
        await publishing

    assert still_uncertain
    assert (await latest(ledger, attempt)).status is Status.READY


async def test_connections_are_usable_after_cancellations(ledger: Ledger, hold_write_lock: Hold) -> None:
    images = [await queued(ledger) for _ in range(8)]
    async with hold_write_lock():
        claims = [asyncio.create_task(ledger.claim(image.id, "host:1")) for image in images]
        await asyncio.sleep(0)
        for claim in claims:
            claim.cancel()
    await asyncio.gather(*claims, return_exceptions=True)

    assert all(claim.cancelled() for claim in claims)
    assert await asyncio.gather(*(ledger.delete(image.id) for image in images)) != [None] * 8
    assert ledger._database._engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool, always


async def test_a_transaction_that_fails_leaves_nothing_behind(ledger: Ledger) -> None:
    """A publication writes four rows: a ready image without its debts must never be seen."""
    attempt = await claimed(ledger)
    before = await all_rows(ledger)
    await rename(ledger, "debts", "lost")

    with pytest.raises(LedgerUnavailable):
        await ledger.publish(attempt, SIZE, made_by(attempt), seconds=10.0)

    await rename(ledger, "lost", "debts")
    assert await all_rows(ledger) == before


async def rename(ledger: Ledger, table: str, name: str) -> None:
    async with ledger._database._engine.begin() as connection:
        await connection.exec_driver_sql(f"ALTER TABLE {table} RENAME TO {name}")


async def test_a_ledger_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    ledger = Ledger.connect(Settings(storage_path=tmp_path / "missing"))

    with pytest.raises(LedgerUnavailable):
        await ledger.get(new_id())
    with pytest.raises(LedgerUnavailable):
        await ledger.identity()

    await ledger.close()


async def test_an_existing_ledger_is_not_begun_where_it_is_missing(tmp_path: Path) -> None:
    """SQLite makes an empty file of every path it is asked for, which then passes for a ledger to be migrated."""
    ledger = Ledger.connect(Settings(storage_path=tmp_path), existing=True)

    with pytest.raises(LedgerUnavailable):
        await ledger.identity()

    await ledger.close()
    assert list(tmp_path.iterdir()) == []


async def test_an_existing_ledger_is_the_same_ledger(ledger: Ledger, settings: Settings) -> None:
    image = await queued(ledger)
    existing = Ledger.connect(settings, existing=True)

    assert await existing.get(image.id) == image

    await existing.close()


async def test_images_of_every_status_are_listed_in_order_of_their_id(ledger: Ledger) -> None:
    images = [await arrange(ledger) for arrange in ANY_STATUS]
    images.append(deleted := await deleting(ledger))

    first = await ledger.list_all(None, 3)
    rest = await ledger.list_all(first[-1].id, 100)

    assert deleted.status is Status.DELETING
    assert [image.id for image in (*first, *rest)] == sorted(image.id for image in images)


async def test_of_many_images_those_that_are_ready_are_told(ledger: Ledger) -> None:
    images = [await arrange(ledger) for arrange in ANY_STATUS]
    images.append(await deleting(ledger))
    strangers = [new_id() for _ in range(500)]

    found = await ledger.which_are_ready([*strangers, *(image.id for image in images)])

    assert found == {image.id for image in images if image.status is Status.READY} != set()
    assert await ledger.which_are_ready([]) == set()


async def test_the_first_marker_offered_is_the_ledgers(ledger: Ledger) -> None:
    markers = await asyncio.gather(*(ledger.adopt_marker(f"marker-{i}") for i in range(4)))

    assert len(set(markers)) == 1
    assert (await ledger.identity()).marker == markers[0]
    assert await ledger.adopt_marker("late") == markers[0]
