"""Slots: places to render. Work is taken only once a slot is reserved for it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from types import TracebackType

from worker.attempt import Attempt, Interrupted


class Slots:
    """The slots of this worker, and for each slot one place to store: rendering goes on while files are written."""

    def __init__(self, count: int) -> None:
        self.storing = asyncio.Semaphore(count)
        #: Set when there may be room for more work.
        self.freed = asyncio.Event()
        self._count = count
        #: Those that are taken, in order.
        self._taken: list[Slot] = []

    @property
    def free(self) -> int:
        return self._count - len(self._taken)

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Slot]:
        """Reserve a slot while work for it is looked for. It is free again if the body has not called its `begin`.

        The caller has looked at `free`.
        """
        slot = Slot(self)
        self._taken.append(slot)
        try:
            yield slot
        finally:
            if not slot.is_begun:
                self._taken.remove(slot)

    def preemptible(self) -> Slot | None:
        """Return the slot of the work that began last and makes room for more urgent work, or None."""
        slots = (slot for slot in reversed(self._taken) if slot.attempt is not None and slot.attempt.is_preemptible)
        return next(slots, None)

    def may_become_preemptible(self) -> bool:
        """Whether there is preemptible work, or work of which it is not known yet, since it has claimed nothing."""
        return any(slot.attempt is None or slot.attempt.is_preemptible for slot in self._taken)

    def remove(self, slot: Slot) -> None:
        """Free a slot, if it is taken."""
        if slot in self._taken:
            self._taken.remove(slot)
        self.freed.set()


class Slot:
    """A slot for one piece of work, which leaves it once it renders nothing any more, or when it ends."""

    def __init__(self, slots: Slots) -> None:
        #: What renders here, once it has claimed its image.
        self.attempt: Attempt | None = None
        self.is_begun = False
        self._slots = slots
        self._began = time.monotonic()
        self._seconds: float | None = None
        self._is_storing = False

    @property
    def seconds(self) -> float:
        """For how long the slot was held, or is."""
        return time.monotonic() - self._began if self._seconds is None else self._seconds

    def begin(self) -> None:
        """Keep the slot until it is left or released."""
        self.is_begun = True
        self._began = time.monotonic()

    async def leave(self) -> None:
        """Free the slot for the next image, as soon as there is a place to store this one."""
        self._seconds = self.seconds
        # What is rendered is not preempted any more.
        self.attempt = None
        await self._slots.storing.acquire()
        self._is_storing = True
        self._slots.remove(self)

    def preempt(self) -> None:
        """Stop what renders here, and free the slot at once: the child is killed before another picture needs one."""
        if self.attempt is not None:
            self.attempt.stop(Interrupted("preempted"))
            self.attempt = None
            self._slots.remove(self)

    def release(self) -> None:
        """Free the slot, and the place to store. A second call changes nothing."""
        self.attempt = None
        if self._is_storing:
            self._is_storing = False
            self._slots.storing.release()
        self._slots.remove(self)

    def __enter__(self) -> Slot:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
