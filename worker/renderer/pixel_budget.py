"""A limit of the pixels that are decoded at the same time, which limits memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """Lets at most `pixels` be decoded at once, first come, first served."""

    def __init__(self, pixels: int) -> None:
        self._all = self._left = max(pixels, 1)
        self._turn = asyncio.Lock()
        self._returned = asyncio.Event()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Wait until there is room for `pixels`, and hold it. A picture larger than the budget holds all of it."""
        pixels = min(pixels, self._all)
        async with self._turn:
            while self._left < pixels:
                self._returned.clear()
                await self._returned.wait()
            self._left -= pixels
        try:
            yield
        finally:
            self._left += pixels
            self._returned.set()
