"""The pool of children: gives each image a free child, and replaces children that ended."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from shared.errors import NoChild
from shared.settings import Settings
from shared.telemetry import metrics
from worker.renderer.child import Child
from worker.renderer.formats import most_bytes
from worker.renderer.pixel_budget import PixelBudget
from worker.renderer.session import RenderSession

#: Seconds for which an image with a turn waits for a child. A new child is warm within one second.
_CHILD_SECONDS = 15.0
#: Seconds to wait after a failed start of a child. Doubled after each further failure, up to 64 times as long.
_AGAIN_SECONDS = 1.0

# The lines are about the child, so they have its name, not the parent's.
logger = logging.getLogger("worker.child")


class Renderer:
    """Keeps a warm child for each slot, and replaces a child as soon as it has ended."""

    def __init__(
        self,
        settings: Settings,
        slots: int,
        pixel_budget: int,
        *,
        child_bytes: int | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        self._settings = settings
        self._slots = slots
        self._budget = PixelBudget(pixel_budget)
        self._child_bytes = min(child_bytes or settings.render_memory_bytes, settings.render_memory_bytes)
        self._command = tuple(command or (sys.executable, "-m", "worker.child"))
        self._free: asyncio.Queue[Child] = asyncio.Queue()
        #: One turn for each child. An image waits for a turn without a limit, and then for a child for a short time.
        self._turns = asyncio.Semaphore(slots)
        self._children: set[Child] = set()
        self._keepers: list[asyncio.Task[None]] = []
        #: Why the children have no system-call filter; empty if they have one.
        self.unfiltered_for = ""

    async def start(self) -> None:
        """Wait until every child is warm. Raises ChildLost or OSError if one cannot be started: then call `close`."""
        starts = await asyncio.gather(*(self._start_child() for _ in range(self._slots)), return_exceptions=True)
        for child in starts:
            if isinstance(child, BaseException):
                raise child
            self._keepers.append(asyncio.create_task(self._keep_slot_filled(child)))
            self.unfiltered_for = child.unfiltered_for
        if self.unfiltered_for:
            logger.warning("children run without a system-call filter", extra={"reason": self.unfiltered_for})

    async def close(self) -> None:
        """Kill all children, also busy ones, and wait until they are gone."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        await asyncio.gather(*(child.end() for child in self._children))
        self._children.clear()

    @asynccontextmanager
    async def open(self, original: int) -> AsyncIterator[RenderSession]:
        """Let a free child read the header of the picture in the descriptor `original`, which is open for reading.

        The child is killed if the body ends while a reply or a second order is due: without rendering, by an error of
        the body or by a cancellation.

        Raises RenderFailure if the file is at fault, ChildLost if the child fails otherwise, StorageUnavailable if
        the original cannot be read, and NoChild if there is no child in time.
        """
        async with self._turns:
            child = await self._free_child()
            try:
                session = RenderSession(child, original, self._settings, self._budget)
                await session.read_header()
                yield session
            except asyncio.CancelledError:
                child.is_cancelled = not child.is_idle
                raise
            finally:
                child.pictures += 1
                if child.is_idle and not child.is_worn_out():
                    child.is_taken = False
                    self._free.put_nowait(child)
                else:
                    child.discard()

    async def _free_child(self) -> Child:
        while True:
            try:
                async with asyncio.timeout(_CHILD_SECONDS):
                    child = await self._free.get()
            except TimeoutError as exc:
                raise NoChild(f"no child came up in {_CHILD_SECONDS:.0f} s") from exc
            if child.is_silent():
                child.is_taken = True
                return child
            # The child ended while it was idle, so no image is at fault. `_keep_slot_filled` replaces it.
            child.discard()

    async def _keep_slot_filled(self, child: Child) -> None:
        failures = 0
        while True:
            try:
                self._free.put_nowait(child)
                await child.process.wait()
            finally:
                await child.end()
                self._children.discard(child)
            if not child.is_cancelled:
                about = {"pid": child.process.pid, "exit": child.process.returncode, "pictures": child.pictures}
                logger.warning("replacing a child", extra=about)
                metrics.CHILDREN_REPLACED.add()
            while True:
                try:
                    child = await self._start_child()
                    failures = 0
                    break
                except Exception as exc:  # any error: otherwise the slot would never get a child again
                    # Images that wait for a child are handed back meanwhile. None of them fails.
                    failures += 1
                    logger.error("cannot start a child", extra={"reason": repr(exc), "failures": failures})
                    await asyncio.sleep(_AGAIN_SECONDS * 2 ** min(failures - 1, 6))

    async def _start_child(self) -> Child:
        child = await Child.spawn(self._command, self._child_bytes, most_bytes(self._settings.max_pixels))
        self._children.add(child)
        try:
            await child.warm_up()
        except BaseException:
            await child.end()
            self._children.discard(child)
            raise
        return child
