"""Answers GET and HEAD of renditions that this process holds in memory, before a task is created."""

from __future__ import annotations

from collections.abc import Callable

from api import conditional
from api.problems import Problem
from api.renditions.memory import Entry, Memory
from api.server.asgi_types import Headers
from api.server.guard import Answer

#: Raises Problem if a request is refused. Arguments: route, image id, query, headers.
Authorize = Callable[[str, str | None, str, Headers], None]

FULL_ROUTE, THUMBNAIL_ROUTE = "/images/{image_id}.jpeg", "/thumbnails/{image_id}/{size}.jpeg"

_CONDITIONAL = {name.encode(): name for name in conditional.HEADERS}


class MemoryDoor:
    """The way to answer "at once". Any answer other than 200 or 304 is left to the application."""

    def __init__(self, memory: Memory, authorize: Authorize) -> None:
        self._memory = memory
        self._authorize = authorize

    def answer(self, method: str, path: str, query: str, headers: Headers) -> Answer | None:
        """Return the answer, or None if the application must answer."""
        if method not in ("GET", "HEAD"):
            return None
        entry = self._memory.entry(path)
        if entry is None:
            return None
        route = FULL_ROUTE if path.startswith("/images/") else THUMBNAIL_ROUTE
        try:
            self._authorize(f"GET {route}", entry.image_id, query, headers)
        except Problem:
            return None
        decision = _decided(method, headers, entry)
        if isinstance(decision, conditional.Whole):
            status, lines, body = 200, entry.lines, entry.body if method == "GET" else b""
        elif isinstance(decision, conditional.NotModified):
            status, lines, body = 304, entry.unmodified, b""
        else:
            return None
        return Answer(status, route, "Hit", lines, entry.safety, body)


def _decided(method: str, headers: Headers, entry: Entry) -> conditional.Decision | None:
    given = [header for header in headers if header[0] in _CONDITIONAL]
    if not given:
        return conditional.Whole()
    conditions = {_CONDITIONAL[name]: value.decode("latin-1") for name, value in given}
    if len(conditions) < len(given):
        return None  # several lines of one name
    etag, last_modified = entry.validators
    return conditional.decide(method, conditions, etag=etag, last_modified=last_modified, length=len(entry.body))
