"""Problem details (RFC 9457), and the one map from errors to HTTP statuses."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import falcon
import falcon.asgi
from falcon.media.multipart import MultipartParseError

from api.server.request_body import UploadStalled
from shared.errors import (
    DigestMismatch,
    DiskAtFloor,
    EmptyUpload,
    LedgerUnavailable,
    StorageFull,
    StorageUnavailable,
    TooManyWaiting,
    TruncatedUpload,
    UnknownFormat,
    UploadTooLarge,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
#: Retry-After in seconds, for an image that is not ready yet.
RETRY_SECONDS = 1
#: Retry-After in seconds, while a part of the service is in trouble.
TROUBLE_SECONDS = 5

#: Problem type, then its HTTP status and its title.
TITLES: dict[str, tuple[int, str]] = {
    # Requests
    "not-found": (404, "There is nothing here"),
    "method-not-allowed": (405, "This path does not take this method"),
    "not-acceptable": (406, "This can only be sent as JSON"),
    "missing-token": (401, "Writing needs a token"),
    "wrong-token": (401, "The token is not the right one"),
    "invalid-limit": (400, "The limit is not a number from 1 to 1000"),
    "invalid-after": (400, "The place to begin after makes no sense"),
    "invalid-status": (400, "There is no such status"),
    "invalid-order": (400, "There is no such order"),
    "range-not-satisfiable": (416, "The range begins past the end"),
    "precondition-failed": (412, "It is not what the request was meant for"),
    "bad-request": (400, "The request makes no sense"),
    # Requests that the connection refuses before routing
    "malformed-request": (400, "This is not HTTP as we read it"),
    "head-too-slow": (408, "The request's headers took too long"),
    "target-too-long": (414, "The address is too long"),
    "head-too-large": (431, "The request's headers are too large"),
    "unsupported-coding": (501, "No Transfer-Encoding is taken but chunked"),
    "unsupported-version": (505, "This is not HTTP/1.1"),
    "too-many-connections": (503, "Too many connections are open"),
    # Uploads
    "empty-upload": (400, "The upload is empty"),
    "truncated-upload": (400, "The upload ended before its end"),
    "malformed-multipart": (400, "The form cannot be read"),
    "no-file": (400, "The form has no file in it"),
    "several-files": (400, "The form has more than one file in it"),
    "malformed-digest": (400, "The Content-Digest cannot be read"),
    "digest-mismatch": (400, "The content is not what its digest says"),
    "upload-stalled": (408, "The upload took too long"),
    "upload-too-large": (413, "The upload is too large"),
    "unsupported-format": (415, "This is not a picture of a format we take"),
    "unsupported-encoding": (415, "Content-Encoding is not supported"),
    "unsupported-media-type": (415, "This media type is not taken here"),
    # Images
    "no-such-image": (404, "There is no such image"),
    "no-such-size": (404, "The image has no thumbnail of this size"),
    "not-ready": (404, "The image is not ready yet"),
    "image-failed": (404, "The image could not be made"),
    "not-failed": (409, "Only a failed image can be retried"),
    "rendition-missing": (503, "This picture is being made again"),
    # A failed conversion, answered to an upload that waited for it
    "unreadable-image": (422, "The file is no picture that can be read"),
    "image-too-large": (422, "The picture is too large"),
    "render-timed-out": (422, "The picture takes too long to render"),
    "render-out-of-memory": (422, "The picture takes too much memory to render"),
    "decoder-crashed": (422, "The picture makes its decoder crash"),
    "worker-lost": (500, "The picture's rendering was lost"),
    # The service itself
    "storage-full": (507, "There is no room for another upload"),
    "too-many-waiting": (503, "Too many images are waiting"),
    "unavailable": (503, "A part of the service is away"),
    "shutting-down": (503, "The server is shutting down"),
    "internal-error": (500, "Something went wrong on our side"),
}


class Problem(Exception):
    """A refusal or a failure, with the answer that the client gets. `extra` members are added to the JSON body."""

    def __init__(
        self,
        name: str,
        detail: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(name)
        self.name = name
        self.status, self.title = TITLES[name]
        self.detail = detail
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def body(self) -> bytes:
        problem: dict[str, Any] = {"type": problem_type(self.name), "title": self.title, "status": self.status}
        if self.detail is not None:
            problem["detail"] = self.detail
        return json.dumps(problem | self.extra).encode()

    @property
    def raw_headers(self) -> list[tuple[bytes, bytes]]:
        """The headers of an answer that is sent without falcon."""
        headers = {"content-type": MEDIA_TYPE, "content-length": str(len(self.body)), "cache-control": "no-store"}
        return [(name.lower().encode(), value.encode()) for name, value in (headers | self.headers).items()]


def problem_type(name: str) -> str:
    """Return the URI that identifies a kind of problem."""
    return f"urn:asgilook:problem:{name}"


def unavailable(detail: str) -> Problem:
    """Return the 503 for a part of the service that cannot be reached at the moment."""
    return Problem("unavailable", detail, headers={"Retry-After": str(TROUBLE_SECONDS)})


def add_handlers(app: falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]) -> None:
    """Make the app answer every exception with a problem."""

    async def handle(
        req: falcon.asgi.Request, resp: falcon.asgi.Response, error: Exception, params: dict[str, Any], **kw: Any
    ) -> None:
        _answer(resp, _translated(error))

    app.add_error_handler(Exception, handle)
    app.add_error_handler(falcon.HTTPError, handle)


def _answer(resp: falcon.asgi.Response, problem: Problem) -> None:
    resp.status = HTTPStatus(problem.status)
    # The responder may have set headers and a body for a success before it raised.
    for name in list(resp.headers):
        resp.delete_header(name)
    resp.stream = None
    resp.text = None
    resp.data = problem.body
    resp.content_type = MEDIA_TYPE
    resp.set_header("Cache-Control", "no-store")
    for name, value in problem.headers.items():
        resp.set_header(name, value)


def _translated(error: Exception) -> Problem:
    match error:
        case Problem():
            return error
        case EmptyUpload():
            return Problem("empty-upload")
        case UnknownFormat():
            return Problem("unsupported-format", str(error))
        case UploadTooLarge():
            # On a connection that stays open, the server would have to read the rest of the body.
            return Problem("upload-too-large", str(error), headers={"Connection": "close"})
        case TruncatedUpload():
            return Problem("truncated-upload")
        case DigestMismatch():
            return Problem("digest-mismatch", str(error))
        case DiskAtFloor():
            return Problem("storage-full", headers={"Retry-After": "60"})
        case TooManyWaiting():
            return Problem("too-many-waiting", headers={"Retry-After": str(TROUBLE_SECONDS)})
        case UploadStalled():
            return Problem("upload-stalled", str(error), headers={"Connection": "close"})
        case MultipartParseError():
            return Problem("malformed-multipart", error.description)
        case StorageFull():
            logger.error("storage is full", extra={"reason": str(error)})
            return Problem("storage-full", headers={"Retry-After": "60"})
        case StorageUnavailable():
            logger.error("storage is away", extra={"reason": str(error)})
            return unavailable("Storage is away.")
        case LedgerUnavailable():
            logger.error("the ledger is away", extra={"reason": str(error)})
            return unavailable("The ledger is away.")
        case falcon.HTTPMethodNotAllowed():
            return Problem("method-not-allowed", headers=dict(error.headers or {}))
        case falcon.HTTPNotFound():
            return Problem("not-found")
        case falcon.HTTPError() if error.status_code < 500:
            return Problem("bad-request", error.description or error.title)
        case _:
            logger.error("a request failed", exc_info=error)
            return Problem("internal-error")
