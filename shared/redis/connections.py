"""All connections of one process to Redis. `open_redis` makes them for a web process or a worker."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from redis.asyncio import Redis

from shared.redis.circuit_breaker import WEB_DEADLINE, WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import (
    RedisFactory,
    check_access,
    listening_client,
    redis_from_url,
    web_client,
    worker_client,
)
from shared.redis.shared_connection import SharedConnection, connection_beside
from shared.settings import Settings


@dataclass(frozen=True)
class RedisConnections:
    """The clients of the queue and of the response cache, with their breakers. With one server, both are the same."""

    queue: Redis
    queue_breaker: CircuitBreaker
    cache: Redis
    cache_breaker: CircuitBreaker
    #: For notices, which only a web process needs.
    listening: Redis
    #: For exchanges of the response cache, in a web process that may have at least three connections.
    shared: SharedConnection | None

    @property
    def is_one_server(self) -> bool:
        return self.cache is self.queue

    async def check(self) -> None:
        """Raise RedisRefuses if a server refuses us."""
        await check_access(self.queue, self.queue_breaker, "REDIS_URL")
        if not self.is_one_server:
            await check_access(self.cache, self.cache_breaker, "CACHE_REDIS_URL")

    async def run(self) -> None:
        """Keep the shared connection, if there is one, until cancelled."""
        if self.shared is not None:
            await self.shared.run()

    async def close(self) -> None:
        for breaker in (self.queue_breaker, self.cache_breaker):
            await breaker.close()
        for client in (self.queue, self.cache, self.listening):
            await client.aclose()


def open_redis(
    settings: Settings,
    role: Literal["web", "worker"],
    factory: RedisFactory = redis_from_url,
    *,
    before_closing: Callable[[], Awaitable[None]] | None = None,
) -> RedisConnections:
    """Make the clients and breakers of a process. Nothing is connected yet.

    `before_closing` is awaited before the response cache's breaker closes. It changes the tokens that Redis missed.
    """
    is_web, is_one_server = role == "web", settings.cache_redis_url == settings.redis_url
    # A web process uses one connection to the queue's server for notices. If it may have a third one, it has a shared
    # connection to the cache's server.
    listens, shares = int(is_web), int(is_web and settings.redis_max_connections > 2)
    make_client, deadline = (web_client, WEB_DEADLINE) if is_web else (worker_client, WORKER_DEADLINE)
    if is_one_server:
        queue = cache = make_client(settings.redis_url, factory, settings, listens + shares)
    else:
        queue = make_client(settings.redis_url, factory, settings, listens)
        cache = make_client(settings.cache_redis_url, factory, settings, shares)
    shared = connection_beside(cache) if shares else None
    on_opening = None if shared is None else shared.drop
    cache_breaker = CircuitBreaker(cache, deadline, on_opening=on_opening, before_closing=before_closing)
    return RedisConnections(
        queue,
        cache_breaker if is_one_server else CircuitBreaker(queue, deadline),
        cache,
        cache_breaker,
        listening_client(settings.redis_url, factory, settings),
        shared,
    )
