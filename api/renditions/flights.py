"""Single flight: concurrent lookups of the same path share one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from api.renditions.memory import Memory, Moment

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Flight(Generic[T]):
    #: What is looked for is no older.
    began: Moment
    #: When the lookup itself began.
    order: int
    landed: asyncio.Event = field(default_factory=asyncio.Event)
    result: list[T] = field(default_factory=list)
    error: Exception | None = None


class Flights(Generic[T]):
    """Lookups under way, by path. One that is two seconds old is not joined, nor one from before the image changed."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._flights: dict[str, _Flight[T]] = {}

    async def join(self, path: str, image_id: str, began: Moment, look: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return what `look()`, or the lookup of the same path that is under way, returns; and whether it was our own.

        What `look()` returns is no older than `began`. An error is raised only for the requests that came before its
        lookup began: what was wrong then may be right by now. Where the first request is cancelled, one that waits for
        it looks next.
        """
        asked: Moment | None = None
        while True:
            flight = self._flights.get(path)
            if flight is None or not self._memory.is_current(image_id, flight.began):
                return await self._lead(path, began, look), True
            asked = asked or self._memory.now()
            await flight.landed.wait()
            if flight.result:
                return flight.result[0], False
            if flight.error is not None and asked.order < flight.order:
                raise flight.error

    async def _lead(self, path: str, began: Moment, look: Callable[[], Awaitable[T]]) -> T:
        flight = self._flights[path] = _Flight(began, self._memory.now().order)
        try:
            result = await look()
            flight.result.append(result)
            return result
        except Exception as exc:
            flight.error = exc
            raise
        finally:
            if self._flights.get(path) is flight:
                del self._flights[path]
            flight.landed.set()
