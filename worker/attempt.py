"""One attempt: the image that it holds, its lease, and the ways to end it early."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterable

from shared.cancellation import cancel
from shared.errors import AsgilookError, LeaseLost, LedgerUnavailable
from shared.images import Image, Lane
from shared.ledger import LEASE_SECONDS, Ledger
from shared.renditions import Rendition, Size

logger = logging.getLogger(__name__)

#: Seconds between two renewals.
RENEWED_EVERY_SECONDS = LEASE_SECONDS / 4


class Interrupted(AsgilookError):
    """This worker ends an attempt early, without any fault of the image. The message is the reason in the metrics."""


class Attempt:
    """An attempt at the work of a claimed image."""

    def __init__(self, ledger: Ledger, image: Image, claimed_ns: int) -> None:
        #: The row as it was claimed.
        self.image = image
        #: When the claim began, in nanoseconds since the epoch.
        self.claimed_ns = claimed_ns
        self.began = time.monotonic()
        #: The row as it was published.
        self.published: Image | None = None
        self._ledger = ledger
        self._limit: asyncio.Timeout | None = None
        self._is_at_work = False
        self._reason: AsgilookError | None = None

    @property
    def is_preemptible(self) -> bool:
        """Whether the attempt is working, and its work makes room for more urgent work."""
        return self._is_at_work and (self.image.lane or Lane.UPLOAD).is_preemptible

    @contextlib.asynccontextmanager
    async def lease(self) -> AsyncIterator[None]:
        """Renew the lease while the body runs. Cancels the body and raises LeaseLost if the image was taken away."""
        renewing = asyncio.create_task(self._renew())
        self._is_at_work = True
        try:
            async with self.stoppable():
                yield
        finally:
            self._is_at_work = False
            await cancel(renewing)

    @contextlib.asynccontextmanager
    async def stoppable(self) -> AsyncIterator[None]:
        """Run the body until it ends or `stop` is called. Raises the reason that `stop` was given."""
        limit = asyncio.timeout(None)
        try:
            async with limit:
                self._limit = limit
                yield
        except TimeoutError:
            if limit.expired() and self._reason is not None:
                raise self._reason from None
            raise
        finally:
            self._limit = self._reason = None

    def stop(self, reason: AsgilookError) -> None:
        """Cancel the running body of `lease` or `stoppable`. A second call changes nothing."""
        if self._limit is not None and self._reason is None:
            self._reason = reason
            self._limit.reschedule(asyncio.get_running_loop().time())

    async def publish(self, size: Size, renditions: Iterable[Rendition], *, seconds: float) -> None:
        """Commit these renditions. `seconds` is the time that rendering took. Raises LeaseLost, LedgerUnavailable."""
        self.published = await self._ledger.publish(self.image, size, renditions, seconds=seconds)
        if self.published is None:
            raise LeaseLost("the commit found the image taken")

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEWED_EVERY_SECONDS)
            try:
                if await self._ledger.renew(self.image) is not None:
                    continue
                latest = await self._ledger.get(self.image.id)
            except LedgerUnavailable as exc:
                logger.warning("the lease could not be renewed", extra={"reason": str(exc)})
                continue
            # An attempt that has just published also has no lease, but it is not lost.
            if latest is None or not latest.has_published(self.image.attempt):
                self.stop(LeaseLost("the lease is gone"))
            return
