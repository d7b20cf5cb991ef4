"""Work that a cancellation must not cut off, and cancellations that must not get lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds after which a task that was cancelled and goes on is cancelled again.
_AGAIN_SECONDS = 1.0


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work`, shielded. A cancellation of the caller is raised only when `work` has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Further cancellations change nothing: `cancel` below repeats its own.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it; the caller gets the cancellation
        raise


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return the result of `work`. Raises TimeoutError after so many seconds; `work` then goes on.

    What runs in a thread or in a transaction cannot be cancelled: asyncio's own time-outs would wait for its end.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved, or asyncio would log it
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        raise TimeoutError(f"no answer in {seconds} s")
    return task.result()


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return when they have ended.

    It cancels again every second: on Python 3.11 `asyncio.wait_for`, which redis-py uses, loses a cancellation that
    comes just when it is done.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_AGAIN_SECONDS)
