"""Sending an image's wake-up after the commit that needs it."""

from __future__ import annotations

import contextlib

from shared.errors import AsgilookError
from shared.images import Image
from shared.ledger import Ledger, Taken
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue


class Enqueueing:
    """Sends an image's wake-up; while Redis is away, the sweep does."""

    def __init__(self, ledger: Ledger, queue: Queue) -> None:
        self._ledger = ledger
        self._queue = queue

    async def enqueue(self, image: Image) -> bool:
        """Enqueue the image. Returns False if Redis is away: the next pass of the sweep enqueues it."""
        try:
            await self._queue.enqueue(image)
        except RedisAway:
            with contextlib.suppress(AsgilookError):
                # Due at once, not in ten seconds.
                await self._ledger.give_back([Taken(image, image.created)])
            return False
        return True
