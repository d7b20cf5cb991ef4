"""The pictures: an image's JPEG and its thumbnails, from the response cache, else from storage."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from email.utils import formatdate
from functools import lru_cache
from typing import TypeVar

import falcon
from falcon.asgi import Request, Response

from api import conditional
from api.images import Enqueueing
from api.problems import RETRY_SECONDS, Problem
from api.records import picture_path, thumbnail_path
from api.renditions.memory import found_in
from api.renditions.x_accel import HandingOver
from api.response_cache_middleware import allow_copy, apply_decision
from shared.errors import NoSuchKey
from shared.images import FULL, Image, Rendition, Size, Status, ladder, rendition_key, thumbnail_name
from shared.ledger import Ledger
from shared.redis.response_cache import MOST_BODY_BYTES, PICTURE_SECONDS, Copy, Slot
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import Storage

T = TypeVar("T")

#: Seconds for which the address of a large picture is good: to begin with it, not to pass it on.
_REDIRECT_SECONDS = 60.0


class Pictures:
    """Serves one rendition of an image; both resources below share it."""

    def __init__(
        self, settings: Settings, ledger: Ledger, storage: Storage, settling: Settling, enqueueing: Enqueueing
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._storage = storage
        self._settling = settling
        self._enqueueing = enqueueing
        self._handing_over = HandingOver(settings)

    @property
    def are_handed_over(self) -> bool:
        """Whether the server in front of us sends the pictures' bytes: what is answered has none."""
        return self._handing_over.is_on

    async def serve(self, req: Request, resp: Response, image_id: str, name: str, size: Size | None) -> None:
        """Answer with the rendition called `name`; `size` is None for the full-size JPEG."""
        found = found_in(req.scope)
        image = None if found is None else found.image
        await self._of_ready(image_id, lambda image: self._answer(req, resp, image, name, size), image)

    async def find(self, image_id: str, name: str, size: Size | None) -> tuple[Image, Copy | None]:
        """Return an image that is ready and a copy of one of its pictures, or None for one that is to be streamed.

        Raises Problem for what is not there.
        """

        async def read(image: Image) -> tuple[Image, Copy | None]:
            rendition = await self._rendition(image, name, size)
            if not self.is_copied(rendition):
                return image, None
            return image, await self.read(image, rendition, name)

        return await self._of_ready(image_id, read)

    async def read(self, image: Image, rendition: Rendition, name: str) -> Copy:
        """Return a copy of a picture as it is answered. Raises NoSuchKey where its file is gone."""
        key = rendition_key(image.id, image.published or 0, name)
        return self.copy_of(image, rendition, key, await self._read(key))

    async def _read(self, key: str) -> bytes:
        if not self.are_handed_over:
            return await self._storage.read(key)
        if not await self._storage.exists(key):
            raise NoSuchKey(key)
        return b""

    async def _of_ready(self, image_id: str, answer: Callable[[Image], Awaitable[T]], image: Image | None = None) -> T:
        """Return what is made of an image that is ready, once more where its files are not where its row says."""
        image = image or await self._ready_image(image_id)
        try:
            return await answer(image)
        except NoSuchKey:
            # Its folder may just have been superseded: the row, read again, knows the new one.
            latest = await self._ready_image(image_id)
            if latest.published == image.published:
                raise await self._missing(latest) from None
            try:
                return await answer(latest)
            except NoSuchKey:
                raise await self._missing(latest) from None

    def is_copied(self, rendition: Rendition) -> bool:
        """Tell whether a picture is small enough to be held and copied: others are streamed, or fetched elsewhere."""
        most = self._settings.redirect_bytes
        if self.are_handed_over:
            return True
        return rendition.bytes <= MOST_BODY_BYTES and (most is None or rendition.bytes <= most)

    def copy_of(self, image: Image, rendition: Rendition, key: str, body: bytes) -> Copy:
        """Return a picture as it is answered."""
        headers = self._headers(image, rendition) | self._handing_over.headers_for(key)
        return Copy.of(200, headers.items(), body)

    async def _ready_image(self, image_id: str) -> Image:
        image = await self._ledger.get(image_id)
        if image is None:
            raise Problem("no-such-image")
        # Of a deleted image, too: a client that was told so must not find it in an older list.
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

    async def _answer(self, req: Request, resp: Response, image: Image, name: str, size: Size | None) -> None:
        rendition = await self._rendition(image, name, size)
        key = rendition_key(image.id, image.published or 0, name)
        if await self._redirected(req, resp, image, rendition, key):
            return
        if rendition.bytes > MOST_BODY_BYTES and not self.are_handed_over:
            await self._stream(req, resp, image, rendition, key)
        else:
            resp.data = await self._read(key)
            allow_copy(req)
        for header, value in (self._headers(image, rendition) | self._handing_over.headers_for(key)).items():
            resp.set_header(header, value)

    async def _rendition(self, image: Image, name: str, size: Size | None) -> Rendition:
        rendition = image.renditions.get(name)
        if rendition is None:
            if size in ladder(image.size or (0, 0), self._settings.min_thumb_size):
                raise await self._missing(image)
            raise Problem("no-such-size")
        return rendition

    async def _redirected(self, req: Request, resp: Response, image: Image, rendition: Rendition, key: str) -> bool:
        """Send the client of a large picture to the store itself, where that is wanted; tell whether it was sent."""
        most = self._settings.redirect_bytes
        # The address is signed for GET alone.
        if most is None or rendition.bytes <= most or req.method != "GET":
            return False
        decision = _decided(req, image, rendition)
        if not isinstance(decision, conditional.Whole | conditional.Part):
            return False
        address = await self._storage.signed_url(key, _REDIRECT_SECONDS)
        if address is None:
            return False
        if not await self._storage.exists(key):
            raise NoSuchKey(key)
        resp.status = falcon.HTTP_302
        resp.location = address
        resp.set_header("Cache-Control", "no-store")
        # Of pages of other origins, browsers follow a redirect only where it may be theirs as well.
        resp.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        return True

    async def _stream(self, req: Request, resp: Response, image: Image, rendition: Rendition, key: str) -> None:
        decision = _decided(req, image, rendition)
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
            # Opened by itself, a picture is a document without rights. Pages of other origins may show it, also those
            # that are isolated from whatever does not say so.
            "content-security-policy": "default-src 'none'; sandbox",
            "cross-origin-resource-policy": "cross-origin",
        }

    async def _missing(self, image: Image) -> Problem:
        """Have a ready image's renditions made again; return the problem to answer with meanwhile."""
        wanted = await self._ledger.request_thumbnails(image.id, image.published)
        if wanted is not None:
            await self._enqueueing.enqueue(wanted)
        return Problem("rendition-missing", headers={"Retry-After": str(RETRY_SECONDS)})


@lru_cache(maxsize=1024)
def _http_date(seconds: float) -> str:
    return formatdate(seconds, usegmt=True)


def _decided(req: Request, image: Image, rendition: Rendition) -> conditional.Decision:
    return conditional.decide(
        req.method,
        req.headers_lower,
        etag=conditional.strong_etag(rendition.sha256),
        last_modified=image.modified,
        length=rendition.bytes,
    )


async def _begun(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Return the same pieces, the first of them read: what is missing is missed before the answer begins."""
    first = await anext(pieces)

    async def all_of_them() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return all_of_them()


class Jpeg:
    """`/images/{id}.jpeg`."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures

    def slot_of(self, req: Request, image_id: str) -> Slot:
        return Slot(picture_path(image_id), image_id, PICTURE_SECONDS, is_large=True)

    async def on_get(self, req: Request, resp: Response, image_id: str) -> None:
        await self._pictures.serve(req, resp, image_id, FULL, None)

    on_head = on_get


class Thumbnail:
    """`/thumbnails/{id}/{w}x{h}.jpeg`."""

    def __init__(self, pictures: Pictures) -> None:
        self._pictures = pictures

    def slot_of(self, req: Request, image_id: str, size: Size) -> Slot:
        return Slot(thumbnail_path(image_id, size), image_id, PICTURE_SECONDS)

    async def on_get(self, req: Request, resp: Response, image_id: str, size: Size) -> None:
        await self._pictures.serve(req, resp, image_id, thumbnail_name(size), size)

    on_head = on_get
