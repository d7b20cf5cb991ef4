"""The circuit breaker of a Redis: if Redis fails or is slow, nothing is sent to it until it answers a probe."""

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

#: Seconds that a web request waits for one exchange. If it takes longer, the next ones fail at once.
WEB_DEADLINE = 0.05
#: Seconds that a worker waits for one exchange.
WORKER_DEADLINE = 5.0
#: The most seconds between two probes.
PAUSE_SECONDS = 1.0
#: The first pause as a fraction of PAUSE_SECONDS. Each next pause is twice as long. The first is short, because most
#: failures are a late reply, and because token changes wait until Redis is used again.
_FIRST_PAUSE = 1 / 8


class RedisAway(AsgilookError):
    """Redis failed or did not answer in time, or its breaker is open because of that."""


class CircuitBreaker:
    """Guards one Redis. An exchange that fails or takes too long opens the breaker. Then exchanges fail at once.

    `on_opening` is called when the breaker opens. While it is open, a task probes Redis. When Redis answers, the task
    awaits `before_closing`, which sends what Redis missed, and then closes the breaker.

    If all connections of the client are in use, an exchange waits for one within its deadline. If it gets none, the
    breaker stays closed, because this process is busy and Redis is not at fault.
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
        deadline: float | None = None,
        extra_seconds: float = 0.0,
        even_if_open: bool = False,
        may_open: bool = True,
        opens_if_busy: bool = False,
    ) -> T:
        """Await `exchange()` within the deadline and `extra_seconds`. Raises RedisAway.

        `deadline` replaces the breaker's own. With `even_if_open`, the exchange is tried also while the breaker is
        open. Without `may_open`, a failure does not open the breaker. With `opens_if_busy`, the breaker also opens if
        no connection was free: for changes that Redis must get before its copies are used again.
        """
        if self.is_open and not even_if_open:
            raise RedisAway("Redis is left alone")
        is_busy = self._turns.locked()
        try:
            async with timeout((deadline or self._deadline) + extra_seconds), self._turns:
                return await exchange()
        except (RedisError, OSError, TimeoutError) as exc:
            if may_open and (opens_if_busy or not (is_busy and isinstance(exc, TimeoutError))):
                self._open(exc)
            raise RedisAway(f"{type(exc).__name__}: {exc}") from exc

    async def watch(self, reply: Awaitable[T]) -> T:
        """Await a reply from a connection with its own deadline. Raises RedisAway."""
        if self.is_open:
            raise RedisAway("Redis is left alone")
        try:
            return await reply
        except (RedisError, OSError, TimeoutError) as exc:
            self._open(exc)
            raise RedisAway(f"{type(exc).__name__}: {exc}") from exc

    async def close(self) -> None:
        """Stop probing."""
        if self._probe is not None:
            await cancel(self._probe)

    def _open(self, reason: BaseException) -> None:
        if self._probe is None:
            metrics.REDIS_LEFT_ALONE.add()
            logger.warning("redis is left alone", extra={"reason": f"{type(reason).__name__}: {reason}"})
            self._probe = asyncio.get_running_loop().create_task(self._probe_until_back())
            if self._on_opening is not None:
                self._on_opening()

    async def _probe_until_back(self) -> None:
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
                logger.exception("what redis missed could not be made good")
                continue
            logger.info("redis is asked again")
            self._probe = None
            return
