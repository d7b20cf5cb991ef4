"""Answers that the connection can give before there is a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from api.server.asgi_types import Headers


class Answer(NamedTuple):
    """A whole answer, its header lines in one piece."""

    status: int
    #: The template of the route, for metrics.
    route: str
    #: The value of X-ASGILook-Cache, for the log.
    cache: str
    #: The header lines, content-length included; those of other origins and `safety` follow.
    lines: bytes
    #: The lines of SAFETY_HEADERS that `lines` lacks.
    safety: bytes
    #: Empty for a HEAD.
    body: bytes


#: Returns the answer to a method, a path, a query and headers, or None where the application has to answer. It waits
#: for nothing.
AtOnce = Callable[[str, str, str, Headers], Answer | None]
