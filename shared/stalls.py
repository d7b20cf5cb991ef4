"""Deadlines that ignore the time for which this process itself stood still.

After a standstill (a busy machine, a paused container), a process finds its timers expired before it has read the data
that arrived meanwhile. So a deadline here passes in parts. Each part begins when the one before has ended, and the
event loop reads in between. A standstill of any length uses up one part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

#: The parts of a deadline. A process may stand still in all of them except one.
_PARTS = 5


class Deadline:
    """A timer that can be restarted, and does not expire because of one standstill."""

    __slots__ = ("_part", "_part_began", "_parts_over", "_timer")

    def __init__(self) -> None:
        self._parts_over = 0
        self._part = self._part_began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    @property
    def elapsed(self) -> float:
        """Seconds since the start. A standstill counts as at most one part."""
        in_part = min(asyncio.get_running_loop().time() - self._part_began, self._part)
        return min(self._parts_over * self._part + in_part, _PARTS * self._part)

    def start(self, seconds: float, expire: Callable[[], object]) -> None:
        """Call `expire()` after so many seconds. Replaces an earlier start."""
        self.stop()
        self._part = seconds / _PARTS
        self._parts_over = 0
        self._begin_part(expire)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _begin_part(self, expire: Callable[[], object]) -> None:
        loop = asyncio.get_running_loop()
        self._part_began = loop.time()
        self._timer = loop.call_later(self._part, self._end_part, expire)

    def _end_part(self, expire: Callable[[], object]) -> None:
        self._parts_over += 1
        if self._parts_over < _PARTS:
            self._begin_part(expire)
        else:
            self._timer = None
            expire()


@asynccontextmanager
async def timeout(seconds: float) -> AsyncIterator[Deadline]:
    """Cancel the block after so many seconds and raise TimeoutError, as `asyncio.timeout` does."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        deadline = Deadline()
        deadline.start(seconds, lambda: limit.reschedule(loop.time()))
        try:
            yield deadline
        finally:
            deadline.stop()
