"""One image's session with a child: first the header, then the renditions, each checked before it is taken over."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import ExitStack

from shared.cancellation import to_the_end
from shared.errors import (
    ChildLost,
    ImageTooLarge,
    RenderFailure,
    RenderOutOfMemory,
    RenderTimedOut,
    StorageFull,
    StorageUnavailable,
    UnreadableImage,
)
from shared.formats import PILLOW_FORMATS
from shared.renditions import Size
from shared.settings import Settings
from shared.stalls import timeout
from shared.telemetry import metrics, tracing
from worker.renderer.child import Child
from worker.renderer.formats import FORMATS
from worker.renderer.outputs import NotOurs, Output
from worker.renderer.pixel_budget import PixelBudget
from worker.renderer.protocol import MAX_DESCRIPTORS, BadFrame, Message
from worker.renderer.scratch import Scratch, scratch_file

_REPORTED: dict[str, type[RenderFailure]] = {
    failure.type: failure for failure in (UnreadableImage, ImageTooLarge, RenderOutOfMemory)
}

#: Bytes that are read at a time to verify a child's report that the original cannot be read.
_READ_AT_ONCE = 1024 * 1024

#: The stages of rendering whose times are reported.
STAGES = frozenset({"decode", "colour", "scale", "encode"})

# The lines are about the child, so they have its name, not the parent's.
logger = logging.getLogger("worker.child")


class RenderSession:
    """An image in a child. After `read_header` its oriented `size` and its `format` are known."""

    size: Size
    format: str

    def __init__(self, child: Child, original: int, settings: Settings, budget: PixelBudget) -> None:
        self._child = child
        self._original = original
        self._settings = settings
        self._budget = budget
        self._seconds_left = settings.render_wall_seconds
        #: The length and SHA-256 (hex) of each rendition.
        self.written: dict[Output, tuple[int, str]] = {}

    @property
    def seconds(self) -> float:
        """The seconds that the child has worked on the picture. To wait for the pixel budget does not count."""
        return self._settings.render_wall_seconds - self._seconds_left

    async def read_header(self) -> None:
        """Set `size` and `format`. Raises RenderFailure, ChildLost or StorageUnavailable."""
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

    async def render(
        self, outputs: Mapping[Output, int], rendered: Callable[[], Awaitable[None]] | None = None
    ) -> dict[str, float]:
        """Write each output into its descriptor. Returns the milliseconds of each stage.

        The descriptors must be empty, and open for reading and writing. Sizes are the image's own and those on its
        ladder. `rendered` is awaited when the child has finished, before its renditions are checked and written.

        Raises RenderFailure, ChildLost, and StorageFull or StorageUnavailable if a file cannot be read or written.
        Raises ValueError for an unknown format, and for more than MAX_DESCRIPTORS outputs.
        """
        if unknown := {output.format for output in outputs} - FORMATS.keys():
            raise ValueError(f"not output formats: {sorted(unknown)}")
        if len(outputs) > MAX_DESCRIPTORS:
            raise ValueError(f"{len(outputs)} outputs in one order")
        order = {
            "outputs": [[output.name, output.format, *output.size] for output in outputs],
            "background": list(self._settings.background),
        }
        with ExitStack() as stack:
            stack.enter_context(tracing.span("render"))
            scratches = [stack.enter_context(scratch_file(output)) for output in outputs]
            async with self._budget.hold(math.prod(self.size)):
                reply = await self._ask({"render": order}, (scratch.descriptor for scratch in scratches))
            stages = _stages_in(reply)
            if stages is None:
                raise self._child.distrust("claimed to have rendered what it had not")
            self._child.is_idle = True
            if rendered is not None:
                await rendered()
            await self._take_over(scratches, outputs)
            seconds = {stage: milliseconds / 1000 for stage, milliseconds in stages.items()}
            tracing.note(format=self.format, **{f"{stage}_seconds": took for stage, took in seconds.items()})
        for stage, took in seconds.items():
            metrics.RENDER_SECONDS.observe(took, stage, self.format)
        logger.info(
            "rendered",
            extra={"pid": self._child.process.pid, "format": self.format, "size": list(self.size), "stages": stages},
        )
        return stages

    async def _take_over(self, scratches: Iterable[Scratch], outputs: Mapping[Output, int]) -> None:
        def copy() -> None:
            for scratch in scratches:
                self.written[scratch.output] = scratch.copy_to(outputs[scratch.output])

        try:
            await to_the_end(asyncio.to_thread(copy))
        except NotOurs as exc:
            raise self._child.distrust(f"claimed to have rendered what it had not: a rendition {exc}") from exc
        except OSError as exc:
            raise _storage_error(exc) from exc

    async def _ask(self, message: Message, descriptors: Iterable[int]) -> Message:
        return await self._in_time(self._child.exchange(message, descriptors))

    async def _in_time(self, receiving: Awaitable[Message]) -> Message:
        child = self._child
        try:
            async with timeout(self._seconds_left) as deadline:
                reply = await receiving
                self._seconds_left -= deadline.elapsed
        except TimeoutError as exc:
            child.kill()
            raise RenderTimedOut("The picture took too long to render.") from exc
        except (EOFError, ConnectionError) as exc:
            raise await child.cause_of_death() from exc
        except (BadFrame, OSError) as exc:
            raise child.distrust(f"could not be talked to: {exc!r}") from exc
        if "error" in reply:
            raise await self._error_in(reply)
        return reply

    async def _error_in(self, reply: Message) -> Exception:
        child, name, detail, cause = self._child, reply["error"], reply.get("detail"), reply.get("cause", "")
        # The detail goes into the ledger and to clients, so it must be printable: no NUL, no terminal codes.
        if not isinstance(name, str) or not isinstance(detail, str) or len(detail) > 1000 or not detail.isprintable():
            return child.distrust("reported an error that is none")
        if not isinstance(cause, str):
            return child.distrust("reported an error with a cause that is none")
        logger.info("not rendered", extra={"pid": child.process.pid, "error": name[:500], "cause": cause[:500]})
        # After a lack of memory the child ends by itself.
        child.is_idle = name != RenderOutOfMemory.type
        if name in _REPORTED:
            return _REPORTED[name](detail)
        if name == "storage":
            # A failing disk never counts against the image. So do not trust the child: read the original to verify.
            try:
                await to_the_end(asyncio.to_thread(_read_through, self._original))
            except OSError as exc:
                return _storage_error(exc)
        return ChildLost(f"the child failed: {detail}")


def _read_through(original: int) -> None:
    position = 0
    while part := os.pread(original, _READ_AT_ONCE, position):
        position += len(part)


def _storage_error(error: OSError) -> StorageUnavailable:
    kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageUnavailable
    return kind(str(error))


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
    if not isinstance(stages, dict):
        return None
    # Other names are dropped: a child under foreign control must not invent labels of metrics.
    known = {stage: stages[stage] for stage in STAGES & stages.keys()}
    is_valid = all(isinstance(milliseconds, float) and 0 <= milliseconds < math.inf for milliseconds in known.values())
    return known if is_valid else None
