"""Which other origins' scripts may use the service, in the words of the Fetch standard; by default none's.

The guard adds these headers to whatever leaves it: errors have them too, and no copy in the response cache does.
"""

from __future__ import annotations

from collections.abc import Sequence

Headers = list[tuple[bytes, bytes]]

_METHODS = b"GET, HEAD, POST, DELETE"
#: `*` would not take Authorization in.
_REQUEST_HEADERS = (
    b"Authorization, Content-Type, Content-Digest, Prefer, Range, If-Range, If-Match, If-None-Match, "
    b"If-Modified-Since, If-Unmodified-Since, X-Request-ID, Traceparent, Tracestate"
)
#: Beyond those that every script may read: Cache-Control, Content-Length, Content-Type, Last-Modified and the like.
_ANSWERS_HEADERS = (
    b"Location, Content-Location, ETag, Link, Retry-After, Preference-Applied, X-ASGILook-Cache, Accept-Ranges, "
    b"Content-Range, WWW-Authenticate"
)
#: As long as any browser remembers it.
_PREFLIGHT_SECONDS = b"7200"


def headers_for(allowed: Sequence[str], origin: bytes | None) -> Headers:
    """Return what an answer to a request of this origin has to say."""
    if "*" in allowed:
        return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _ANSWERS_HEADERS)]
    if not allowed:
        return []
    # Also where nothing is allowed, or no origin was named: the next one's answer from a cache is another.
    headers: Headers = [(b"vary", b"Origin")]
    if origin is not None and origin.decode("latin-1") in allowed:
        headers += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _ANSWERS_HEADERS)]
    return headers


def preflight_headers(allowed: Sequence[str], method: str, headers: Headers) -> Headers | None:
    """Return what an answer to a preflight says beyond that, or None where the request is none."""
    names = {name for name, _ in headers}
    if not allowed or method != "OPTIONS" or not {b"origin", b"access-control-request-method"} <= names:
        return None
    return [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]
