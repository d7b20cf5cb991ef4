"""The resource that serves an image's JPEG and its thumbnails when no copy of them is cached.

This module is longer than 250 lines. A file may be superseded after its row was read, whether it is sent whole,
streamed, redirected or named to the proxy. One function handles that for all four ways.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from email.utils import formatdate
from functools import lru_cache
from typing import TypeVar

import falcon
from falcon.asgi import Request, Response

from api import conditional
from api.problems import RETRY_SECONDS, Problem
from api.renditions.flights import Flights
from api.renditions.memory import Memory, Row
from api.renditions.x_accel import XAccel
from api.response_cache_middleware import Reading, allow_copy, apply_decision, set_copy
from shared.errors import NoSuchKey
from shared.images import Image, Lane, Status
from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.redis.response_cache import MOST_BODY_BYTES, RENDITION_SECONDS, Copy, Slot
from shared.renditions import FULL, Rendition, Size, ladder, rendition_key, thumbnail_name
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import SignsUrls, Storage

T = TypeVar("T")

#: Seconds for which the signed address of a large rendition is valid: long enough to start, too short to pass on.
_REDIRECT_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A ready image and a copy of one rendition. The copy is None for a rendition that is streamed or redirected."""

    image: Image
    copy: Copy | None


class Renditions:
    """`/images/{id}.jpeg` and `/thumbnails/{id}/{w}x{h}.jpeg`. A `size` of None is the full-size JPEG."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        storage: Storage,
        settling: Settling,
        queue: Queue,
        memory: Memory,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._storage = storage
        self._signs = storage if isinstance(storage, SignsUrls) else None
        self._settling = settling
        self._queue = queue
        self._memory = memory
        self._x_accel = XAccel(settings)
        self._loads: Flights[_Loaded] = Flights(memory)

    def slot_of(self, req: Request, image_id: str, size: Size | None = None) -> Slot | None:
        """Return the rendition's slot in the response cache, or None if it is known to be too large for a copy."""
        name = _name_of(size)
        row = self._memory.row(image_id)
        rendition = None if row is None else row.image.renditions.get(name)
        if rendition is not None and not self._is_copied(rendition):
            return None
        return Slot(req.path, image_id, RENDITION_SECONDS, is_large=name == FULL, is_in_redis=not self._x_accel.is_on)

    async def on_get(self, req: Request, resp: Response, image_id: str, size: Size | None = None) -> None:
        reading: Reading = req.context.get("reading") or Reading(b"", self._memory.now())
        row = self._memory.row(image_id)
        if row is not None:
            # A rendition that is read by a row from memory counts as old as that row.
            reading = Reading(row.token, row.began)

        async def load() -> _Loaded:
            return await self._load(req, image_id, size, row, reading)

        if req.method == "HEAD":
            loaded, is_first = await load(), False
        else:
            loaded, is_first = await self._loads.join(req.path, image_id, reading.began, load)
        if loaded.copy is None:
            await self._of_ready(req, image_id, lambda image: self._send_large(req, resp, image, size), loaded.image)
            return
        set_copy(resp, loaded.copy)
        allow_copy(req)
        # Only the request that loaded keeps the copy and fills Redis. The token of a joined request may be newer than
        # the row that it was given.
        req.context.reading = reading if is_first else None

    on_head = on_get

    async def _load(self, req: Request, image_id: str, size: Size | None, row: Row | None, reading: Reading) -> _Loaded:
        async def read(image: Image) -> _Loaded:
            rendition = await self._rendition(req, image, size)
            if not self._is_copied(rendition):
                return _Loaded(image, None)
            key = rendition_key(image.id, rendition)
            headers = self._headers(image, rendition) | self._x_accel.headers_for(key)
            return _Loaded(image, Copy.of(200, headers.items(), await self._read(key)))

        loaded = await self._of_ready(req, image_id, read, None if row is None else row.image)
        if row is None or loaded.image is not row.image:
            self._memory.keep_row(Row(loaded.image, reading.token, reading.began))
        return loaded

    async def _read(self, key: str) -> bytes:
        if not self._x_accel.is_on:
            return await self._storage.read(key)
        if not await self._storage.exists(key):
            raise NoSuchKey(key)
        return b""

    async def _of_ready(
        self, req: Request, image_id: str, answer: Callable[[Image], Awaitable[T]], image: Image | None = None
    ) -> T:
        """Return `answer(image)` for a ready image. If a file is missing, read the row again and retry once."""
        image = image or await self._ready_image(image_id)
        try:
            return await answer(image)
        except NoSuchKey:
            # The rendition may just have been superseded. Then the row names its new file.
            latest = await self._ready_image(image_id)
            if latest.renditions == image.renditions:
                raise await self._missing(req, latest) from None
            try:
                return await answer(latest)
            except NoSuchKey:
                raise await self._missing(req, latest) from None

    def _is_copied(self, rendition: Rendition) -> bool:
        """Return whether a rendition is copied whole. Larger ones are streamed, or redirected to the object store."""
        most = self._settings.redirect_bytes
        is_small = rendition.bytes <= MOST_BODY_BYTES and (most is None or rendition.bytes <= most)
        return is_small or self._x_accel.is_on

    async def _ready_image(self, image_id: str) -> Image:
        image = await self._ledger.get(image_id)
        if image is None:
            raise Problem("no-such-image")
        # Also for a deleted image: after this 404 the client must not see the image in an older list.
        image = await self._settling.settle_tokens(image)
        match image.status:
            case Status.READY:
                return image
            case Status.QUEUED | Status.PROCESSING:
                raise Problem("not-ready", headers={"Retry-After": str(RETRY_SECONDS)})
            case Status.FAILED:
                raise Problem("image-failed", image.error_detail)
            case _:
                raise Problem("no-such-image")

    async def _rendition(self, req: Request, image: Image, size: Size | None) -> Rendition:
        rendition = image.renditions.get(_name_of(size))
        if rendition is None:
            if size in ladder(image.size or (0, 0), self._settings.min_thumb_size):
                raise await self._missing(req, image)
            raise Problem("no-such-size")
        return rendition

    async def _missing(self, req: Request, image: Image) -> Problem:
        """Request that a ready image's renditions are made again, but not for a HEAD. Returns the problem to answer."""
        wanted = None if req.method == "HEAD" else await self._ledger.request_renditions(image, Lane.DEMAND)
        if wanted is not None:
            await self._queue.try_enqueue(wanted)
        return Problem("rendition-missing", headers={"Retry-After": str(RETRY_SECONDS)})

    async def _send_large(self, req: Request, resp: Response, image: Image, size: Size | None) -> None:
        """Redirect to the object store if that is configured, otherwise stream.

        Raises NoSuchKey before the answer begins.
        """
        rendition = await self._rendition(req, image, size)
        key = rendition_key(image.id, rendition)
        decision = conditional.decide(
            req.method,
            req.headers_lower,
            etag=conditional.strong_etag(rendition.sha256),
            last_modified=image.modified,
            length=rendition.bytes,
        )
        if not await self._redirect(req, resp, rendition, key, decision):
            await self._stream(resp, rendition, key, decision)
            for header, value in self._headers(image, rendition).items():
                resp.set_header(header, value)

    async def _redirect(
        self, req: Request, resp: Response, rendition: Rendition, key: str, decision: conditional.Decision
    ) -> bool:
        most = self._settings.redirect_bytes
        # The address is signed for GET only.
        if self._signs is None or most is None or rendition.bytes <= most or req.method != "GET":
            return False
        if not isinstance(decision, conditional.Whole | conditional.Part):
            return False
        address = await self._signs.signed_url(key, _REDIRECT_SECONDS)
        if not await self._storage.exists(key):
            raise NoSuchKey(key)
        resp.status = falcon.HTTP_302
        resp.location = address
        resp.set_header("Cache-Control", "no-store")
        # On a page of another origin, a browser follows a redirect only if the redirect itself may be embedded there.
        resp.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        return True

    async def _stream(self, resp: Response, rendition: Rendition, key: str, decision: conditional.Decision) -> None:
        apply_decision(resp, decision, rendition.bytes)
        resp.set_header("X-ASGILook-Cache", "Miss")
        if isinstance(decision, conditional.NotModified):
            return
        first, last = 0, rendition.bytes - 1
        if isinstance(decision, conditional.Part):
            first, last = decision.first, decision.last
        pieces = await _begun(self._storage.stream(key, first, last))
        resp.set_stream(pieces, last - first + 1)

    def _headers(self, image: Image, rendition: Rendition) -> dict[str, str]:
        return {
            "content-type": falcon.MEDIA_JPEG,
            "etag": conditional.strong_etag(rendition.sha256),
            "last-modified": _http_date(image.modified),
            "cache-control": f"public, max-age={self._settings.picture_max_age}, immutable",
            "accept-ranges": "bytes",
            # A picture opened by itself may run no script and load nothing. Pages of other origins may embed it, also
            # those that are cross-origin isolated.
            "content-security-policy": "default-src 'none'; sandbox",
            "cross-origin-resource-policy": "cross-origin",
        }


def _name_of(size: Size | None) -> str:
    return FULL if size is None else thumbnail_name(size)


@lru_cache(maxsize=1024)
def _http_date(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Read the first piece and return all pieces. A missing file raises NoSuchKey here, before the answer begins."""
    first = await anext(pieces)

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()
