"""The pool of children: gives each image a free one, and replaces those that are gone."""

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

#: Seconds for which an image waits for a child once it is its turn: a new child is warm within one.
_CHILD_SECONDS = 15.0
#: Seconds until another child is started where one could not be, doubled after each failure.
_AGAIN_SECONDS = 1.0

# A reader of the logs looks for the child, not for its parent.
logger = logging.getLogger("worker.child")


class Renderer:
    """As many children as there are slots, each warm, and each replaced as soon as it is gone."""

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
        #: One turn for each child. An image without one waits for as long as it takes, one with a turn not for long.
        self._turns = asyncio.Semaphore(slots)
        self._children: set[Child] = set()
        self._keepers: list[asyncio.Task[None]] = []
        #: Why no system-call filter confines the children; empty where one does.
        self.unfiltered_for = ""

    async def start(self) -> None:
        """Return when every child is warm. Raises ChildLost where one cannot be started; then `close` as well."""
        starts = await asyncio.gather(*(self._start_child() for _ in range(self._slots)), return_exceptions=True)
        for child in starts:
            if isinstance(child, BaseException):
                raise child
            self._keepers.append(asyncio.create_task(self._keep_slot_filled(child)))
            self.unfiltered_for = child.unfiltered_for
        if self.unfiltered_for:
            logger.warning("children run without a system-call filter", extra={"reason": self.unfiltered_for})

    async def close(self) -> None:
        """Kill all children at once, whatever they do, and return when they are gone."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        await asyncio.gather(*(child.end() for child in self._children))
        self._children.clear()

    @asynccontextmanager
    async def open(self, original: int) -> AsyncIterator[RenderSession]:
        """Have a free child read the header of the picture behind the descriptor `original`, open for reading.

        A body that ends without having rendered, by an error or cancelled, costs the child its life: it is killed.

        Raises RenderFailure for what the file did, ChildLost for what was done to the child, NoChild where none is.
        """
        async with self._turns:
            child = await self._free_child()
            try:
                session = RenderSession(child, original, self._settings, self._budget)
                await session.read_header()
                yield session
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
            # It died while it was idle, which is no image's fault. It is being replaced.
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
            logger.warning(
                "replacing a child",
                extra={"pid": child.process.pid, "exit": child.process.returncode, "pictures": child.pictures},
            )
            metrics.CHILDREN_REPLACED.add()
            while True:
                try:
                    child = await self._start_child()
                    failures = 0
                    break
                except Exception as exc:  # any error: without this loop the slot would be lost for good
                    # No image fails for it: the images that wait for a child are handed back until a start succeeds.
                    failures += 1
                    logger.error("cannot start a child", extra={"reason": repr(exc), "failures": failures})
                    await asyncio.sleep(min(_AGAIN_SECONDS * 2**failures, 60.0))

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
