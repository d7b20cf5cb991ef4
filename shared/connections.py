"""Every Redis client, and the circuit breaker that leaves a Redis alone while it is slow or away."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from arq.connections import ArqRedis
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import RedisError

from shared.cancellation import cancel
from shared.errors import AsgilookError

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds that a web request waits for Redis, once and at the most.
WEB_DEADLINE = 0.05
#: Seconds that a worker waits for one exchange.
WORKER_DEADLINE = 5.0
#: Seconds between two times that a Redis which failed is asked whether it is back, at the most.
PAUSE_SECONDS = 1.0
#: The first time comes sooner: most were late by chance, and what is committed meanwhile cannot be told to anybody.
_FIRST_PAUSE = 1 / 8
#: Parts of a deadline: a process may stand still in all of them but one.
_PARTS = 5


class RedisAway(AsgilookError):
    """Redis did not answer in time, or is being left alone because it did not a moment ago."""


class RedisFactory(Protocol):
    """How clients are made: tests give one that makes fake ones."""

    def __call__(self, url: str, **options: Any) -> Redis:
        """Return a client of the server at `url`; nothing is connected yet."""


def redis_from_url(url: str, **options: Any) -> Redis:
    """Return a client of a real server."""
    client: Redis = Redis.from_url(url, **options)
    return client


def web_client(url: str, factory: RedisFactory = redis_from_url) -> Redis:
    """Return a client that never retries: somebody is waiting, so long as its breaker allows for a whole exchange."""
    return factory(url, socket_keepalive=True, retry=Retry(NoBackoff(), 0))


def worker_client(url: str, factory: RedisFactory = redis_from_url) -> Redis:
    """Return a client that retries once: nobody is waiting, and a dropped connection is no reason to hand back."""
    return factory(
        url,
        socket_timeout=WORKER_DEADLINE,
        socket_connect_timeout=WORKER_DEADLINE,
        socket_keepalive=True,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), 1),
        retry_on_error=[ConnectionLost],
    )


def listening_client(url: str, factory: RedisFactory = redis_from_url) -> Redis:
    """Return a client that waits for notices: silence is not a failure."""
    return factory(url, socket_connect_timeout=WORKER_DEADLINE, socket_keepalive=True, health_check_interval=10)


def arq_client(client: Redis, **options: Any) -> ArqRedis:
    """Return arq's view of the same connections: its own `create_pool` sets no time-outs."""
    return ArqRedis(pool_or_conn=client.connection_pool, **options)


class CircuitBreaker:
    """Guards one Redis: an exchange that fails or overstays opens it, and nobody asks again until it has closed.

    While it is open a task of its own asks, after an eighth of a second, a quarter … and then every second, whether
    Redis is back; before it closes, everything in `before_closing` is awaited, so that what was missed can be made
    good before anybody trusts Redis again.
    """

    def __init__(self, client: Redis, deadline: float) -> None:
        self._client = client
        self._deadline = deadline
        self._probe: asyncio.Task[None] | None = None
        self.before_closing: list[Callable[[], Awaitable[None]]] = []

    @property
    def is_open(self) -> bool:
        return self._probe is not None

    async def call(
        self,
        exchange: Callable[[], Awaitable[T]],
        *,
        extra_seconds: float = 0.0,
        even_if_open: bool = False,
        may_open: bool = True,
    ) -> T:
        """Await `exchange()` within the deadline (and `extra_seconds` for large bodies). Raises RedisAway."""
        if self.is_open and not even_if_open:
            raise RedisAway("Redis is being left alone")
        try:
            return await _in_time(exchange, self._deadline + extra_seconds)
        except (RedisError, OSError, TimeoutError) as exc:
            if may_open:
                self._open(exc)
            raise RedisAway(f"{type(exc).__name__}: {exc}") from exc

    async def close(self) -> None:
        """Stop asking."""
        if self._probe is not None:
            await cancel(self._probe)

    def _open(self, reason: BaseException) -> None:
        if self._probe is None:
            logger.warning("redis is left alone", extra={"reason": f"{type(reason).__name__}: {reason}"})
            self._probe = asyncio.get_running_loop().create_task(self._ask_until_back())

    async def _ask_until_back(self) -> None:
        pause = PAUSE_SECONDS * _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS)
            try:
                await self.call(self._client.ping, even_if_open=True)
                for catch_up in self.before_closing:
                    await catch_up()
            except AsgilookError as exc:
                logger.debug("redis is still left alone", extra={"reason": str(exc)})
                continue
            except Exception:
                logger.exception("what was missed while redis was away could not be made good")
                continue
            logger.info("redis is asked again")
            self._probe = None
            return


async def _in_time(exchange: Callable[[], Awaitable[T]], seconds: float) -> T:
    async with asyncio.timeout(None) as limit:
        patience = _Patience(limit, seconds)
        try:
            return await exchange()
        finally:
            patience.end()


class _Patience:
    """Has `limit` expire after so many seconds, counted in parts, each of which begins when the one before is over.

    Where it was this process that stood still, the part at hand is over before the reply could be read, which may have
    been there all the time; but the loop has another turn for it in the next.
    """

    def __init__(self, limit: asyncio.Timeout, seconds: float) -> None:
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._part = seconds / _PARTS
        self._parts_left = _PARTS
        self._wait_on()

    def end(self) -> None:
        self._timer.cancel()

    def _wait_on(self) -> None:
        if self._parts_left:
            self._parts_left -= 1
            self._timer = self._loop.call_later(self._part, self._wait_on)
        else:
            self._limit.reschedule(self._loop.time())
