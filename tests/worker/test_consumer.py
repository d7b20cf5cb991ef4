"""The consumer on a real server: it starts at once, leaves nothing lying, and works on without its Redis."""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.cancellation import cancel
from shared.errors import ChildLost, StorageUnavailable, UnreadableImage
from shared.images import Image, Lane, Status
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import worker_client
from shared.redis.queue import WORK, Queue
from shared.settings import Settings
from shared.settling import Settling
from shared.storage.disk import DiskStorage
from tests.ledgers import SIZE, claimed, latest, made_by, new_id, queued, ready, wanting_renditions
from tests.services import LEDGER_NAME, ledger_name
from tests.valkey import Valkey
from tests.waiting import until
from worker.attempt import Attempt
from worker.attempts import Attempts
from worker.consumer import _ASK_SECONDS, _PREEMPT_AWAY_SECONDS, Consumer, Jobs
from worker.pause import Pause
from worker.slots import Slot, Slots

SLOTS = 2


@pytest.fixture
async def redis(valkey: Valkey) -> AsyncIterator[Redis]:
    """A worker's client of a real server: fakeredis neither blocks nor breaks as that does."""
    client = worker_client(valkey.url)
    yield client
    await client.aclose()


@pytest.fixture
async def breaker(redis: Redis) -> AsyncIterator[CircuitBreaker]:
    breaker = CircuitBreaker(redis, WORKER_DEADLINE)
    yield breaker
    await breaker.close()


@pytest.fixture
def queue(redis: Redis, breaker: CircuitBreaker) -> Queue:
    return Queue(redis, breaker, ledger_name)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin again, and ask again whether Redis is back, at once."""
    monkeypatch.setattr("worker.consumer._AGAIN_SECONDS", 0.01)
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("shared.cancellation._AGAIN_SECONDS", 0.05)


@pytest.fixture
def deaf_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a consumer never look for itself: only a job that comes, or one that ends, makes it go on."""
    monkeypatch.setattr("worker.consumer._WAIT_SECONDS", 3600.0)


class Worked:
    """Jobs that record what is run, and that can be held up."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.at_once = 0
        self.open = asyncio.Event()
        self.open.set()

    async def work(self, image_id: str, slot: Slot) -> None:
        await self.do(image_id, slot)

    async def work_on(self, attempt: Attempt, slot: Slot) -> None:
        raise AssertionError("no work is claimed for this job")

    async def do(self, image_id: str, slot: Slot) -> None:
        self.started.append(image_id)
        self.at_once = max(self.at_once, len(self.started) - len(self.ended))
        await asyncio.sleep(0)
        await self.open.wait()
        self.ended.append(image_id)


class Claiming(Worked):
    """Jobs that claim their images, and publish them unless an error is theirs."""

    def __init__(self, attempts: Attempts) -> None:
        super().__init__()
        self.attempts = attempts
        self.errors: dict[str, BaseException] = {}

    async def work(self, image_id: str, slot: Slot) -> None:
        async with self.attempts.claim(image_id) as attempt:
            if attempt is not None:
                await self.publish(attempt, slot)

    async def work_on(self, attempt: Attempt, slot: Slot) -> None:
        async with self.attempts.hold(attempt):
            await self.publish(attempt, slot)

    async def publish(self, attempt: Attempt, slot: Slot) -> None:
        slot.set_attempt(attempt)
        await self.do(attempt.image.id, slot)
        if (error := self.errors.get(attempt.image.id)) is not None:
            raise error
        await attempt.publish(SIZE, made_by(attempt.image), seconds=0.1)


@pytest.fixture
async def worked() -> Worked:
    return Worked()


@pytest.fixture
async def pause() -> Pause:
    return Pause()


@pytest.fixture
async def attempts(ledger: Ledger, storage: DiskStorage, queue: Queue, settling: Settling, pause: Pause) -> Attempts:
    return Attempts(ledger, storage, queue, settling, pause, "host:1", work_seconds=100.0)


@pytest.fixture
async def claiming(attempts: Attempts) -> Claiming:
    return Claiming(attempts)


class Running:
    """A consumer that runs."""

    def __init__(
        self, jobs: Jobs, redis: Redis, queue: Queue, ledger: Ledger, attempts: Attempts, pause: Pause, slots: int
    ) -> None:
        self.slots, self.pause = Slots(slots), pause
        self.consumer = Consumer(
            jobs,
            redis=redis,
            queue=queue,
            ledger=ledger,
            attempts=attempts,
            slots=self.slots,
            pause=pause,
            worker="host:1",
            is_filtered=True,
        )
        self.task = asyncio.create_task(self.consumer.run())

    async def end(self) -> None:
        await cancel(self.task)


@pytest.fixture
async def start(
    redis: Redis, queue: Queue, ledger: Ledger, attempts: Attempts, pause: Pause, worked: Worked
) -> AsyncIterator[Callable[..., Running]]:
    """Start consumers; they end with the test."""
    all_running: list[Running] = []

    def start(jobs: Jobs = worked, slots: int = SLOTS) -> Running:
        all_running.append(Running(jobs, redis, queue, ledger, attempts, pause, slots))
        return all_running[-1]

    yield start

    for running in all_running:
        await running.end()


Start = Callable[..., Running]


def is_listening(redis: Redis) -> Callable[[], Any]:
    async def ask() -> bool:
        return bool((await redis.info("clients"))["blocked_clients"])

    return ask


@pytest.mark.usefixtures("deaf_to_time")
async def test_an_idle_worker_starts_as_soon_as_a_job_comes(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """It would not look for itself for an hour."""
    start()
    await until(is_listening(redis))
    image = await queued(ledger)

    await queue.enqueue(image)

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]


@pytest.mark.usefixtures("deaf_to_time")
async def test_a_worker_that_starts_finds_what_was_enqueued_before(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    image = await queued(ledger)
    await queue.enqueue(image)

    start()

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]


@pytest.mark.usefixtures("deaf_to_time")
async def test_a_job_that_ends_makes_room_for_the_next(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    images = [await queued(ledger) for _ in range(SLOTS + 1)]
    worked.open.clear()
    for image in images:
        await queue.enqueue(image)
    start()
    await until(lambda: len(worked.started) == SLOTS)

    worked.open.set()

    await until(lambda: len(worked.ended) == len(images))


@pytest.mark.usefixtures("deaf_to_time")
async def test_a_job_that_leaves_its_slot_makes_room_for_the_next_and_is_counted_once(
    ledger: Ledger, queue: Queue, redis: Redis, start: Start
) -> None:
    """It goes on without one: whoever counted its end as well would take more jobs than there are slots."""
    leaving = asyncio.Event()

    class Leaving(Worked):
        async def do(self, image_id: str, slot: Slot) -> None:
            self.started.append(image_id)
            await leaving.wait()
            await slot.leave()
            await self.open.wait()
            self.ended.append(image_id)

    worked = Leaving()
    images = [await queued(ledger) for _ in range(3 * SLOTS)]
    worked.open.clear()
    for image in images:
        await queue.enqueue(image)
    running = start(worked)
    await until(lambda: len(worked.started) == SLOTS)

    leaving.set()
    await until(lambda: len(worked.started) == 2 * SLOTS)
    worked.open.set()

    await until(lambda: len(worked.ended) == len(images))
    await until(lambda: not running.consumer._tasks)
    await until(lambda: running.slots.free == SLOTS)
    assert not running.slots.storing.locked()


async def test_jobs_are_taken_in_the_order_of_lane_and_turn(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start
) -> None:
    bulk = await wanting_renditions(ledger, Lane.BULK)
    uploads = [await queued(ledger) for _ in range(3)]
    demand = await wanting_renditions(ledger, Lane.DEMAND)
    await queue.enqueue(bulk, uploads[2], demand, uploads[0], uploads[1])

    start(slots=1)

    await until(lambda: len(worked.ended) == 5)
    assert worked.ended == [image.id for image in (*uploads, demand, bulk)]


async def test_a_job_is_late_by_its_time_in_the_queue_and_not_by_its_order(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """arq logs it, from a score that it takes for a time."""
    caplog.set_level(logging.INFO)
    await queue.enqueue(await wanting_renditions(ledger, Lane.BULK), await queued(ledger))

    start()

    await until(lambda: len(worked.ended) == 2)
    begun = [message for message in caplog.messages if "→" in message]
    assert len(begun) == 2
    assert not any("delayed" in message for message in begun)


async def test_a_long_queue_is_worked_off_and_leaves_nothing(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """Far past what is taken at once."""
    first = await queued(ledger)
    images = [replace(first, id=new_id()) for _ in range(150)]
    for image in images:
        await queue.enqueue(image)

    start()

    await until(lambda: len(worked.ended) == 150)
    assert sorted(worked.ended) == sorted(image.id for image in images)
    assert worked.at_once <= SLOTS

    async def nothing_is_left() -> bool:
        return {key.decode() for key in await redis.keys()} <= {f"asgilook:{LEDGER_NAME}:workers2"}

    await until(nothing_is_left)


async def test_a_running_job_is_out_of_the_queue(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    worked.open.clear()
    start()
    await queue.enqueue(await queued(ledger))

    await until(lambda: worked.started)

    assert await redis.zcard(queue.name) == 0


async def test_two_workers_share_a_queue_and_run_each_job_once(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start
) -> None:
    first = await queued(ledger)
    start()
    start()

    for _ in range(40):
        await queue.enqueue(replace(first, id=new_id()))

    await until(lambda: len(worked.ended) >= 40)
    assert len(set(worked.started)) == len(worked.started) == 40


# What is left behind


async def test_a_job_that_a_dead_worker_had_begun_is_run(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """A worker that was killed before its claim leaves the job as begun and tried. The sweep enqueues it again."""
    image = await queued(ledger)
    left = f"{WORK}:{LEDGER_NAME}:{image.id}:{image.attempt}"
    for key in (f"arq:in-progress:{left}", f"arq:retry:{left}", f"arq:result:{left}"):
        await redis.set(key, "1000")
    start()

    await queue.enqueue(image)

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]
    assert await redis.zcard(queue.name) == 0


async def test_a_job_that_runs_already_is_dropped(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """The sweep may enqueue it again before it is claimed."""
    image, following = await queued(ledger), await queued(ledger)
    worked.open.clear()
    running = start()
    await queue.enqueue(image)
    await until(lambda: worked.started)

    await queue.enqueue(image)
    await queue.enqueue(following)

    await until(lambda: len(worked.started) == 2)
    worked.open.set()
    await until(lambda: len(worked.ended) == 2)
    await until(lambda: not running.consumer._tasks)
    assert worked.started == [image.id, following.id]
    assert await redis.zcard(queue.name) == 0
    await until(lambda: running.slots.free == SLOTS)


async def test_a_job_whose_key_is_gone_is_dropped_and_the_next_is_run(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    gone, image = await queued(ledger), await queued(ledger)
    await queue.enqueue(gone)
    await redis.delete(f"arq:job:{WORK}:{LEDGER_NAME}:{gone.id}:{gone.attempt}")
    await queue.enqueue(image)

    start()

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]
    assert await redis.zcard(queue.name) == 0


class Exploit:
    ran = False

    @staticmethod
    def run() -> None:
        Exploit.ran = True

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (Exploit.run, ())


async def test_a_pickled_job_is_never_run_and_hinders_nobody(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """Promise 5: who can write to Redis cannot run code."""
    job = {"t": None, "f": WORK, "a": ("forged",), "k": {"x": Exploit()}, "et": 0}
    await redis.set("arq:job:forged", pickle.dumps(job))
    await redis.zadd(queue.name, {"forged": 1})
    image = await queued(ledger)
    await queue.enqueue(image)

    start()

    await until(lambda: worked.ended)
    assert worked.started == [image.id]
    assert not Exploit.ran
    assert await redis.zcard(queue.name) == 0


# Redis away


async def test_a_lost_connection_leaves_the_running_job_alone_and_the_queue_goes_on(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    breaker: CircuitBreaker,
    claiming: Claiming,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before = await queued(ledger)
    claiming.open.clear()
    start(claiming)
    await queue.enqueue(before)
    await until(lambda: claiming.started == [before.id])

    valkey.end()
    await until(lambda: "redis is left alone" in caplog.messages)
    valkey.start_again()
    await until(lambda: not breaker.is_open)
    after = await queued(ledger)
    await queue.enqueue(after)
    await until(lambda: claiming.started == [before.id, after.id])
    ended_meanwhile = list(claiming.ended)
    claiming.open.set()

    await until(lambda: len(claiming.ended) == 2)
    assert ended_meanwhile == []


async def test_a_connection_cut_while_it_listens_costs_no_job(
    ledger: Ledger, valkey: Valkey, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    start()
    await until(is_listening(redis))

    valkey.cut_connections()
    await queue.enqueue(await queued(ledger))

    await until(lambda: worked.ended)


async def test_a_job_that_ends_while_redis_is_away_has_ended(
    ledger: Ledger, valkey: Valkey, queue: Queue, worked: Worked, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome is in the ledger; that arq cannot write its own down is nobody's concern."""
    worked.open.clear()
    running = start()
    image = await queued(ledger)
    await queue.enqueue(image)
    await until(lambda: worked.started)
    await claimed(ledger, image)

    valkey.end()
    await until(lambda: "redis is left alone" in caplog.messages)
    worked.open.set()
    await until(lambda: not running.consumer._tasks)

    assert worked.ended == worked.started
    await until(lambda: running.slots.free == SLOTS)
    assert [record for record in caplog.records if record.exc_info] == []


async def all_are_ready(ledger: Ledger, images: list[Image]) -> bool:
    rows = [await latest(ledger, image) for image in images]
    return all((row.status, row.work) == (Status.READY, None) for row in rows)


async def test_without_redis_work_is_taken_from_the_ledger_in_its_order(
    ledger: Ledger,
    valkey: Valkey,
    claiming: Claiming,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    bulk, uploads = await wanting_renditions(ledger, Lane.BULK), [await queued(ledger) for _ in range(4)]
    valkey.end()

    start(claiming, slots=1)
    await until(lambda: len(claiming.ended) == 5)
    later = await queued(ledger)

    await until(lambda: all_are_ready(ledger, [bulk, *uploads, later]))
    assert claiming.started == [image.id for image in (*uploads, bulk, later)]
    assert claiming.at_once == 1


async def test_without_redis_the_next_work_begins_when_a_slot_becomes_free(
    ledger: Ledger,
    valkey: Valkey,
    claiming: Claiming,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for name in ("_ASK_SECONDS", "_WAIT_SECONDS", "_PREEMPT_AWAY_SECONDS"):
        monkeypatch.setattr(f"worker.consumer.{name}", 3600.0)
    images = [await queued(ledger) for _ in range(5)]
    claiming.open.clear()
    valkey.end()
    start(claiming)
    await until(lambda: len(claiming.started) == SLOTS)

    claiming.open.set()

    await until(lambda: all_are_ready(ledger, images))
    assert claiming.at_once == SLOTS


async def test_nothing_is_rendered_twice_when_redis_is_back(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    redis: Redis,
    breaker: CircuitBreaker,
    claiming: Claiming,
    start: Start,
) -> None:
    """Its jobs of before name images that are done, or that another slot has."""
    done, held = await queued(ledger), await queued(ledger)
    valkey.end()
    running = start(claiming)
    await until(lambda: all_are_ready(ledger, [done, held]))
    claiming.open.clear()
    held = await queued(ledger)
    await until(lambda: held.id in claiming.started)

    valkey.start_again()
    await until(lambda: not breaker.is_open)
    following = await queued(ledger)
    await queue.enqueue(done, held, following)
    await until(lambda: following.id in claiming.started)
    claiming.open.set()

    await until(lambda: all_are_ready(ledger, [held, following]))
    await until(lambda: not running.consumer._tasks)
    assert sorted(set(claiming.started)) == sorted(claiming.started)
    assert await redis.zcard(queue.name) == 0


async def test_a_redis_that_answers_nothing_is_noticed(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    redis: Redis,
    claiming: Claiming,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shared.redis.queue._CONSUMER_SECONDS", 0.05)
    start(claiming)
    await until(is_listening(redis))

    valkey.freeze()
    image = await queued(ledger)

    await until(lambda: all_are_ready(ledger, [image]), seconds=WORKER_DEADLINE)
    valkey.thaw()


async def test_a_redis_that_refuses_to_be_written_to_stops_no_work(
    ledger: Ledger, valkey: Valkey, redis: Redis, claiming: Claiming, start: Start
) -> None:
    """A master that lacks its replicas answers a probe, and no other command."""
    await redis.config_set("min-replicas-to-write", "1")
    start(claiming)

    images = [await queued(ledger) for _ in range(3)]

    await until(lambda: all_are_ready(ledger, images))


class TimingLedger(Ledger):
    """Notes when it is asked for work, and when it is asked for urgent work."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.asked: list[float] = []
        self.asked_for_urgent: list[float] = []

    async def claim_next(self, worker: str) -> Image | None:
        self.asked.append(asyncio.get_running_loop().time())
        return await super().claim_next(worker)

    async def is_waiting(self, lane: Lane) -> bool:
        if lane is Lane.DEMAND:  # else it is asked by `claim_next`
            self.asked_for_urgent.append(asyncio.get_running_loop().time())
        return await super().is_waiting(lane)


@pytest.fixture
async def timing(settings: Settings) -> AsyncIterator[TimingLedger]:
    ledger = TimingLedger.connect(settings)
    assert isinstance(ledger, TimingLedger)
    yield ledger
    await ledger.close()


def least_gap(times: list[float]) -> float:
    return min(later - earlier for earlier, later in itertools.pairwise(times))


async def test_without_redis_a_worker_leaves_the_ledger_alone_between_two_requests(
    valkey: Valkey,
    redis: Redis,
    queue: Queue,
    timing: TimingLedger,
    storage: DiskStorage,
    settling: Settling,
    pause: Pause,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An idle one asks for work. A full one asks for urgent work, and less often: an idle worker is to take that."""
    assert _PREEMPT_AWAY_SECONDS > _ASK_SECONDS
    monkeypatch.setattr("worker.consumer._ASK_SECONDS", 0.1)
    monkeypatch.setattr("worker.consumer._PREEMPT_AWAY_SECONDS", 0.2)
    attempts = Attempts(timing, storage, queue, settling, pause, "host:1", work_seconds=100.0)
    claiming = Claiming(attempts)
    claiming.open.clear()
    valkey.end()
    running = Running(claiming, redis, queue, timing, attempts, pause, slots=1)

    await until(lambda: len(timing.asked) >= 5)
    idle = list(timing.asked)
    await bulk_work(timing)
    await until(lambda: claiming.started)
    await until(lambda: len(timing.asked_for_urgent) >= 4)
    await running.end()

    # Timers are never early, but for the clock's resolution.
    assert least_gap(idle) > 0.099
    assert least_gap(timing.asked_for_urgent) > 0.199


# Preemption


async def bulk_work(ledger: Ledger, count: int = 1) -> list[Image]:
    return [await wanting_renditions(ledger, Lane.BULK) for _ in range(count)]


async def is_handed_back(ledger: Ledger, image: Image) -> bool:
    row = await latest(ledger, image)
    return (row.worker, row.attempt, row.losses, row.failures) == (None, image.attempt + 1, 0, 0)


@pytest.mark.usefixtures("deaf_to_time")
@pytest.mark.parametrize("lane", [Lane.UPLOAD, Lane.DEMAND])
@pytest.mark.parametrize("is_redis_there", [True, False])
async def test_bulk_work_makes_room_for_more_urgent_work_and_is_done_later(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    claiming: Claiming,
    start: Start,
    is_redis_there: bool,
    lane: Lane,
) -> None:
    seen = await ready(ledger)
    bulk, waiting = await bulk_work(ledger, 2)
    claiming.open.clear()
    if is_redis_there:
        await queue.enqueue(bulk, waiting)
    else:
        valkey.end()
    start(claiming, slots=1)
    await until(lambda: claiming.started == [bulk.id])

    urgent = await queued(ledger) if lane is Lane.UPLOAD else await ledger.request_renditions(seen, lane)
    assert urgent is not None
    if is_redis_there:
        await queue.enqueue(urgent)

    await until(lambda: claiming.started == [bulk.id, urgent.id])
    await until(lambda: is_handed_back(ledger, bulk))
    claiming.open.set()
    await until(lambda: all_are_ready(ledger, [urgent]))
    # Both bulk images are done after it, in their own order.
    await until(lambda: claiming.started == [bulk.id, urgent.id, bulk.id, waiting.id])
    await until(lambda: all_are_ready(ledger, [bulk, waiting]))
    assert (await latest(ledger, bulk)).losses == 0


async def test_one_upload_makes_one_room_and_that_of_the_work_that_began_last(
    ledger: Ledger, queue: Queue, claiming: Claiming, start: Start
) -> None:
    first, second = await bulk_work(ledger, 2)
    claiming.open.clear()
    running = start(claiming)
    await queue.enqueue(first)
    await until(lambda: claiming.started == [first.id])
    await queue.enqueue(second)
    await until(lambda: claiming.started == [first.id, second.id])

    upload = await queued(ledger)
    await queue.enqueue(upload)

    await until(lambda: claiming.started == [first.id, second.id, upload.id])
    await until(lambda: is_handed_back(ledger, second))
    await until(looked_for_room(queue, 5))
    assert claiming.started == [first.id, second.id, upload.id]
    assert (await latest(ledger, first)).worker == "host:1"
    assert running.slots.free == 0


def looked_for_room(queue: Queue, times: int) -> Callable[[], bool]:
    """Tell whether the head of the queue has been looked at so often from now on."""
    count = 0
    real = queue.first_lane

    async def first_lane() -> Lane | None:
        nonlocal count
        count += 1
        return await real()

    queue.first_lane = first_lane  # type: ignore[method-assign]
    return lambda: count >= times


@pytest.mark.parametrize("waits", [Lane.AHEAD, Lane.BULK])
async def test_work_that_may_wait_preempts_nothing(
    ledger: Ledger, queue: Queue, claiming: Claiming, start: Start, waits: Lane
) -> None:
    (bulk,) = await bulk_work(ledger)
    claiming.open.clear()
    await queue.enqueue(bulk)
    start(claiming, slots=1)
    await until(lambda: claiming.started == [bulk.id])

    await queue.enqueue(await wanting_renditions(ledger, waits))
    await until(looked_for_room(queue, 3))

    assert claiming.started == [bulk.id]


@pytest.mark.parametrize("why", ["stopping", "pausing"])
async def test_a_worker_that_takes_nothing_new_preempts_nothing(
    ledger: Ledger, queue: Queue, claiming: Claiming, start: Start, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    monkeypatch.setattr("worker.consumer._WAIT_SECONDS", 0.01)
    monkeypatch.setattr("worker.consumer._BEAT_EVERY_SECONDS", 0.0)
    (bulk,) = await bulk_work(ledger)
    claiming.open.clear()
    await queue.enqueue(bulk)
    running = start(claiming, slots=1)
    await until(lambda: claiming.started == [bulk.id])
    if why == "stopping":
        running.consumer.stop()
    else:
        running.pause._until = float("inf")

    await queue.enqueue(await queued(ledger))
    await until(turns(queue, monkeypatch))

    assert claiming.started == [bulk.id]
    assert running.slots.free == 0
    assert (await latest(ledger, bulk)).worker == "host:1"


# Taking nothing new


def turns(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """Tell whether a restless consumer's loop has turned some times from now on."""
    count = 0
    real = queue.beat

    async def beat(worker: str, *, is_filtered: bool = True) -> None:
        nonlocal count
        count += 1
        await real(worker, is_filtered=is_filtered)

    monkeypatch.setattr(queue, "beat", beat)
    return lambda: count >= 5


@pytest.fixture
def restless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for jobs a hundred times a second."""
    monkeypatch.setattr("worker.consumer._WAIT_SECONDS", 0.01)
    monkeypatch.setattr("worker.consumer._BEAT_EVERY_SECONDS", 0.0)


@pytest.mark.usefixtures("restless")
async def test_who_is_told_to_stop_takes_nothing_new_and_lets_running_jobs_end(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await queued(ledger), await queued(ledger)
    worked.open.clear()
    running = start()
    await queue.enqueue(first)
    await until(lambda: worked.started)

    running.consumer.stop()
    await until(turns(queue, monkeypatch))
    await queue.enqueue(second)
    await until(turns(queue, monkeypatch))
    alive_meanwhile = await queue.workers_alive()
    worked.open.set()
    await running.task

    assert worked.started == worked.ended == [first.id]
    assert await redis.zcard(queue.name) == 1
    assert alive_meanwhile == ["host:1"]


async def test_an_idle_worker_that_is_told_to_stop_ends(redis: Redis, start: Start) -> None:
    running = start()
    await until(is_listening(redis))

    running.consumer.stop()

    await running.task


@pytest.mark.usefixtures("restless")
async def test_who_is_told_to_stop_waits_for_a_job_that_is_taken_and_not_yet_claimed(
    ledger: Ledger, queue: Queue, attempts: Attempts, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken, may_claim = asyncio.Event(), asyncio.Event()

    class Late(Claiming):
        async def work(self, image_id: str, slot: Slot) -> None:
            taken.set()
            await may_claim.wait()
            await super().work(image_id, slot)

    running = start(Late(attempts))
    image = await queued(ledger)
    await queue.enqueue(image)
    await taken.wait()

    running.consumer.stop()
    await until(turns(queue, monkeypatch))
    has_ended_early = running.task.done()
    may_claim.set()
    await running.task

    assert not has_ended_early
    assert await all_are_ready(ledger, [image])


async def test_a_consumer_that_is_cancelled_ends_after_its_work_which_is_handed_back(
    ledger: Ledger, queue: Queue, claiming: Claiming, start: Start
) -> None:
    """After that its caller may close ledger and storage."""
    claiming.open.clear()
    running = start(claiming)
    image = await queued(ledger)
    await queue.enqueue(image)
    await until(lambda: claiming.started)

    await cancel(running.task)

    assert await is_handed_back(ledger, image)
    assert not running.consumer._tasks


@pytest.mark.usefixtures("restless")
async def test_who_was_told_to_stop_takes_nothing_when_redis_is_back_either(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    redis: Redis,
    breaker: CircuitBreaker,
    worked: Worked,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    worked.open.clear()
    running = start()
    first = await queued(ledger)
    await queue.enqueue(first)
    await until(lambda: worked.started)
    running.consumer.stop()
    valkey.end()

    await until(lambda: "redis is left alone" in caplog.messages)
    valkey.start_again()
    await until(lambda: not breaker.is_open)
    await queue.enqueue(await queued(ledger))
    await until(turns(queue, monkeypatch))

    assert worked.started == [first.id]
    assert await redis.zcard(queue.name) == 1


@pytest.mark.usefixtures("restless")
async def test_a_worker_that_pauses_takes_nothing_and_is_still_alive(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    running.pause._until = float("inf")
    await queue.enqueue(await queued(ledger))

    await until(turns(queue, monkeypatch))
    started_meanwhile = list(worked.started)
    alive_meanwhile = await queue.workers_alive()
    running.pause.end()

    await until(lambda: worked.ended)
    assert started_meanwhile == []
    assert alive_meanwhile == ["host:1"]


async def test_a_worker_whose_loop_turns_is_alive(queue: Queue, start: Start) -> None:
    start()

    async def is_alive() -> bool:
        return await queue.workers_alive() == ["host:1"]

    await until(is_alive)


# Together with attempts


async def test_arq_logs_no_traceback_however_an_attempt_ends(
    ledger: Ledger, queue: Queue, claiming: Claiming, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    ends = [UnreadableImage("No."), ChildLost("killed"), StorageUnavailable("stale"), asyncio.CancelledError(), None]
    images = [await queued(ledger) for _ in ends]
    claiming.errors = {image.id: end for image, end in zip(images, ends, strict=True) if end is not None}

    running = start(claiming)
    for image in images:
        await queue.enqueue(image)

    async def all_have_ended() -> bool:
        rows = [await latest(ledger, image) for image in images]
        return all(row.attempt >= 1 and row.status is not Status.PROCESSING for row in rows)

    await until(all_have_ended)
    await until(lambda: running.consumer._arq.jobs_complete >= len(ends))
    assert [record for record in caplog.records if record.name.startswith("arq") and record.exc_info] == []
    assert [record for record in caplog.records if record.name.startswith("arq") and record.levelno > 20] == []


async def test_a_job_that_fails_is_not_run_again_and_leaves_nothing(
    ledger: Ledger, queue: Queue, redis: Redis, start: Start
) -> None:
    """Only the ledger issues work again."""

    class Failing(Worked):
        async def do(self, image_id: str, slot: Slot) -> None:
            self.started.append(image_id)
            raise asyncio.CancelledError if len(self.started) == 1 else RuntimeError

    failing = Failing()
    images = [await queued(ledger) for _ in range(2)]
    await queue.enqueue(*images)

    start(failing, slots=1)
    await until(lambda: len(failing.started) == 2)

    async def nothing_is_left() -> bool:
        return not [key for key in await redis.keys() if key.startswith(b"arq:")]

    await until(nothing_is_left)
    assert failing.started == [image.id for image in images]
