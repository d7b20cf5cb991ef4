"""The objects that the resources of the web process share: made, opened and closed in one place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from api.renditions.local_copies import LocalCopies
from api.renditions.memory import Memory
from api.wait import Waiter
from shared.cancellation import cancel
from shared.identity import check_redis, check_storage, keep_standing
from shared.ledger import Identity, Ledger
from shared.redis.clients import RedisFactory
from shared.redis.connections import open_redis
from shared.redis.notices import Announcer, Listener
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import KeepsCopies
from shared.storage.backends import open_storage
from shared.telemetry import tracing
from shared.telemetry.exposition import Exposition
from shared.telemetry.metrics import LEDGER_SECONDS, STORAGE_SECONDS
from shared.telemetry.tracing import traced


class Collaborators:
    """All objects that outlive a request. Nothing connects before `open`."""

    def __init__(self, settings: Settings, redis_from_url: RedisFactory, clock: Callable[[], float]) -> None:
        self.settings = settings
        self._identity = Identity("", None)
        self._background: list[asyncio.Task[None]] = []
        self.exposition = Exposition() if settings.metrics or settings.metrics_token else None
        if settings.tracing:
            tracing.switch_on("web")
        self.ledger = traced(Ledger.connect(settings), "ledger", LEDGER_SECONDS)
        self.storage = traced(open_storage(settings, cached=True), "storage", STORAGE_SECONDS)
        self.memory = Memory(settings.memory_cache_bytes, clock)
        keeps_copies = self.storage if isinstance(self.storage, KeepsCopies) else None
        self._local_copies = None if keeps_copies is None else LocalCopies(self.ledger, keeps_copies)
        # After an outage the cache lacks the token changes of commits during it. Make them before the cache is used.
        self.redis = redis = open_redis(
            settings, "web", redis_from_url, before_closing=lambda: self.settling.settle_all_tokens(even_if_open=True)
        )
        self.queue = traced(Queue(redis.queue, redis.queue_breaker, self.ledger_name), "queue")
        self.response_cache = ResponseCache(redis.cache, redis.cache_breaker, self.ledger_name, redis.shared)
        self.settling = Settling(
            self.ledger,
            self.storage,
            self.response_cache,
            Announcer(redis.queue, redis.queue_breaker, self.ledger_name),
            settings.keep_originals,
            on_change=self.memory.forget,
        )
        self._listener = Listener(
            redis.listening,
            self.ledger_name,
            on_change=self.memory.forget,
            after_change=None if keeps_copies is None else keeps_copies.forget_copies,
            on_gap=self._notices_missed,
        )
        self.waiter = Waiter(self.ledger, self.settling, self._listener)

    def identity(self) -> Identity:
        """Return the ledger's identity. The identity is empty before `open`."""
        return self._identity

    def ledger_name(self) -> str:
        return self._identity.name

    async def open(self) -> None:
        """Connect, and check that storage, ledger and Redis belong together. Raises AsgilookError."""
        await self.storage.prepare()
        self._identity = await check_storage(self.ledger, self.storage, self.settings)
        await self.redis.check()
        await check_redis(self.redis.queue, self.redis.queue_breaker, self._identity.name, self.settings)
        runs = [
            keep_standing(self.redis.queue, self.redis.queue_breaker, self._identity.name),
            self.redis.run(),
            self._listener.run(),
        ]
        if self._local_copies is not None:
            runs.append(self._local_copies.run())
        self._background = [asyncio.create_task(run) for run in runs]

    async def close(self) -> None:
        await cancel(*self._background)
        await self.response_cache.close()
        for close in (self.redis.close, self.storage.close, tracing.close, self.ledger.close):
            await close()

    def _notices_missed(self) -> None:
        self.memory.forget_all()
        if self._local_copies is not None:
            self._local_copies.notices_missed()
