"""Copies on this process's own disk are kept to what is still there: notices may be missed, by day or by night."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shared.errors import AsgilookError
from shared.ledger import Ledger
from shared.redis.notices import Listener
from shared.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds after which the ledger is asked though no notice is known to have been missed: a fill may have come after
#: one, for a request that had read the row before.
_EVERY_SECONDS = 600.0
#: Seconds between two looks, however often Redis comes and goes.
_LEAST_SECONDS = 5.0


class Copies:
    """Asks the ledger about every image that there are copies of: at the start, after each gap, and now and then."""

    def __init__(self, ledger: Ledger, storage: Storage, listener: Listener) -> None:
        self._ledger = ledger
        self._storage = storage
        self._missed = asyncio.Event()
        listener.on_notice.append(storage.forget_copies)
        listener.on_gap.append(self._missed.set)

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._missed.wait(), _EVERY_SECONDS)
            try:
                await self.check(now_and_then=not self._missed.is_set())
            except AsgilookError as exc:
                logger.info("copies could not be checked", extra={"reason": str(exc)})
            except Exception:
                logger.exception("checking copies failed")
            await asyncio.sleep(_LEAST_SECONDS)

    async def check(self, now_and_then: bool = False) -> None:
        """Let go of the copies of images that are not ready any more."""
        # What comes meanwhile is another gap.
        self._missed.clear()
        await self._storage.check_copies(self._ledger.which_are_ready)
        if now_and_then:
            # Not at the start, when those who will have these folders may be about to.
            await self._storage.clear_abandoned_copies()
