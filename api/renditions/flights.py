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
    #: The result is no older than this.
    began: Moment
    #: When the lookup itself began.
    order: int
    landed: asyncio.Event = field(default_factory=asyncio.Event)
    result: list[T] = field(default_factory=list)
    error: Exception | None = None


class Flights(Generic[T]):
    """Running lookups, by path. A lookup is not joined if it is two seconds old or the image has changed since."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._flights: dict[str, _Flight[T]] = {}

    async def join(self, path: str, image_id: str, began: Moment, look: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """Return the result of a running lookup of the same path, or of `look()`, and whether it was `look()`.

        The caller promises that the result of `look()` is no older than `began`. If the joined lookup fails, its error
        is raised only to requests that came before it began; later ones look again. If the first request is cancelled,
        one of those that wait for it looks next.
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
