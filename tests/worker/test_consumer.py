"""arq's Worker on a real server: it starts at the bell, leaves nothing lying, and survives its Redis."""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from arq.worker import func
from redis.asyncio import Redis

from shared.cancellation import cancel
from shared.errors import ChildLost, StorageUnavailable, UnreadableImage
from shared.images import Image, Status
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import worker_client
from shared.redis.queue import CONVERT_IMAGE, MAKE_THUMBNAILS, Queue
from shared.settling import Settling
from shared.storage.disk import DiskStorage
from tests.ledgers import latest, new_id, queued, wanting_thumbnails
from tests.services import LEDGER_NAME, ledger_name
from tests.valkey import Valkey
from tests.waiting import until
from worker.attempts import Attempts
from worker.consumer import Consumer
from worker.pause import Pause
from worker.slots import Slots

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
    """Connect again, and ask again whether Redis is back, at once."""
    monkeypatch.setattr("worker.consumer._RECONNECT_SECONDS", 0.01)
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 0.01)
    monkeypatch.setattr("shared.cancellation._AGAIN_SECONDS", 0.05)


@pytest.fixture
def deaf_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a consumer never look for itself: only a ring, or a job that ends, makes it go on."""
    monkeypatch.setattr("worker.consumer._LISTEN_SECONDS", 3600.0)


class Worked:
    """Jobs that record what is run, and that can be held up."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.ended: list[str] = []
        self.at_once = 0
        self.open = asyncio.Event()
        self.open.set()

    async def convert_image(self, ctx: dict[str, Any], image_id: str) -> None:
        self.started.append(image_id)
        self.at_once = max(self.at_once, len(self.started) - len(self.ended))
        await asyncio.sleep(0)
        await self.open.wait()
        self.ended.append(image_id)

    async def make_thumbnails(self, ctx: dict[str, Any], image_id: str, wake: int) -> None:
        await self.convert_image(ctx, f"{image_id}:{wake}")


@pytest.fixture
async def worked() -> Worked:
    return Worked()


class Children:
    """Child processes as a consumer sees them."""

    unfiltered_for = ""


class Running:
    """A consumer that runs."""

    def __init__(self, redis: Redis, queue: Queue, convert: Any, thumbnails: Any) -> None:
        self.slots, self.pause, self.children = Slots(SLOTS), Pause(), Children()
        self.consumer = Consumer(
            [func(convert, name=CONVERT_IMAGE), func(thumbnails, name=MAKE_THUMBNAILS)],
            redis=redis,
            queue=queue,
            slots=self.slots,
            pause=self.pause,
            children=self.children,
            worker="host:1",
            job_seconds=100.0,
        )
        self.task = asyncio.create_task(self.consumer.run())

    async def end(self) -> None:
        await cancel(self.task)
        await cancel(*(task for task in self.consumer._running if task is not None))


@pytest.fixture
async def start(redis: Redis, queue: Queue, worked: Worked) -> AsyncIterator[Callable[..., Running]]:
    """Start consumers; they end with the test."""
    all_running: list[Running] = []

    def start(convert: Any = worked.convert_image, thumbnails: Any = worked.make_thumbnails) -> Running:
        all_running.append(Running(redis, queue, convert, thumbnails))
        return all_running[-1]

    yield start

    for running in all_running:
        await running.end()


Start = Callable[..., Running]


async def some_image(ledger: Ledger, wake: int = 1) -> Image:
    return replace(await queued(ledger), wake=wake)


def is_listening(redis: Redis) -> Callable[[], Any]:
    async def ask() -> bool:
        return bool((await redis.info("clients"))["blocked_clients"])

    return ask


async def looks(redis: Redis) -> int:
    """Return how often anybody has looked into a queue of this Redis."""
    return int((await redis.info("commandstats")).get("cmdstat_zpopmin", {"calls": 0})["calls"])


def has_looked(redis: Redis, times: int) -> Callable[[], Any]:
    async def ask() -> bool:
        return await looks(redis) >= times

    return ask


@pytest.mark.usefixtures("deaf_to_time")
async def test_an_idle_worker_starts_at_the_bell(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """It would not look for itself for an hour: that it starts is the bell's doing."""
    start()
    await until(is_listening(redis))
    image = await some_image(ledger)

    await queue.enqueue(image)

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]


@pytest.mark.usefixtures("deaf_to_time")
async def test_a_worker_that_starts_finds_what_was_rung_for_before(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    image = await some_image(ledger)
    await queue.enqueue(image)
    await redis.delete(queue.doorbell)

    start()

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]


@pytest.mark.usefixtures("deaf_to_time")
async def test_a_job_that_ends_rings_for_the_next(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    images = [await some_image(ledger) for _ in range(SLOTS + 1)]
    worked.open.clear()
    for image in images:
        await queue.enqueue(image)
    await redis.delete(queue.doorbell)
    start()
    await until(lambda: len(worked.started) == SLOTS)

    worked.open.set()

    await until(lambda: len(worked.ended) == len(images))


@pytest.mark.usefixtures("deaf_to_time")
async def test_a_job_that_leaves_its_slot_rings_for_the_next_and_is_counted_once(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """It goes on without one: whoever counted its end as well would take more jobs than there are slots."""
    leaving = asyncio.Event()

    async def convert(ctx: dict[str, Any], image_id: str) -> None:
        worked.started.append(image_id)
        await leaving.wait()
        await ctx["slot"].leave()
        await worked.open.wait()
        worked.ended.append(image_id)

    images = [await some_image(ledger) for _ in range(3 * SLOTS)]
    worked.open.clear()
    for image in images:
        await queue.enqueue(image)
    await redis.delete(queue.doorbell)
    running = start(convert)
    await until(lambda: len(worked.started) == SLOTS)

    leaving.set()
    await until(lambda: len(worked.started) == 2 * SLOTS)
    worked.open.set()

    await until(lambda: len(worked.ended) == len(images))
    await until(lambda: not running.consumer._running)
    assert running.slots.free == SLOTS
    assert not running.slots.storing.locked()


async def test_thumbnails_come_with_the_wake_they_are_claimed_by(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start
) -> None:
    image = await wanting_thumbnails(ledger)
    start()

    await queue.enqueue(image)

    await until(lambda: worked.ended)
    assert worked.ended == [f"{image.id}:{image.wake}"]


async def test_a_long_queue_is_worked_off_and_leaves_nothing(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """Far past what is taken at once."""
    first = await some_image(ledger)
    images = [replace(first, id=new_id()) for _ in range(150)]
    for image in images:
        await queue.enqueue(image)

    start()

    await until(lambda: len(worked.ended) == 150)
    assert sorted(worked.ended) == sorted(image.id for image in images)
    assert worked.at_once <= SLOTS

    async def nothing_is_left() -> bool:
        return {key.decode() for key in await redis.keys()} <= {queue.doorbell, f"asgilook:{LEDGER_NAME}:workers"}

    await until(nothing_is_left)


async def test_a_running_job_is_out_of_the_queue(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    worked.open.clear()
    start()
    await queue.enqueue(await some_image(ledger))

    await until(lambda: worked.started)

    assert await queue.depth() == 0


async def test_two_workers_share_a_queue_and_run_each_job_once(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start
) -> None:
    first = await some_image(ledger)
    start()
    start()

    for _ in range(40):
        await queue.enqueue(replace(first, id=new_id()))

    await until(lambda: len(worked.ended) >= 40)
    assert len(set(worked.started)) == len(worked.started) == 40


# What is left behind


async def test_what_an_earlier_wake_left_behind_does_not_swallow_a_later_one(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    """A worker that was killed leaves its job in progress, for the minutes that a job may take."""
    image = await some_image(ledger)
    await queue.enqueue(image)
    left = f"convert:{LEDGER_NAME}:{image.id}:1"
    for key in (f"arq:in-progress:{left}", f"arq:retry:{left}", f"arq:result:{left}"):
        await redis.set(key, "1")
    start()

    await queue.enqueue(replace(image, wake=2))

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]
    assert await queue.depth() == 0


async def test_a_job_whose_key_is_gone_is_dropped_and_the_next_is_run(
    ledger: Ledger, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    gone, image = await some_image(ledger), await some_image(ledger)
    await queue.enqueue(gone)
    await redis.delete(f"arq:job:convert:{LEDGER_NAME}:{gone.id}:1")
    await queue.enqueue(image)

    start()

    await until(lambda: worked.ended)
    assert worked.ended == [image.id]
    assert await queue.depth() == 0


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
    job = {"t": None, "f": CONVERT_IMAGE, "a": ("forged",), "k": {"x": Exploit()}, "et": 0}
    await redis.set("arq:job:forged", pickle.dumps(job))
    await redis.zadd(queue.name, {"forged": 1})
    image = await some_image(ledger)
    await queue.enqueue(image)

    start()

    await until(lambda: worked.ended)
    assert worked.started == [image.id]
    assert not Exploit.ran
    assert await queue.depth() == 0


# Redis away


async def test_a_lost_connection_leaves_the_running_job_alone_and_the_queue_goes_on(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    breaker: CircuitBreaker,
    worked: Worked,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    before, after = await some_image(ledger), await some_image(ledger)
    worked.open.clear()
    start()
    await queue.enqueue(before)
    await until(lambda: worked.started == [before.id])

    valkey.end()
    await until(lambda: caplog.messages.count("the queue is away") >= 3)
    valkey.start_again()
    await until(lambda: not breaker.is_open)
    await queue.enqueue(after)
    await until(lambda: worked.started == [before.id, after.id])
    ended_meanwhile = list(worked.ended)
    worked.open.set()

    await until(lambda: len(worked.ended) == 2)
    assert ended_meanwhile == []


async def test_a_connection_cut_while_it_listens_costs_no_job(
    ledger: Ledger, valkey: Valkey, queue: Queue, redis: Redis, worked: Worked, start: Start
) -> None:
    start()
    await until(is_listening(redis))

    valkey.cut_connections()
    await queue.enqueue(await some_image(ledger))

    await until(lambda: worked.ended)


async def test_a_job_that_ends_while_redis_is_away_has_ended(
    ledger: Ledger, valkey: Valkey, queue: Queue, worked: Worked, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """Its outcome is in the ledger; that arq cannot write its own down is nobody's concern."""
    worked.open.clear()
    running = start()
    await queue.enqueue(await some_image(ledger))
    await until(lambda: worked.started)

    valkey.end()
    await until(lambda: "the queue is away" in caplog.messages)
    worked.open.set()
    await until(lambda: not running.consumer._running)

    assert worked.ended == worked.started
    assert running.slots.free == SLOTS
    assert [record for record in caplog.records if record.exc_info] == []


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
    monkeypatch.setattr("worker.consumer._LISTEN_SECONDS", 0.01)
    monkeypatch.setattr("worker.consumer._BEAT_EVERY_SECONDS", 0.0)


@pytest.mark.usefixtures("restless")
async def test_who_is_told_to_stop_takes_nothing_new_and_lets_running_jobs_end(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = await some_image(ledger), await some_image(ledger)
    worked.open.clear()
    running = start()
    await queue.enqueue(first)
    await until(lambda: worked.started)

    running.consumer.stop()
    await queue.enqueue(second)
    await until(turns(queue, monkeypatch))
    worked.open.set()
    await until(lambda: worked.ended)
    await until(turns(queue, monkeypatch))

    assert worked.started == worked.ended == [first.id]
    assert await queue.depth() == 1
    assert await queue.workers_alive() == ["host:1"]


@pytest.mark.usefixtures("restless")
async def test_who_was_told_to_stop_takes_nothing_when_redis_is_back_either(
    ledger: Ledger,
    valkey: Valkey,
    queue: Queue,
    breaker: CircuitBreaker,
    worked: Worked,
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start().consumer.stop()
    valkey.end()

    async def fail(*_: object, **__: object) -> None:
        raise OSError("away")

    with monkeypatch.context() as broken:
        broken.setattr(queue, "beat", fail)
        await until(lambda: "the queue is away" in caplog.messages)
    valkey.start_again()
    await until(lambda: not breaker.is_open)
    await queue.enqueue(await some_image(ledger))
    await until(turns(queue, monkeypatch))

    assert worked.started == []
    assert await queue.depth() == 1


@pytest.mark.usefixtures("restless")
async def test_a_worker_that_pauses_takes_nothing_and_is_still_alive(
    ledger: Ledger, queue: Queue, worked: Worked, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = start()
    running.pause._until = float("inf")
    await queue.enqueue(await some_image(ledger))

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
    ledger: Ledger,
    storage: DiskStorage,
    queue: Queue,
    settling: Settling,
    start: Start,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    attempts = Attempts(ledger, storage, queue, settling, Pause(), "host:1")
    ends = [UnreadableImage("No."), ChildLost("killed"), StorageUnavailable("stale"), asyncio.CancelledError()]
    images = [await queued(ledger) for _ in range(4)]
    by_id = {image.id: end for image, end in zip(images, ends, strict=True)}

    async def work(image: Image) -> Image:
        raise by_id[image.id]

    async def convert(ctx: dict[str, Any], image_id: str) -> None:
        await attempts.run(lambda: ledger.claim(image_id, "host:1"), work)

    running = start(convert)
    for image in images:
        await queue.enqueue(image)

    async def all_have_ended() -> bool:
        rows = [await latest(ledger, image) for image in images]
        return all(row.attempt >= 1 and row.status is not Status.PROCESSING for row in rows)

    await until(all_have_ended)
    await until(lambda: running.consumer._arq.jobs_complete >= 4)
    assert [record for record in caplog.records if record.name.startswith("arq") and record.exc_info] == []
    assert [record for record in caplog.records if record.name.startswith("arq") and record.levelno > 20] == []


async def test_a_consumer_leaves_every_decision_to_the_ledger(start: Start) -> None:
    arq = start().consumer._arq

    names = ("max_tries", "retry_jobs", "keep_result_s", "keep_result_forever", "job_timeout_s")

    assert {name: getattr(arq, name) for name in names} == {
        "max_tries": 1,
        "retry_jobs": False,
        "keep_result_s": 0,
        "keep_result_forever": False,
        "job_timeout_s": 100.0,
    }
