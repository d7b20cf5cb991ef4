"""Slots: places to render. An image is claimed only once it has one."""

from __future__ import annotations

import asyncio


class Slots:
    """The slots of this worker, and for each slot one place to store: rendering goes on while files are written."""

    def __init__(self, count: int) -> None:
        self.free = count
        self.storing = asyncio.Semaphore(count)
        #: Set when there may be room for another job.
        self.freed = asyncio.Event()

    def take(self) -> Slot:
        """Take a free slot. The caller has looked at `free`."""
        self.free -= 1
        return Slot(self)


class Slot:
    """A slot that was taken. A job leaves it once it renders nothing any more; its end releases what is still held."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._is_left = False

    async def leave(self) -> None:
        """Free the slot for the next image, as soon as there is a place to store this one."""
        await self._slots.storing.acquire()
        self._is_left = True
        self._slots.free += 1
        self._slots.freed.set()

    def release(self) -> None:
        """Free the slot, or the place to store that it was left for."""
        if self._is_left:
            self._slots.storing.release()
        else:
            self._slots.free += 1
        self._slots.freed.set()
