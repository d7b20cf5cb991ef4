"""The web process's composition root: what there is, and at which path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import falcon.asgi
import uuid_utils
from redis.asyncio import Redis

from api import problems, urls
from api.health import Alive, Ready
from api.images import Enqueueing, ImageList, ImageRecord, Retry
from api.metrics import Metrics, RouteNoting
from api.renditions.local_copies import Copies
from api.renditions.memory import Recent
from api.renditions.memory_door import MemoryDoor
from api.renditions.resources import Jpeg, Pictures, Thumbnail
from api.renditions.serving import Serving
from api.response_cache_middleware import ResponseCaching
from api.uploads import Uploads
from api.wait import Waiting
from shared.cancellation import cancel
from shared.identity import check_redis, check_storage, keep_standing
from shared.ledger import Identity, Ledger
from shared.redis.circuit_breaker import WEB_DEADLINE, CircuitBreaker
from shared.redis.clients import RedisFactory, check_access, listening_client, redis_from_url, web_client
from shared.redis.notices import Announcer, Listener
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache
from shared.redis.shared_connection import connection_beside
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import KeepsCopies, Storage
from shared.storage.backends import open_storage
from shared.telemetry import tracing
from shared.telemetry.exposition import Exposition
from shared.telemetry.metrics import LEDGER_SECONDS, STORAGE_SECONDS, timed
from shared.telemetry.tracing import traced

App = falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]


def create_app(
    settings: Settings | None = None,
    *,
    uuid_generator: Callable[[], Any] = uuid_utils.uuid7,
    redis_from_url: RedisFactory = redis_from_url,
    clock: Callable[[], float] = time.monotonic,
    middleware: Sequence[Any] = (),
) -> Serving:
    """Build the application, falcon's behind its stage; everything it opens is opened and closed with its lifespan.

    `clock` tells how old what is held in memory is; `middleware` is falcon's, beside our own.
    """
    settings = settings or Settings.from_env()
    exposition = Exposition() if settings.metrics or settings.metrics_token else None
    if settings.tracing:
        tracing.switch_on("web")
    ledger = traced(timed(Ledger.connect(settings), LEDGER_SECONDS), "ledger")
    storage = traced(timed(open_storage(settings, cached=True), STORAGE_SECONDS), "storage")

    # To Redis there is the listener's connection, to the one of the cache the reader's.
    reads_apart, has_cache_redis = settings.redis_max_connections > 2, settings.cache_redis_url != settings.redis_url
    others = 1 if has_cache_redis else 1 + reads_apart
    redis = cache_redis = web_client(settings.redis_url, redis_from_url, settings, others)
    breaker = cache_breaker = CircuitBreaker(redis, WEB_DEADLINE)
    if has_cache_redis:
        cache_redis = web_client(settings.cache_redis_url, redis_from_url, settings)
        cache_breaker = CircuitBreaker(cache_redis, WEB_DEADLINE)
    reader = connection_beside(cache_redis) if reads_apart else None
    listening = listening_client(settings.redis_url, redis_from_url, settings)
    lifespan = Lifespan(settings, ledger, storage, redis, breaker)

    queue = traced(Queue(redis, breaker, lifespan.ledger_name), "queue")
    response_cache = ResponseCache(cache_redis, cache_breaker, lifespan.ledger_name, reader)
    announcer = Announcer(redis, breaker, lifespan.ledger_name)
    listener = Listener(listening, lifespan.ledger_name)
    settling = Settling(
        ledger,
        storage,
        response_cache,
        announcer,
        settings.keep_originals,
        on_change=lambda image_id: serving.forget(image_id),
    )
    # Before the cache is trusted again, what was committed while it was away must be told to it.
    cache_breaker.before_closing.append(lambda: settling.settle_all_tokens(even_if_open=True))
    lifespan.to_check = [lambda: check_access(redis, breaker, "REDIS_URL")]
    if cache_redis is not redis:
        lifespan.to_check.append(lambda: check_access(cache_redis, cache_breaker, "CACHE_REDIS_URL"))
    lifespan.background = [listener.run]
    if isinstance(storage, KeepsCopies):
        lifespan.background.append(Copies(ledger, storage, listener).run)
    if reader is not None:
        cache_breaker.on_opening.append(reader.drop)
        lifespan.background.append(reader.run)
    lifespan.to_close = [
        breaker.close,
        cache_breaker.close,
        redis.aclose,
        cache_redis.aclose,
        listening.aclose,
        storage.close,
        tracing.close,
    ]

    enqueueing = Enqueueing(ledger, queue)
    waiting = Waiting(ledger, settling, listener)
    uploads = Uploads(settings, ledger, storage, uuid_generator)
    pictures = Pictures(settings, ledger, storage, settling, enqueueing)

    app: App = falcon.asgi.App()
    memory = Recent(settings.memory_cache_bytes, clock)
    door = MemoryDoor(memory, lambda route, image_id, query, headers: None)
    serving = Serving(app, memory, pictures, response_cache, door.answer, clock)
    listener.on_change.append(serving.forget)
    listener.on_gap.append(serving.forget_all)
    app.add_middleware([lifespan, *middleware])
    if exposition is not None or settings.tracing:
        app.add_middleware(RouteNoting())
    if exposition is not None:
        app.add_route("/metrics", Metrics(exposition, settings.metrics_token, ledger, queue))
    app.add_middleware(ResponseCaching(response_cache))
    urls.register(app.router_options)
    problems.add_handlers(app)
    app.add_route("/images", ImageList(settings, ledger, settling, enqueueing, waiting, uploads))
    app.add_route("/images/{image_id:image_id}", ImageRecord(settings, ledger, settling, waiting))
    app.add_route("/images/{image_id:image_id}/retry", Retry(settings, ledger, settling, enqueueing))
    app.add_route("/images/{image_id:image_id}.jpeg", Jpeg(pictures))
    app.add_route("/thumbnails/{image_id:image_id}/{size:size}.jpeg", Thumbnail(pictures))
    app.add_route("/healthz", Alive())
    app.add_route(
        "/readyz", Ready(ledger, storage, queue, redis, breaker, cache_redis, cache_breaker, lifespan.identity)
    )
    return serving


class Lifespan:
    """Falcon middleware that opens what the app needs, makes sure that its parts belong together, and closes them."""

    def __init__(
        self, settings: Settings, ledger: Ledger, storage: Storage, redis: Redis, breaker: CircuitBreaker
    ) -> None:
        self.to_check: list[Callable[[], Any]] = []
        self.background: list[Callable[[], Any]] = []
        self.to_close: list[Callable[[], Any]] = []
        self._settings = settings
        self._ledger = ledger
        self._storage = storage
        self._redis = redis
        self._breaker = breaker
        self._identity = Identity("", None)
        self._tasks: list[asyncio.Task[None]] = []

    def identity(self) -> Identity:
        """Return who the ledger is, known once the app has started."""
        return self._identity

    def ledger_name(self) -> str:
        """Return the name of the ledger, known once the app has started."""
        return self._identity.name

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._storage.prepare()
        self._identity = await check_storage(self._ledger, self._storage, self._settings)
        for check in self.to_check:
            await check()
        await check_redis(self._redis, self._breaker, self._identity.name, self._settings)
        standing = keep_standing(self._redis, self._breaker, self._identity.name)
        self._tasks = [asyncio.create_task(coroutine) for coroutine in (standing, *(run() for run in self.background))]

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await cancel(*self._tasks)
        for close in self.to_close:
            await close()
        await self._ledger.close()
