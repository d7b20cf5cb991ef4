"""Answers GET and HEAD of the renditions that this process holds in memory, before there is a task."""

from __future__ import annotations

import re
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import lru_cache

from api import conditional
from api.problems import Problem
from api.renditions.memory import Entry, Recent
from api.server.asgi_types import Headers
from api.server.at_once import Answer

#: Raises Problem where a request for an image is refused: by its route, the image's id, its query and its headers.
Authorize = Callable[[str, str | None, str, Headers], None]

FULL_ROUTE, THUMBNAIL_ROUTE = "/images/{image_id}.jpeg", "/thumbnails/{image_id}/{size}.jpeg"

_CONDITIONAL = frozenset(
    (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"range")
)
_LAST_MODIFIED = re.compile(rb"(?<![^\n])last-modified: ([^\r]*)")


class MemoryDoor:
    """The way "at once" to serve a rendition. Everything but a 200 or a 304 is left to the application."""

    def __init__(self, memory: Recent, authorize: Authorize) -> None:
        self._memory = memory
        self._authorize = authorize

    def answer(self, method: str, path: str, query: str, headers: Headers) -> Answer | None:
        """Return the answer, or None where the application has to give it."""
        if method not in ("GET", "HEAD"):
            return None
        entry = self._memory.entry(path)
        if entry is None:
            return None
        route = FULL_ROUTE if path.startswith("/images/") else THUMBNAIL_ROUTE
        try:
            self._authorize(route, entry.image_id, query, headers)
        except Problem:
            return None
        match _decided(method, headers, entry):
            case conditional.Whole():
                status, lines, body = 200, entry.lines, entry.body if method == "GET" else b""
            case conditional.NotModified():
                status, lines, body = 304, entry.unmodified, b""
            case _:
                return None
        return Answer(status, route, "Hit" if entry.is_hit else "Miss", lines, entry.safety, body)


def _decided(method: str, headers: Headers, entry: Entry) -> conditional.Decision | None:
    conditions: dict[str, str] = {}
    for name, value in headers:
        if name in _CONDITIONAL:
            text = name.decode("ascii")
            if text in conditions:
                return None
            conditions[text] = value.decode("latin-1")
    if not conditions:
        return _WHOLE
    return conditional.decide(
        method,
        conditions,
        etag=entry.etag.decode("latin-1"),
        last_modified=_last_modified_in(entry.unmodified),
        length=len(entry.body),
    )


_WHOLE = conditional.Whole()


@lru_cache(maxsize=1024)
def _last_modified_in(lines: bytes) -> float | None:
    found = _LAST_MODIFIED.search(lines)
    return parsedate_to_datetime(found[1].decode("latin-1")).timestamp() if found else None
