"""Every transition of the ledger: what it does, and that whoever lost the image changes nothing."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import make_url

from shared.errors import LedgerUnavailable
from shared.images import Image, Owed, Status
from shared.ledger import LEASE_SECONDS, MOST_LOSSES, PAUSE_SECONDS, WAKE_SECONDS, Ledger, Taken
from shared.settings import Settings
from tests.databases import database
from tests.ledgers import (
    ORIGINAL,
    RENDITIONS,
    SIZE,
    alter,
    claimed,
    claimed_thumbnails,
    failed,
    latest,
    let_pass,
    new_id,
    published,
    queued,
    ready,
    settled,
    wanting_thumbnails,
)

__all__ = ["database"]

Transition = Callable[[Ledger, Image], Awaitable[object]]


def seconds_until_due(image: Image, ledger_now: float) -> float:
    assert image.due is not None
    return image.due - ledger_now


# Adding and claiming


async def test_an_added_image_is_queued_with_its_first_wake_up_under_way(ledger: Ledger) -> None:
    image = await ledger.add(new_id(), ORIGINAL, "request-1")

    assert (image.status, image.attempt, image.wake, image.failures, image.losses) == (Status.QUEUED, 0, 1, 0, 0)
    assert (image.original, image.request, image.renditions) == (ORIGINAL, "request-1", {})
    assert (image.published, image.owed, image.sequence, image.size, image.worker) == (None, None, None, None, None)
    assert seconds_until_due(image, image.created) == pytest.approx(WAKE_SECONDS, abs=0.01)
    assert await ledger.get(image.id) == image


async def test_an_id_is_added_once(ledger: Ledger) -> None:
    image = await queued(ledger)

    with pytest.raises(LedgerUnavailable):
        await ledger.add(image.id, ORIGINAL, None)

    assert await ledger.get(image.id) == image


async def test_an_unknown_image_is_none_and_takes_no_transition(ledger: Ledger) -> None:
    assert await ledger.get(new_id()) is None
    assert await ledger.claim(new_id(), "host:1") is None
    assert await ledger.delete(new_id()) is None
    assert await ledger.retry(new_id()) is None
    assert await ledger.request_thumbnails(new_id()) is None


async def test_a_claim_begins_an_attempt_with_a_lease(ledger: Ledger) -> None:
    image = await queued(ledger)

    attempt = await ledger.claim(image.id, "host:1")

    assert attempt is not None
    assert (attempt.status, attempt.attempt, attempt.worker) == (Status.PROCESSING, 1, "host:1")
    assert seconds_until_due(attempt, attempt.modified) == pytest.approx(LEASE_SECONDS, abs=0.01)


async def test_of_many_claims_at_once_one_gets_the_image(ledger: Ledger) -> None:
    image = await queued(ledger)

    claims = await asyncio.gather(*(ledger.claim(image.id, f"host:{i}") for i in range(8)))

    winners = [attempt for attempt in claims if attempt is not None]
    assert [winner.attempt for winner in winners] == [1]
    assert await ledger.get(image.id) == winners[0]


@pytest.mark.parametrize("arrange", [claimed, published, ready, failed, wanting_thumbnails])
async def test_only_a_queued_image_is_claimed(ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]) -> None:
    image = await arrange(ledger)

    assert await ledger.claim(image.id, "host:2") is None
    assert await ledger.get(image.id) == image


# What a conversion's attempt does


async def test_a_renewed_lease_begins_anew(ledger: Ledger) -> None:
    attempt = await claimed(ledger)
    await let_pass(ledger, LEASE_SECONDS - 1)

    renewed = await ledger.renew(attempt)

    assert renewed is not None
    assert seconds_until_due(renewed, await ledger.now()) == pytest.approx(LEASE_SECONDS, abs=0.5)
    assert await ledger.take_lost() == []


async def test_a_lease_may_be_renewed_and_published_late_while_nobody_has_taken_the_image(ledger: Ledger) -> None:
    attempt = await claimed(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    assert await ledger.renew(attempt) is not None
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert await ledger.publish(attempt, SIZE, RENDITIONS) is not None


async def test_publishing_makes_the_attempts_renditions_the_images(ledger: Ledger) -> None:
    attempt = replace(await claimed(ledger), failures=1, losses=3)
    await alter(ledger, failures=1, losses=3)

    image = await ledger.publish(attempt, SIZE, RENDITIONS)

    assert image is not None
    assert (image.status, image.published, image.size, image.renditions) == (Status.READY, 1, SIZE, RENDITIONS)
    assert (image.owed, image.sequence, image.worker) == (Owed.TOKENS, 1, None)
    assert (image.failures, image.losses) == (0, 0)
    assert [thumbnail.size for thumbnail in image.thumbnails] == [(320, 180), (160, 90)]


async def test_handing_back_counts_nowhere(ledger: Ledger) -> None:
    attempt = await claimed(ledger)

    image = await ledger.hand_back(attempt, 2.0)

    assert image is not None
    assert (image.status, image.attempt, image.wake, image.worker) == (Status.QUEUED, 1, 1, None)
    assert (image.failures, image.losses) == (0, 0)
    assert seconds_until_due(image, await ledger.now()) == pytest.approx(2, abs=0.5)


async def test_what_was_handed_back_goes_on_at_once_where_nobody_was_in_trouble(ledger: Ledger) -> None:
    await ledger.hand_back(await claimed(ledger), 0.0)

    assert len(await ledger.take_queued(300)) == 1


async def test_a_failure_is_final_and_has_its_reason(ledger: Ledger) -> None:
    image = await ledger.fail(await claimed(ledger), "unreadable-image", "This is no picture.")

    assert image is not None
    assert (image.status, image.owed, image.worker) == (Status.FAILED, Owed.TOKENS, None)
    assert (image.error_type, image.error_detail) == ("unreadable-image", "This is no picture.")


async def test_a_counted_failure_queues_the_image_again(ledger: Ledger) -> None:
    image = await ledger.count_failure(await claimed(ledger))

    assert image is not None
    assert (image.status, image.failures, image.wake, image.worker) == (Status.QUEUED, 1, 2, None)


async def test_a_counted_loss_queues_the_image_again(ledger: Ledger) -> None:
    image = await ledger.count_loss(await claimed(ledger))

    assert image is not None
    assert (image.status, image.losses, image.failures, image.wake) == (Status.QUEUED, 1, 0, 2)


async def test_the_twentieth_loss_fails_the_image_and_says_that_it_was_ours(ledger: Ledger) -> None:
    image = await queued(ledger)
    for _ in range(MOST_LOSSES - 1):
        lost = await ledger.count_loss(await claimed(ledger, image))
        assert lost is not None
        assert lost.status is Status.QUEUED

    last = await ledger.count_loss(await claimed(ledger, image))

    assert last is not None
    assert (MOST_LOSSES, last.losses, last.attempt) == (20, 20, 20)
    assert (last.status, last.error_type, last.owed) == (Status.FAILED, "worker-lost", Owed.TOKENS)
    assert last.error_detail is not None
    assert "by no fault of the file" in last.error_detail


# Who loses an image


async def lose_the_lease(ledger: Ledger, attempt: Image) -> None:
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert len(await ledger.take_lost()) == 1


async def lose_to_a_later_attempt(ledger: Ledger, attempt: Image) -> None:
    await lose_the_lease(ledger, attempt)
    await claimed(ledger, attempt, worker="host:2")


async def lose_to_a_later_publication(ledger: Ledger, attempt: Image) -> None:
    await lose_the_lease(ledger, attempt)
    await published(ledger, attempt)


async def lose_to_delete(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.delete(attempt.id) is not None


async def lose_to_the_end(ledger: Ledger, attempt: Image) -> None:
    deleted = await ledger.delete(attempt.id)
    assert deleted is not None
    await let_pass(ledger, PAUSE_SECONDS + 1)
    moved_on = await ledger.tokens_changed(deleted)
    assert moved_on is not None
    await ledger.leftovers_removed(moved_on)
    assert await ledger.get(attempt.id) is None


async def lose_by_own_publication(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.publish(attempt, SIZE, RENDITIONS) is not None


async def lose_by_own_failure(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.fail(attempt, "unreadable-image", "This is no picture.") is not None


async def lose_to_retry(ledger: Ledger, attempt: Image) -> None:
    await lose_by_own_failure(ledger, attempt)
    assert await ledger.retry(attempt.id) is not None


async def lose_to_an_attempt_after_a_retry(ledger: Ledger, attempt: Image) -> None:
    await lose_to_retry(ledger, attempt)
    await claimed(ledger, attempt)


async def lose_by_handing_back(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.hand_back(attempt, 0.0) is not None


TRANSITIONS: dict[str, Transition] = {
    "renew": lambda ledger, attempt: ledger.renew(attempt),
    "publish": lambda ledger, attempt: ledger.publish(attempt, (8, 8), {}),
    "hand_back": lambda ledger, attempt: ledger.hand_back(attempt, 0.0),
    "fail": lambda ledger, attempt: ledger.fail(attempt, "render-timed-out", "Too long."),
    "count_failure": lambda ledger, attempt: ledger.count_failure(attempt),
    "count_loss": lambda ledger, attempt: ledger.count_loss(attempt),
    "last_loss": lambda ledger, attempt: ledger.count_loss(replace(attempt, losses=MOST_LOSSES - 1)),
    "give_up_thumbnails": lambda ledger, attempt: ledger.give_up_thumbnails(attempt),
}


@pytest.mark.parametrize(
    "rival",
    [
        lose_the_lease,
        lose_to_a_later_attempt,
        lose_to_a_later_publication,
        lose_to_delete,
        lose_to_the_end,
        lose_by_own_publication,
        lose_by_own_failure,
        lose_to_retry,
        lose_to_an_attempt_after_a_retry,
        lose_by_handing_back,
    ],
)
async def test_an_attempt_that_lost_its_image_changes_nothing(ledger: Ledger, rival: Transition) -> None:
    """Promise 4: a late attempt can neither overwrite nor publish anything."""
    attempt = await claimed(ledger)
    await rival(ledger, attempt)
    before = await ledger.get(attempt.id)

    outcomes = {name: await transition(ledger, attempt) for name, transition in TRANSITIONS.items()}

    assert outcomes == dict.fromkeys(TRANSITIONS)
    assert await ledger.get(attempt.id) == before


async def test_an_attempts_number_only_rises(ledger: Ledger) -> None:
    """The number is the fence: one that came twice would let a late attempt publish."""
    attempt = await claimed(ledger)
    seen = [attempt.attempt]
    for end in (ledger.count_loss, ledger.count_failure, lambda image: ledger.hand_back(image, 0.0)):
        assert await end(attempt) is not None
        attempt = await claimed(ledger, attempt)
        seen.append(attempt.attempt)
    await ledger.fail(attempt, "unreadable-image", "This is no picture.")
    await ledger.retry(attempt.id)
    seen.append((await claimed(ledger, attempt)).attempt)

    assert seen == [1, 2, 3, 4, 5]


# Order


async def test_images_are_listed_in_the_order_of_their_publication(ledger: Ledger) -> None:
    first, second, third = [await claimed(ledger) for _ in range(3)]
    for attempt in (second, third, first):
        await ledger.publish(attempt, SIZE, RENDITIONS)

    rows = await ledger.list_ready(None, 10, newest_first=False)

    assert [(row.id, row.sequence) for row in rows] == [(second.id, 1), (third.id, 2), (first.id, 3)]


async def test_pages_begin_behind_a_sequence_or_an_id_that_need_not_exist(ledger: Ledger) -> None:
    rows = [await published(ledger) for _ in range(4)]
    waiting = [await queued(ledger) for _ in range(3)]
    await alter(ledger, rows[1].id, status="deleting")

    assert [row.sequence for row in await ledger.list_ready(2, 10, newest_first=False)] == [3, 4]
    assert [row.sequence for row in await ledger.list_ready(4, 10, newest_first=True)] == [3, 1]
    assert [row.sequence for row in await ledger.list_ready(None, 2, newest_first=True)] == [4, 3]
    behind = await ledger.list_with_status(Status.QUEUED, waiting[0].id, 1, newest_first=False)
    assert [row.id for row in behind] == [waiting[1].id]
    before = await ledger.list_with_status(Status.QUEUED, waiting[2].id, 10, newest_first=True)
    assert [row.id for row in before] == [waiting[1].id, waiting[0].id]


@pytest.fixture
async def other_ledgers(settings: Settings) -> AsyncIterator[list[Ledger]]:
    """The same ledger as other processes see it: over connections of their own."""
    async with AsyncExitStack() as stack:
        ledgers = [Ledger.connect(settings) for _ in range(3)]
        for other in ledgers:
            stack.push_async_callback(other.close)
        yield ledgers


async def test_who_reads_on_from_the_last_image_misses_none_that_is_published_meanwhile(
    ledger: Ledger, other_ledgers: list[Ledger]
) -> None:
    """Commit order is list order: a later commit never appears in front of what a client has read."""
    attempts = [await claimed(ledger) for _ in range(24)]
    seen: list[int] = []

    async def publish_every_third(publisher: int) -> None:
        for attempt in attempts[publisher::3]:
            await other_ledgers[publisher].publish(attempt, SIZE, RENDITIONS)

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
    await ledger.publish(attempt, SIZE, RENDITIONS)

    assert (await published(ledger)).sequence == 1


async def test_queued_images_are_counted_no_further_than_anybody_wants_to_know(ledger: Ledger) -> None:
    for _ in range(3):
        await queued(ledger)
    await claimed(ledger)

    assert await ledger.count_queued(100) == 3
    assert await ledger.count_queued(2) == 2


# Thumbnails


async def test_thumbnails_asked_for_are_owed_by_a_ready_image(ledger: Ledger) -> None:
    before = await ready(ledger)

    image = await ledger.request_thumbnails(before.id)

    assert image is not None
    assert (image.status, image.owed, image.wake) == (Status.READY, Owed.THUMBNAILS, before.wake + 1)
    assert seconds_until_due(image, await ledger.now()) == pytest.approx(WAKE_SECONDS, abs=0.5)
    assert image.modified == before.modified


@pytest.mark.parametrize("arrange", [queued, claimed, failed, published, wanting_thumbnails, claimed_thumbnails])
async def test_thumbnails_are_asked_for_once_and_of_a_settled_image(
    ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    image = await arrange(ledger)

    assert await ledger.request_thumbnails(image.id) is None
    assert await ledger.get(image.id) == image


async def test_thumbnails_that_another_attempt_has_made_meanwhile_are_not_asked_for(ledger: Ledger) -> None:
    """Who missed a file, and was slow to say so, would have all of them made once more."""
    image = await ready(ledger)
    assert image.published is not None

    assert await ledger.request_thumbnails(image.id, image.published - 1) is None
    assert await ledger.request_thumbnails(image.id, image.published) is not None


async def test_claimed_thumbnails_leave_the_image_ready_and_served(ledger: Ledger) -> None:
    wanted = await wanting_thumbnails(ledger)

    attempt = await ledger.claim_thumbnails(wanted.id, wanted.wake, "host:1")

    assert attempt is not None
    assert (attempt.status, attempt.published, attempt.attempt) == (Status.READY, 1, 2)
    assert (attempt.owed, attempt.worker) == (Owed.THUMBNAILS, "host:1")
    assert seconds_until_due(attempt, await ledger.now()) == pytest.approx(LEASE_SECONDS, abs=0.5)


async def test_of_many_claims_of_thumbnails_at_once_one_gets_them(ledger: Ledger) -> None:
    wanted = await wanting_thumbnails(ledger)

    claims = await asyncio.gather(*(ledger.claim_thumbnails(wanted.id, wanted.wake, f"host:{i}") for i in range(8)))

    assert [attempt.attempt for attempt in claims if attempt is not None] == [2]


async def test_a_job_of_an_earlier_wake_up_claims_no_thumbnails(ledger: Ledger) -> None:
    wanted = await wanting_thumbnails(ledger)

    assert await ledger.claim_thumbnails(wanted.id, wanted.wake - 1, "host:1") is None
    assert await ledger.get(wanted.id) == wanted


async def test_published_thumbnails_keep_the_images_place_and_age(ledger: Ledger) -> None:
    attempt = await claimed_thumbnails(ledger)
    await published(ledger)

    image = await ledger.publish(attempt, SIZE, RENDITIONS)

    assert image is not None
    assert (image.status, image.published, image.owed) == (Status.READY, 2, Owed.TOKENS)
    assert (image.sequence, image.created) == (attempt.sequence, attempt.created)


async def test_thumbnails_handed_back_stay_owed_without_blame(ledger: Ledger) -> None:
    image = await ledger.hand_back(await claimed_thumbnails(ledger), 0.0)

    assert image is not None
    assert (image.status, image.owed, image.worker, image.losses) == (Status.READY, Owed.THUMBNAILS, None, 0)
    [taken] = await ledger.take_thumbnails()
    assert (taken.image.losses, taken.image.wake) == (0, image.wake + 1)


async def test_thumbnails_given_up_are_not_asked_for_again_until_their_leftovers_are_paid(ledger: Ledger) -> None:
    attempt = await claimed_thumbnails(ledger)

    image = await ledger.give_up_thumbnails(attempt)

    assert image is not None
    assert (image.status, image.published, image.owed) == (Status.READY, 1, Owed.LEFTOVERS)
    assert seconds_until_due(image, await ledger.now()) == pytest.approx(PAUSE_SECONDS, abs=0.5)
    assert await ledger.request_thumbnails(image.id) is None
    assert await ledger.take_owing(Owed.LEFTOVERS) == []


async def test_a_loss_leaves_thumbnails_to_the_sweep(ledger: Ledger) -> None:
    image = await ledger.count_loss(await claimed_thumbnails(ledger))

    assert image is not None
    assert (image.status, image.owed, image.losses, image.worker) == (Status.READY, Owed.THUMBNAILS, 1, None)
    assert [taken.image.losses for taken in await ledger.take_thumbnails()] == [1]


async def test_the_twentieth_loss_gives_thumbnails_up_and_the_next_request_has_twenty_more(ledger: Ledger) -> None:
    await alter(ledger, (await wanting_thumbnails(ledger)).id, losses=MOST_LOSSES - 1)
    [wanted] = await ledger.list_ready(None, 1, newest_first=False)

    image = await ledger.count_loss(await claimed_thumbnails(ledger, wanted))

    assert image is not None
    assert (image.status, image.published, image.owed, image.losses) == (Status.READY, 1, Owed.LEFTOVERS, 0)
    assert image.error_type is None


async def test_thumbnails_given_up_by_the_sweep_are_not_published_by_who_was_only_frozen(ledger: Ledger) -> None:
    """The folder of that attempt has gone as a leftover: published, it would take the image's JPEG with it."""
    await alter(ledger, (await wanting_thumbnails(ledger)).id, losses=MOST_LOSSES - 1)
    [wanted] = await ledger.list_ready(None, 1, newest_first=False)
    frozen = await claimed_thumbnails(ledger, wanted)
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert await ledger.take_thumbnails() == []
    await ledger.leftovers_removed(await latest(ledger, frozen))
    assert await ledger.request_thumbnails(frozen.id) is not None

    published_late = await ledger.publish(frozen, (640, 360), {})

    assert published_late is None
    assert (await latest(ledger, frozen)).published == 1


async def lose_thumbnails_lease(ledger: Ledger, attempt: Image) -> None:
    await let_pass(ledger, LEASE_SECONDS + 1)
    assert len(await ledger.take_thumbnails()) == 1


async def lose_thumbnails_to_a_later_attempt(ledger: Ledger, attempt: Image) -> None:
    await lose_thumbnails_lease(ledger, attempt)
    await claimed_thumbnails(ledger, await latest(ledger, attempt), worker="host:2")


async def lose_by_giving_up(ledger: Ledger, attempt: Image) -> None:
    assert await ledger.give_up_thumbnails(attempt) is not None


@pytest.mark.parametrize(
    "rival",
    [
        lose_thumbnails_lease,
        lose_thumbnails_to_a_later_attempt,
        lose_by_own_publication,
        lose_by_giving_up,
        lose_to_delete,
        lose_to_the_end,
    ],
)
async def test_an_attempt_that_lost_its_thumbnails_changes_nothing(ledger: Ledger, rival: Transition) -> None:
    attempt = await claimed_thumbnails(ledger)
    await rival(ledger, attempt)
    before = await ledger.get(attempt.id)

    outcomes = {name: await transition(ledger, attempt) for name, transition in TRANSITIONS.items()}

    assert outcomes == dict.fromkeys(TRANSITIONS)
    assert await ledger.get(attempt.id) == before


# Deleting and retrying

ANY_STATUS = [queued, claimed, published, ready, failed, wanting_thumbnails, claimed_thumbnails]


@pytest.mark.parametrize("arrange", ANY_STATUS)
async def test_delete_wins_whatever_the_status(ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]) -> None:
    image = await arrange(ledger)

    deleted = await ledger.delete(image.id)

    assert deleted is not None
    assert (deleted.status, deleted.owed, deleted.worker) == (Status.DELETING, Owed.TOKENS, None)
    assert await ledger.claim(image.id, "host:2") is None
    assert await ledger.claim_thumbnails(image.id, image.wake, "host:2") is None
    assert await ledger.retry(image.id) is None
    assert await ledger.request_thumbnails(image.id) is None
    assert await ledger.delete(image.id) is None
    assert await ledger.get(image.id) == deleted


@pytest.mark.parametrize("arrange", ANY_STATUS)
async def test_the_sweep_takes_nothing_of_a_deleted_image_but_its_debts(
    ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    image = await arrange(ledger)
    await ledger.delete(image.id)
    await let_pass(ledger, 1000)

    assert await ledger.take_lost() == []
    assert await ledger.take_thumbnails() == []
    assert await ledger.take_queued(300) == []
    assert [taken.image.id for taken in await ledger.take_owing(Owed.TOKENS)] == [image.id]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda ledger, image: ledger.delete(image.id), lambda ledger, image: ledger.publish(image, SIZE, RENDITIONS)),
        (lambda ledger, image: ledger.publish(image, SIZE, RENDITIONS), lambda ledger, image: ledger.delete(image.id)),
    ],
    ids=["delete first", "publish first"],
)
async def test_delete_and_publish_at_once_leave_the_image_deleting(
    ledger: Ledger, first: Transition, second: Transition
) -> None:
    attempt = await claimed(ledger)

    await asyncio.gather(first(ledger, attempt), second(ledger, attempt))

    assert (await latest(ledger, attempt)).status is Status.DELETING


async def test_a_retry_queues_a_failed_image_and_resets_what_was_counted(ledger: Ledger) -> None:
    image = await failed(ledger)
    await alter(ledger, failures=2, losses=7)

    again = await ledger.retry(image.id)

    assert again is not None
    assert (again.status, again.wake, again.attempt) == (Status.QUEUED, image.wake + 1, image.attempt)
    assert (again.failures, again.losses, again.error_type, again.error_detail) == (0, 0, None, None)
    assert again.owed is None


@pytest.mark.parametrize("arrange", [queued, claimed, published, ready, wanting_thumbnails])
async def test_only_a_failed_image_is_retried(ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]) -> None:
    image = await arrange(ledger)

    assert await ledger.retry(image.id) is None
    assert await ledger.get(image.id) == image


# Settling


async def test_changed_tokens_leave_leftovers_that_are_not_due_at_once(ledger: Ledger) -> None:
    image = await published(ledger)

    moved_on = await ledger.tokens_changed(image)

    assert moved_on is not None
    assert moved_on.owed is Owed.LEFTOVERS
    assert seconds_until_due(moved_on, await ledger.now()) == pytest.approx(WAKE_SECONDS, abs=0.5)
    assert await ledger.tokens_changed(image) is None
    assert await ledger.owing_tokens() == []


async def test_tokens_changed_for_an_earlier_commit_do_not_pay_for_a_later_one(ledger: Ledger) -> None:
    image = await published(ledger)
    deleted = await ledger.delete(image.id)

    assert await ledger.tokens_changed(image) is None
    assert await ledger.owing_tokens() == [deleted]


async def test_leftovers_removed_end_a_ready_images_debts(ledger: Ledger) -> None:
    image = await ready(ledger)

    assert (image.owed, image.due) == (None, None)


async def test_leftovers_of_an_earlier_state_do_not_pay_for_a_later_one(ledger: Ledger) -> None:
    image = await published(ledger)
    moved_on = await ledger.tokens_changed(image)
    assert moved_on is not None
    deleted = await ledger.delete(image.id)

    await ledger.leftovers_removed(moved_on)

    assert await ledger.get(image.id) == deleted


async def test_a_deleted_images_row_stays_for_a_minute_and_is_due_at_its_end(ledger: Ledger) -> None:
    """What a late attempt wrote after the first look at its folders is found by the second."""
    image = await ready(ledger)
    deleted = await ledger.delete(image.id)
    assert deleted is not None
    row = await settled(ledger, deleted)

    assert (row.status, row.owed) == (Status.DELETING, Owed.LEFTOVERS)
    assert row.due == pytest.approx(deleted.modified + PAUSE_SECONDS)

    await let_pass(ledger, PAUSE_SECONDS + 1)
    [taken] = await ledger.take_owing(Owed.LEFTOVERS)
    await ledger.leftovers_removed(taken.image)
    assert await ledger.get(image.id) is None


@pytest.mark.parametrize("arrange", [ready, failed])
async def test_a_settled_image_may_owe_folders_past_its_attempt_and_no_attempt_writes_to_them_again(
    ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    """A ledger that is older than its storage does not know of them, and would number its next attempt like them."""
    image = await arrange(ledger)

    owing = await ledger.owe_leftovers(image, 7)

    assert owing is not None
    assert (owing.status, owing.published, owing.attempt, owing.owed) == (
        image.status,
        image.published,
        7,
        Owed.LEFTOVERS,
    )
    assert await ledger.request_thumbnails(image.id) is None
    assert (await settled(ledger, owing)).owed is None
    lower = await ledger.owe_leftovers(await latest(ledger, image), 3)
    assert lower is not None
    assert lower.attempt == 7


@pytest.mark.parametrize("arrange", [queued, claimed, published, wanting_thumbnails, claimed_thumbnails])
async def test_an_image_that_is_at_work_or_owes_something_is_made_to_owe_nothing_else(
    ledger: Ledger, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    image = await arrange(ledger)

    assert await ledger.owe_leftovers(image, 7) is None
    assert await latest(ledger, image) == image


async def test_an_image_that_has_moved_on_is_not_made_to_owe_leftovers_of_an_earlier_state(ledger: Ledger) -> None:
    image = await ready(ledger)
    moved_on = await settled(ledger, await published_thumbnails(ledger, image))

    assert await ledger.owe_leftovers(image, 1) is None
    assert await latest(ledger, image) == moved_on


async def published_thumbnails(ledger: Ledger, image: Image) -> Image:
    wanted = await ledger.request_thumbnails(image.id)
    row = await ledger.publish(await claimed_thumbnails(ledger, wanted), SIZE, RENDITIONS)
    assert row is not None
    return row


# What the sweep takes


async def owing_leftovers(ledger: Ledger) -> Image:
    row = await ledger.tokens_changed(await published(ledger))
    assert row is not None
    return row


Take = Callable[[Ledger], Awaitable[list[Taken]]]
Arrange = Callable[[Ledger], Awaitable[Image]]

TAKES: dict[str, tuple[Arrange, Take]] = {
    "tokens": (published, lambda ledger: ledger.take_owing(Owed.TOKENS)),
    "leftovers": (owing_leftovers, lambda ledger: ledger.take_owing(Owed.LEFTOVERS)),
    "lost leases": (claimed, lambda ledger: ledger.take_lost()),
    "wanted thumbnails": (wanting_thumbnails, lambda ledger: ledger.take_thumbnails()),
    "lost thumbnails": (claimed_thumbnails, lambda ledger: ledger.take_thumbnails()),
    "queued": (queued, lambda ledger: ledger.take_queued(300)),
}
every_take = pytest.mark.parametrize(("arrange", "take"), TAKES.values(), ids=TAKES)


@every_take
async def test_the_sweep_leaves_what_is_not_due(ledger: Ledger, arrange: Arrange, take: Take) -> None:
    image = await arrange(ledger)
    assert image.due is not None
    await let_pass(ledger, image.due - await ledger.now() - 0.9)

    before = await latest(ledger, image)

    assert await take(ledger) == []
    assert await latest(ledger, image) == before


@every_take
async def test_the_sweep_takes_the_oldest_first(ledger: Ledger, arrange: Arrange, take: Take) -> None:
    images = [await arrange(ledger) for _ in range(3)]
    for image, age in zip(images, (200, 300, 100), strict=True):
        await let_pass(ledger, age, image.id)

    taken = await take(ledger)

    assert [row.image.id for row in taken] == [images[1].id, images[0].id, images[2].id]
    assert [row.due for row in taken] == sorted(row.due for row in taken)


@every_take
async def test_what_the_sweep_took_nobody_else_takes(
    ledger: Ledger, other_ledgers: list[Ledger], arrange: Arrange, take: Take
) -> None:
    for _ in range(5):
        await arrange(ledger)
    await let_pass(ledger, 100)

    taken = await asyncio.gather(*(take(other) for other in (ledger, *other_ledgers)))

    assert sorted(len(rows) for rows in taken) == [0, 0, 0, 5]


@every_take
async def test_what_could_not_be_served_gets_its_due_back(ledger: Ledger, arrange: Arrange, take: Take) -> None:
    image = await arrange(ledger)
    await let_pass(ledger, 100)
    due = (await latest(ledger, image)).due
    taken = await take(ledger)

    await ledger.give_back(taken)

    assert [row.due for row in taken] == [due]
    assert (await latest(ledger, image)).due == due


async def test_nothing_is_given_back_that_somebody_has_moved_on_meanwhile(ledger: Ledger) -> None:
    settled_meanwhile, claimed_meanwhile = await owing_leftovers(ledger), await queued(ledger)
    await let_pass(ledger, 100)
    taken = await ledger.take_owing(Owed.LEFTOVERS) + await ledger.take_queued(300)
    await ledger.leftovers_removed(settled_meanwhile)
    attempt = await claimed(ledger, claimed_meanwhile)

    await ledger.give_back(taken)

    assert len(taken) == 2
    assert (await latest(ledger, settled_meanwhile)).due is None
    assert await latest(ledger, claimed_meanwhile) == attempt


async def test_a_pass_takes_at_most_two_hundred_of_a_kind(ledger: Ledger) -> None:
    await asyncio.gather(*(queued(ledger) for _ in range(205)))
    await let_pass(ledger, 100)

    assert len(await ledger.take_queued(300)) == 200
    assert len(await ledger.take_queued(3)) == 3
    assert len(await ledger.take_queued(300)) == 2


async def test_a_lost_lease_is_a_loss_and_a_new_wake_up(ledger: Ledger) -> None:
    attempt = await claimed(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    [taken] = await ledger.take_lost()

    image = taken.image
    assert (image.status, image.losses, image.wake, image.worker) == (Status.QUEUED, 1, attempt.wake + 1, None)
    assert image.attempt == attempt.attempt


async def test_the_twentieth_lost_lease_fails_the_image(ledger: Ledger) -> None:
    await claimed(ledger)
    await alter(ledger, losses=MOST_LOSSES - 1)
    still_trying = await claimed(ledger)
    await alter(ledger, still_trying.id, losses=MOST_LOSSES - 2)
    await let_pass(ledger, LEASE_SECONDS + 1)

    taken = await ledger.take_lost()

    statuses = {row.image.losses: (row.image.status, row.image.error_type, row.image.owed) for row in taken}
    assert statuses == {20: (Status.FAILED, "worker-lost", Owed.TOKENS), 19: (Status.QUEUED, None, None)}


async def test_a_lost_lease_of_thumbnails_raises_wake_and_attempt(ledger: Ledger) -> None:
    attempt = await claimed_thumbnails(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    [taken] = await ledger.take_thumbnails()

    image = taken.image
    assert (image.wake, image.attempt, image.losses) == (attempt.wake + 1, attempt.attempt + 1, 1)
    assert (image.status, image.published, image.owed, image.worker) == (Status.READY, 1, Owed.THUMBNAILS, None)


async def test_a_lost_wake_up_of_thumbnails_is_no_loss(ledger: Ledger) -> None:
    await wanting_thumbnails(ledger)
    await let_pass(ledger, WAKE_SECONDS + 1)

    assert [taken.image.losses for taken in await ledger.take_thumbnails()] == [0]


async def test_the_twentieth_lost_lease_gives_thumbnails_up(ledger: Ledger) -> None:
    attempt = await claimed_thumbnails(ledger)
    await alter(ledger, losses=MOST_LOSSES - 1)
    await let_pass(ledger, LEASE_SECONDS + 1)

    assert await ledger.take_thumbnails() == []

    image = await latest(ledger, attempt)
    assert (image.status, image.published, image.owed, image.losses) == (Status.READY, 1, Owed.LEFTOVERS, 0)
    assert seconds_until_due(image, await ledger.now()) == pytest.approx(PAUSE_SECONDS, abs=0.5)


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


async def test_who_is_cancelled_in_a_transaction_learns_of_it_when_the_outcome_is_certain(
    ledger: Ledger, hold_write_lock: Hold
) -> None:
    attempt = await claimed(ledger)
    async with hold_write_lock():
        publishing = asyncio.create_task(ledger.publish(attempt, SIZE, RENDITIONS))
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
    assert ledger._engine.pool.checkedout() == 0  # type: ignore[attr-defined] # a QueuePool, always


async def test_a_transaction_that_fails_leaves_nothing_behind(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Publishing writes twice: the row without its place in the list must never be seen."""
    attempt = await claimed(ledger)
    async with ledger._engine.begin() as connection:
        await connection.exec_driver_sql("ALTER TABLE ledger RENAME TO lost")

    with pytest.raises(LedgerUnavailable):
        await ledger.publish(attempt, SIZE, RENDITIONS)

    assert await latest(ledger, attempt) == attempt


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


async def deleting(ledger: Ledger) -> Image:
    row = await ledger.delete((await ready(ledger)).id)
    assert row is not None
    return row


async def test_the_first_marker_offered_is_the_ledgers(ledger: Ledger) -> None:
    markers = await asyncio.gather(*(ledger.adopt_marker(f"marker-{i}") for i in range(4)))

    assert len(set(markers)) == 1
    assert (await ledger.identity()).marker == markers[0]
    assert await ledger.adopt_marker("late") == markers[0]
