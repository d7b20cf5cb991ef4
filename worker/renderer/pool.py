"""The worker's side of its children: hands each picture to a free one, holds it to its limits, replaces the dead."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager

from shared.cancellation import to_the_end
from shared.errors import (
    ChildLost,
    ImageTooLarge,
    NoChild,
    RenderFailure,
    RenderOutOfMemory,
    RenderTimedOut,
    StorageFull,
    StorageUnavailable,
    UnreadableImage,
)
from shared.formats import PILLOW_FORMATS
from shared.images import Size
from shared.settings import Settings
from shared.telemetry import metrics, tracing
from worker.renderer.child import Child
from worker.renderer.protocol import LARGEST_WRITTEN, BadFrame, Message
from worker.renderer.scratch import NotOurs, Scratch, most_bytes

_REPORTED: dict[str, type[RenderFailure]] = {
    failure.type: failure for failure in (UnreadableImage, ImageTooLarge, RenderOutOfMemory)
}

#: Seconds past a time limit at which it was not the picture that took so long: a timer is never as late.
_FROZEN_SECONDS = 1.0
#: Seconds that somebody whose turn it is waits for a child: a new one is warm within one.
_CHILD_SECONDS = 15.0
#: Bytes that are copied from memory sooner than a thread would begin to.
_COPIED_AT_ONCE = 512 * 1024
#: Bytes that are read at a time from an original of which a child says that it cannot be read.
_READ_AT_ONCE = 1024 * 1024
#: Seconds, twice as many after each failure, until another child is started where one could not be.
_AGAIN_SECONDS = 1.0

#: What rendering takes its time for.
STAGES = frozenset({"decode", "colour", "scale", "encode"})

#: What is awaited at some point of a render.
Step = Callable[[], Awaitable[None]]

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
        #: Who has a turn finds a child soon; the others wait until those before them are done.
        self._turns = asyncio.Semaphore(slots)
        #: Called when a turn is over.
        self.on_free: list[Callable[[], None]] = []
        self._children: set[Child] = set()
        self._keepers: list[asyncio.Task[None]] = []
        #: Why no system-call filter confines the children; empty where one does.
        self.unfiltered_for = ""

    async def start(self) -> None:
        """Return when every child is warm. Raises ChildLost where one cannot be started."""
        starts = [asyncio.create_task(self._start_child()) for _ in range(self._slots)]
        try:
            children = await asyncio.gather(*starts)
        except BaseException:
            for start in starts:
                start.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            await self.close()
            raise
        self._keepers = [asyncio.create_task(self._keep_slot_filled(child)) for child in children]
        self.unfiltered_for = children[0].unfiltered_for
        if self.unfiltered_for:
            logger.warning("children run without a system-call filter", extra={"reason": self.unfiltered_for})

    async def close(self) -> None:
        """Kill all children at once, whatever they are at, and return when they are gone."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        self._keepers = []
        await asyncio.gather(*(child.end() for child in self._children))
        self._children.clear()

    @asynccontextmanager
    async def open(self, original: int) -> AsyncIterator[Opened]:
        """Have a free child read the header of the picture behind the descriptor `original`, open for reading.

        Who leaves without having rendered, by an error or cancelled, costs the child its life: it is killed at once.

        Raises RenderFailure for what the file did, ChildLost for what was done to the child, NoChild where none is.
        """
        async with self._turn():
            child = await self._free_child()
            try:
                opened = Opened(child, original, self._settings, self._budget)
                await opened._read_header()
                yield opened
            finally:
                child.pictures += 1
                if child.is_idle and not child.is_worn_out():
                    child.is_taken = False
                    self._free.put_nowait(child)
                else:
                    child.discard()

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        try:
            async with self._turns:
                yield
        finally:
            for tell in self.on_free:
                tell()

    def has_turn(self) -> bool:
        """Whether a picture that came now would wait for no other's child."""
        return not self._turns.locked()

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
            # It died while it had nothing to do: no picture's fault, and its keeper is replacing it.
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
                except Exception as exc:  # whatever it is: without its keeper a slot would be gone for good
                    # Nobody is failed for it: who wants a child hands its image back, until a start succeeds.
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


class Opened:
    """A picture in a child: its oriented `size` and its `format` are known, its pixels are not decoded yet."""

    size: Size
    format: str

    def __init__(self, child: Child, original: int, settings: Settings, budget: PixelBudget) -> None:
        self._child = child
        self._original = original
        self._settings = settings
        self._budget = budget
        self._seconds_left = settings.render_wall_seconds
        self._has_rendered = False
        #: The length and SHA-256 (hex) of each rendition.
        self.written: dict[Size, tuple[int, str]] = {}

    async def render(
        self, outputs: Mapping[Size, int], largest_written: Step | None = None, rendered: Step | None = None
    ) -> dict[str, float]:
        """Write a JPEG of each size into its descriptor, empty and open for both reading and writing.

        Returns the milliseconds of each stage. Sizes are the picture's own and those on its ladder. Awaited on the way:
        `largest_written` when the child says that only smaller ones are left, `rendered` when it has done its part,
        before the rest is read.

        Raises RenderFailure, ChildLost, and StorageFull or StorageUnavailable where it could not be written.
        """
        order = {"sizes": [list(size) for size in outputs], "background": list(self._settings.background)}
        with ExitStack() as stack:
            stack.enter_context(tracing.span("render"))
            scratches = [stack.enter_context(Scratch(size)) for size in outputs]
            async with self._budget.hold(math.prod(self.size)):
                reply = await self._ask({"render": order}, (scratch.fileno() for scratch in scratches))
                if reply == LARGEST_WRITTEN and len(outputs) > 1:
                    if largest_written is not None:
                        await largest_written()
                    # Most of all bytes: checked and copied while the child makes the others.
                    largest = max(scratches, key=lambda scratch: math.prod(scratch.size))
                    await self._take_over([largest], outputs)
                    reply = await self._in_time(self._child.receive())
            stages = _stages_in(reply)
            if stages is None:
                raise self._child.distrust("claimed to have rendered what it had not")
            if rendered is not None:
                await rendered()
            self._has_rendered = True
            await self._take_over([scratch for scratch in scratches if scratch.size not in self.written], outputs)
            self._child.is_idle = True
            # A child may have been taken over: what it calls its stages is no label of ours.
            seconds = {stage: stages[stage] / 1000 for stage in STAGES & stages.keys()}
            tracing.note(format=self.format, **{f"{stage}_seconds": took for stage, took in seconds.items()})
        for stage, took in seconds.items():
            metrics.RENDER_SECONDS.observe(took, stage, self.format)
        logger.info(
            "rendered",
            extra={"pid": self._child.process.pid, "format": self.format, "size": list(self.size), "stages": stages},
        )
        return stages

    async def _take_over(self, scratches: Sequence[Scratch], outputs: Mapping[Size, int]) -> None:
        def copy() -> None:
            for scratch in scratches:
                self.written[scratch.size] = scratch.copy_to(outputs[scratch.size])

        try:
            if sum(scratch.bytes for scratch in scratches) <= _COPIED_AT_ONCE:
                copy()
            else:
                await to_the_end(asyncio.to_thread(copy))
        except NotOurs as exc:
            raise self._child.distrust(f"claimed to have rendered what it had not: {exc}") from exc
        except OSError as exc:
            self._child.is_idle = self._has_rendered
            raise _storage_error(exc.errno, str(exc)) from exc

    async def _read_header(self) -> None:
        settings = self._settings
        order = {
            "max_pixels": settings.max_pixels,
            "max_side": settings.max_side,
            "cpu_seconds": settings.render_cpu_seconds,
        }
        reply = await self._ask({"open": order}, [self._original])
        size, name = _size_in(reply, settings), reply.get("format")
        if size is None or name not in PILLOW_FORMATS:
            raise self._child.distrust("answered nonsense about a header")
        self.size, self.format = size, name

    async def _ask(self, message: Message, descriptors: Iterable[int]) -> Message:
        return await self._in_time(self._child.exchange(message, descriptors))

    async def _in_time(self, receiving: Awaitable[Message]) -> Message:
        child = self._child
        start = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds_left):
                reply = await receiving
        except TimeoutError as exc:
            child.kill()
            if time.monotonic() - start > self._seconds_left + _FROZEN_SECONDS:
                raise ChildLost("this process itself stood still past the time limit") from exc
            raise RenderTimedOut("The picture took too long to render.") from exc
        except (EOFError, ConnectionError) as exc:
            raise await child.cause_of_death() from exc
        except (BadFrame, OSError) as exc:
            raise child.distrust(f"could not be talked to: {exc!r}") from exc
        self._seconds_left -= time.monotonic() - start
        if "error" in reply:
            raise await self._error_in(reply)
        return reply

    async def _error_in(self, reply: Message) -> Exception:
        child, name, detail, cause = self._child, reply["error"], reply.get("detail"), reply.get("cause", "")
        # The detail goes into the ledger and to clients: no NUL and nothing that moves a terminal's cursor.
        if not isinstance(name, str) or not isinstance(detail, str) or len(detail) > 1000 or not detail.isprintable():
            return child.distrust("reported an error that is none")
        if not isinstance(cause, str):
            return child.distrust("reported an error with a cause that is none")
        logger.info("not rendered", extra={"pid": child.process.pid, "error": name[:500], "cause": cause[:500]})
        # After a lack of memory it ends by itself.
        child.is_idle = name != RenderOutOfMemory.type
        if name in _REPORTED:
            return _REPORTED[name](detail)
        if name == "storage":
            # What the disk did counts nowhere, however often: a child's word is not enough for it.
            try:
                await to_the_end(asyncio.to_thread(_read_through, self._original))
            except OSError as exc:
                return _storage_error(exc.errno, str(exc))
        return ChildLost(f"the child failed: {detail}")


class PixelBudget:
    """At most so many pixels are being decoded at once; who comes first is served first."""

    def __init__(self, pixels: int) -> None:
        self._all = max(pixels, 1)
        self._left = self._all
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait until there is room for `pixels` and keep it; a picture larger than the whole budget passes alone."""
        pixels = min(pixels, self._all)
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((pixels, turn))
        self._admit()
        try:
            await turn
            yield
        finally:
            if turn.done() and not turn.cancelled():
                self._left += pixels
            elif (pixels, turn) in self._waiting:
                self._waiting.remove((pixels, turn))
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._left:
            pixels, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._left -= pixels
                turn.set_result(None)


def _read_through(original: int) -> None:
    position = 0
    while part := os.pread(original, _READ_AT_ONCE, position):
        position += len(part)


def _storage_error(number: int | None, detail: str) -> StorageUnavailable:
    return StorageFull(detail) if number in (errno.ENOSPC, errno.EDQUOT) else StorageUnavailable(detail)


def _size_in(reply: Message, settings: Settings) -> Size | None:
    match reply.get("size"):
        case [int(width), int(height)] if not isinstance(width, bool) and not isinstance(height, bool):
            if (
                0 < min(width, height) <= max(width, height) <= settings.max_side
                and width * height <= settings.max_pixels
            ):
                return width, height
    return None


def _stages_in(reply: Message) -> dict[str, float] | None:
    stages = reply.get("stages")
    if not isinstance(stages, dict) or len(stages) > 16:
        return None
    for name, milliseconds in stages.items():
        if not isinstance(name, str) or len(name) > 32 or not isinstance(milliseconds, float):
            return None
        if not 0 <= milliseconds < math.inf:
            return None
    return stages
