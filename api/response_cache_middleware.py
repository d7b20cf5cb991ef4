"""The middleware that answers from copies, stores copies, and applies conditions to every answer."""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, Protocol

import falcon
from falcon.asgi import Request, Response

from api import conditional
from api.problems import Problem
from api.renditions.flights import Flights
from api.renditions.memory import Memory, Moment
from api.renditions.x_accel import HEADERS
from shared.redis.circuit_breaker import RedisAway
from shared.redis.response_cache import Copy, Lookup, ResponseCache, Slot

_HEADER = "X-ASGILook-Cache"


class SlotOf(Protocol):
    """The method `slot_of` of a resource whose GET may be answered from a copy."""

    def __call__(self, req: Request, **params: Any) -> Slot | None:
        """Return the slot of the answer's copy, or None if the answer is not cached. Raises Problem."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The cache token and the moment before an answer's source is read. The token is empty if Redis gave none."""

    token: bytes
    began: Moment


class ResponseCacheMiddleware:
    """Falcon middleware around every resource that has a `slot_of`.

    The lookup tries this process's memory (renditions only), then Redis. A responder calls `allow_copy` if its answer
    may be copied. Only answers with status 200 are copied.
    """

    def __init__(self, cache: ResponseCache, memory: Memory) -> None:
        self._cache = cache
        self._memory = memory
        self._lookups: Flights[Lookup | None] = Flights(memory)

    async def process_resource(self, req: Request, resp: Response, resource: Any, params: dict[str, Any]) -> None:
        slot_of: SlotOf | None = getattr(resource, "slot_of", None)
        if slot_of is None or req.method not in ("GET", "HEAD"):
            return
        slot = slot_of(req, **params)
        if slot is None:
            return
        if slot.is_rendition and (entry := self._memory.entry(slot.path)) is not None:
            _answer_with_copy(req, resp, entry.copy)
            return
        began = self._memory.now()
        lookup, is_first = await self._look(slot, began)
        req.context.slot = slot
        if lookup is None or lookup.copy is None:
            req.context.reading = Reading(b"" if lookup is None else lookup.token, began)
            return
        if slot.is_rendition and is_first and req.method == "GET":
            self._memory.keep_entry(slot.path, slot.topic, lookup.copy, began)
        _answer_with_copy(req, resp, lookup.copy)

    async def process_response(self, req: Request, resp: Response, resource: Any, req_succeeded: bool) -> None:
        if not req_succeeded or resp.status_code != 200 or req.method not in ("GET", "HEAD"):
            return
        is_hit, may_copy = req.context.get("is_hit", False), req.context.get("may_copy", False)
        if may_copy and req.method == "GET":
            self._keep(req, resp)
        if is_hit or may_copy:
            resp.set_header(_HEADER, "Hit" if is_hit else "Miss")
        is_conditional = not conditional.HEADERS.isdisjoint(req.headers_lower)
        if is_conditional and isinstance(resp.data, bytes) and (etag := resp.get_header("ETag")):
            _apply_conditions(req, resp, etag, resp.data)

    async def _look(self, slot: Slot, began: Moment) -> tuple[Lookup | None, bool]:
        async def look() -> Lookup | None:
            try:
                return await self._cache.read(slot) if slot.is_in_redis else None
            except RedisAway:
                return None

        if slot.is_rendition:
            return await self._lookups.join(slot.path, slot.topic, began, look)
        return await look(), True

    def _keep(self, req: Request, resp: Response) -> None:
        """Store the whole answer, before conditions reduce it to a part or a 304."""
        slot: Slot | None = req.context.get("slot")
        reading: Reading | None = req.context.get("reading")
        if slot is None or reading is None or not isinstance(resp.data, bytes):
            return
        copy = Copy.of(200, resp.headers.items(), resp.data)
        if slot.is_rendition:
            self._memory.keep_entry(slot.path, slot.topic, copy, reading.began)
        if slot.is_in_redis:
            self._cache.fill(slot, reading.token, copy)


def allow_copy(req: Request) -> None:
    """Mark this request's answer as one that may be copied: it depends on ready images only."""
    req.context.may_copy = True


def set_copy(resp: Response, copy: Copy) -> None:
    """Set the answer's headers and body from a copy."""
    for name, value in copy.headers:
        resp.set_header(name, value)
    resp.data = copy.body


def apply_decision(resp: Response, decision: conditional.Decision, length: int) -> None:
    """Set status and headers for a condition's outcome. The caller sets the body. Raises Problem for 412 and 416."""
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


def _answer_with_copy(req: Request, resp: Response, copy: Copy) -> None:
    req.context.is_hit = True
    set_copy(resp, copy)
    # Falcon then skips the responder, but not the middleware's process_response.
    resp.complete = True


def _apply_conditions(req: Request, resp: Response, etag: str, body: bytes) -> None:
    """Reduce a whole answer to what the request's conditions allow (RFC 9110, section 13.2.2)."""
    modified = resp.get_header("Last-Modified")
    is_sent_by_proxy = not HEADERS.isdisjoint(resp.headers)
    # If the proxy sends the file, the proxy also serves its ranges.
    takes_ranges = resp.get_header("Accept-Ranges") == "bytes" and not is_sent_by_proxy
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
        for name in HEADERS if is_sent_by_proxy else ():
            resp.delete_header(name)
