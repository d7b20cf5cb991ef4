"""The sweep: a pass over due rows of the ledger every two seconds, in every worker, also in a busy one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time

from shared.errors import AsgilookError
from shared.images import DebtKind
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.settling import Settling
from shared.storage import Storage
from shared.telemetry import metrics

logger = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
#: Each pass checks that the first so many pieces of work are in the queue. Further work may be in the ledger only.
FIRST_IN_ORDER = 300
_DRAFTS_EVERY_SECONDS = 600.0
_DRAFT_SECONDS = 3600.0


class Sweep:
    """Continues what was interrupted: leases that ran out, lost wake-ups, unpaid debts, abandoned drafts."""

    def __init__(self, ledger: Ledger, storage: Storage, queue: Queue, settling: Settling) -> None:
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._settling = settling
        self._drafts_swept_at = -_DRAFTS_EVERY_SECONDS

    async def run(self) -> None:
        """Run one pass after another until cancelled."""
        while True:
            # Random, so that workers that start together do not sweep together.
            await asyncio.sleep(EVERY_SECONDS * random.uniform(0.75, 1.25))  # noqa: S311 - no secret
            try:
                await self.pass_once()
            except AsgilookError as exc:
                logger.warning("a pass of the sweep was cut short", extra={"reason": str(exc)})
            except Exception:
                logger.exception("a pass of the sweep failed")

    async def pass_once(self) -> None:
        """Handle due rows, at most 200 of a kind. Raises LedgerUnavailable or StorageUnavailable."""
        await self._take_lost()
        # Without Redis, only leftovers are paid. Workers then take their work from the ledger.
        with contextlib.suppress(RedisAway):
            await self._fill_queue()
            await self._pay(DebtKind.TOKENS)
            await self._pay(DebtKind.NOTICE)
        await self._pay(DebtKind.LEFTOVERS)
        if time.monotonic() - self._drafts_swept_at >= _DRAFTS_EVERY_SECONDS:
            self._drafts_swept_at = time.monotonic()
            await self._storage.sweep_drafts(_DRAFT_SECONDS)

    async def _take_lost(self) -> None:
        for image in await self._ledger.take_lost():
            logger.warning(
                "a lease was over", extra={"image": image.id, "request": image.request, "losses": image.losses}
            )
            metrics.SWEPT.add("lost", "served")

    async def _fill_queue(self) -> None:
        """Enqueue the first work in order, if it is not in the queue."""
        lost = await self._queue.not_enqueued(await self._ledger.waiting(FIRST_IN_ORDER))
        await self._queue.enqueue(*lost)
        metrics.SWEPT.add("waiting", "served", by=len(lost))

    async def _pay(self, kind: DebtKind) -> None:
        for image in await self._ledger.take_debts(kind):
            try:
                await self._settling.pay(image)
            except RedisAway:
                raise
            except AsgilookError as exc:
                # Go on with other images, whose debts may be payable. This debt is due again in ten seconds.
                logger.info("a debt could not be paid", extra={"image": image.id, "reason": str(exc)})
                metrics.SWEPT.add(kind.value, "given back")
            else:
                metrics.SWEPT.add(kind.value, "served")
