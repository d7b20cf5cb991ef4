"""A pass of the sweep: lost work waits again, the queue is filled in the ledger's order, and debts are paid."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.cancellation import cancel
from shared.errors import LedgerUnavailable, StorageUnavailable
from shared.images import DebtKind, Image, Lane, Status
from shared.ledger import LEASE_SECONDS, MOST_LOSSES, PAUSE_SECONDS, Ledger
from shared.redis.circuit_breaker import CircuitBreaker
from shared.redis.queue import Queue
from shared.renditions import FULL, original_key
from shared.settling import Settling
from shared.storage.disk import DiskStorage
from tests.databases import database
from tests.ledgers import (
    alter,
    claimed,
    claimed_renditions,
    latest,
    let_pass,
    published,
    published_again,
    queued,
    ready,
    wanting_renditions,
)
from tests.services import LEDGER_NAME, put_original, put_rendition
from tests.waiting import until
from worker.sweep import Sweep

__all__ = ["database"]

QUEUE = f"arq:queue2:{LEDGER_NAME}"


@pytest.fixture
def sweep(ledger: Ledger, storage: DiskStorage, queue: Queue, settling: Settling) -> Sweep:
    return Sweep(ledger, storage, queue, settling)


@pytest.fixture
def never_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave a Redis that failed alone for the rest of the test."""
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 3600)


async def jobs_in(redis: Redis) -> list[str]:
    return [job.decode() for job in await redis.zrange(QUEUE, 0, -1)]


def job_of(image: Image) -> str:
    return f"work:{LEDGER_NAME}:{image.id}:{image.attempt}"


async def owing_leftovers(ledger: Ledger) -> Image:
    image = await published_again(ledger)
    await ledger.paid(image.owes(DebtKind.TOKENS, DebtKind.NOTICE))
    return await latest(ledger, image)


async def owed(ledger: Ledger, image: Image) -> set[DebtKind]:
    return {debt.kind for debt in (await latest(ledger, image)).debts}


@pytest.mark.parametrize("arrange", [queued, wanting_renditions])
async def test_work_whose_wake_up_was_lost_is_enqueued_again(
    ledger: Ledger, sweep: Sweep, redis: Redis, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    """Promise 2: FLUSHALL loses no image."""
    image = await arrange(ledger)

    await sweep.pass_once()

    assert await jobs_in(redis) == [job_of(image)]
    assert await latest(ledger, image) == image


@pytest.mark.parametrize("arrange", [claimed, claimed_renditions])
async def test_work_whose_lease_is_over_is_enqueued_at_once(
    ledger: Ledger, sweep: Sweep, redis: Redis, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    attempt = await arrange(ledger)
    await let_pass(ledger, LEASE_SECONDS + 1)

    await sweep.pass_once()

    row = await latest(ledger, attempt)
    assert (row.work, row.worker, row.losses) == (attempt.work, None, 1)
    assert await jobs_in(redis) == [job_of(attempt)]


async def test_an_image_lost_for_the_twentieth_time_is_failed_and_settled(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, redis: Redis
) -> None:
    """Promise 3: nothing stays queued or processing for ever."""
    attempt = await claimed(ledger)
    key = await put_rendition(storage, attempt, 1)
    await alter(ledger, losses=MOST_LOSSES - 1)
    await let_pass(ledger, LEASE_SECONDS + 1)

    await sweep.pass_once()
    failed = await latest(ledger, attempt)
    await let_pass(ledger, 100)
    await sweep.pass_once()

    assert (failed.status, failed.error_type) == (Status.FAILED, "worker-lost")
    assert (await latest(ledger, attempt)).debts == ()
    assert await redis.exists(f"asgilook:{LEDGER_NAME}:token:{attempt.id}")
    assert not await storage.exists(key)
    assert await jobs_in(redis) == []


async def test_each_kind_of_debt_is_paid_by_itself(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, redis: Redis
) -> None:
    images = {}
    for kind in DebtKind:
        images[kind] = image = await published_again(ledger)
        await put_rendition(storage, image, 1)
        await ledger.paid([debt for debt in image.debts if debt.kind is not kind])
    all_three = await published_again(ledger)
    await let_pass(ledger, 100)

    await sweep.pass_once()

    assert [await owed(ledger, image) for image in (*images.values(), all_three)] == [set()] * 4
    tokens = [await redis.exists(f"asgilook:{LEDGER_NAME}:token:{image.id}") for image in images.values()]
    assert tokens == [kind is DebtKind.TOKENS for kind in images]
    superseded = [await storage.exists(f"renditions/{image.id}/1/{FULL}") for image in images.values()]
    assert superseded == [kind is not DebtKind.LEFTOVERS for kind in images]


async def test_debts_are_left_for_a_moment_to_the_process_that_committed_them(
    ledger: Ledger, sweep: Sweep, redis: Redis
) -> None:
    image = await published_again(ledger)

    await sweep.pass_once()

    assert await latest(ledger, image) == image
    assert await redis.keys() == []


async def test_renditions_given_up_may_be_asked_for_again_after_a_minute(ledger: Ledger, sweep: Sweep) -> None:
    given_up = await ledger.give_up(await claimed_renditions(ledger))
    assert given_up is not None

    await sweep.pass_once()
    too_early = await ledger.request_renditions(given_up, Lane.DEMAND)
    await let_pass(ledger, PAUSE_SECONDS + 1)
    await sweep.pass_once()

    assert too_early is None
    assert await ledger.request_renditions(given_up, Lane.DEMAND) is not None


async def test_a_ready_image_that_owes_nothing_is_left_alone(ledger: Ledger, sweep: Sweep, redis: Redis) -> None:
    image = await ready(ledger)
    await let_pass(ledger, 1000)
    before = await latest(ledger, image)

    await sweep.pass_once()

    assert await latest(ledger, image) == before
    assert await redis.keys() == []


# Redis away


@pytest.mark.usefixtures("never_back")
async def test_without_redis_leases_end_and_leftovers_are_paid_and_the_rest_stays_due(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, redis_server: fakeredis.FakeServer
) -> None:
    """Workers take their work from the ledger meanwhile: it must know that an attempt was lost."""
    lost = [await arrange(ledger) for arrange in (claimed, claimed_renditions)]
    waiting = [await arrange(ledger) for arrange in (queued, wanting_renditions, published)]
    leftovers = await owing_leftovers(ledger)
    key = await put_rendition(storage, leftovers, 1)
    await let_pass(ledger, 100)
    before = [await latest(ledger, image) for image in waiting]
    redis_server.connected = False

    await sweep.pass_once()

    assert [((row := await latest(ledger, image)).worker, row.losses) for image in lost] == [(None, 1)] * 2
    assert {image.id for image in await ledger.waiting(10)} == {image.id for image in (*lost, *waiting[:2])}
    assert [await latest(ledger, image) for image in waiting] == before
    assert await owed(ledger, leftovers) == set()
    assert not await storage.exists(key)


async def test_later_passes_pay_what_was_cut_short_when_redis_went_away(
    ledger: Ledger,
    sweep: Sweep,
    settling: Settling,
    breaker: CircuitBreaker,
    redis_server: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, *others = [await published(ledger) for _ in range(3)]
    await let_pass(ledger, 100)
    real = settling.pay

    async def pay(image: Image) -> None:
        redis_server.connected = image.id == first.id
        await real(image)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(settling, "pay", pay)
        await sweep.pass_once()
    cut_short = [await owed(ledger, image) for image in (first, *others)]
    redis_server.connected = True

    async def is_back() -> bool:
        return not breaker.is_open

    await until(is_back)
    await let_pass(ledger, 100)
    await sweep.pass_once()

    assert cut_short == [{DebtKind.NOTICE}, *[{DebtKind.TOKENS, DebtKind.NOTICE}] * 2]
    assert [await owed(ledger, image) for image in (first, *others)] == [set()] * 3


# Trouble of others


async def test_leftovers_that_storage_refuses_to_remove_stay_owed_and_hinder_no_other_image(
    ledger: Ledger, storage: DiskStorage, sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck, fine = await owing_leftovers(ledger), await owing_leftovers(ledger)
    for image in (stuck, fine):
        await put_rendition(storage, image, 1)
    await let_pass(ledger, 100)
    real = storage.delete_folder

    async def delete_folder(prefix: str) -> None:
        if stuck.id in prefix:
            raise StorageUnavailable("stale handle")
        await real(prefix)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage, "delete_folder", delete_folder)
        await sweep.pass_once()
    first = [await owed(ledger, image) for image in (stuck, fine)]
    await let_pass(ledger, 100)
    await sweep.pass_once()

    assert first == [{DebtKind.LEFTOVERS}, set()]
    assert await owed(ledger, stuck) == set()


async def test_a_pass_that_fails_is_not_the_last(
    ledger: Ledger, sweep: Sweep, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sweep.EVERY_SECONDS", 0.001)
    image = await queued(ledger)
    await let_pass(ledger, 100)
    troubles: list[Exception] = [RuntimeError("a bug"), LedgerUnavailable("locked")]

    real = queue.not_enqueued

    async def not_enqueued(images: Sequence[Image]) -> list[Image]:
        if troubles:
            raise troubles.pop()
        return await real(images)

    monkeypatch.setattr(queue, "not_enqueued", not_enqueued)
    running = asyncio.create_task(sweep.run())

    async def is_enqueued() -> bool:
        return bool(await jobs_in(redis))

    await until(is_enqueued)
    await cancel(running)

    assert await jobs_in(redis) == [job_of(image)]


# How much


@pytest.mark.parametrize("jobs", [0, 3, 1000])
async def test_the_first_work_in_order_is_enqueued_and_the_rest_waits_in_the_ledger(
    ledger: Ledger, sweep: Sweep, redis: Redis, monkeypatch: pytest.MonkeyPatch, jobs: int
) -> None:
    """Whatever jobs there are: they may be those of deleted images."""
    monkeypatch.setattr("worker.sweep.FIRST_IN_ORDER", 3)
    if jobs:
        await redis.zadd(QUEUE, {f"another:{i}": i for i in range(jobs)})
    images = [await queued(ledger) for _ in range(5)]

    await sweep.pass_once()

    assert (await jobs_in(redis))[jobs:] == [job_of(image) for image in images[:3]]


async def test_after_a_flush_the_queue_has_the_ledgers_order(ledger: Ledger, sweep: Sweep, redis: Redis) -> None:
    """All of a lane comes before the next lane, and within a lane the earlier turn first, not the earlier image."""
    images = [await wanting_renditions(ledger, lane) for lane in reversed(Lane)]
    images += [await queued(ledger) for _ in range(3)]
    await alter(ledger, images[-1].id, turn=1.0)

    await sweep.pass_once()

    bulk, ahead, demand, upload, second, third, first = [job_of(image) for image in images]
    assert await jobs_in(redis) == [first, upload, second, third, demand, ahead, bulk]


async def test_a_queue_that_has_all_that_waits_is_left_alone(
    ledger: Ledger, sweep: Sweep, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No storm: a pass over a backlog writes nothing."""
    enqueued: list[Image] = []
    for arrange in (queued, queued, wanting_renditions):
        await queue.enqueue(await arrange(ledger))

    async def enqueue(*images: Image) -> None:
        enqueued.extend(images)

    monkeypatch.setattr(queue, "enqueue", enqueue)
    for _ in range(3):
        await sweep.pass_once()

    assert enqueued == []
    assert len(await jobs_in(redis)) == 3


async def test_a_job_is_put_where_its_work_has_its_place_by_now(
    ledger: Ledger, sweep: Sweep, queue: Queue, redis: Redis
) -> None:
    first, second = [await queued(ledger) for _ in range(2)]
    await queue.enqueue(first, second)
    await alter(ledger, second.id, turn=1.0)

    await sweep.pass_once()

    assert await jobs_in(redis) == [job_of(second), job_of(first)]


async def test_one_lost_wake_up_among_many_jobs_is_noticed(
    ledger: Ledger, sweep: Sweep, queue: Queue, redis: Redis
) -> None:
    lost, *others = [await queued(ledger) for _ in range(10)]
    await queue.enqueue(*others)

    await sweep.pass_once()

    assert await jobs_in(redis) == [job_of(image) for image in (lost, *others)]


async def test_lost_leases_are_enqueued_whatever_the_queues_depth(ledger: Ledger, sweep: Sweep, redis: Redis) -> None:
    await redis.zadd(QUEUE, {f"another:{i}": 1e15 for i in range(400)})
    attempt = await claimed(ledger)
    await let_pass(ledger, 100)

    await sweep.pass_once()

    # In the order of work: in front of all that waits.
    assert (await jobs_in(redis))[0] == job_of(attempt)


async def test_sweeps_at_once_serve_each_row_once(
    ledger: Ledger, storage: DiskStorage, queue: Queue, settling: Settling, redis: Redis
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
    async with ledger._database._engine.begin() as connection:
        for table in ("images", "debts"):
            await connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 - our own names

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


async def test_a_lost_wake_up_of_an_upload_does_not_wait_behind_a_deep_queue(
    ledger: Ledger, sweep: Sweep, redis: Redis
) -> None:
    await redis.zadd(QUEUE, {f"another:{i}": 1e15 for i in range(400)})
    upload = await queued(ledger)

    await sweep.pass_once()

    assert (await jobs_in(redis))[0] == job_of(upload)
