"""Waiting for the fills of the response cache, which no answer waits for."""

from __future__ import annotations

import asyncio

from shared.redis.response_cache import BACKGROUND


async def fills_landed() -> None:
    """Return when no copy is on its way to Redis."""
    while filling := [task for task in asyncio.all_tasks() if task.get_name() == BACKGROUND]:
        await asyncio.wait(filling)
