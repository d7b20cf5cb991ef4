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
from shared.stalls import Deadline

logger = logging.getLogger(__name__)

#: Seconds between two renewals.
RENEWED_EVERY_SECONDS = LEASE_SECONDS / 4


class Interrupted(AsgilookError):
    """This worker ends an attempt early, without any fault of the image. The message is the reason in the metrics."""


class TimedOut(AsgilookError):
    """The attempt took longer than its rendering and all honest waiting can take. The file is not at fault."""


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
        self._reason: AsgilookError | None = None

    @property
    def is_preemptible(self) -> bool:
        """Whether the attempt is working, and its work makes room for more urgent work."""
        return self._limit is not None and (self.image.lane or Lane.UPLOAD).is_preemptible

    @contextlib.asynccontextmanager
    async def lease(self, seconds: float) -> AsyncIterator[None]:
        """Renew the lease while the body runs, for at most `seconds`.

        Raises LeaseLost when the image was taken away, TimedOut, or the reason that `stop` was given.
        """
        renewing = asyncio.create_task(self._renew())
        limit, deadline = asyncio.timeout(None), Deadline()
        try:
            async with limit:
                self._limit = limit
                deadline.start(seconds, lambda: self.stop(TimedOut(f"took longer than {seconds:.0f} s")))
                yield
        except TimeoutError:
            if limit.expired() and self._reason is not None:
                raise self._reason from None
            raise
        finally:
            self._limit = None
            deadline.stop()
            await cancel(renewing)

    def stop(self, reason: AsgilookError) -> None:
        """Cancel the running body of `lease`. A second call changes nothing."""
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
            except Exception as exc:  # any error: without further renewals the lease would end
                is_unforeseen = not isinstance(exc, LedgerUnavailable)
                logger.warning("the lease could not be renewed", extra={"reason": str(exc)}, exc_info=is_unforeseen)
                continue
            # An attempt that has just published also has no lease, but it is not lost.
            if latest is None or not latest.has_published(self.image.attempt):
                self.stop(LeaseLost("the lease is gone"))
            return
