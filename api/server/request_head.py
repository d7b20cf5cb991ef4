"""Checks of a request's head. Pure functions that raise Problem."""

from __future__ import annotations

import re

import httptools

from api.problems import Problem
from api.server.asgi_types import Headers

#: The limit of a head, and of a chunked body's framing: extensions and trailers. The check runs after each piece of
#: data, so a little more is held for a moment.
MOST_HEAD_BYTES = 32 * 1024
MOST_TARGET_BYTES = 8 * 1024
MOST_HEADERS = 100

#: RFC 3986, section 3.2, without user information.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")


def check_head(version: str, target: bytes, headers: Headers) -> None:
    """Raise Problem if a complete head is too long or ambiguous."""
    if len(target) > MOST_TARGET_BYTES:
        raise Problem("target-too-long")
    if len(headers) > MOST_HEADERS:
        raise Problem("head-too-large", f"At most {MOST_HEADERS} headers are taken.")
    if version not in ("1.1", "1.0"):
        raise Problem("unsupported-version")
    # uvicorn fails if the target has no path.
    if not target.startswith(b"/") and httptools.parse_url(target).path is None:
        raise Problem("malformed-request", "The target has no path.")
    if b"#" in target:
        raise Problem("malformed-request", "The target has a fragment.")
    size = len(target)
    hosts, host, codings, coding, has_length = 0, b"", 0, b"", False
    for name, value in headers:
        size += len(name) + len(value)
        if name == b"host":
            hosts, host = hosts + 1, value
        elif name == b"transfer-encoding":
            codings, coding = codings + 1, value
        elif name == b"content-length":
            has_length = True
    if size > MOST_HEAD_BYTES:
        raise Problem("head-too-large")
    # RFC 9112, section 3.2
    if hosts > 1 or (version == "1.1" and not hosts) or not _HOST.fullmatch(host.strip(b" \t")):
        raise Problem("malformed-request", "There must be one Host.")
    if codings:
        # RFC 9112, section 6.1: an older proxy may have found another end of the body.
        if version == "1.0" or has_length:
            raise Problem("malformed-request", "Its body could be framed in two ways.")
        if codings > 1 or coding.strip(b" \t").lower() != b"chunked":
            raise Problem("unsupported-coding")


def check_partial_head(size: int, target: bytes, headers: Headers) -> None:
    """Raise Problem if an incomplete head is already too long. `size` is the bytes received so far."""
    if size > MOST_HEAD_BYTES or len(headers) > MOST_HEADERS:
        raise Problem("target-too-long" if len(target) > MOST_TARGET_BYTES else "head-too-large")


def check_framing(size: int) -> None:
    """Raise Problem if a body has too many bytes of framing. `size` counts them."""
    if size > MOST_HEAD_BYTES:
        raise Problem("malformed-request", "The body has more framing than content.")
