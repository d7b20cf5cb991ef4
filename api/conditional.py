"""The outcome of a conditional or partial request, decided from its headers (RFC 9110, sections 8.8, 13 and 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import falcon

#: The headers that make a GET conditional or partial, in lower case.
HEADERS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "if-range", "range"))


@dataclass(frozen=True)
class Whole:
    """Send all of it: 200."""


@dataclass(frozen=True)
class NotModified:
    """The client already has the representation: 304."""


@dataclass(frozen=True)
class Part:
    """Send the bytes `first` to `last`, both included: 206."""

    first: int
    last: int


@dataclass(frozen=True)
class Unsatisfiable:
    """The range asked for lies past the end: 416."""


@dataclass(frozen=True)
class PreconditionFailed:
    """The client's condition names another representation: 412, and nothing is changed."""


Decision = Whole | NotModified | Part | Unsatisfiable | PreconditionFailed


def decide(
    method: str,
    headers: Mapping[str, str],
    *,
    etag: str,
    last_modified: float | None,
    length: int | None,
) -> Decision:
    """Decide the outcome of a request for a representation that exists.

    A malformed If-Match fails, a malformed If-Range never matches, and any other malformed condition is ignored.
    `headers` has lower-case names, with several lines of one name joined by commas. `last_modified` is in seconds since
    the epoch. Without a `length`, Range is ignored.
    """
    if len(headers) == 1 and headers.get("if-none-match") == etag and method == "GET":
        return NotModified()  # the most frequent conditional request: a browser's
    if _is_another(headers, etag, last_modified):
        return PreconditionFailed()
    if method not in ("GET", "HEAD"):
        return PreconditionFailed() if "if-none-match" in headers and _is_held_already(headers, etag, None) else Whole()
    if _is_held_already(headers, etag, last_modified):
        return NotModified()
    wanted = headers.get("range")
    if method == "GET" and wanted is not None and length is not None and _may_go_on(headers, etag, last_modified):
        return _range_of(wanted, length)
    return Whole()


def strong_etag(digest: str) -> str:
    """Return the strong ETag of a representation that has this digest, in hex."""
    return f'"{digest}"'


def content_range(decision: Part | Unsatisfiable, length: int) -> str:
    """Return the Content-Range that goes with a 206 or a 416."""
    match decision:
        case Part(first, last):
            return f"bytes {first}-{last}/{length}"
        case Unsatisfiable():
            return f"bytes */{length}"


_TAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_WEAK_AND_TAG = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
_TAG_LIST = re.compile(rf"[ \t,]*{_TAG.pattern}(?:[ \t]*,[ \t,]*{_TAG.pattern})*[ \t,]*")


def _is_another(headers: Mapping[str, str], etag: str, last_modified: float | None) -> bool:
    tags = headers.get("if-match")
    if tags is not None:
        # Section 13.1.1: the comparison is strong, so a weak tag never matches. A malformed list matches nothing.
        given = _WEAK_AND_TAG.findall(tags) if _TAG_LIST.fullmatch(tags) else []
        held = [tag for weak, tag in given if not weak]
        return tags.strip(" \t") != "*" and etag not in held
    since = _seconds_of(headers.get("if-unmodified-since"))
    return since is not None and last_modified is not None and int(last_modified) > since


def _is_held_already(headers: Mapping[str, str], etag: str, last_modified: float | None) -> bool:
    tags = headers.get("if-none-match")
    if tags is not None:
        # Section 13.1.3: If-Modified-Since is ignored beside If-None-Match, even if the tags are malformed.
        return tags.strip(" \t") == "*" or (
            _TAG_LIST.fullmatch(tags) is not None and etag.removeprefix("W/") in _TAG.findall(tags)
        )
    since = _seconds_of(headers.get("if-modified-since"))
    return since is not None and last_modified is not None and int(last_modified) <= since


def _may_go_on(headers: Mapping[str, str], etag: str, last_modified: float | None) -> bool:
    validator = headers.get("if-range")
    if validator is None:
        return True
    validator = validator.strip(" \t")
    if validator.startswith('"'):
        return validator == etag
    # A weak tag cannot be parsed as a date, so it never matches.
    date = _seconds_of(validator)
    return date is not None and last_modified is not None and int(last_modified) == date


_ONE_RANGE = re.compile(r"bytes=[ \t,]*([0-9]*)-([0-9]*)[ \t,]*", re.IGNORECASE | re.ASCII)


def _range_of(wanted: str, length: int) -> Whole | Part | Unsatisfiable:
    match = _ONE_RANGE.fullmatch(wanted.strip(" \t"))
    if match is None or not (match[1] or match[2]):
        return Whole()
    if not match[1]:
        suffix = _position(match[2])
        if suffix == 0:
            return Unsatisfiable()
        # An empty file satisfies every suffix range, but no Content-Range can express an empty part.
        return Part(max(length - suffix, 0), length - 1) if length else Whole()
    first = _position(match[1])
    last = _position(match[2]) if match[2] else max(first, length - 1)
    if last < first:
        return Whole()
    return Part(first, min(last, length - 1)) if first < length else Unsatisfiable()


def _position(digits: str) -> int:
    # int() takes quadratic time, and raises ValueError past a few thousand digits.
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) < 20 else 10**20


def _seconds_of(date: str | None) -> float | None:
    """Return the seconds since the epoch of a date in any of the three forms of section 5.6.7; None if malformed."""
    if date is None:
        return None
    try:
        return falcon.http_date_to_dt(date.strip(" \t"), obs_date=True).timestamp()
    except ValueError:
        return None
