"""Attempts: claim an image, hold it by a lease, end in one outcome or hand it back."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

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
from shared.ledger import LEASE_SECONDS, Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.settling import Settling
from shared.storage import Storage
from shared.telemetry import logs, metrics, tracing

logger = logging.getLogger(__name__)

#: Seconds between two renewals of a lease.
RENEWED_EVERY_SECONDS = LEASE_SECONDS / 4
#: Seconds after which an image that we had trouble with is tried again.
_AGAIN_IN_SECONDS = 2.0

Claim = Callable[[], Awaitable[Image | None]]
#: Renders and publishes; returns the row as committed. Raises LeaseLost where the commit found it gone.
Work = Callable[[Image], Awaitable[Image]]


class Pause:
    """Keeps a worker in trouble from taking anything new: 1 s, 2, 4 … 60; the first success ends it."""

    MOST_SECONDS = 60.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._until = 0.0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def begin(self) -> None:
        """Begin a pause, twice as long as the one before."""
        if self.seconds_left:
            return
        self._seconds = min(self._seconds * 2 or 1.0, self.MOST_SECONDS)
        self._until = time.monotonic() + self._seconds
        logger.warning("this worker takes nothing new for a while", extra={"seconds": self._seconds})

    def forget(self) -> None:
        """Note a success."""
        self._seconds = self._until = 0.0


@dataclass(frozen=True)
class Lent:
    """What a consumer has to do with a slot in which its job runs."""

    #: Whether more jobs waited than were taken, when the queue was last looked at.
    is_wanted: Callable[[], bool]
    #: Tells it that the job goes on without its slot.
    left: Callable[[], None]


class Slot:
    """What an attempt holds from before its claim: room to render, then room to store, of which there is as much.

    So the next picture is rendered while this one's files are on their way to the disk.
    """

    def __init__(self, rendering: asyncio.Semaphore, storing: asyncio.Semaphore, lent: Lent | None) -> None:
        self._rendering = rendering
        self._storing = storing
        self._lent = lent
        self._held: asyncio.Semaphore | None = None

    async def __aenter__(self) -> Slot:
        await self._rendering.acquire()
        self._held = self._rendering
        return self

    async def leave(self) -> None:
        """Make room for another picture's rendering, as soon as there is room for storing this one's."""
        if self._held is self._rendering:
            await self._storing.acquire()
            self._rendering.release()
            self._held = self._storing
            if self._lent is not None:
                self._lent.left()

    @property
    def is_wanted(self) -> bool:
        """Whether somebody would take the room to render at once, and it could be left at once."""
        return self._lent is not None and self._lent.is_wanted() and not self._storing.locked()

    async def __aexit__(self, *error: object) -> None:
        if self._held is not None:
            self._held.release()


class Attempts:
    """Runs attempts in the process's slots. `run` never raises: the ledger alone issues work again, arq never."""

    def __init__(
        self, ledger: Ledger, storage: Storage, queue: Queue, settling: Settling, slots: int, worker: str
    ) -> None:
        self.worker = worker
        self.pause = Pause()
        self._ledger = ledger
        self._storage = storage
        self._queue = queue
        self._settling = settling
        self._rendering = asyncio.Semaphore(slots)
        self._storing = asyncio.Semaphore(slots)
        self._running: dict[asyncio.Task[object], Slot] = {}

    def may_take(self) -> bool:
        """Whether a job taken now would start: a slot is free, also of jobs that an earlier consumer took."""
        return not self._rendering.locked() and not self.pause.seconds_left

    async def run(self, claim: Claim, work: Work, lent: Lent | None = None) -> None:
        """Take a slot, claim an image, do the work; settle, count or hand back, whatever comes of it."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: a coroutine always runs in a task
        slot = self._running[task] = Slot(self._rendering, self._storing, lent)
        try:
            async with slot:
                await self._run(claim, work)
        except asyncio.CancelledError:
            logger.debug("cancelled outside of an attempt")
        except Exception:
            logger.exception("an attempt was left to the sweep by an unforeseen error")
        finally:
            del self._running[task]

    async def leave_slot(self) -> None:
        """Tell, from within an attempt's work, that it renders nothing any more."""
        task = asyncio.current_task()
        if task in self._running:
            await self._running[task].leave()

    async def leave_slot_if_wanted(self) -> None:
        """Tell, from within an attempt's work, that its child has only thumbnails left.

        The next image is then claimed, and its original opened, while the child does the rest: only where more wait
        than were taken, since a worker that has nothing to do would begin sooner.
        """
        task = asyncio.current_task()
        if task in self._running and self._running[task].is_wanted:
            await self.leave_slot()

    async def finish(self, seconds: float) -> None:
        """Wait so long for running attempts to end."""
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
            self.pause.begin()
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
            # The lease runs out, or the sweep settles: nothing is lost by leaving it there.
            logger.warning("an attempt was left to the sweep", extra={"reason": str(exc), "attempt": image.attempt})
            _count("left to the sweep", type(exc).__name__)
            self.pause.begin()

    async def _claimed(self, claim: Claim) -> Image | None:
        claiming = asyncio.ensure_future(claim())
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            # An image claimed all the same would wait for its lease's end, and that would count as a loss.
            if (image := await claiming) is not None:
                await self._ledger.hand_back(image, 0.0)
            raise

    async def _attempt(self, image: Image, work: Work) -> Image | None:
        """Do the work under a lease; return the row as its outcome left it, or None where others have it."""
        blame = {"attempt": image.attempt}
        began = time.monotonic()
        try:
            async with self._lease(image):
                row: Image | None = await work(image)
            self.pause.forget()
            seconds = time.monotonic() - began
            logger.info("published", extra=blame | {"seconds": round(seconds, 3)})
            _count("published", "")
            metrics.ATTEMPT_SECONDS.observe(seconds)
            return row
        except LeaseLost:
            row, end = None, ("taken", "")
        except RenderFailure as exc:
            end = ("failed", exc.type)
            logger.info("the file cannot be rendered", extra=blame | {"type": exc.type, "reason": exc.detail})
            row = await self._fail(image, exc)
        except asyncio.CancelledError:
            end = ("handed back", "stopping")
            logger.info("handed back", extra=blame)
            row = await self._ledger.hand_back(image, 0.0)
        except (StorageUnavailable, LedgerUnavailable, RedisAway, NoChild) as exc:
            end = ("handed back", type(exc).__name__)
            row = await self._hand_back_in_trouble(image, exc)
        except AsgilookError as exc:  # ChildLost, NoSuchKey
            end = ("lost", type(exc).__name__)
            logger.warning("an attempt was lost", extra=blame | {"reason": f"{type(exc).__name__}: {exc}"})
            row = await self._ledger.count_loss(image)
        except Exception:
            end = ("lost", "unforeseen")
            logger.exception("an attempt was lost by an unforeseen error", extra=blame)
            row = await self._ledger.count_loss(image)
        return await self._without_own_folder(image, row, *end)

    async def _fail(self, image: Image, failure: RenderFailure) -> Image | None:
        if image.status is Status.READY:
            return await self._ledger.give_up_thumbnails(image)
        if isinstance(failure, DecoderCrashed) and not image.failures:
            # Once may be chance: a cosmic ray, a library's race. Twice is the file.
            return await self._ledger.count_failure(image)
        return await self._ledger.fail(image, failure.type, failure.detail)

    async def _hand_back_in_trouble(self, image: Image, trouble: AsgilookError) -> Image | None:
        logger.warning("handed back in trouble", extra={"reason": f"{type(trouble).__name__}: {trouble}"})
        row = await self._ledger.hand_back(image, _AGAIN_IN_SECONDS)
        if row is not None:
            # Where others have taken the image, by a DELETE say, its folders went under our hands: no trouble of ours.
            self.pause.begin()
        return row

    async def _without_own_folder(self, image: Image, row: Image | None, outcome: str, why: str) -> Image | None:
        """Remove what this attempt stored, unless its commit went through after all; return the row to follow up."""
        latest = await self._ledger.get(image.id)
        if latest is not None and latest.published == image.attempt:
            _count("published", "")
            return latest
        _count(*((outcome, why) if row is not None else ("taken", "")))
        if row is None:
            # Whatever was said before: a file of theirs that is gone, say, is how this attempt may have noticed.
            logger.info("others have taken the image from this attempt", extra={"attempt": image.attempt})
        await self._storage.delete_folder(attempt_prefix(image.id, image.attempt))
        return row

    async def _follow_up(self, image: Image, row: Image) -> None:
        if row.wake != image.wake:
            # Counted and queued again: it goes on at once. What was handed back waits for its `due`.
            with contextlib.suppress(RedisAway):
                await self._queue.enqueue(row)
        elif row.owed is Owed.TOKENS:
            # Leftovers alone are thumbnails given up: owing them keeps requests away until the sweep pays.
            with tracing.span("settle"):
                await self._settling.settle(row)

    @contextlib.asynccontextmanager
    async def _lease(self, image: Image) -> AsyncIterator[None]:
        """Renew the lease while the body runs. Raises LeaseLost in the body's place once it is gone."""
        owner = asyncio.current_task()
        assert owner is not None  # noqa: S101 - for mypy, as above
        lost = False

        async def renew() -> None:
            nonlocal lost
            while True:
                await asyncio.sleep(RENEWED_EVERY_SECONDS)
                try:
                    if await self._ledger.renew(image) is not None:
                        continue
                    latest = await self._ledger.get(image.id)
                except LedgerUnavailable as exc:
                    logger.warning("the lease could not be renewed", extra={"reason": str(exc)})
                    continue
                if latest is None or latest.published != image.attempt:
                    lost = True
                    owner.cancel()
                return

        renewing = asyncio.create_task(renew())
        try:
            yield
        except asyncio.CancelledError:
            if not lost:
                raise
            owner.uncancel()
            raise LeaseLost("the lease is gone") from None
        finally:
            renewing.cancel()
            await asyncio.wait([renewing])


def _count(outcome: str, why: str) -> None:
    metrics.ATTEMPTS.add(outcome, why)
    tracing.ended(outcome, why)
