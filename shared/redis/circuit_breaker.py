"""The circuit breaker in front of each Redis: one that is slow or away is not asked again until it answers a probe."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.cancellation import cancel
from shared.errors import AsgilookError
from shared.stalls import timeout
from shared.telemetry import metrics

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
PARTS = 5


class RedisAway(AsgilookError):
    """Redis did not answer in time, or is being left alone because it did not a moment ago."""


class CircuitBreaker:
    """Guards one Redis: an exchange that fails or overstays opens it, and nobody asks again until it has closed.

    While it is open a task of its own asks, after an eighth of a second, a quarter … and then every second, whether
    Redis is back; before it closes, `before_closing` is awaited, so that what was missed can be made
    good before anybody trusts Redis again. When it opens, `on_opening` is called.

    Where all of the client's connections are taken, an exchange waits for its turn, within its deadline. If that ends
    in vain it is we who are busy, and Redis is not left alone for it.
    """

    def __init__(
        self,
        client: Redis,
        deadline: float,
        *,
        on_opening: Callable[[], None] | None = None,
        before_closing: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._client = client
        self._deadline = deadline
        self._turns = asyncio.Semaphore(client.connection_pool.max_connections)
        self._probe: asyncio.Task[None] | None = None
        self._on_opening = on_opening
        self._before_closing = before_closing

    @property
    def deadline(self) -> float:
        return self._deadline

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
        opens_if_busy: bool = False,
    ) -> T:
        """Await `exchange()` within the deadline (and `extra_seconds` for large bodies). Raises RedisAway.

        `opens_if_busy` is for what Redis must have been told before it is trusted again, whoever's fault it was.
        """
        if self.is_open and not even_if_open:
            raise RedisAway("Redis is being left alone")
        we_are_busy = self._turns.locked()

        try:
            async with timeout(self._deadline + extra_seconds, PARTS), self._turns:
                if self.is_open and not even_if_open:
                    raise RedisAway("Redis is being left alone")
                return await exchange()
        except (RedisError, OSError, TimeoutError) as exc:
            if may_open and (opens_if_busy or not (we_are_busy and isinstance(exc, TimeoutError))):
                self._open(exc)
            raise RedisAway(f"{type(exc).__name__}: {exc}") from exc

    async def watch(self, reply: Awaitable[T]) -> T:
        """Await the reply to what was sent over a connection, and by a deadline, of its own. Raises RedisAway."""
        if self._probe is not None:
            raise RedisAway("Redis is being left alone")
        try:
            return await reply
        except (RedisError, OSError, TimeoutError) as exc:
            self._open(exc)
            raise RedisAway(f"{type(exc).__name__}: {exc}") from exc

    async def close(self) -> None:
        """Stop asking."""
        if self._probe is not None:
            await cancel(self._probe)

    def _open(self, reason: BaseException) -> None:
        if self._probe is None:
            metrics.REDIS_LEFT_ALONE.add()
            logger.warning("redis is left alone", extra={"reason": f"{type(reason).__name__}: {reason}"})
            self._probe = asyncio.get_running_loop().create_task(self._ask_until_back())
            if self._on_opening is not None:
                self._on_opening()

    async def _ask_until_back(self) -> None:
        pause = PAUSE_SECONDS * _FIRST_PAUSE
        while True:
            await asyncio.sleep(pause)
            pause = min(2 * pause, PAUSE_SECONDS)
            try:
                await self.call(self._client.ping, even_if_open=True)
                if self._before_closing is not None:
                    await self._before_closing()
            except AsgilookError as exc:
                logger.debug("redis is still left alone", extra={"reason": str(exc)})
                continue
            except Exception:
                logger.exception("what was missed while redis was away could not be made good")
                continue
            logger.info("redis is asked again")
            self._probe = None
            return
