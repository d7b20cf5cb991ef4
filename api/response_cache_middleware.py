"""The middleware that answers from the response cache, fills it, and applies conditionals to either answer."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from typing import Any, Protocol, runtime_checkable

import falcon
from falcon.asgi import Request, Response

from api import conditional
from api.problems import Problem
from api.renditions.memory import found_in
from api.renditions.x_accel import HEADERS
from shared.redis.circuit_breaker import RedisAway
from shared.redis.response_cache import Copy, ResponseCache, Slot

_HEADER = "X-ASGILook-Cache"


@runtime_checkable
class Cacheable(Protocol):
    """A resource whose GET may be answered by a copy."""

    def slot_of(self, req: Request, **params: Any) -> Slot | None:
        """Return where the answer has its copy, or None where it has none. Raises Problem for a bad request."""


class ResponseCaching:
    """Falcon middleware around every resource that is Cacheable.

    A responder whose answer may be copied says so by `allow_copy(req)`: nothing unfinished and no error is.
    """

    def __init__(self, cache: ResponseCache) -> None:
        self._cache = cache

    async def process_resource(self, req: Request, resp: Response, resource: Any, params: dict[str, Any]) -> None:
        if not isinstance(resource, Cacheable) or req.method not in ("GET", "HEAD"):
            return
        slot = resource.slot_of(req, **params)
        if slot is None:
            return
        if (found := found_in(req.scope)) is not None:
            # Somebody has looked already, and Redis is not asked twice.
            if found.error is not None:
                raise found.error
            if found.entry is not None:
                _answer_with(req, resp, found.entry.copy, is_hit=found.entry.is_hit)
            return
        req.context.slot = slot
        try:
            lookup = await self._cache.read(slot)
        except RedisAway:
            return
        req.context.token = lookup.token
        if lookup.copy is not None:
            _answer_with(req, resp, lookup.copy, is_hit=True)

    async def process_response(self, req: Request, resp: Response, resource: Any, req_succeeded: bool) -> None:
        if not req_succeeded or resp.status_code != 200 or req.method not in ("GET", "HEAD"):
            return
        is_hit: bool | None = req.context.get("is_hit")
        if req.context.get("may_copy") and is_hit is None:
            await self._fill(req, resp)
        if is_hit is not None or req.context.get("may_copy"):
            resp.set_header(_HEADER, "Hit" if is_hit else "Miss")
        if isinstance(resp.data, bytes) and (etag := resp.get_header("ETag")):
            _apply_conditionals(req, resp, etag, resp.data)

    async def _fill(self, req: Request, resp: Response) -> None:
        token: bytes | None = req.context.get("token")
        if req.method != "GET" or token is None or not isinstance(resp.data, bytes):
            return
        if not HEADERS.isdisjoint(resp.headers):
            return  # A copy of nothing.
        copy = Copy.of(200, resp.headers.items(), resp.data)
        try:
            await self._cache.fill(req.context.slot, token, copy)
        except RedisAway:
            return


def _answer_with(req: Request, resp: Response, copy: Copy, is_hit: bool) -> None:
    req.context.is_hit = is_hit
    resp.status = falcon.code_to_http_status(copy.status)
    for name, value in copy.headers:
        resp.set_header(name, value)
    resp.data = copy.body
    # The responder is skipped, the middleware's process_response is not.
    resp.complete = True


def allow_copy(req: Request) -> None:
    """Let this request's answer be copied: it is about something that is ready."""
    req.context.may_copy = True


def _apply_conditionals(req: Request, resp: Response, etag: str, body: bytes) -> None:
    """Turn a whole answer into what the request's conditions ask for (RFC 9110, section 13.2.2)."""
    modified = resp.get_header("Last-Modified")
    is_handed_over = not HEADERS.isdisjoint(resp.headers)
    # Where the server in front sends it, ranges are that one's.
    takes_ranges = resp.get_header("Accept-Ranges") == "bytes" and not is_handed_over
    decision = conditional.decide(
        req.method,
        req.headers_lower,
        etag=etag,
        last_modified=parsedate_to_datetime(modified).timestamp() if modified else None,
        length=len(body) if takes_ranges else None,
    )
    apply_decision(resp, decision, len(body))
    if isinstance(decision, conditional.Part):
        resp.data = body[decision.first : decision.last + 1]
    elif isinstance(decision, conditional.NotModified):
        resp.data = None
        for name in HEADERS if is_handed_over else ():
            resp.delete_header(name)


def apply_decision(resp: Response, decision: conditional.Decision, length: int) -> None:
    """Set status and headers for a conditional's outcome; the body is the caller's. Raises Problem for 412 and 416."""
    match decision:
        case conditional.NotModified():
            resp.status = falcon.HTTP_304
        case conditional.Part():
            resp.status = falcon.HTTP_206
            resp.set_header("Content-Range", conditional.content_range(decision, length))
        case conditional.PreconditionFailed():
            raise Problem("precondition-failed")
        case conditional.Unsatisfiable():
            raise Problem(
                "range-not-satisfiable", headers={"Content-Range": conditional.content_range(decision, length)}
            )
