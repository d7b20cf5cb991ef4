"""The lease of an attempt, renewed while its work runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from shared.errors import LeaseLost, LedgerUnavailable
from shared.images import Image
from shared.ledger import LEASE_SECONDS, Ledger

logger = logging.getLogger(__name__)

#: Seconds between two renewals.
RENEWED_EVERY_SECONDS = LEASE_SECONDS / 4


@contextlib.asynccontextmanager
async def held_lease(ledger: Ledger, image: Image) -> AsyncIterator[None]:
    """Renew the lease on `image` while the body runs. Cancels the body and raises LeaseLost once the lease is gone."""
    body = asyncio.current_task()
    assert body is not None  # noqa: S101 - for mypy: a coroutine always runs in a task
    is_lost = False

    async def renew() -> None:
        nonlocal is_lost
        while True:
            await asyncio.sleep(RENEWED_EVERY_SECONDS)
            try:
                if await ledger.renew(image) is not None:
                    continue
                latest = await ledger.get(image.id)
            except LedgerUnavailable as exc:
                logger.warning("the lease could not be renewed", extra={"reason": str(exc)})
                continue
            # An attempt that has just published has no lease any more, and is not lost.
            if latest is None or latest.published != image.attempt:
                is_lost = True
                body.cancel()
            return

    renewing = asyncio.create_task(renew())
    try:
        yield
    except asyncio.CancelledError:
        if not is_lost:
            raise
        body.uncancel()
        raise LeaseLost("the lease is gone") from None
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])
