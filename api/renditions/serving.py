"""The stage between guard and falcon that finds pictures: in this process's memory, in Redis, in storage.

What is asked for at the same time is fetched once: who comes second joins the flight of who came first. A plain GET of
a picture is answered here, and falcon never sees it; whatever else there is to say is said by falcon's own resources,
which are told what was found (`found_in`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

from api.renditions.memory import Entry, Found, Recent, put_into
from api.renditions.memory_door import FULL_ROUTE, THUMBNAIL_ROUTE
from api.renditions.resources import Pictures
from api.server.asgi_types import Application, Receive, Scope, Send
from api.server.at_once import AtOnce
from api.urls import picture_at
from shared.images import FULL, Size, thumbnail_name
from shared.redis.circuit_breaker import RedisAway
from shared.redis.response_cache import PICTURE_SECONDS, Copy, ResponseCache, Slot

_CONDITIONS = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range")
)


@dataclass(eq=False, slots=True)
class _Flight:
    """One look for a picture, by the first who asked, and whoever waits for it."""

    image_id: str
    #: What is found is no older.
    begun: float
    #: The image has changed since: what is found is told to those who wait, and not kept.
    is_outdated: bool = False
    #: There where anybody waits.
    landed: asyncio.Event | None = None
    #: Nothing, where the first one was cancelled.
    found: Found | None = None


class Serving:
    """An ASGI application in front of falcon's."""

    def __init__(
        self,
        app: Application,
        recent: Recent,
        pictures: Pictures,
        cache: ResponseCache,
        at_once: AtOnce,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._recent = recent
        self._pictures = pictures
        self._cache = cache
        self.at_once = at_once
        self._clock = clock
        self._flights: dict[str, _Flight] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        where = picture_at(scope["path"]) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if where is not None:
            image_id, size = where
            found = None
            if (entry := self._recent.entry(scope["path"])) is not None:
                found = Found(entry)
            # HEAD makes no copies, so that it has no use for what a flight brings.
            if found is None and scope["method"] == "GET":
                found = await self._find(scope["path"], image_id, size)
            if found is not None and (entry := found.entry) is not None and _is_plain_get(scope):
                scope["asgilook.route"] = _route_of(size)
                await send({"type": "http.response.start", "status": 200, "headers": entry.headers})
                await send({"type": "http.response.body", "body": entry.body})
                return
            put_into(scope, found)
        await self._app(scope, receive, send)

    def forget(self, image_id: str) -> None:
        """Let go of an image that has changed, or is no more; nothing that was begun before is kept."""
        self._recent.forget(image_id)
        for path, flight in tuple(self._flights.items()):
            if flight.image_id == image_id:
                flight.is_outdated = True
                del self._flights[path]

    def forget_all(self) -> None:
        """Let go of all images: notices may have been missed."""
        self._recent.forget_all()
        for flight in self._flights.values():
            flight.is_outdated = True
        self._flights.clear()

    async def _find(self, path: str, image_id: str, size: Size | None) -> Found:
        asked = self._clock()
        while True:
            flight = self._flights.get(path)
            if flight is None or self._recent.is_old(flight.begun):
                return await self._fly(path, image_id, size)
            if flight.landed is None:
                flight.landed = asyncio.Event()
            await flight.landed.wait()
            # What was wrong before may be right since: an error is told to those only who had asked before that look.
            if flight.found is not None and (flight.found.error is None or flight.begun >= asked):
                return flight.found

    async def _fly(self, path: str, image_id: str, size: Size | None) -> Found:
        if (older := self._flights.get(path)) is not None:
            # Nobody will tell it any more that the image has changed.
            older.is_outdated = True
        flight = self._flights[path] = _Flight(image_id, self._clock())
        try:
            flight.found = await self._look(flight, path, size)
        except Exception as exc:
            flight.found = Found(error=exc)
        finally:
            # Where it was cancelled, one of those who waited is the next to look.
            if self._flights.get(path) is flight:
                del self._flights[path]
            if flight.landed is not None:
                flight.landed.set()
        return flight.found

    async def _look(self, flight: _Flight, path: str, size: Size | None) -> Found:
        if (row := self._recent.row(flight.image_id)) is not None:
            rendition = row[0].renditions.get(_name_of(size))
            if rendition is not None and not self._pictures.is_copied(rendition):
                # A flight that is joined is as old as the row.
                flight.begun = row[1]
                return Found(image=row[0])
        slot = Slot(path, flight.image_id, PICTURE_SECONDS, is_large=size is None)
        token, copy = None, None
        # What others send has no copy in Redis.
        if not self._pictures.are_handed_over:
            with contextlib.suppress(RedisAway):
                lookup = await self._cache.read(slot)
                token, copy = lookup.token, lookup.copy
        if copy is not None:
            entry = Entry(flight.image_id, copy, flight.begun, is_hit=True)
            self._keep(flight, path, entry)
            return Found(entry)
        read_at = self._clock()
        image, copy = await self._pictures.find(flight.image_id, _name_of(size), size)
        if not flight.is_outdated:
            self._recent.keep_row(image, read_at)
        if copy is None:
            return Found(image=image)
        self._keep(flight, path, Entry(flight.image_id, copy, read_at, is_hit=True))
        if token is not None:
            await self._fill(slot, token, copy)
        return Found(Entry(flight.image_id, copy, read_at, is_hit=False))

    def _keep(self, flight: _Flight, path: str, entry: Entry) -> None:
        if not flight.is_outdated:
            self._recent.keep_entry(path, entry)

    async def _fill(self, slot: Slot, token: bytes, copy: Copy) -> None:
        with contextlib.suppress(RedisAway):
            await self._cache.fill(slot, token, copy)


def _name_of(size: Size | None) -> str:
    return FULL if size is None else thumbnail_name(size)


def _route_of(size: Size | None) -> str:
    return FULL_ROUTE if size is None else THUMBNAIL_ROUTE


def _is_plain_get(scope: Scope) -> bool:
    return scope["method"] == "GET" and not any(name in _CONDITIONS for name, _ in scope["headers"])
