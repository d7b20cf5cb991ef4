"""Health: whether this process is alive, and whether the parts that it needs can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

import falcon
from falcon.asgi import Request, Response

from api.records import body_of
from shared.cancellation import within
from shared.errors import AsgilookError, MismatchError
from shared.identity import holds_marker
from shared.ledger import Identity, Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.clients import memory_of
from shared.redis.connections import RedisConnections
from shared.redis.queue import Queue
from shared.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds after which a part that does not answer counts as away.
_PATIENCE_SECONDS = 2.0


class Alive:
    """`/healthz`: 200 while this process runs."""

    async def on_get(self, req: Request, resp: Response) -> None:
        _set(resp, {"status": "ok"})

    on_head = on_get


class Ready:
    """`/readyz`: the state of each part. Without ledger or storage the answer is 503 and "unavailable"."""

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        queue: Queue,
        redis: RedisConnections,
        identity: Callable[[], Identity],
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._redis = redis
        self._identity = identity

    async def on_get(self, req: Request, resp: Response) -> None:
        ledger, storage, redis, cache, workers, warnings = await asyncio.gather(
            _state(self._ledger.identity()),
            _state(self._look_at_storage()),
            _state(self._redis.queue_breaker.call(self._redis.queue.ping)),
            _state(self._redis.cache_breaker.call(self._redis.cache.ping)),
            self._workers(),
            self._warnings(),
        )
        parts = {"ledger": ledger, "storage": storage, "redis": redis, "cache": cache, "workers": workers}
        if "away" in (ledger, storage):
            resp.status = falcon.HTTP_503
            status = "unavailable"
        else:
            status = "ok" if set(parts.values()) == {"ok"} else "degraded"
        _set(resp, {"status": status, **parts, "warnings": warnings})

    on_head = on_get

    async def _look_at_storage(self) -> None:
        draft = await self._storage.draft()
        await draft.discard()
        if not await holds_marker(self._storage, self._identity()):
            raise MismatchError("the storage has lost its marker")

    async def _workers(self) -> str:
        try:
            return "ok" if await self._queue.workers_alive() else "none"
        except RedisAway:
            return "unknown"

    async def _warnings(self) -> list[str]:
        warnings: list[str] = []
        for look in (self._warnings_of_eviction, self._warnings_of_workers):
            with contextlib.suppress(RedisAway):
                warnings += await look()
        return warnings

    async def _warnings_of_eviction(self) -> list[str]:
        memory = await self._redis.queue_breaker.call(lambda: memory_of(self._redis.queue))
        policy = memory.get("maxmemory_policy", "noeviction")
        if not memory.get("maxmemory") or policy == "noeviction":
            return []
        shared = " Let CACHE_REDIS_URL name another server for the response cache." if self._redis.is_one_server else ""
        return [
            f"Redis evicts keys ({policy}) when it is full: queued jobs may vanish, and wait for the sweep.{shared}"
        ]

    async def _warnings_of_workers(self) -> list[str]:
        names = await self._queue.workers_unfiltered()
        if not names:
            return []
        return [
            f"Workers decode without a system-call filter, for want of pyseccomp and libseccomp, or of a kernel that "
            f"takes one (their logs say which): {', '.join(sorted(names))}."
        ]


async def _state(look: Awaitable[object]) -> str:
    try:
        await within(_PATIENCE_SECONDS, look)
    except (AsgilookError, TimeoutError) as exc:
        logger.warning("a part is away", extra={"reason": f"{type(exc).__name__}: {exc}"})
        return "away"
    return "ok"


def _set(resp: Response, content: dict[str, object]) -> None:
    resp.data = body_of(content)
    resp.content_type = falcon.MEDIA_JSON
    resp.set_header("Cache-Control", "no-store")
