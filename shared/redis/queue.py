"""arq's queue for both of its sides: names, serializer, enqueueing, the doorbell. It carries ids, never files."""

from __future__ import annotations

import contextlib
import time
from typing import Any

import msgpack
from arq.constants import job_key_prefix
from arq.jobs import serialize_job
from redis.asyncio import Redis

from shared.errors import AsgilookError
from shared.images import Image, Owed
from shared.ledger import Ledger, LedgerName, Taken
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway

CONVERT_IMAGE = "convert_image"
MAKE_THUMBNAILS = "make_thumbnails"

#: Seconds without a heartbeat after which a worker counts as dead.
ALIVE_SECONDS = 6
#: Follows the name of a worker whose children run without a system-call filter.
_UNFILTERED = " unfiltered"

#: Rings of the doorbell that are kept for workers. A ring that is lost costs half a second.
_MOST_RINGS = 1000
#: Seconds after which a job that no worker took expires. The sweep has enqueued a row that still waits many times then.
_DAY_SECONDS = 86_400


def pack(value: Any) -> bytes:
    """Serialize a job or a result. What msgpack cannot serialize (an exception) becomes text."""
    packed: bytes = msgpack.packb(value, default=str)
    return packed


def unpack(data: bytes) -> Any:
    """Deserialize a job or a result. Hostile data in Redis can make this fail, but runs no code."""
    return msgpack.unpackb(data)


class Queue:
    """The queue of one ledger. Methods raise RedisAway. A lost job is found in the ledger by the sweep."""

    def __init__(self, client: Redis, breaker: CircuitBreaker, ledger_name: LedgerName) -> None:
        self._client = client
        self._breaker = breaker
        self._ledger_name = ledger_name

    @property
    def name(self) -> str:
        return f"arq:queue:{self._ledger_name()}"

    @property
    def doorbell(self) -> str:
        return f"{self.name}:doorbell"

    @property
    def _beats(self) -> str:
        return f"asgilook:{self._ledger_name()}:workers"

    async def enqueue(self, image: Image) -> None:
        """Wake a worker for what the image needs: its conversion, or its thumbnails."""
        arguments: tuple[str | int, ...]
        if image.owed is Owed.THUMBNAILS:
            job_id = f"thumbnails:{self._ledger_name()}:{image.id}:{image.wake}"
            function, arguments = MAKE_THUMBNAILS, (image.id, image.wake)
        else:
            job_id = f"convert:{self._ledger_name()}:{image.id}:{image.wake}"
            function, arguments = CONVERT_IMAGE, (image.id,)

        # arq starts no job whose score is later than its host's clock, so the score is a day in the past. It keeps the
        # order of creation, so that images that the sweep enqueues again go first.
        score = round((image.created - _DAY_SECONDS) * 1000)
        job = serialize_job(function, arguments, {}, None, round(time.time() * 1000), serializer=pack)

        async def exchange() -> None:
            # arq's own `enqueue_job` takes three round trips, since it checks for such a job first. To enqueue a job
            # twice does no harm here: both are the same.
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.psetex(job_key_prefix + job_id, _DAY_SECONDS * 1000, job)
                pipe.zadd(self.name, {job_id: score})
                pipe.lpush(self.doorbell, 1)
                pipe.ltrim(self.doorbell, 0, _MOST_RINGS - 1)
                pipe.expire(self.doorbell, 60)
                await pipe.execute()

        await self._breaker.call(exchange)

    async def depth(self) -> int:
        """Return the number of jobs in the queue. Asks even a Redis that is left alone."""
        return int(await self._breaker.call(lambda: self._client.zcard(self.name), even_if_open=True))

    async def beat(self, worker: str, *, is_filtered: bool = True) -> None:
        """Record, by Redis' clock, that this worker is alive, and whether a system-call filter holds its children."""

        async def exchange() -> None:
            seconds, _ = await self._client.time()
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.zadd(self._beats, {worker if is_filtered else worker + _UNFILTERED: seconds})
                pipe.zremrangebyscore(self._beats, "-inf", seconds - 10 * ALIVE_SECONDS)
                pipe.expire(self._beats, 20 * ALIVE_SECONDS)
                await pipe.execute()

        await self._breaker.call(exchange)

    async def forget(self, worker: str) -> None:
        """Record that this worker has ended."""
        await self._breaker.call(lambda: self._client.zrem(self._beats, worker, worker + _UNFILTERED))

    async def workers_alive(self) -> list[str]:
        """Return the names of the workers that are alive."""
        return sorted({name.removesuffix(_UNFILTERED) for name in await self._beating()})

    async def workers_unfiltered(self) -> list[str]:
        """Return the names of those of them whose children run without a system-call filter."""
        return [name.removesuffix(_UNFILTERED) for name in await self._beating() if name.endswith(_UNFILTERED)]

    async def _beating(self) -> list[str]:
        async def exchange() -> list[str]:
            seconds, _ = await self._client.time()
            names = await self._client.zrangebyscore(self._beats, seconds - ALIVE_SECONDS, "+inf")
            return [name.decode() for name in names]

        return await self._breaker.call(exchange)


class Enqueueing:
    """Sends an image's wake-up; while Redis is away, the sweep does."""

    def __init__(self, ledger: Ledger, queue: Queue) -> None:
        self._ledger = ledger
        self._queue = queue

    async def enqueue(self, image: Image) -> bool:
        """Enqueue the image. Returns False if Redis is away: the next pass of the sweep enqueues it."""
        try:
            await self._queue.enqueue(image)
        except RedisAway:
            with contextlib.suppress(AsgilookError):
                # Due at once, not in ten seconds.
                await self._ledger.give_back([Taken(image, image.created)])
            return False
        return True
