"""The web process's composition root."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import falcon.asgi
import uuid_utils

from api import problems, urls
from api.authorization import Authorization, AuthorizationMiddleware
from api.collaborators import Collaborators
from api.renditions.memory_door import MemoryDoor
from api.response_cache_middleware import ResponseCacheMiddleware
from api.routes import Route, routes
from api.server.guard import Guard
from api.uploads import Uploads
from shared.intake import Intake
from shared.redis.clients import RedisFactory, redis_from_url
from shared.settings import Settings

App = falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]


def create_app(
    settings: Settings | None = None,
    *,
    uuid_generator: Callable[[], Any] = uuid_utils.uuid7,
    redis_from_url: RedisFactory = redis_from_url,
    clock: Callable[[], float] = time.monotonic,
    middleware: Sequence[Any] = (),
) -> Guard:
    """Return the application behind its guard. The application's lifespan opens and closes its collaborators.

    `clock` measures the age of what is held in memory. `middleware` is added to our own falcon middleware.
    """
    web = Collaborators(settings or Settings.from_env(), redis_from_url, clock)
    intake = Intake(web.settings, web.ledger, web.storage, uuid_generator)
    table = routes(web, Uploads(web.settings, intake))
    authorization = Authorization(web.settings, _scopes_in(table))
    app: App = falcon.asgi.App()
    app.add_middleware(
        [
            Lifespan(web),
            *middleware,
            AuthorizationMiddleware(authorization),
            ResponseCacheMiddleware(web.response_cache, web.memory),
        ]
    )
    problems.add_handlers(app)
    _add_routes(app, table)
    door = MemoryDoor(web.memory, authorization.authorize)
    return Guard(app, web.settings, at_once=door.answer)


class Lifespan:
    """Falcon middleware that opens and closes the collaborators."""

    def __init__(self, web: Collaborators) -> None:
        self._web = web

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._web.open()

    async def process_shutdown(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        await self._web.close()


def _scopes_in(table: Sequence[Route]) -> dict[str, Any]:
    return {f"{method} {route.template}": scope for route in table for method, scope in route.scopes.items()}


def _add_routes(app: App, table: Sequence[Route]) -> None:
    urls.register(app.router_options)
    for route in table:
        app.add_route(urls.with_converters(route.template), route.resource)
