"""The headers that the server adds to every answer: safety headers, and CORS headers (the Fetch standard).

CORS is off by default. The guard adds these headers last, so errors have them and copies in the response cache do not.
"""

from __future__ import annotations

from collections.abc import Sequence

from api.server.asgi_types import Headers

#: Added if the application has not set them. With them, no answer is a document that may run a script.
SAFETY_HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

_METHODS = b"GET, HEAD, POST, DELETE"
#: A list, because `*` does not include Authorization.
_REQUEST_HEADERS = (
    b"Authorization, Content-Type, Content-Digest, Prefer, Range, If-Range, If-Match, If-None-Match, "
    b"If-Modified-Since, If-Unmodified-Since, X-Request-ID, Traceparent, Tracestate"
)
#: Headers that scripts may read only if they are listed. Cache-Control, Content-Type and a few others need no listing.
_EXPOSED_HEADERS = (
    b"Location, Content-Location, ETag, Link, Retry-After, Preference-Applied, X-ASGILook-Cache, Accept-Ranges, "
    b"Content-Range, WWW-Authenticate"
)
#: The longest time for which any browser remembers a preflight.
_PREFLIGHT_SECONDS = b"7200"


def cors_headers(allowed: Sequence[str], origin: bytes | None) -> Headers:
    """Return the CORS headers of an answer to a request from this origin."""
    if "*" in allowed:
        return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", _EXPOSED_HEADERS)]
    if not allowed:
        return []
    # Vary is set also without an Origin: a cache must not reuse this answer for a request that has one.
    headers: Headers = [(b"vary", b"Origin")]
    if origin is not None and origin.decode("latin-1") in allowed:
        headers += [(b"access-control-allow-origin", origin), (b"access-control-expose-headers", _EXPOSED_HEADERS)]
    return headers


def preflight_headers(allowed: Sequence[str], method: str, headers: Headers) -> Headers | None:
    """Return the additional headers of the answer to a preflight, or None if the request is no preflight."""
    names = {name for name, _ in headers}
    if not allowed or method != "OPTIONS" or not {b"origin", b"access-control-request-method"} <= names:
        return None
    return [
        (b"access-control-allow-methods", _METHODS),
        (b"access-control-allow-headers", _REQUEST_HEADERS),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]


def lines_of(headers: Headers) -> bytes:
    """Return the header lines as they are sent, each with its line end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])
