"""The web process's composition root: what there is, and at which path."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import falcon.asgi
import uuid_utils

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
from shared.redis.clients import RedisFactory, redis_from_url
from shared.redis.connections import RedisConnections, open_redis
from shared.redis.notices import Announcer, Listener
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache
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

    # Before the cache is trusted again, it must be told what was committed while it was away.
    redis = open_redis(
        settings, "web", redis_from_url, before_closing=lambda: settling.settle_all_tokens(even_if_open=True)
    )
    lifespan = Lifespan(settings, ledger, storage, redis)

    queue = traced(Queue(redis.queue, redis.queue_breaker, lifespan.ledger_name), "queue")
    response_cache = ResponseCache(redis.cache, redis.cache_breaker, lifespan.ledger_name, redis.shared)
    announcer = Announcer(redis.queue, redis.queue_breaker, lifespan.ledger_name)
    copies = Copies(ledger, storage) if isinstance(storage, KeepsCopies) else None

    def notices_missed() -> None:
        serving.forget_all()
        if copies is not None:
            copies.notices_missed()

    listener = Listener(
        redis.listening,
        lifespan.ledger_name,
        on_change=lambda image_id: serving.forget(image_id),
        after_change=storage.forget_copies if isinstance(storage, KeepsCopies) else None,
        on_gap=notices_missed,
    )
    settling = Settling(
        ledger,
        storage,
        response_cache,
        announcer,
        settings.keep_originals,
        on_change=lambda image_id: serving.forget(image_id),
    )
    lifespan.background = [redis.run, listener.run]
    if copies is not None:
        lifespan.background.append(copies.run)

    enqueueing = Enqueueing(ledger, queue)
    waiting = Waiting(ledger, settling, listener)
    uploads = Uploads(settings, ledger, storage, uuid_generator)
    pictures = Pictures(settings, ledger, storage, settling, enqueueing)

    app: App = falcon.asgi.App()
    memory = Recent(settings.memory_cache_bytes, clock)
    door = MemoryDoor(memory, lambda route, image_id, query, headers: None)
    serving = Serving(app, memory, pictures, response_cache, door.answer, clock)
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
    servers = (redis.queue, redis.queue_breaker, redis.cache, redis.cache_breaker)
    app.add_route("/readyz", Ready(ledger, storage, queue, *servers, lifespan.identity))
    return serving


class Lifespan:
    """Falcon middleware that opens what the app needs, makes sure that its parts belong together, and closes them."""

    def __init__(self, settings: Settings, ledger: Ledger, storage: Storage, redis: RedisConnections) -> None:
        self.background: list[Callable[[], Coroutine[Any, Any, None]]] = []
        self._settings = settings
        self._ledger = ledger
        self._storage = storage
        self._redis = redis
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
        await self._redis.check()
        client, breaker = self._redis.queue, self._redis.queue_breaker
        await check_redis(client, breaker, self._identity.name, self._settings)
        standing = keep_standing(client, breaker, self._identity.name)
        self._tasks = [asyncio.create_task(coroutine) for coroutine in (standing, *(run() for run in self.background))]

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await cancel(*self._tasks)
        for close in (self._redis.close, self._storage.close, tracing.close, self._ledger.close):
            await close()
