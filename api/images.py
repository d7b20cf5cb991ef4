"""The resources of images: the list, one record, upload, delete, retry."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import NoReturn

import falcon
from falcon.asgi import Request, Response

from api import conditional
from api.problems import RETRY_SECONDS, TROUBLE_SECONDS, Problem
from api.records import Page, body_of, etag_of, record_of
from api.response_cache_middleware import allow_copy, apply_decision
from api.uploads import Uploads
from api.urls import jpeg_path, record_path
from api.wait import Waiter, wait_of
from shared.cancellation import to_the_end
from shared.errors import AsgilookError
from shared.images import Image, Status
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.queue import Queue
from shared.redis.response_cache import LIST_TOPIC, RECORD_SECONDS, Slot
from shared.settling import Settling

logger = logging.getLogger(__name__)

#: Headers that make a DELETE conditional (RFC 9110, section 13.2.2).
_CONDITIONS = {"if-match", "if-unmodified-since", "if-none-match"}


def require_json(req: Request) -> None:
    """Raise Problem if the request's Accept excludes JSON."""
    if not req.client_accepts(falcon.MEDIA_JSON):
        raise Problem("not-acceptable")


class ImageList:
    """`/images`."""

    def __init__(
        self,
        ledger: Ledger,
        settling: Settling,
        queue: Queue,
        waiter: Waiter,
        uploads: Uploads,
    ) -> None:
        self._uploads = uploads
        self._ledger = ledger
        self._settling = settling
        self._queue = queue
        self._waiter = waiter

    def slot_of(self, req: Request) -> Slot | None:
        require_json(req)
        page = req.context.page = Page.parse(req.query_string)
        return Slot(page.path, LIST_TOPIC, RECORD_SECONDS) if page.status is Status.READY else None

    async def on_get(self, req: Request, resp: Response) -> None:
        page: Page = req.context.page
        # One image more than the limit shows whether there is a next page.
        if page.status is Status.READY:
            after = page.after if isinstance(page.after, int) else None
            images = await self._ledger.list_ready(after, page.limit + 1, page.newest_first)
            allow_copy(req)
        else:
            after_id = page.after if isinstance(page.after, str) else None
            images = await self._ledger.list_with_status(page.status, after_id, page.limit + 1, page.newest_first)
        # A client that has seen this list must not read an older one from the cache. The tokens are settled after the
        # list was read, because the list may show a commit whose tokens are not changed yet.
        with contextlib.suppress(RedisAway):
            await self._settling.settle_all_tokens()
        _set_json(resp, [record_of(image) for image in images[: page.limit]], etag=True)
        if link := page.next_link(images):
            resp.set_header("Link", link)

    on_head = on_get

    async def on_post(self, req: Request, resp: Response) -> None:
        image = await self._uploads.receive(req)
        enqueued, wait = False, wait_of(req.get_header("Prefer"))
        try:
            enqueued = await self._queue.try_enqueue(image)
            # If the grace ended during the commit, skip only the wait.
            if wait is not None and not _is_cancelled():
                resp.set_header("Preference-Applied", f"wait={wait}")
                latest = await self._waiter.until_final(image.id, wait)
                if latest is None:
                    raise Problem("no-such-image")
                image = latest
        except asyncio.CancelledError:
            # The server's grace is over. The upload is committed, so acknowledge it: after an error the client would
            # send the file again.
            logger.info("acknowledged at the end of the grace", extra={"image": image.id})
        resp.set_header("Content-Location", record_path(image.id))
        match image.status:
            case Status.READY:
                resp.status = falcon.HTTP_201
                resp.set_header("Location", jpeg_path(image.id))
            case Status.FAILED:
                raise _failed(image, wait)
            case Status.DELETING:
                raise Problem("no-such-image")
            case _:
                resp.status = falcon.HTTP_202
                resp.set_header("Location", record_path(image.id))
                resp.set_header("Retry-After", str(RETRY_SECONDS if enqueued else TROUBLE_SECONDS))
        _set_json(resp, record_of(image), etag=False)


class ImageRecord:
    """`/images/{id}`."""

    def __init__(self, ledger: Ledger, settling: Settling, waiter: Waiter) -> None:
        self._ledger = ledger
        self._settling = settling
        self._waiter = waiter

    def slot_of(self, req: Request, image_id: str) -> Slot:
        require_json(req)
        return Slot(record_path(image_id), image_id, RECORD_SECONDS)

    async def on_get(self, req: Request, resp: Response, image_id: str) -> None:
        wait = wait_of(req.get_header("Prefer"))
        image = await self._waiter.until_final(image_id, wait or 0)
        if image is None or image.status is Status.DELETING:
            raise Problem("no-such-image")
        if image.status is Status.READY:
            allow_copy(req)
            _set_json(resp, record_of(image), etag=True)
            return
        if not image.status.is_final:
            resp.set_header("Retry-After", str(RETRY_SECONDS))
        _set_json(resp, record_of(image), etag=False)

    on_head = on_get

    async def on_delete(self, req: Request, resp: Response, image_id: str) -> None:
        meant = await self._meant(req, resp, image_id) if _CONDITIONS & req.headers_lower.keys() else None
        image = await self._ledger.delete(image_id, meant)
        if image is None:
            await self._refuse_delete(image_id)
        try:
            await to_the_end(self._settling.settle(image))
        except AsgilookError as exc:
            # The image is deleted for every client. The sweep removes the files.
            logger.warning("leftovers of a deleted image remain", extra={"image": image_id, "reason": str(exc)})
        resp.status = falcon.HTTP_204
        resp.set_header("Cache-Control", "no-store")

    async def _refuse_delete(self, image_id: str) -> NoReturn:
        image = await self._ledger.get(image_id)
        if image is not None and image.status is not Status.DELETING:
            # The image changed after its conditions were checked.
            raise Problem("precondition-failed")
        if image is not None:
            # The process that deletes the image may not have changed its tokens yet. After this 404 the client must
            # find no copy.
            await self._settling.settle_tokens(image)
        raise Problem("no-such-image")

    async def _meant(self, req: Request, resp: Response, image_id: str) -> Image:
        """Return the image that the request's conditions hold for. Raises Problem if they do not hold."""
        image = await self._ledger.get(image_id)
        if image is None or image.status is Status.DELETING:
            await self._refuse_delete(image_id)
        # An image that is not ready has no ETag. The empty one matches none.
        etag = etag_of(body_of(record_of(image))) if image.status is Status.READY else ""
        decision = conditional.decide("DELETE", req.headers_lower, etag=etag, last_modified=image.modified, length=None)
        apply_decision(resp, decision, 0)
        return image


class Retry:
    """`/images/{id}/retry`."""

    def __init__(self, ledger: Ledger, settling: Settling, queue: Queue) -> None:
        self._ledger = ledger
        self._settling = settling
        self._queue = queue

    async def on_post(self, req: Request, resp: Response, image_id: str) -> None:
        image = await self._ledger.retry(image_id)
        if image is None:
            image = await self._ledger.get(image_id)
            if image is not None:
                image = await self._settling.settle_tokens(image)
            if image is None or image.status is Status.DELETING:
                raise Problem("no-such-image")
            raise Problem("not-failed", f"The image is {image.status}.")
        enqueued = await self._queue.try_enqueue(image)
        resp.status = falcon.HTTP_202
        resp.set_header("Location", record_path(image_id))
        resp.set_header("Retry-After", str(RETRY_SECONDS if enqueued else TROUBLE_SECONDS))
        _set_json(resp, record_of(image), etag=False)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _set_json(resp: Response, content: object, etag: bool) -> None:
    resp.data = body_of(content)
    resp.content_type = falcon.MEDIA_JSON
    resp.set_header("Cache-Control", "no-cache" if etag else "no-store")
    if etag:
        resp.set_header("ETag", etag_of(resp.data))


def _failed(image: Image, wait: int | None) -> Problem:
    """Return the problem of an upload that failed while its client waited."""
    name = image.error_type or "worker-lost"
    return Problem(
        name,
        image.error_detail,
        headers={"Location": record_path(image.id)} | ({} if wait is None else {"Preference-Applied": f"wait={wait}"}),
        extra={"image": record_of(image)},
    )
