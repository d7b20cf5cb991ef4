"""Work whose outcome must be certain before its caller may go on, cancelled or not; and cancelling for certain."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds after which a task that was cancelled and goes on is cancelled again.
_AGAIN_SECONDS = 1.0


async def to_the_end(work: Awaitable[T]) -> T:
    """Await `work`, shielded: who is cancelled meanwhile learns of that when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        while not task.done():
            # Cancelled again or not: it is what `cancel` does below.
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # seen: the cancellation is what its caller hears of
        raise


async def cancel(*tasks: asyncio.Task[Any]) -> None:
    """Cancel `tasks` and return when they have ended.

    Once is not enough: on Python 3.11 `asyncio.wait_for`, by which redis-py sends, loses a cancellation that comes
    just when it is done.
    """
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        await asyncio.wait(running, timeout=_AGAIN_SECONDS)
