"""Work that a cancellation must not interrupt, and cancellations that must not get lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds after which a cancelled task that still runs is cancelled again.
_AGAIN_SECONDS = 1.0


async def to_the_end(work: Awaitable[T]) -> T:
    """Return the result of `work`. A cancellation of the caller is raised only after `work` has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Ignore further cancellations: `cancel` below repeats them.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved, or asyncio would log it; the caller gets the cancellation
        raise


async def within(seconds: float, work: Awaitable[T]) -> T:
    """Return the result of `work`. Raises TimeoutError after so many seconds; `work` then continues.

    Work in a thread or in a transaction cannot be cancelled: asyncio's own time-outs would wait for its end.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # retrieved, or asyncio would log it
    await asyncio.wait([task], timeout=seconds)
    if not task.done():
        raise TimeoutError(f"no answer in {seconds} s")
    return task.result()


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and wait until they have ended.

    The cancellation is repeated every second: on Python 3.11 `asyncio.wait_for`, which redis-py uses, loses a
    cancellation that comes just when it is done.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_AGAIN_SECONDS)
