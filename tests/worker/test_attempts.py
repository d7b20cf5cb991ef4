"""Every way an attempt can end, and what the ledger, the storage and the queue look like afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.errors import (
    AsgilookError,
    ChildLost,
    DecoderCrashed,
    ImageTooLarge,
    LeaseLost,
    LedgerUnavailable,
    NoChild,
    NoSuchKey,
    RenderFailure,
    RenderOutOfMemory,
    RenderTimedOut,
    StorageFull,
    StorageUnavailable,
    UnreadableImage,
)
from shared.images import DebtKind, Image, Lane, Status, Work
from shared.ledger import LEASE_SECONDS, MOST_LOSSES, PAUSE_SECONDS, Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.renditions import Rendition, Size, renditions_prefix
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import Storage
from shared.telemetry import logs
from tests.databases import database
from tests.ledgers import (
    SIZE,
    alter,
    claimed,
    latest,
    let_pass,
    made_by,
    published,
    queued,
    wanting_renditions,
)
from tests.services import LEDGER_NAME, put_rendition
from tests.waiting import until
from worker import pause
from worker.attempt import Attempt, Interrupted
from worker.attempts import Attempts
from worker.pause import Pause

__all__ = ["database"]


@pytest.fixture
def attempts(ledger: Ledger, storage: Storage, queue: Queue, settling: Settling) -> Attempts:
    return Attempts(ledger, storage, queue, settling, Pause(), "host:1", work_seconds=100.0)


WithLedger = Callable[[type[Ledger]], Awaitable[Attempts]]
#: What is done in an attempt.
Do = Callable[[Attempt], Awaitable[None]]


async def work(attempts: Attempts, image: Image, do: Do) -> None:
    """Claim the work that waits on an image, and do it."""
    async with attempts.claim(image.id) as attempt:
        if attempt is not None:
            await do(attempt)


def publishing(attempts: Attempts) -> Do:
    """Work that succeeds."""

    async def do(attempt: Attempt) -> None:
        await put_rendition(attempts._storage, attempt.image, attempt.image.attempt)
        await attempt.publish(SIZE, made_by(attempt.image), seconds=0.1)

    return do


def raising(attempts: Attempts, exc: BaseException) -> Do:
    """Work that has stored something when it fails."""

    async def do(attempt: Attempt) -> None:
        await put_rendition(attempts._storage, attempt.image, attempt.image.attempt)
        raise exc

    return do


class Gate:
    """Work that has begun, and waits until it is let through or cancelled."""

    def __init__(self, attempts: Attempts) -> None:
        self.begun: list[Attempt] = []
        self.cancelled = 0
        self._open = asyncio.Event()
        self._attempts = attempts

    def open(self) -> None:
        self._open.set()

    async def __call__(self, attempt: Attempt) -> None:
        self.begun.append(attempt)
        try:
            await self._open.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        await publishing(self._attempts)(attempt)


@pytest.fixture
async def gate(attempts: Attempts) -> Gate:
    return Gate(attempts)


async def queue_of(redis: Redis) -> list[bytes]:
    jobs: list[bytes] = await redis.zrange(f"arq:queue2:{LEDGER_NAME}", 0, -1)
    return jobs


def attempts_of(image: Image) -> set[int]:
    """Return the attempts that have made the image's renditions."""
    return {rendition.attempt for rendition in image.renditions.values()}


async def folders_of(storage: Storage, image: Image) -> list[str]:
    return await storage.folders(renditions_prefix(image.id))


async def seconds_until_due(ledger: Ledger, image: Image) -> float:
    assert image.due is not None
    return image.due - await ledger.now()


# Success


async def test_a_published_image_is_settled_at_once(ledger: Ledger, storage: Storage, attempts: Attempts) -> None:
    image = await queued(ledger)

    await work(attempts, image, publishing(attempts))

    row = await latest(ledger, image)
    assert (row.status, attempts_of(row), row.debts, row.due) == (Status.READY, {1}, (), None)
    assert await folders_of(storage, image) == ["1"]


async def test_an_image_that_somebody_else_has_is_left_alone(ledger: Ledger, attempts: Attempts, gate: Gate) -> None:
    image = await claimed(ledger, worker="host:2")

    await work(attempts, image, gate)

    assert gate.begun == []
    assert await latest(ledger, image) == image


async def test_a_success_ends_a_pause(ledger: Ledger, attempts: Attempts) -> None:
    attempts._pause.begin()

    await work(attempts, await queued(ledger), publishing(attempts))

    assert attempts._pause.seconds_left == 0


async def test_lines_written_during_an_attempt_name_its_image_and_request(ledger: Ledger, attempts: Attempts) -> None:
    image = await queued(ledger)
    seen: list[tuple[str | None, str | None]] = []

    async def do(attempt: Attempt) -> None:
        seen.append((logs.image_id.get(), logs.request_id.get()))
        raise UnreadableImage("This is no picture.")

    await asyncio.create_task(work(attempts, image, do))

    assert seen == [(image.id, "request-1")]


# Failures: the file's


@pytest.mark.parametrize("failure", [UnreadableImage, ImageTooLarge, RenderTimedOut, RenderOutOfMemory])
async def test_what_the_file_did_is_final_at_once(
    ledger: Ledger, storage: Storage, attempts: Attempts, redis: Redis, failure: type[RenderFailure]
) -> None:
    image = await queued(ledger)

    await work(attempts, image, raising(attempts, failure("Why, in words.")))

    row = await latest(ledger, image)
    assert (row.status, row.error_type, row.error_detail) == (Status.FAILED, failure.type, "Why, in words.")
    assert (row.debts, row.due) == ((), None)
    assert await folders_of(storage, image) == []
    assert await queue_of(redis) == []
    assert attempts._pause.seconds_left == 0


async def test_a_crashed_decoder_is_final_at_the_second_time(
    ledger: Ledger, storage: Storage, attempts: Attempts, redis: Redis
) -> None:
    image = await queued(ledger)
    crash = raising(attempts, DecoderCrashed("The decoder crashed on this picture (SIGSEGV)."))

    await work(attempts, image, crash)

    once = await latest(ledger, image)
    assert (once.status, once.failures, once.losses) == (Status.QUEUED, 1, 0)
    assert await queue_of(redis) == [f"work:{LEDGER_NAME}:{image.id}:1".encode()]
    assert await folders_of(storage, image) == []

    await work(attempts, image, crash)

    twice = await latest(ledger, image)
    assert (twice.status, twice.error_type) == (Status.FAILED, "decoder-crashed")
    assert await folders_of(storage, image) == []


async def test_a_crash_that_was_chance_is_forgotten_by_a_success(ledger: Ledger, attempts: Attempts) -> None:
    image = await queued(ledger)
    await work(attempts, image, raising(attempts, DecoderCrashed("SIGSEGV")))

    await work(attempts, image, publishing(attempts))

    row = await latest(ledger, image)
    assert (row.status, attempts_of(row), row.failures) == (Status.READY, {2}, 0)


# Losses: ours


@pytest.mark.parametrize("loss", [ChildLost("killed"), NoSuchKey("the original"), RuntimeError("a bug"), KeyError("x")])
async def test_what_was_lost_is_queued_again_at_once(
    ledger: Ledger, storage: Storage, attempts: Attempts, redis: Redis, loss: Exception
) -> None:
    image = await queued(ledger)

    await work(attempts, image, raising(attempts, loss))

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 1, 0)
    assert await queue_of(redis) == [f"work:{LEDGER_NAME}:{image.id}:1".encode()]
    assert await folders_of(storage, image) == []
    assert attempts._pause.seconds_left == 0


async def test_what_is_lost_for_the_twentieth_time_fails_and_is_settled(ledger: Ledger, attempts: Attempts) -> None:
    image = await queued(ledger)
    await alter(ledger, losses=MOST_LOSSES - 1)

    await work(attempts, image, raising(attempts, ChildLost("killed")))

    row = await latest(ledger, image)
    assert (row.status, row.error_type, row.debts) == (Status.FAILED, "worker-lost", ())


async def test_a_loss_without_redis_is_left_to_the_sweep(
    ledger: Ledger, attempts: Attempts, redis_server: fakeredis.FakeServer
) -> None:
    image = await queued(ledger)
    redis_server.connected = False

    await work(attempts, image, raising(attempts, ChildLost("killed")))

    row = await latest(ledger, image)
    assert (row.status, row.losses) == (Status.QUEUED, 1)
    assert await seconds_until_due(ledger, row) <= 10


# Trouble: nobody's


@pytest.mark.parametrize(
    "trouble",
    [
        StorageUnavailable("stale handle"),
        StorageFull("no room"),
        LedgerUnavailable("locked"),
        RedisAway("away"),
        NoChild("none came up"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
async def test_trouble_counts_nowhere_and_pauses_the_worker(
    ledger: Ledger, storage: Storage, attempts: Attempts, redis: Redis, trouble: AsgilookError
) -> None:
    """One sick worker must not eat the queue."""
    image = await queued(ledger)

    await work(attempts, image, raising(attempts, trouble))

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures, row.worker) == (Status.QUEUED, 0, 0, None)
    assert 1 < await seconds_until_due(ledger, row) <= 2
    assert 0 < attempts._pause.seconds_left <= pause.PAUSE_SECONDS
    assert await folders_of(storage, image) == []
    assert await queue_of(redis) == []


async def test_a_delete_in_the_middle_of_storing_is_no_trouble_of_the_workers(
    ledger: Ledger, storage: Storage, attempts: Attempts
) -> None:
    """Its folder went under its hands: clients that upload and delete must not be able to stop a worker."""

    async def do(attempt: Attempt) -> None:
        await ledger.delete(attempt.image.id)
        raise StorageUnavailable("nothing at renditions")

    await work(attempts, await queued(ledger), do)

    assert attempts._pause.seconds_left == 0


async def test_an_image_stays_with_whoever_cannot_hand_it_back_until_its_lease_is_over(
    ledger: Ledger, storage: Storage, attempts: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await queued(ledger)

    async def unavailable(*arguments: object) -> None:
        raise LedgerUnavailable("locked")

    monkeypatch.setattr(ledger, "hand_back", unavailable)

    await work(attempts, image, raising(attempts, LedgerUnavailable("locked")))

    row = await latest(ledger, image)
    assert row.status is Status.PROCESSING
    assert attempts._pause.seconds_left > 0
    # What became of the commit is not known: nothing is removed.
    assert await folders_of(storage, image) == ["1"]


class NoLedger(Ledger):
    """A ledger that cannot be asked for work."""

    error: Exception = LedgerUnavailable("locked")

    async def claim(self, image_id: str, worker: str) -> Image | None:
        raise self.error

    async def claim_next(self, worker: str) -> Image | None:
        raise self.error


async def test_a_ledger_that_cannot_be_asked_pauses_the_worker(ledger: Ledger, with_ledger: WithLedger) -> None:
    attempts = await with_ledger(NoLedger)
    gate = Gate(attempts)

    await work(attempts, await queued(ledger), gate)
    paused_by_the_first = attempts._pause.seconds_left
    attempts._pause.end()
    following = await attempts.claim_next()

    assert gate.begun == []
    assert following is None
    assert paused_by_the_first > 0
    assert attempts._pause.seconds_left > 0


async def test_no_error_whatever_reaches_arq(
    ledger: Ledger, with_ledger: WithLedger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the ledger issues work again: arq would log a traceback and do what it likes."""
    monkeypatch.setattr(NoLedger, "error", RuntimeError("a bug"))
    attempts = await with_ledger(NoLedger)

    await work(attempts, await queued(ledger), Gate(attempts))

    assert "nothing could be claimed because of an unforeseen error" in caplog.messages


async def test_no_error_of_an_outcome_reaches_arq(
    ledger: Ledger, attempts: Attempts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(attempts._settling, "settle", fail)

    await work(attempts, await queued(ledger), publishing(attempts))

    assert "an attempt was left to the sweep by an unforeseen error" in caplog.messages


async def test_work_that_publishes_nothing_is_lost(ledger: Ledger, attempts: Attempts) -> None:
    image = await queued(ledger)

    async def do(attempt: Attempt) -> None:
        pass

    await work(attempts, image, do)

    row = await latest(ledger, image)
    assert (row.status, row.losses) == (Status.QUEUED, 1)


# The first work in order


async def test_the_first_work_in_order_is_claimed_without_its_id(ledger: Ledger, attempts: Attempts) -> None:
    first, second = await queued(ledger), await queued(ledger)

    attempt = await attempts.claim_next()
    assert attempt is not None
    async with attempts.hold(attempt):
        await publishing(attempts)(attempt)

    assert (await latest(ledger, first)).status is Status.READY
    assert await latest(ledger, second) == second


async def test_without_work_nothing_is_claimed(attempts: Attempts) -> None:
    assert await attempts.claim_next() is None


# Stopped


async def test_a_worker_that_stops_hands_back_at_once_without_blame(
    ledger: Ledger, storage: Storage, attempts: Attempts, gate: Gate, redis: Redis
) -> None:
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)
    await put_rendition(storage, image, 1)

    attempts.stop()
    await running

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 0, 0)
    assert await seconds_until_due(ledger, row) <= 0
    assert await queue_of(redis) == [f"work:{LEDGER_NAME}:{image.id}:1".encode()]
    assert attempts._pause.seconds_left == 0
    assert await folders_of(storage, image) == []
    assert gate.cancelled == 1


async def test_preempted_work_is_handed_back_at_once_without_blame(
    ledger: Ledger, storage: Storage, attempts: Attempts, gate: Gate, redis: Redis
) -> None:
    image = await wanting_renditions(ledger, Lane.BULK)
    await put_rendition(storage, image, 1)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)
    await put_rendition(storage, image, 2)
    attempt = gate.begun[0]
    was_preemptible = attempt.is_preemptible

    attempt.stop(Interrupted("preempted"))
    await running

    row = await latest(ledger, image)
    assert was_preemptible
    assert not attempt.is_preemptible
    assert (row.work, row.worker, row.lane, row.turn) == (Work.RENDITIONS, None, Lane.BULK, image.turn)
    assert (row.losses, row.failures, row.debts) == (0, 0, ())
    assert await seconds_until_due(ledger, row) <= 0
    assert await queue_of(redis) == [f"work:{LEDGER_NAME}:{image.id}:2".encode()]
    assert await folders_of(storage, image) == ["1"]
    assert attempts._pause.seconds_left == 0


@pytest.mark.parametrize(("lane", "is_preemptible"), [(Lane.DEMAND, False), (Lane.AHEAD, True), (Lane.BULK, True)])
async def test_some_lanes_are_preemptible(
    ledger: Ledger, attempts: Attempts, gate: Gate, lane: Lane, is_preemptible: bool
) -> None:
    running = asyncio.create_task(work(attempts, await wanting_renditions(ledger, lane), gate))
    await until(lambda: gate.begun)

    found = gate.begun[0].is_preemptible
    gate.open()
    await running

    assert found is is_preemptible


@pytest.mark.parametrize("by_id", [True, False])
async def test_work_that_takes_longer_than_any_should_is_lost_and_queued_again(
    ledger: Ledger, storage: Storage, attempts: Attempts, gate: Gate, redis: Redis, by_id: bool
) -> None:
    attempts._work_seconds = 0.05
    image = await queued(ledger)

    if by_id:
        await work(attempts, image, gate)
    else:
        attempt = await attempts.claim_next()
        assert attempt is not None
        async with attempts.hold(attempt):
            await gate(attempt)

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures, gate.cancelled) == (Status.QUEUED, 1, 0, 1)
    assert await queue_of(redis) == [f"work:{LEDGER_NAME}:{image.id}:1".encode()]


async def test_a_job_that_is_cancelled_hands_back(ledger: Ledger, attempts: Attempts, gate: Gate) -> None:
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)

    running.cancel()
    await running

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 0, 0)


async def test_an_attempt_that_is_stopped_while_the_commit_goes_through_has_published(
    ledger: Ledger, storage: Storage, attempts: Attempts
) -> None:
    image = await queued(ledger)

    async def do(attempt: Attempt) -> None:
        await publishing(attempts)(attempt)
        attempts.stop()
        await asyncio.sleep(3600)

    await work(attempts, image, do)

    row = await latest(ledger, image)
    assert (row.status, attempts_of(row), row.debts) == (Status.READY, {1}, ())
    assert await folders_of(storage, image) == ["1"]


class SlowLedger(Ledger):
    """Its claims are committed, and their callers do not know yet."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.has_committed = asyncio.Event()
        self.may_tell = asyncio.Event()
        self.error: AsgilookError | None = None

    async def claim(self, image_id: str, worker: str) -> Image | None:
        return await self._tell_late(await super().claim(image_id, worker))

    async def claim_next(self, worker: str) -> Image | None:
        return await self._tell_late(await super().claim_next(worker))

    async def _tell_late(self, image: Image | None) -> Image | None:
        self.has_committed.set()
        await self.may_tell.wait()
        if self.error is not None:
            raise self.error
        return image


@pytest.fixture
async def slow(with_ledger: WithLedger) -> tuple[SlowLedger, Attempts]:
    attempts = await with_ledger(SlowLedger)
    assert isinstance(attempts._ledger, SlowLedger)
    return attempts._ledger, attempts


async def test_what_was_claimed_by_a_job_that_was_cancelled_is_handed_back(
    ledger: Ledger, slow: tuple[SlowLedger, Attempts]
) -> None:
    """Its lease's end would count as a loss; being cancelled counts nowhere."""
    slow_ledger, attempts = slow
    gate, image = Gate(attempts), await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await slow_ledger.has_committed.wait()

    running.cancel()
    await asyncio.sleep(0)
    slow_ledger.may_tell.set()
    await asyncio.wait([running])

    row = await latest(ledger, image)
    assert (row.status, row.attempt, row.losses, gate.begun) == (Status.QUEUED, 1, 0, [])


async def test_a_second_cancellation_changes_nothing(ledger: Ledger, slow: tuple[SlowLedger, Attempts]) -> None:
    """`cancel` repeats its own."""
    slow_ledger, attempts = slow
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, Gate(attempts)))
    await slow_ledger.has_committed.wait()

    for _ in range(3):
        running.cancel()
        await asyncio.sleep(0)
    slow_ledger.may_tell.set()
    await asyncio.wait([running])

    row = await latest(ledger, image)
    assert (row.status, row.worker, row.losses) == (Status.QUEUED, None, 0)
    assert running.cancelled()


@pytest.mark.parametrize("fails", ["claim", "hand back"])
async def test_a_cancelled_claim_ends_in_its_cancellation_if_the_ledger_fails_as_well(
    ledger: Ledger, slow: tuple[SlowLedger, Attempts], monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    slow_ledger, attempts = slow
    running = asyncio.create_task(work(attempts, await queued(ledger), Gate(attempts)))
    await slow_ledger.has_committed.wait()

    async def fail(*_: object) -> None:
        raise LedgerUnavailable("locked")

    if fails == "claim":
        slow_ledger.error = LedgerUnavailable("the connection was lost during the commit")
    else:
        monkeypatch.setattr(slow_ledger, "hand_back", fail)
    running.cancel()
    await asyncio.sleep(0)
    slow_ledger.may_tell.set()
    await asyncio.wait([running])

    assert running.cancelled()


@pytest.mark.parametrize("by_id", [True, False])
async def test_what_is_claimed_while_the_worker_stops_is_handed_back_at_once(
    ledger: Ledger, slow: tuple[SlowLedger, Attempts], by_id: bool
) -> None:
    slow_ledger, attempts = slow
    gate, image = Gate(attempts), await queued(ledger)

    async def work_on_next() -> None:
        attempt = await attempts.claim_next()
        assert attempt is not None
        async with attempts.hold(attempt):
            await gate(attempt)

    running = asyncio.create_task(work(attempts, image, gate) if by_id else work_on_next())
    await slow_ledger.has_committed.wait()
    attempts.stop()
    slow_ledger.may_tell.set()
    await running

    row = await latest(ledger, image)
    assert (row.status, row.attempt, row.losses) == (Status.QUEUED, 1, 0)


# The lease


class CountingLedger(Ledger):
    renewals = 0
    trouble: Exception | None = None

    async def renew(self, attempt: Image) -> Image | None:
        self.renewals += 1
        if self.trouble is not None:
            raise self.trouble
        return await super().renew(attempt)


class UnsureLedger(Ledger):
    """Its connection breaks at every commit, just after it or just before."""

    commits = True

    async def publish(
        self, attempt: Image, size: Size, renditions: Iterable[Rendition], *, seconds: float
    ) -> Image | None:
        if self.commits:
            await super().publish(attempt, size, renditions, seconds=seconds)
        raise LedgerUnavailable("the connection was lost during the commit")


@pytest.fixture
async def with_ledger(
    settings: Settings, storage: Storage, queue: Queue, settling: Settling
) -> AsyncIterator[Callable[[type[Ledger]], Awaitable[Attempts]]]:
    """Make attempts over a ledger of another kind."""
    ledgers: list[Ledger] = []

    async def make(kind: type[Ledger]) -> Attempts:
        ledgers.append(kind.connect(settings))
        return Attempts(ledgers[-1], storage, queue, settling, Pause(), "host:1", work_seconds=100.0)

    yield make

    for ledger in ledgers:
        await ledger.close()


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Renew leases a hundred times a second."""
    monkeypatch.setattr("worker.attempt.RENEWED_EVERY_SECONDS", 0.01)


@pytest.mark.usefixtures("often")
async def test_the_lease_is_renewed_as_long_as_the_work_goes_on_and_no_longer(
    ledger: Ledger, with_ledger: WithLedger
) -> None:
    attempts = await with_ledger(CountingLedger)
    counting, gate = attempts._ledger, Gate(attempts)
    assert isinstance(counting, CountingLedger)
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)
    before = (await latest(ledger, image)).due
    assert before is not None

    await until(lambda: counting.renewals >= 3)
    renewed = (await latest(ledger, image)).due
    gate.open()
    await running

    assert renewed is not None
    assert renewed > before
    assert (await latest(ledger, image)).status is Status.READY
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("trouble", [LedgerUnavailable("locked"), RuntimeError("a bug")])
async def test_a_lease_that_cannot_be_renewed_for_a_moment_is_not_given_up(
    ledger: Ledger, with_ledger: WithLedger, trouble: Exception
) -> None:
    attempts = await with_ledger(CountingLedger)
    counting, gate = attempts._ledger, Gate(attempts)
    assert isinstance(counting, CountingLedger)
    counting.trouble = trouble
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))

    await until(lambda: counting.renewals >= 3)
    gate.open()
    await running

    assert gate.cancelled == 0
    assert attempts_of(await latest(ledger, image)) == {1}


async def lose_the_lease(ledger: Ledger) -> None:
    taken: list[Image] = []
    while not taken:  # it may be renewed in between
        await let_pass(ledger, LEASE_SECONDS + 1)
        taken = await ledger.take_lost()


async def take_over(ledger: Ledger, image: Image) -> None:
    await lose_the_lease(ledger)
    await claimed(ledger, image, worker="host:2")


async def publish_over(ledger: Ledger, image: Image) -> None:
    await lose_the_lease(ledger)
    await published(ledger, image)


async def delete(ledger: Ledger, image: Image) -> None:
    assert await ledger.delete(image.id) is not None


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("rival", [take_over, publish_over, delete])
async def test_a_lost_lease_stops_the_work_and_only_its_own_folder_goes(
    ledger: Ledger,
    storage: Storage,
    attempts: Attempts,
    gate: Gate,
    rival: Callable[[Ledger, Image], Awaitable[None]],
) -> None:
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)
    await put_rendition(storage, image, 1)
    await put_rendition(storage, image, 2)
    await rival(ledger, image)
    before = await latest(ledger, image)

    await running

    assert gate.cancelled == 1
    assert await latest(ledger, image) == before
    assert await folders_of(storage, image) == ["2"]
    assert attempts._pause.seconds_left == 0


@pytest.mark.parametrize("rival", [take_over, publish_over, delete])
async def test_a_commit_that_finds_the_image_taken_publishes_nothing(
    ledger: Ledger,
    storage: Storage,
    attempts: Attempts,
    gate: Gate,
    rival: Callable[[Ledger, Image], Awaitable[None]],
) -> None:
    """Promise 4: a late attempt, woken after it was frozen, can neither overwrite nor publish anything."""
    image = await queued(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)
    await put_rendition(storage, image, 2)
    await rival(ledger, image)
    before = await latest(ledger, image)

    gate.open()
    await running

    assert gate.cancelled == 0
    assert await latest(ledger, image) == before
    assert await folders_of(storage, image) == ["2"]


@pytest.mark.parametrize("error", [NoSuchKey, StorageUnavailable, LeaseLost, ValueError])
async def test_who_finds_a_file_gone_that_others_superseded_says_that_they_have_taken_the_image(
    ledger: Ledger, attempts: Attempts, caplog: pytest.LogCaptureFixture, error: type[Exception]
) -> None:
    """Their settling removes what a late attempt may still need; it may notice that before it notices its lease."""

    async def do(attempt: Attempt) -> None:
        await take_over(ledger, attempt.image)
        raise error("nothing at renditions")

    with caplog.at_level("INFO"):
        await work(attempts, await queued(ledger), do)

    assert caplog.messages[-1] == "others have taken the image from this attempt"


async def test_who_hands_back_says_nothing_of_others(
    ledger: Ledger, attempts: Attempts, caplog: pytest.LogCaptureFixture
) -> None:
    async def do(attempt: Attempt) -> None:
        raise StorageUnavailable("nothing at renditions")

    with caplog.at_level("INFO"):
        await work(attempts, await queued(ledger), do)

    assert "others have taken the image from this attempt" not in caplog.messages


# Commits of which nobody knows


async def test_a_commit_that_went_through_unheard_is_found_out_and_its_renditions_stay(
    ledger: Ledger, storage: Storage, with_ledger: WithLedger
) -> None:
    attempts = await with_ledger(UnsureLedger)
    image = await queued(ledger)

    await work(attempts, image, publishing(attempts))

    row = await latest(ledger, image)
    assert (row.status, attempts_of(row), row.debts) == (Status.READY, {1}, ())
    assert await folders_of(storage, image) == ["1"]


async def test_a_commit_that_did_not_go_through_is_found_out_and_the_image_handed_back(
    ledger: Ledger, storage: Storage, with_ledger: WithLedger
) -> None:
    attempts = await with_ledger(UnsureLedger)
    assert isinstance(attempts._ledger, UnsureLedger)
    attempts._ledger.commits = False
    image = await queued(ledger)

    await work(attempts, image, publishing(attempts))

    row = await latest(ledger, image)
    assert (row.status, row.losses) == (Status.QUEUED, 0)
    assert await folders_of(storage, image) == []


async def test_nothing_is_removed_while_nobody_can_say_what_was_committed(
    ledger: Ledger, storage: Storage, with_ledger: WithLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = await with_ledger(UnsureLedger)
    image = await queued(ledger)

    async def unavailable(image_id: str) -> None:
        raise LedgerUnavailable("locked")

    monkeypatch.setattr(attempts._ledger, "get", unavailable)

    await work(attempts, image, publishing(attempts))

    assert attempts_of(await latest(ledger, image)) == {1}
    assert await folders_of(storage, image) == ["1"]


# More renditions of a ready image


async def test_renditions_are_published_and_the_superseded_attempt_goes(
    ledger: Ledger, storage: Storage, attempts: Attempts
) -> None:
    image = await wanting_renditions(ledger)
    await put_rendition(storage, image, 1)

    await work(attempts, image, publishing(attempts))

    row = await latest(ledger, image)
    assert (row.status, attempts_of(row), row.debts, row.sequence) == (Status.READY, {2}, (), image.sequence)
    assert await folders_of(storage, image) == ["2"]


@pytest.mark.parametrize("failure", [UnreadableImage("No."), DecoderCrashed("SIGSEGV"), RenderTimedOut("Too long.")])
async def test_renditions_that_fail_change_nothing_and_are_not_asked_for_for_a_minute(
    ledger: Ledger, storage: Storage, attempts: Attempts, failure: RenderFailure
) -> None:
    image = await wanting_renditions(ledger)
    await put_rendition(storage, image, 1)

    await work(attempts, image, raising(attempts, failure))

    row = await latest(ledger, image)
    assert (row.status, row.renditions, row.error_type) == (Status.READY, image.renditions, None)
    assert (row.work, row.failures, row.debts) == (None, 0, ())
    assert row.paused_until is not None
    assert PAUSE_SECONDS - 5 < row.paused_until - await ledger.now() <= PAUSE_SECONDS
    assert await ledger.request_renditions(row, Lane.DEMAND) is None
    assert await folders_of(storage, image) == ["1"]


async def test_renditions_that_are_lost_are_queued_again_at_once(
    ledger: Ledger, storage: Storage, attempts: Attempts, redis: Redis
) -> None:
    image = await wanting_renditions(ledger)
    await put_rendition(storage, image, 1)

    await work(attempts, image, raising(attempts, ChildLost("killed")))

    row = await latest(ledger, image)
    assert (row.status, row.renditions, row.work, row.losses) == (Status.READY, image.renditions, Work.RENDITIONS, 1)
    assert await seconds_until_due(ledger, row) <= 0
    assert await queue_of(redis) == [f"work:{LEDGER_NAME}:{image.id}:2".encode()]
    assert await folders_of(storage, image) == ["1"]


async def test_renditions_lost_for_the_twentieth_time_are_not_asked_for_for_a_minute(
    ledger: Ledger, attempts: Attempts
) -> None:
    image = await wanting_renditions(ledger)
    await alter(ledger, losses=MOST_LOSSES - 1)

    await work(attempts, image, raising(attempts, ChildLost("killed")))

    row = await latest(ledger, image)
    assert (row.status, row.work, row.debts) == (Status.READY, None, ())
    assert await ledger.request_renditions(row, Lane.DEMAND) is None


async def test_renditions_in_trouble_are_tried_again_later(
    ledger: Ledger, storage: Storage, attempts: Attempts, redis: Redis
) -> None:
    image = await wanting_renditions(ledger)

    await work(attempts, image, raising(attempts, StorageUnavailable("stale handle")))

    row = await latest(ledger, image)
    assert (row.status, row.work, row.losses) == (Status.READY, Work.RENDITIONS, 0)
    assert {debt.kind for debt in row.debts} <= {DebtKind.LEFTOVERS}
    assert 1 < await seconds_until_due(ledger, row) <= 2
    assert await queue_of(redis) == []


@pytest.mark.usefixtures("often")
async def test_a_delete_stops_the_making_of_renditions(
    ledger: Ledger, storage: Storage, attempts: Attempts, gate: Gate
) -> None:
    image = await wanting_renditions(ledger)
    running = asyncio.create_task(work(attempts, image, gate))
    await until(lambda: gate.begun)

    await ledger.delete(image.id)
    await running

    assert gate.cancelled == 1
    assert (await latest(ledger, image)).status is Status.DELETING


async def test_a_job_whose_image_has_no_work_any_more_does_nothing(
    ledger: Ledger, attempts: Attempts, gate: Gate
) -> None:
    image = await wanting_renditions(ledger)
    await work(attempts, image, publishing(attempts))
    before = await latest(ledger, image)

    await work(attempts, image, gate)

    assert gate.begun == []
    assert await latest(ledger, image) == before
