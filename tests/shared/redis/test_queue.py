"""The queue as both sides of it see it: ids only, in msgpack, each wake-up under an id of its own."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import UTC, datetime

import fakeredis
import msgpack
import pytest
from redis.asyncio import Redis

from shared.ledger import Ledger
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway
from shared.redis.queue import CONVERT_IMAGE, MAKE_THUMBNAILS, Queue, pack, unpack
from tests.ledgers import queued, wanting_thumbnails
from tests.services import LEDGER_NAME

DAY = 24 * 3600


async def job_of(redis: Redis, job_id: str) -> dict[str, object]:
    data = await redis.get(f"arq:job:{job_id}")
    assert data is not None
    job: dict[str, object] = msgpack.unpackb(data)
    return job


async def test_a_conversion_is_enqueued_by_its_id_and_wake(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    image = await queued(ledger)

    await queue.enqueue(image)

    job_id = f"convert:{LEDGER_NAME}:{image.id}:1"
    assert await redis.zrange(queue.name, 0, -1) == [job_id.encode()]
    job = await job_of(redis, job_id)
    assert (job["f"], list(job["a"]), job["k"]) == (CONVERT_IMAGE, [image.id], {})  # type: ignore[call-overload]


async def test_thumbnails_are_enqueued_with_the_wake_that_they_are_claimed_by(
    ledger: Ledger, queue: Queue, redis: Redis
) -> None:
    image = await wanting_thumbnails(ledger)

    await queue.enqueue(image)

    job_id = f"thumbnails:{LEDGER_NAME}:{image.id}:{image.wake}"
    assert await redis.zrange(queue.name, 0, -1) == [job_id.encode()]
    job = await job_of(redis, job_id)
    assert (job["f"], list(job["a"])) == (MAKE_THUMBNAILS, [image.id, image.wake])  # type: ignore[call-overload]


async def test_a_job_holds_ids_and_no_bytes(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    image = await queued(ledger)

    await queue.enqueue(image)

    data = await redis.get(f"arq:job:convert:{LEDGER_NAME}:{image.id}:1")
    assert data is not None
    assert len(data) < 150
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(data)  # noqa: S301 - that it is none is the point


async def test_the_queue_is_its_ledgers_own(redis: Redis, breaker: CircuitBreaker, ledger: Ledger) -> None:
    one, other = Queue(redis, breaker, lambda: "one"), Queue(redis, breaker, lambda: "other")

    await one.enqueue(await queued(ledger))

    assert (one.name, other.name) == ("arq:queue:one", "arq:queue:other")
    assert (await one.depth(), await other.depth()) == (1, 0)


async def test_jobs_are_in_order_of_creation_and_all_may_start(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    """arq starts nothing whose score is past its own host's clock, which may be slow by some hours."""
    old, new = replace(await queued(ledger), created=1_000_000.0), await queued(ledger)
    await queue.enqueue(new)
    await queue.enqueue(old)

    scores = await redis.zrange(queue.name, 0, -1, withscores=True)

    assert [score for _, score in scores] == [
        (1_000_000 - DAY) * 1000,
        pytest.approx((new.created - DAY) * 1000, abs=2),
    ]


async def test_a_job_expires_after_a_day_however_old_its_image_is(ledger: Ledger, queue: Queue, redis: Redis) -> None:
    """Without that, a job enqueued again for an image of last week would be born dead."""
    image = replace(await queued(ledger), created=datetime(2020, 1, 1, tzinfo=UTC).timestamp())

    await queue.enqueue(image)

    assert await redis.ttl(f"arq:job:convert:{LEDGER_NAME}:{image.id}:1") == pytest.approx(DAY, abs=60)


async def test_the_same_wake_is_enqueued_once_and_the_next_again(ledger: Ledger, queue: Queue) -> None:
    image = await queued(ledger)

    await queue.enqueue(image)
    await queue.enqueue(image)
    assert await queue.depth() == 1

    await queue.enqueue(replace(image, wake=2))
    assert await queue.depth() == 2


async def test_what_an_earlier_wake_left_behind_swallows_no_later_one(
    ledger: Ledger, queue: Queue, redis: Redis
) -> None:
    image = await queued(ledger)
    job_id = f"convert:{LEDGER_NAME}:{image.id}:1"
    for key in (f"arq:job:{job_id}", f"arq:result:{job_id}", f"arq:in-progress:{job_id}", f"arq:retry:{job_id}"):
        await redis.set(key, b"left behind")

    await queue.enqueue(replace(image, wake=2))

    assert await redis.zrange(queue.name, 0, -1) == [f"convert:{LEDGER_NAME}:{image.id}:2".encode()]


async def test_every_enqueue_rings_and_rings_neither_pile_up_nor_stay(
    ledger: Ledger, queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.redis.queue._MOST_RINGS", 5)
    image = await queued(ledger)

    await queue.enqueue(image)
    rings_of_one = await redis.lrange(queue.doorbell, 0, -1)  # type: ignore[misc] # redis-py: or no awaitable
    for wake in range(2, 10):
        await queue.enqueue(replace(image, wake=wake))

    assert len(rings_of_one) == 1
    assert await redis.llen(queue.doorbell) == 5  # type: ignore[misc] # as above
    assert 0 < await redis.ttl(queue.doorbell) <= 60


async def test_a_redis_that_is_away_is_told(ledger: Ledger, queue: Queue, redis_server: fakeredis.FakeServer) -> None:
    image = await queued(ledger)
    redis_server.connected = False

    with pytest.raises(RedisAway):
        await queue.enqueue(image)
    with pytest.raises(RedisAway):
        await queue.depth()


async def test_the_depth_is_asked_even_of_a_redis_that_is_left_alone(
    ledger: Ledger, queue: Queue, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer
) -> None:
    """The sweep goes by it: it must find out as soon as Redis is back."""
    image = await queued(ledger)
    redis_server.connected = False
    with pytest.raises(RedisAway):
        await queue.enqueue(image)
    redis_server.connected = True

    assert breaker.is_open
    assert await queue.depth() == 0


async def test_a_worker_is_alive_while_its_loop_turns(
    queue: Queue, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await queue.workers_alive() == []

    await queue.beat("host:1")
    await queue.beat("host:2")
    assert await queue.workers_alive() == ["host:1", "host:2"]

    await queue.forget("host:1")
    assert await queue.workers_alive() == ["host:2"]

    await redis.zadd(f"asgilook:{LEDGER_NAME}:workers", {"host:3": 0})
    monkeypatch.setattr("shared.redis.queue.ALIVE_SECONDS", -10)
    assert await queue.workers_alive() == []


async def test_a_worker_whose_children_nothing_filters_counts_as_that_while_it_is_alive(queue: Queue) -> None:
    await queue.beat("host:1")
    await queue.beat("host:2", is_filtered=False)

    assert await queue.workers_unfiltered() == ["host:2"]

    await queue.forget("host:2")
    assert await queue.workers_unfiltered() == []


async def test_workers_long_gone_are_forgotten(queue: Queue, redis: Redis) -> None:
    await redis.zadd(f"asgilook:{LEDGER_NAME}:workers", {"host:1": 1000})

    await queue.beat("host:2")

    assert await redis.zrange(f"asgilook:{LEDGER_NAME}:workers", 0, -1) == [b"host:2"]


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
    pickled = pickle.dumps({"f": CONVERT_IMAGE, "a": (), "k": {"x": Exploit()}, "et": 0, "t": None})

    with pytest.raises(ValueError, match="extra data"):
        unpack(pickled)

    assert not Exploit.ran
    pickle.loads(pickled)  # noqa: S301 - so that this test can fail
    assert Exploit.ran
