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

from api.renditions.memory import Entry, Found, Recent, found_in, put_into
from api.renditions.resources import Pictures
from api.server.guard import ANSWER, Application, Receive, Scope, Send
from api.urls import picture_at
from shared.errors import AsgilookError
from shared.images import FULL, Image, Size, rendition_key, thumbnail_name
from shared.redis.circuit_breaker import RedisAway
from shared.redis.response_cache import PICTURE_SECONDS, Asked, Copy, ResponseCache, Slot
from shared.storage import Storage

_JPEG, _THUMBNAIL = "/images/{image_id}.jpeg", "/thumbnails/{image_id}/{size}.jpeg"

#: In a request's scope: what Redis was asked for it already.
_ASKED = "asgilook.asked"

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
        storage: Storage,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._recent = recent
        self._pictures = pictures
        self._cache = cache
        self._storage = storage
        self._clock = clock
        self._flights: dict[str, _Flight] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        where = picture_at(scope["path"]) if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") else None
        if where is not None:
            image_id, size = where
            found = found_in(scope)
            if found is None and (entry := self._at_hand(scope["path"], image_id, size)) is not None:
                found = Found(entry)
            # HEAD makes no copies, so that it has no use for what a flight brings.
            if found is None and scope["method"] == "GET":
                found = await self._find(scope["path"], image_id, size, scope.get(_ASKED))
            if found is not None and (entry := found.entry) is not None and _is_plain_get(scope):
                scope["asgilook.route"] = _route_of(size)
                if (answer := scope.get(ANSWER)) is not None and answer(entry):
                    return
                await send({"type": "http.response.start", "status": 200, "headers": entry.headers})
                await send({"type": "http.response.body", "body": entry.body})
                return
            put_into(scope, found)
        await self._app(scope, receive, send)

    def at_hand(self, path: str) -> tuple[Entry, str] | None:
        """Return the picture at a path and its route, where there is nothing to wait for."""
        entry = self._recent.entry(path)
        if entry is not None:
            return entry, _JPEG if path.startswith("/images") else _THUMBNAIL
        where = picture_at(path)
        entry = None if where is None else self._at_hand(path, *where)
        return None if where is None or entry is None else (entry, _route_of(where[1]))

    def look(self, scope: Scope, found: Callable[[Entry | None, str], None]) -> bool:
        """Ask Redis for the picture that a request is for, and call `found` with it and its route, without a task.

        Where there is more to it, `found` gets None, and the application what Redis said, in the request's scope. Tells
        whether Redis was asked: not where somebody else has done so, nor where it has to be waited for.
        """
        path: str = scope["path"]
        where = picture_at(path)
        if where is None or path in self._flights or self._pictures.are_handed_over:
            return False
        image_id, size = where
        if self._recent.row(image_id) is not None:
            return False
        slot = Slot(path, image_id, PICTURE_SECONDS, is_large=size is None)
        asked = self._cache.ask(slot)
        if asked is None:
            return False
        flight = self._flights[path] = _Flight(image_id, self._clock())

        def land(reply: object) -> None:
            entry = None
            scope[_ASKED] = asked
            if self._flights.get(path) is flight:
                del self._flights[path]
            try:
                copy = self._cache.copy_from(asked, slot)
                if copy is not None:
                    entry = Entry(image_id, copy, flight.begun, is_hit=True)
                    self._keep(flight, path, entry)
                    flight.found = Found(entry)
                    put_into(scope, flight.found)
            finally:
                # Whoever goes on begins the next flight, before those who wait for this one look around.
                found(entry, _route_of(size))
                if flight.landed is not None:
                    flight.landed.set()

        asked.reply.add_done_callback(land)
        return True

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

    def _at_hand(self, path: str, image_id: str, size: Size | None) -> Entry | None:
        entry = self._recent.entry(path)
        if entry is not None:
            return entry
        row = self._recent.row(image_id)
        if row is None:
            return None
        image, read_at = row
        rendition = image.renditions.get(_name_of(size))
        if rendition is None or self._pictures.are_handed_over or not self._pictures.is_copied(rendition):
            return None
        key = rendition_key(image_id, image.published or 0, _name_of(size))
        body = self._storage.read_now(key, rendition.bytes)
        if body is None:
            return None
        entry = Entry(image_id, self._pictures.copy_of(image, rendition, key, body), read_at, is_hit=True)
        self._recent.keep_entry(path, entry)
        return entry

    async def _find(self, path: str, image_id: str, size: Size | None, asked_redis: Asked | None) -> Found:
        asked = self._clock()
        while True:
            flight = self._flights.get(path)
            if flight is None or self._recent.is_old(flight.begun):
                return await self._fly(path, image_id, size, asked_redis)
            if flight.landed is None:
                flight.landed = asyncio.Event()
            await flight.landed.wait()
            # What was wrong before may be right since: an error is told to those only who had asked before that look.
            if flight.found is not None and (flight.found.error is None or flight.begun >= asked):
                return flight.found

    async def _fly(self, path: str, image_id: str, size: Size | None, asked: Asked | None) -> Found:
        if (older := self._flights.get(path)) is not None:
            # Nobody will tell it any more that the image has changed.
            older.is_outdated = True
        flight = self._flights[path] = _Flight(image_id, self._clock())
        try:
            flight.found = await self._look(flight, path, size, asked)
        except Exception as exc:
            flight.found = Found(error=exc)
        finally:
            # Where it was cancelled, one of those who waited is the next to look.
            if self._flights.get(path) is flight:
                del self._flights[path]
            if flight.landed is not None:
                flight.landed.set()
        return flight.found

    async def _look(self, flight: _Flight, path: str, size: Size | None, asked: Asked | None) -> Found:
        if (row := self._recent.row(flight.image_id)) is not None:
            # Who joins is told what is as old as the row.
            flight.begun = row[1]
            found = await self._from_row(*row, size)
            if found is not None:
                if found.entry is not None:
                    self._keep(flight, path, found.entry)
                return found
            flight.begun = self._clock()
        slot = Slot(path, flight.image_id, PICTURE_SECONDS, is_large=size is None)
        token, copy = None, None
        # What others send has no copy in Redis.
        if not self._pictures.are_handed_over:
            with contextlib.suppress(RedisAway):
                lookup = await self._cache.read(slot, asked)
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

    async def _from_row(self, image: Image, read_at: float, size: Size | None) -> Found | None:
        """Return what a known row and this machine's disk make of a path, or None where others have to be asked.

        Redis gets no copy of it: the token that is there now may be younger than the row.
        """
        rendition = image.renditions.get(_name_of(size))
        if rendition is None:
            return None
        if not self._pictures.is_copied(rendition):
            return Found(image=image)
        if not self._storage.is_near(rendition_key(image.id, image.published or 0, _name_of(size))):
            return None
        try:
            copy = await self._pictures.read(image, rendition, _name_of(size))
        except AsgilookError:
            return None
        return Found(Entry(image.id, copy, read_at, is_hit=True))

    def _keep(self, flight: _Flight, path: str, entry: Entry) -> None:
        if not flight.is_outdated:
            self._recent.keep_entry(path, entry)

    async def _fill(self, slot: Slot, token: bytes, copy: Copy) -> None:
        with contextlib.suppress(RedisAway):
            await self._cache.fill(slot, token, copy)


def _name_of(size: Size | None) -> str:
    return FULL if size is None else thumbnail_name(size)


def _route_of(size: Size | None) -> str:
    return _JPEG if size is None else _THUMBNAIL


def _is_plain_get(scope: Scope) -> bool:
    return scope["method"] == "GET" and not any(name in _CONDITIONS for name, _ in scope["headers"])
