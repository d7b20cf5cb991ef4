"""Removes the copies on this machine's disk whose images are gone: their notices may have been missed."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shared.errors import AsgilookError
from shared.ledger import Ledger
from shared.storage import KeepsCopies

logger = logging.getLogger(__name__)

#: Seconds after which the ledger is asked without any missed notice: a copy may have been made after the notice, for a
#: request that had read the row before it.
_EVERY_SECONDS = 600.0
#: Seconds between two checks at least, however often Redis comes and goes.
_LEAST_SECONDS = 5.0


class LocalCopies:
    """Asks the ledger about every image that has copies: at the start, after each gap in the notices, now and then."""

    def __init__(self, ledger: Ledger, storage: KeepsCopies) -> None:
        self._ledger = ledger
        self._storage = storage
        self._missed = asyncio.Event()

    def notices_missed(self) -> None:
        """Check soon, because notices may have been missed."""
        self._missed.set()

    async def run(self) -> None:
        """Check until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._missed.wait(), _EVERY_SECONDS)
            try:
                await self.check()
            except AsgilookError as exc:
                logger.info("copies could not be checked", extra={"reason": str(exc)})
            except Exception:
                logger.exception("checking copies failed")
            await asyncio.sleep(_LEAST_SECONDS)

    async def check(self) -> None:
        """Remove the copies of images that are not ready any more."""
        # Cleared first: a gap that begins during the check needs another check.
        self._missed.clear()
        await self._storage.check_copies(self._ledger.which_are_ready)
