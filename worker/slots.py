"""Slots: places to render. Work is taken only after a slot was reserved for it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from types import TracebackType

from worker.attempt import Attempt, Interrupted


class Slots:
    """The slots of this worker, and as many places to store, so that rendering goes on while files are written."""

    def __init__(self, count: int) -> None:
        self.storing = asyncio.Semaphore(count)
        #: Set when a slot is free, or when it is known what renders in it.
        self.changed = asyncio.Event()
        self._count = count
        #: The taken slots, in the order in which they were taken.
        self._taken: list[Slot] = []

    @property
    def free(self) -> int:
        return self._count - len(self._taken)

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Slot]:
        """Reserve a slot while the body looks for work. The slot is freed unless the body has called its `begin`.

        The caller must check `free` first.
        """
        slot = Slot(self)
        self._taken.append(slot)
        try:
            yield slot
        finally:
            if not slot.is_begun:
                self._taken.remove(slot)

    def preemptible(self) -> Slot | None:
        """Return the slot of the preemptible work that began last, or None."""
        slots = (slot for slot in reversed(self._taken) if slot.attempt is not None and slot.attempt.is_preemptible)
        return next(slots, None)

    def remove(self, slot: Slot) -> None:
        """Free a slot. A slot that is already free stays so."""
        if slot in self._taken:
            self._taken.remove(slot)
        self.changed.set()


class Slot:
    """A slot for one piece of work. The work leaves the slot after rendering, at the latest when it ends."""

    def __init__(self, slots: Slots) -> None:
        #: The attempt that renders here; None before its claim and after rendering.
        self.attempt: Attempt | None = None
        self.is_begun = False
        self._slots = slots
        self._is_storing = False

    def begin(self) -> None:
        """Keep the slot until `leave`, `preempt` or `release`."""
        self.is_begun = True

    def set_attempt(self, attempt: Attempt) -> None:
        """Note the attempt that renders here: `preempt` may stop it."""
        self.attempt = attempt
        self._slots.changed.set()

    async def leave(self) -> None:
        """Wait for a place to store this image, then free the slot for the next one."""
        # After rendering, the work is not preempted any more.
        self.attempt = None
        await self._slots.storing.acquire()
        self._is_storing = True
        self._slots.remove(self)

    def preempt(self) -> None:
        """Stop the attempt, and free the slot at once: its child is killed before the next image needs one."""
        if self.attempt is not None:
            self.attempt.stop(Interrupted("preempted"))
            self.attempt = None
            self._slots.remove(self)

    def release(self) -> None:
        """Free the slot and the place to store. A second call changes nothing."""
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
