"""Attempts: claim an image, hold it by a lease, and record one outcome or hand the image back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable

from shared.cancellation import to_the_end
from shared.errors import (
    AsgilookError,
    DecoderCrashed,
    LeaseLost,
    LedgerUnavailable,
    NoChild,
    RenderFailure,
    StorageUnavailable,
)
from shared.images import Image, Work
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.renditions import attempt_prefix
from shared.settling import Settling
from shared.storage import Storage
from shared.telemetry import logs, metrics, tracing
from worker.attempt import Attempt, Interrupted
from worker.pause import Pause

logger = logging.getLogger(__name__)

#: Seconds after which an image that was handed back in trouble is tried again.
_AGAIN_IN_SECONDS = 2.0


class Attempts:
    """Begins and ends attempts.

    `claim` and `hold` record the errors of the work and do not raise them: only the ledger issues work again.
    """

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        queue: Queue,
        settling: Settling,
        pause: Pause,
        worker: str,
        *,
        work_seconds: float,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._settling = settling
        self._pause = pause
        self._worker = worker
        self._work_seconds = work_seconds
        self._running: set[Attempt] = set()
        self._is_stopping = False

    @contextlib.asynccontextmanager
    async def claim(self, image_id: str) -> AsyncIterator[Attempt | None]:
        """Claim this image's work and hold the image while the body runs. Yields None if nothing could be claimed."""
        attempt = await self._claimed(self._ledger.claim(image_id, self._worker))
        if attempt is None:
            yield None
        else:
            async with self.hold(attempt):
                yield attempt

    async def claim_next(self) -> Attempt | None:
        """Claim the first work in the ledger's order. Returns None if nothing could be claimed.

        The caller must enter `hold` with the attempt.
        """
        return await self._claimed(self._ledger.claim_next(self._worker))

    @contextlib.asynccontextmanager
    async def hold(self, attempt: Attempt) -> AsyncIterator[None]:
        """Hold the image while the body works and publishes. Then settle, count a failure or loss, or hand back."""
        # All log lines of the attempt carry these ids.
        logs.image_id.set(attempt.image.id)
        logs.request_id.set(attempt.image.request)
        failure: BaseException | None = None
        self._running.add(attempt)
        try:
            with tracing.attempt(attempt.image, attempt.claimed_ns):
                try:
                    async with attempt.lease(self._work_seconds):
                        if self._is_stopping:
                            attempt.stop(Interrupted("stopping"))
                        yield
                    if attempt.published is None:
                        raise RuntimeError("the work has published nothing")
                except (Exception, asyncio.CancelledError) as exc:
                    failure = exc
                await self._end(attempt, failure)
        finally:
            self._running.discard(attempt)

    def stop(self) -> None:
        """Make every attempt hand its image back, also attempts that have yet to be claimed."""
        self._is_stopping = True
        for attempt in self._running:
            attempt.stop(Interrupted("stopping"))

    async def _claimed(self, claim: Awaitable[Image | None]) -> Attempt | None:
        began, claiming = time.time_ns(), asyncio.ensure_future(claim)
        try:
            image = await asyncio.shield(claiming)
        except asyncio.CancelledError:
            await to_the_end(self._give_back(claiming))
            raise
        except LedgerUnavailable as exc:
            logger.warning("nothing could be claimed", extra={"reason": str(exc)})
            self._pause.begin()
            return None
        except Exception:
            logger.exception("nothing could be claimed because of an unforeseen error")
            return None
        return None if image is None else Attempt(self._ledger, image, began)

    async def _give_back(self, claiming: Awaitable[Image | None]) -> None:
        """Hand back what a cancelled claim has committed. Its image would wait for its lease, and a loss be counted."""
        try:
            if (image := await claiming) is not None:
                await self._ledger.hand_back(image, 0.0)
        except AsgilookError as exc:
            logger.warning("a cancelled claim was left to the sweep", extra={"reason": str(exc)})

    async def _end(self, attempt: Attempt, failure: BaseException | None) -> None:
        try:
            row = self._published(attempt) if failure is None else await self._not_published(attempt.image, failure)
            if row is not None:
                await self._follow_up(row)
        except asyncio.CancelledError:
            logger.debug("stopped after the work")
        except AsgilookError as exc:
            # The sweep continues: it settles, or takes the image when the lease is over.
            about = {"reason": str(exc), "attempt": attempt.image.attempt}
            logger.warning("an attempt was left to the sweep", extra=about)
            _count("left to the sweep", type(exc).__name__)
            self._pause.begin()
        except Exception:
            logger.exception("an attempt was left to the sweep by an unforeseen error")

    async def _follow_up(self, row: Image) -> None:
        if row.work is not None:
            await self._queue.try_enqueue(row)
        if row.debts:
            with tracing.span("settle"):
                await self._settling.settle(row)

    def _published(self, attempt: Attempt) -> Image | None:
        seconds = time.monotonic() - attempt.began
        self._pause.end()
        logger.info("published", extra={"attempt": attempt.image.attempt, "seconds": round(seconds, 3)})
        _count("published", "")
        metrics.ATTEMPT_SECONDS.observe(seconds)
        return attempt.published

    async def _not_published(self, image: Image, failure: BaseException) -> Image | None:
        """Record the outcome. Returns the row to follow up, or None if another attempt or the sweep continues."""
        about: dict[str, object] = {"attempt": image.attempt}
        match failure:
            case LeaseLost():
                row, end = None, ("taken", "")
            case RenderFailure():
                end = ("failed", failure.type)
                about |= {"type": failure.type, "reason": failure.detail}
                logger.info("the file cannot be rendered", extra=about)
                row = await self._fail(image, failure)
            case Interrupted() | asyncio.CancelledError():
                end = ("handed back", str(failure) or "stopping")
                logger.info("handed back", extra=about | {"why": end[1]})
                row = await self._ledger.hand_back(image, 0.0)
            case StorageUnavailable() | LedgerUnavailable() | RedisAway() | NoChild():
                return await self._in_trouble(image, failure)
            case AsgilookError():  # ChildLost, NoSuchKey, TimedOut
                end = ("lost", type(failure).__name__)
                about |= {"reason": f"{type(failure).__name__}: {failure}"}
                logger.warning("an attempt was lost", extra=about)
                row = await self._ledger.count_loss(image)
            case _:
                end = ("lost", "unforeseen")
                logger.error("an attempt was lost by an unforeseen error", extra=about, exc_info=failure)
                row = await self._ledger.count_loss(image)
        return await self._without_own_folder(image, row, *end)

    async def _fail(self, image: Image, failure: RenderFailure) -> Image | None:
        if image.work is Work.RENDITIONS:
            return await self._ledger.give_up(image)
        if isinstance(failure, DecoderCrashed) and not image.failures:
            # One crash may be chance (a bit flip, a race in a library). A second one counts as the file's fault.
            return await self._ledger.count_failure(image)
        return await self._ledger.fail(image, failure.type, failure.detail)

    async def _in_trouble(self, image: Image, trouble: AsgilookError) -> Image | None:
        logger.warning("handed back in trouble", extra={"reason": f"{type(trouble).__name__}: {trouble}"})
        row = await self._ledger.hand_back(image, _AGAIN_IN_SECONDS)
        if row is not None:
            # Without a row, another process has the image or a DELETE removed its files. That is no trouble.
            self._pause.begin()
        latest = await self._without_own_folder(image, row, "handed back", type(trouble).__name__)
        # The sweep enqueues an image that was handed back, once it is due.
        return latest if row is None else None

    async def _without_own_folder(self, image: Image, row: Image | None, outcome: str, why: str) -> Image | None:
        """Remove this attempt's files, unless its commit succeeded after all. Returns the row to follow up."""
        latest = await self._ledger.get(image.id)
        if latest is not None and latest.has_published(image.attempt):
            _count("published", "")
            return latest
        _count(*((outcome, why) if row is not None else ("taken", "")))
        if row is None:
            # This may be the cause of the attempt's error: for example, a DELETE removed the original.
            logger.info("others have taken the image from this attempt", extra={"attempt": image.attempt})
        await self._storage.delete_folder(attempt_prefix(image.id, image.attempt))
        return row


def _count(outcome: str, why: str) -> None:
    metrics.ATTEMPTS.add(outcome, why)
    tracing.ended(outcome, why)
