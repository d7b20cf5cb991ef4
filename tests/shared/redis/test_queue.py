"""The queue as both sides of it see it: ids only, in msgpack, in the ledger's order, each attempt's job once."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import replace

import fakeredis
import msgpack
import pytest
from redis.asyncio import Redis

from shared.images import Image, Lane
from shared.ledger import Ledger
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway
from shared.redis.queue import WORK, Queue, lane_of, pack, score_of, unpack
from tests.ledgers import queued, wanting_renditions
from tests.services import LEDGER_NAME

DAY = 24 * 3600


async def job_of(redis: Redis, job_id: str) -> dict[str, object]:
    data = await redis.get(f"arq:job:{job_id}")
    assert data is not None
    job: dict[str, object] = msgpack.unpackb(data)
    return job


@pytest.mark.parametrize("arrange", [queued, wanting_renditions])
async def test_work_of_either_kind_is_enqueued_by_its_images_id_and_attempt(
    ledger: Ledger, queue: Queue, redis: Redis, arrange: Callable[[Ledger], Awaitable[Image]]
) -> None:
    image = await arrange(ledger)

    await queue.enqueue(image)

    job_id = f"work:{LEDGER_NAME}:{image.id}:{image.attempt}"
    assert await redis.zrange(queue.name, 0, -1) == [job_id.encode()]
    job = await job_of(redis, job_id)
    assert (job["f"], list(job["a"]), job["k"]) == (WORK, [image.id], {})  # type: ignore[call-overload]


async def test_a_job_holds_ids_and_no_bytes(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    image = await queued(ledger)

    await queue.enqueue(image)

    data = await redis.get(f"arq:job:work:{LEDGER_NAME}:{image.id}:0")
    assert data is not None
    assert len(data) < 150
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(data)  # noqa: S301 - that it is none is the point


async def test_the_queue_is_its_ledgers_own(redis: Redis, breaker: CircuitBreaker, ledger: Ledger) -> None:
    one, other = Queue(redis, breaker, lambda: "one"), Queue(redis, breaker, lambda: "other")

    await one.enqueue(await queued(ledger))

    assert (one.name, other.name) == ("arq:queue2:one", "arq:queue2:other")
    assert (await redis.zcard(one.name), await redis.zcard(other.name)) == (1, 0)


async def test_jobs_are_in_the_order_of_lane_and_turn(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    image = await queued(ledger)
    turns = (1_700_000_000.0, 1_700_000_000.001, 9_999_999_999.999)
    in_order = [replace(image, id=f"{lane}-{turn}", lane=lane, turn=turn) for lane in Lane for turn in turns]

    await queue.enqueue(*reversed(in_order))

    jobs = await redis.zrange(queue.name, 0, -1)
    assert [job.decode().split(":")[2] for job in jobs] == [image.id for image in in_order]


@pytest.mark.parametrize("lane", Lane)
@pytest.mark.parametrize("turn", [0.0, 1_700_000_000.0, 9_999_999_999.999])
async def test_a_score_tells_the_lane_of_its_job(ledger: Ledger, redis: Redis, lane: Lane, turn: float) -> None:
    image = replace(await queued(ledger), lane=lane, turn=turn)
    await redis.zadd("scores", {"job": score_of(image)})

    assert lane_of(await redis.zscore("scores", "job") or 0.0) is lane


async def test_the_first_lane_is_that_of_the_most_urgent_job(ledger: Ledger, queue: Queue) -> None:
    assert await queue.first_lane() is None

    await queue.enqueue(await wanting_renditions(ledger, Lane.BULK))
    assert await queue.first_lane() is Lane.BULK

    await queue.enqueue(await queued(ledger))
    assert await queue.first_lane() is Lane.UPLOAD


async def test_each_job_is_taken_once_and_in_order(ledger: Ledger, queue: Queue) -> None:
    images = [await wanting_renditions(ledger, Lane.BULK), await queued(ledger), await queued(ledger)]
    await queue.enqueue(*images)

    taken = await asyncio.gather(*(queue.take(0.01) for _ in range(4)))

    bulk, first, second = (f"work:{LEDGER_NAME}:{image.id}:{image.attempt}" for image in images)
    assert set(taken) == {first, second, bulk, None}
    await queue.enqueue(*images)
    assert [await queue.take(0.01) for _ in range(4)] == [first, second, bulk, None]


async def test_a_worker_waits_for_a_job_and_not_for_ever(ledger: Ledger, queue: Queue, breaker: CircuitBreaker) -> None:
    image = await queued(ledger)
    waiting = asyncio.create_task(queue.take(60.0))
    await queue.enqueue(image)

    async with asyncio.timeout(30):
        assert await waiting == f"work:{LEDGER_NAME}:{image.id}:0"
        assert await queue.take(0.01) is None

    assert not breaker.is_open


async def test_what_is_not_in_the_queue_or_in_another_place_is_told(ledger: Ledger, queue: Queue) -> None:
    there, lost, moved = [await queued(ledger) for _ in range(3)]
    await queue.enqueue(there, moved)
    moved = replace(moved, lane=Lane.DEMAND)

    assert await queue.not_enqueued([there, lost, moved]) == [lost, moved]
    assert await queue.not_enqueued([]) == []


async def test_a_job_expires_after_a_day_however_old_its_turn_is(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    """Without that, a job enqueued again for an image of last week would be born dead."""
    image = replace(await queued(ledger), turn=1_577_836_800.0)

    await queue.enqueue(image)

    assert await redis.ttl(f"arq:job:work:{LEDGER_NAME}:{image.id}:0") == pytest.approx(DAY, abs=60)


async def test_the_same_work_is_enqueued_once_and_again_after_an_attempt(
    ledger: Ledger, queue: Queue, redis: Redis
) -> None:
    image = await queued(ledger)

    await queue.enqueue(image)
    await queue.enqueue(image)
    assert await redis.zcard(queue.name) == 1

    await queue.enqueue(replace(image, attempt=1))
    assert await redis.zcard(queue.name) == 2


async def test_what_an_earlier_attempt_left_behind_swallows_no_later_one(
    ledger: Ledger, queue: Queue, redis: Redis
) -> None:
    image = await queued(ledger)
    job_id = f"work:{LEDGER_NAME}:{image.id}:0"
    for key in (f"arq:job:{job_id}", f"arq:result:{job_id}", f"arq:in-progress:{job_id}", f"arq:retry:{job_id}"):
        await redis.set(key, b"left behind")

    await queue.enqueue(replace(image, attempt=1))

    assert await redis.zrange(queue.name, 0, -1) == [f"work:{LEDGER_NAME}:{image.id}:1".encode()]


async def test_many_images_are_enqueued_at_once_and_for_none_redis_is_not_asked(
    ledger: Ledger, queue: Queue, redis: Redis, redis_server: fakeredis.FakeServer
) -> None:
    images = [await queued(ledger) for _ in range(3)]

    await queue.enqueue(*images)

    assert await redis.zcard(queue.name) == 3
    redis_server.connected = False
    await queue.enqueue()


async def test_a_redis_that_is_away_is_told(
    ledger: Ledger, queue: Queue, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer
) -> None:
    image = await queued(ledger)
    redis_server.connected = False

    with pytest.raises(RedisAway):
        await queue.enqueue(image)
    with pytest.raises(RedisAway):
        await queue.not_enqueued([image])
    with pytest.raises(RedisAway):
        await queue.first_lane()
    with pytest.raises(RedisAway):
        await queue.take(60.0)
    assert breaker.is_open


async def test_a_caller_that_cannot_enqueue_is_told_so_and_goes_on(
    ledger: Ledger, queue: Queue, redis: Redis, redis_server: fakeredis.FakeServer
) -> None:
    """Promise 2: the ledger holds the work, and workers take it from there while Redis is away."""
    image = await queued(ledger)

    assert await queue.try_enqueue(image)
    assert await redis.zcard(queue.name) == 1

    redis_server.connected = False
    assert not await queue.try_enqueue(image)


async def test_a_worker_is_alive_while_its_loop_turns(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await queue.workers_alive() == []

    await queue.beat("host:1")
    await queue.beat("host:2")
    assert await queue.workers_alive() == ["host:1", "host:2"]

    await queue.forget("host:1")
    assert await queue.workers_alive() == ["host:2"]

    await redis.zadd(f"asgilook:{LEDGER_NAME}:workers2", {"host:3": 0})
    monkeypatch.setattr("shared.redis.queue.ALIVE_SECONDS", -10)
    assert await queue.workers_alive() == []


async def test_a_worker_whose_children_nothing_filters_counts_as_that_while_it_is_alive(queue: Queue) -> None:
    await queue.beat("host:1")
    await queue.beat("host:2", is_filtered=False)

    assert await queue.workers_unfiltered() == ["host:2"]

    await queue.forget("host:2")
    assert await queue.workers_unfiltered() == []


async def test_workers_long_gone_are_forgotten(queue: Queue, redis: Redis) -> None:
    await redis.zadd(f"asgilook:{LEDGER_NAME}:workers2", {"host:1": 1000})

    await queue.beat("host:2")

    assert await redis.zrange(f"asgilook:{LEDGER_NAME}:workers2", 0, -1) == [b"host:2"]


def test_exceptions_are_packed_as_text() -> None:
    assert unpack(pack({"r": ValueError("bad"), "t": None})) == {"r": "bad", "t": None}


class Exploit:
    """What a pickled job could do to its reader."""

    ran = False

    @staticmethod
    def run() -> None:
        Exploit.ran = True

    def __reduce__(self) -> tuple[object, tuple[()]]:
        return (Exploit.run, ())


def test_a_pickled_job_is_refused_and_runs_nothing() -> None:
    """Promise 5: access to Redis is not enough to run code."""
    pickled = pickle.dumps({"f": WORK, "a": (), "k": {"x": Exploit()}, "et": 0, "t": None})

    with pytest.raises(ValueError, match="extra data"):
        unpack(pickled)

    assert not Exploit.ran
    pickle.loads(pickled)  # noqa: S301 - so that this test can fail
    assert Exploit.ran
