"""Removes copies from this machine's disk whose images are not ready any more, in case a notice was missed."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from shared.errors import AsgilookError
from shared.ledger import Ledger
from shared.storage import KeepsCopies

logger = logging.getLogger(__name__)

#: Seconds between two checks without a missed notice. A request that read the row before the notice may store its copy
#: after the notice.
_EVERY_SECONDS = 600.0
#: The least seconds between two checks, for a Redis that connects and disconnects often.
_LEAST_SECONDS = 5.0


class LocalCopies:
    """Checks every image that has copies against the ledger: after each gap in the notices, and every ten minutes."""

    def __init__(self, ledger: Ledger, storage: KeepsCopies) -> None:
        self._ledger = ledger
        self._storage = storage
        self._missed = asyncio.Event()

    def notices_missed(self) -> None:
        """Start a check soon."""
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
        # Clear first: a gap that begins during this check needs another check.
        self._missed.clear()
        await self._storage.check_copies(self._ledger.which_are_ready)
