"""Waiting for what comes to pass by itself, by asking for it and not by the clock."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], object | Awaitable[object]], seconds: float = 30.0) -> None:
    """Return once `condition()` is true; it is an error if that takes longer than anything should."""
    async with asyncio.timeout(seconds):
        while True:
            answer = condition()
            if await answer if inspect.isawaitable(answer) else answer:
                return
            await asyncio.sleep(0.002)
