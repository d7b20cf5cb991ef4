"""The headers that the server adds to every answer: safety headers, and CORS headers (the Fetch standard).

CORS is off by default. The guard adds these headers last, so errors have them and copies in the response cache do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.server.asgi_types import Headers

#: Added where the application has not set them: no answer is a document that may run a script.
SAFETY_HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

_METHODS = b"GET, HEAD, POST, DELETE"
#: `*` would not include Authorization.
_REQUEST_HEADERS = (
    b"Authorization, Content-Type, Content-Digest, Prefer, Range, If-Range, If-Match, If-None-Match, "
    b"If-Modified-Since, If-Unmodified-Since, X-Request-ID, Traceparent, Tracestate"
)
#: Scripts may always read some headers, such as Cache-Control and Content-Type; these are the others.
_EXPOSED_HEADERS = (
    b"Location, Content-Location, ETag, Link, Retry-After, Preference-Applied, X-ASGILook-Cache, Accept-Ranges, "
    b"Content-Range, WWW-Authenticate"
)
#: No browser remembers a preflight for longer.
_PREFLIGHT_SECONDS = b"7200"


def cors_headers(allowed: Sequence[str], origin: bytes | None) -> Headers:
    """Return the CORS headers of an answer to a request from this origin."""
    if "*" in allowed:
        return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED_HEADERS)]
    if not allowed:
        return []
    # Also without an origin: a cache must not give this answer to a request that has one.
    headers: Headers = [(b"vary", b"Origin")]
    if origin is not None and origin.decode("latin-1") in allowed:
        headers += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED_HEADERS)]
    return headers


def preflight_headers(allowed: Sequence[str], method: str, headers: Headers) -> Headers | None:
    """Return the further headers of an answer to a preflight, or None if the request is not one."""
    names = {name for name, _ in headers}
    if not allowed or method != "OPTIONS" or not {b"origin", b"access-control-request-method"} <= names:
        return None
    return [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]


def lines_of(headers: Headers) -> bytes:
    """Return headers as they are sent."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])
