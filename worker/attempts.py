"""Attempts: claim an image, hold it by a lease, and end in one outcome or hand it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from shared.errors import (
    AsgilookError,
    DecoderCrashed,
    LeaseLost,
    LedgerUnavailable,
    NoChild,
    RenderFailure,
    StorageUnavailable,
)
from shared.images import Image, Owed, Status, attempt_prefix
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.settling import Settling
from shared.storage import Storage
from shared.telemetry import logs, metrics, tracing
from worker.lease import held_lease
from worker.pause import Pause

logger = logging.getLogger(__name__)

#: Seconds after which an image that was handed back in trouble is tried again.
_AGAIN_IN_SECONDS = 2.0

Claim = Callable[[], Awaitable[Image | None]]
#: Renders and publishes. Returns the committed row, or raises LeaseLost where the commit found the lease gone.
Work = Callable[[Image], Awaitable[Image]]


class Attempts:
    """Runs attempts. `run` never raises: the ledger alone issues work again, arq never."""

    def __init__(
        self, ledger: Ledger, storage: Storage, queue: Queue, settling: Settling, pause: Pause, worker: str
    ) -> None:
        self.worker = worker
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._settling = settling
        self._pause = pause
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, claim: Claim, work: Work) -> None:
        """Claim an image and do the work; then settle, count or hand back."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: a coroutine always runs in a task
        self._running.add(task)
        try:
            await self._run(claim, work)
        except asyncio.CancelledError:
            logger.debug("cancelled outside of an attempt")
        except Exception:
            logger.exception("an attempt was left to the sweep by an unforeseen error")
        finally:
            self._running.remove(task)

    async def finish(self, seconds: float) -> None:
        """Wait for running attempts to end, so long at the most."""
        if self._running:
            await asyncio.wait(self._running, timeout=seconds)

    def cancel(self) -> None:
        """Have every running attempt hand its image back now."""
        for task in self._running:
            task.cancel()

    async def _run(self, claim: Claim, work: Work) -> None:
        began = time.time_ns()
        try:
            image = await self._claimed(claim)
        except LedgerUnavailable as exc:
            logger.warning("nothing could be claimed", extra={"reason": str(exc)})
            self._pause.begin()
            return
        if image is None:
            return
        logs.image_id.set(image.id)
        logs.request_id.set(image.request)
        with tracing.attempt(image, began):
            await self._hold(image, work)

    async def _hold(self, image: Image, work: Work) -> None:
        try:
            outcome = await self._attempt(image, work)
            if outcome is not None:
                await self._follow_up(image, outcome)
        except AsgilookError as exc:
            # Nothing is lost: the lease runs out, or the sweep settles.
            logger.warning("an attempt was left to the sweep", extra={"reason": str(exc), "attempt": image.attempt})
            _count("left to the sweep", type(exc).__name__)
            self._pause.begin()

    async def _claimed(self, claim: Claim) -> Image | None:
        claiming = asyncio.ensure_future(claim())
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # The claim may be committed. Left alone, the image would wait for its lease to end, and count a loss.
            if (image := await claiming) is not None:
                await self._ledger.hand_back(image, 0.0)
            raise

    async def _attempt(self, image: Image, work: Work) -> Image | None:
        """Do the work under a lease. Return the row after the outcome, or None where another attempt has the image."""
        about = {"attempt": image.attempt}
        began = time.monotonic()
        try:
            async with held_lease(self._ledger, image):
                row: Image | None = await work(image)
            self._pause.end()
            seconds = time.monotonic() - began
            logger.info("published", extra=about | {"seconds": round(seconds, 3)})
            _count("published", "")
            metrics.ATTEMPT_SECONDS.observe(seconds)
            return row
        except LeaseLost:
            row, end = None, ("taken", "")
        except RenderFailure as exc:
            end = ("failed", exc.type)
            logger.info("the file cannot be rendered", extra=about | {"type": exc.type, "reason": exc.detail})
            row = await self._fail(image, exc)
        except asyncio.CancelledError:
            end = ("handed back", "stopping")
            logger.info("handed back", extra=about)
            row = await self._ledger.hand_back(image, 0.0)
        except (StorageUnavailable, LedgerUnavailable, RedisAway, NoChild) as exc:
            end = ("handed back", type(exc).__name__)
            row = await self._hand_back_in_trouble(image, exc)
        except AsgilookError as exc:  # ChildLost, NoSuchKey
            end = ("lost", type(exc).__name__)
            logger.warning("an attempt was lost", extra=about | {"reason": f"{type(exc).__name__}: {exc}"})
            row = await self._ledger.count_loss(image)
        except Exception:
            end = ("lost", "unforeseen")
            logger.exception("an attempt was lost by an unforeseen error", extra=about)
            row = await self._ledger.count_loss(image)
        return await self._without_own_folder(image, row, *end)

    async def _fail(self, image: Image, failure: RenderFailure) -> Image | None:
        if image.status is Status.READY:
            return await self._ledger.give_up_thumbnails(image)
        if isinstance(failure, DecoderCrashed) and not image.failures:
            # One crash may be chance (a bit flip, a race in a library). The second one is blamed on the file.
            return await self._ledger.count_failure(image)
        return await self._ledger.fail(image, failure.type, failure.detail)

    async def _hand_back_in_trouble(self, image: Image, trouble: AsgilookError) -> Image | None:
        logger.warning("handed back in trouble", extra={"reason": f"{type(trouble).__name__}: {trouble}"})
        row = await self._ledger.hand_back(image, _AGAIN_IN_SECONDS)
        if row is not None:
            # Without a row another process has the image, or a DELETE removed its folders: that is no trouble.
            self._pause.begin()
        return row

    async def _without_own_folder(self, image: Image, row: Image | None, outcome: str, why: str) -> Image | None:
        """Remove what this attempt stored, unless its commit succeeded after all. Return the row to follow up."""
        latest = await self._ledger.get(image.id)
        if latest is not None and latest.published == image.attempt:
            _count("published", "")
            return latest
        _count(*((outcome, why) if row is not None else ("taken", "")))
        if row is None:
            # The error that ended the attempt may come from this: a file was gone, for example.
            logger.info("others have taken the image from this attempt", extra={"attempt": image.attempt})
        await self._storage.delete_folder(attempt_prefix(image.id, image.attempt))
        return row

    async def _follow_up(self, image: Image, row: Image) -> None:
        if row.wake != image.wake:
            # The image was counted and queued again, and goes on at once. One that was handed back waits for its `due`.
            with contextlib.suppress(RedisAway):
                await self._queue.enqueue(row)
        elif row.owed is Owed.TOKENS:
            # Leftovers alone mean that thumbnails were given up. Until the sweep settles, the debt keeps requests away.
            with tracing.span("settle"):
                await self._settling.settle(row)


def _count(outcome: str, why: str) -> None:
    metrics.ATTEMPTS.add(outcome, why)
    tracing.ended(outcome, why)
