"""The sweep: a pass over the due rows of the ledger every two seconds, in every worker, also a busy one."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable

from shared.errors import AsgilookError
from shared.images import Image, Owed, Status
from shared.ledger import Ledger, Taken
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.settling import Settling
from shared.storage import Storage
from shared.telemetry import metrics

logger = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
#: With so many jobs in the queue, further queued rows wait in the ledger.
_DEPTH_ENOUGH = 300
_DRAFTS_EVERY_SECONDS = 600.0
_DRAFT_SECONDS = 3600.0


class Sweep:
    """Finishes what was interrupted: debts, leases that ran out, lost wake-ups, forgotten drafts."""

    def __init__(self, ledger: Ledger, storage: Storage, queue: Queue, settling: Settling) -> None:
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._settling = settling
        self._drafts_swept_at = -_DRAFTS_EVERY_SECONDS

    async def run(self) -> None:
        """Pass until cancelled."""
        while True:
            # Jitter, so that workers that start together do not sweep together.
            await asyncio.sleep(EVERY_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            try:
                await self.pass_once()
            except AsgilookError as exc:
                logger.warning("a pass of the sweep was cut short", extra={"reason": str(exc)})
            except Exception:
                logger.exception("a pass of the sweep failed")

    async def pass_once(self) -> None:
        """Handle what is due, 200 rows of a kind at the most. Raises LedgerUnavailable or StorageUnavailable."""
        try:
            depth = await self._queue.depth()
        except RedisAway:
            pass  # without Redis only leftovers can be settled; the rest stays due
        else:
            await self._serve("tokens", await self._ledger.take_owing(Owed.TOKENS), self._settle)
            await self._serve("lost", await self._ledger.take_lost(), self._go_on)
            await self._serve("thumbnails", await self._ledger.take_thumbnails(), self._queue.enqueue)
            if depth < _DEPTH_ENOUGH:
                queued = await self._ledger.take_queued(_DEPTH_ENOUGH - depth)
                await self._serve("queued", queued, self._queue.enqueue)
        await self._serve("leftovers", await self._ledger.take_owing(Owed.LEFTOVERS), self._settle)
        if time.monotonic() - self._drafts_swept_at >= _DRAFTS_EVERY_SECONDS:
            self._drafts_swept_at = time.monotonic()
            await self._storage.sweep_drafts(_DRAFT_SECONDS)

    async def _serve(self, what: str, taken: list[Taken], serve: Callable[[Image], Awaitable[None]]) -> None:
        unserved: list[Taken] = []
        for row in taken:
            try:
                await serve(row.image)
            except AsgilookError as exc:
                logger.info("could not be served", extra={"image": row.image.id, "reason": str(exc)})
                unserved.append(row)
        await self._ledger.give_back(unserved)
        if taken:
            served, given_back = len(taken) - len(unserved), len(unserved)
            metrics.SWEPT.add(what, "served", by=served)
            metrics.SWEPT.add(what, "given back", by=given_back)
            logger.debug("swept", extra={"what": what, "served": served, "given_back": given_back})

    async def _go_on(self, image: Image) -> None:
        """Follow up a lease that ran out: the image was queued again, or failed after too many losses."""
        logger.warning("a lease was over", extra={"image": image.id, "request": image.request, "losses": image.losses})
        if image.status is Status.QUEUED:
            await self._queue.enqueue(image)
        else:
            await self._settle(image)

    async def _settle(self, image: Image) -> None:
        if not await self._settling.settle(image):
            raise RedisAway("tokens could not be changed")
