"""Notices by Redis pub/sub: they tell waiting requests and caches that an image's row has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.ledger import LedgerName
from shared.redis.circuit_breaker import CircuitBreaker

logger = logging.getLogger(__name__)


def channel_of(ledger_name: str) -> str:
    """Return the channel of a ledger's notices."""
    return f"asgilook:{ledger_name}:notices"


class Announcer:
    """Sends notices."""

    def __init__(self, client: Redis, breaker: CircuitBreaker, ledger_name: LedgerName) -> None:
        self._client = client
        self._breaker = breaker
        self._ledger_name = ledger_name

    async def announce(self, *image_ids: str, even_if_open: bool = False) -> None:
        """Send a notice for each image that has changed. Raises RedisAway."""

        async def exchange() -> None:
            async with self._client.pipeline(transaction=False) as pipe:
                for image_id in image_ids:
                    pipe.publish(channel_of(self._ledger_name()), image_id)
                await pipe.execute()

        await self._breaker.call(exchange, even_if_open=even_if_open)


class Listener:
    """Receives notices, over one connection for the whole process.

    Each notice calls `on_change` with the image's id, wakes the waiting requests, and then awaits `after_change`. Each
    subscription, also the first one, calls `on_gap`, because notices may have been missed before it.
    """

    def __init__(
        self,
        client: Redis,
        ledger_name: LedgerName,
        *,
        on_change: Callable[[str], None] = lambda image_id: None,
        after_change: Callable[[str], Awaitable[None]] | None = None,
        on_gap: Callable[[], None] = lambda: None,
    ) -> None:
        self._client = client
        self._ledger_name = ledger_name
        self._on_change = on_change
        self._after_change = after_change
        self._on_gap = on_gap
        self._waiting: dict[str, set[asyncio.Event]] = defaultdict(set)

    @contextlib.contextmanager
    def listen(self, image_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set at each notice of this image, and whenever a notice may have been missed."""
        heard = asyncio.Event()
        self._waiting[image_id].add(heard)
        try:
            yield heard
        finally:
            self._waiting[image_id].discard(heard)
            if not self._waiting[image_id]:
                del self._waiting[image_id]

    async def run(self) -> None:
        """Listen until cancelled. Subscribes again whenever the connection is lost."""
        while True:
            try:
                async with self._client.pubsub() as pubsub:
                    await pubsub.subscribe(channel_of(self._ledger_name()))
                    while True:
                        message = await pubsub.get_message(timeout=5.0)
                        if message is not None:
                            await self._pass_on(message)
            except (RedisError, OSError) as exc:
                logger.debug("notices are not heard", extra={"reason": f"{type(exc).__name__}: {exc}"})
            except Exception:
                logger.exception("listening for notices failed")
            # During this time waiting requests read the ledger every second.
            await asyncio.sleep(0.5)

    async def _pass_on(self, message: dict[str, object]) -> None:
        if message["type"] == "subscribe":
            for event in [event for events in self._waiting.values() for event in events]:
                event.set()
            self._on_gap()
            return
        data = message["data"]
        image_id = data.decode("ascii", "replace") if isinstance(data, bytes) else str(data)
        self._on_change(image_id)
        for event in list(self._waiting.get(image_id, ())):
            event.set()
        if self._after_change is not None:
            await self._after_change(image_id)
