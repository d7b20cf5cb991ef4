"""arq's queue, for web and worker: names, serializer, enqueueing, taking. The queue carries ids, never files."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import msgpack
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import Redis

from shared.images import Image, Lane
from shared.ledger import LedgerName
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway

#: The function that arq runs for each job, with the id of an image.
WORK = "work"

#: Seconds without a heartbeat after which a worker counts as dead.
ALIVE_SECONDS = 6
#: Suffix of the name of a worker whose children run without a system-call filter.
_UNFILTERED = " unfiltered"

#: Seconds after which a job that no worker took expires. If its row still waits, the sweep enqueues it again.
_DAY_SECONDS = 86_400
#: Seconds that a consumer waits for a command's reply. Short, so that a silent Redis is noticed soon.
_CONSUMER_SECONDS = 2.0
#: More than any turn in milliseconds. Redis stores scores as doubles, which hold the scores of all four lanes exactly.
_LANE_SCORE = 10**13


def pack(value: Any) -> bytes:
    """Serialize a job or a result. An object that msgpack cannot serialize, such as an exception, becomes text."""
    packed: bytes = msgpack.packb(value, default=str)
    return packed


def unpack(data: bytes) -> Any:
    """Deserialize a job or a result. Hostile data in Redis can make this fail, but runs no code."""
    return msgpack.unpackb(data)


def score_of(image: Image) -> int:
    """Return the score of an image's job. Scores have the ledger's order: by lane, then by turn."""
    return (image.lane or 0) * _LANE_SCORE + round((image.turn or 0) * 1000)


def lane_of(score: float) -> Lane | None:
    """Return the lane of a job by its score, or None for a score that is not ours."""
    return next((lane for lane in Lane if lane.value == score // _LANE_SCORE), None)


class Queue:
    """The queue of one ledger. Methods raise RedisAway. If a job is lost, the sweep finds its work in the ledger."""

    def __init__(self, client: Redis, breaker: CircuitBreaker, ledger_name: LedgerName) -> None:
        self._client = client
        self._breaker = breaker
        self._ledger_name = ledger_name

    @property
    def name(self) -> str:
        # Release 0.1 uses another queue.
        return f"arq:queue2:{self._ledger_name()}"

    @property
    def _beats(self) -> str:
        # Another name than in release 0.1: a worker of that release does not do our work, so it must not be counted.
        return f"asgilook:{self._ledger_name()}:workers2"

    def _job_id(self, image: Image) -> str:
        return f"{WORK}:{self._ledger_name()}:{image.id}:{image.attempt}"

    async def enqueue(self, *images: Image) -> None:
        """Enqueue the work of these images. If work is already in the queue, only its place changes."""
        jobs = {self._job_id(image): image for image in images}
        enqueued = round(time.time() * 1000)

        async def exchange() -> None:
            # arq's own `enqueue_job` takes three round trips, because it first checks for an equal job.
            async with self._client.pipeline(transaction=False) as pipe:
                for job_id, image in jobs.items():
                    job = serialize_job(WORK, (image.id,), {}, None, enqueued, serializer=pack)
                    pipe.psetex(job_key_prefix + job_id, _DAY_SECONDS * 1000, job)
                pipe.zadd(self.name, {job_id: score_of(image) for job_id, image in jobs.items()})
                await pipe.execute()

        if jobs:
            await self._breaker.call(exchange)

    async def try_enqueue(self, image: Image) -> bool:
        """Enqueue an image's work. Returns False if Redis is away: workers then take their work from the ledger."""
        with contextlib.suppress(RedisAway):
            await self.enqueue(image)
            return True
        return False

    async def take(self, seconds: float) -> str | None:
        """Remove the first job in order from the queue and return its id. No other worker can get this job.

        Waits for a job, at most for `seconds`, and then returns None.
        """
        found = await self._breaker.call(
            lambda: self._client.bzpopmin([self.name], timeout=seconds), deadline=_CONSUMER_SECONDS + seconds
        )
        return found[1].decode() if found else None

    async def first_lane(self) -> Lane | None:
        """Return the lane of the first job in order, or None if there is none."""
        first = await self._breaker.call(
            lambda: self._client.zrange(self.name, 0, 0, withscores=True), deadline=_CONSUMER_SECONDS
        )
        return lane_of(first[0][1]) if first else None

    async def not_enqueued(self, images: Sequence[Image]) -> list[Image]:
        """Return the images whose job is not in the queue, or has another place there than in the ledger."""
        if not images:
            return []
        jobs = [self._job_id(image) for image in images]
        scores = await self._breaker.call(lambda: self._client.zmscore(self.name, jobs))
        return [image for image, score in zip(images, scores, strict=True) if score != score_of(image)]

    async def beat(self, worker: str, *, is_filtered: bool = True) -> None:
        """Record, by Redis' clock, that this worker is alive, and whether its children have a system-call filter."""

        async def exchange() -> None:
            seconds, _ = await self._client.time()
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(self._beats, {worker if is_filtered else worker + _UNFILTERED: seconds})
                pipe.zremrangebyscore(self._beats, "-inf", seconds - 10 * ALIVE_SECONDS)
                pipe.expire(self._beats, 20 * ALIVE_SECONDS)
                await pipe.execute()

        await self._breaker.call(exchange, deadline=_CONSUMER_SECONDS)

    async def forget(self, worker: str) -> None:
        """Record that this worker has ended."""
        await self._breaker.call(lambda: self._client.zrem(self._beats, worker, worker + _UNFILTERED))

    async def workers_alive(self) -> list[str]:
        """Return the names of the workers that are alive."""
        return sorted({name.removesuffix(_UNFILTERED) for name in await self._beating()})

    async def workers_unfiltered(self) -> list[str]:
        """Return the names of live workers whose children run without a system-call filter."""
        return [name.removesuffix(_UNFILTERED) for name in await self._beating() if name.endswith(_UNFILTERED)]

    async def _beating(self) -> list[str]:
        async def exchange() -> list[str]:
            seconds, _ = await self._client.time()
            names = await self._client.zrangebyscore(self._beats, seconds - ALIVE_SECONDS, "+inf")
            return [name.decode() for name in names]

        return await self._breaker.call(exchange)
