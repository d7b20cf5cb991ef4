"""Rows as JSON: the record of an image, and pages of records."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import formatdate
from typing import Any
from urllib.parse import parse_qs, urlencode

from api.problems import Problem, problem_type
from api.urls import ImageIdConverter, jpeg_path, thumbnail_path
from shared.images import Image, Status

DEFAULT_LIMIT = 100
MOST_LIMIT = 1000
_LISTED_STATUSES = (Status.QUEUED, Status.PROCESSING, Status.READY, Status.FAILED)


def record_of(image: Image) -> dict[str, Any]:
    """Return the record that clients see. The five keys of falcon's tutorial are unchanged."""
    is_ready = image.status is Status.READY
    return {
        "id": image.id,
        "status": str(image.status),
        "image": jpeg_path(image.id) if is_ready else None,
        "modified": formatdate(image.modified, usegmt=True),
        "size": list(image.size) if is_ready and image.size else None,
        "thumbnails": [thumbnail_path(image.id, t.size) for t in image.thumbnails] if is_ready else [],
        "created": datetime.fromtimestamp(image.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "sequence": image.sequence if is_ready else None,
        "original": {
            "type": image.original.type,
            "bytes": image.original.bytes,
            "sha256": image.original.sha256,
        },
        "error": (
            {"type": problem_type(image.error_type), "detail": image.error_detail}
            if image.status is Status.FAILED and image.error_type
            else None
        ),
    }


def body_of(content: object) -> bytes:
    """Return compact JSON. Equal content gives equal bytes."""
    return json.dumps(content, separators=(",", ":")).encode()


def etag_of(body: bytes) -> str:
    """Return a strong ETag of this body."""
    return f'"{hashlib.sha256(body).hexdigest()[:32]}"'


@dataclass(frozen=True)
class Page:
    """The parameters of a list request. `after` is a sequence for ready images, an id for any other status."""

    status: Status
    limit: int
    newest_first: bool
    after: int | str | None

    @classmethod
    def parse(cls, query: str) -> Page:
        """Parse a query string. Raises Problem for an invalid value. Unknown parameters are ignored."""
        values = parse_qs(query, keep_blank_values=True)
        status = _one(values, "status", "invalid-status")
        if status is None:
            status = Status.READY
        elif status not in _LISTED_STATUSES:
            raise Problem("invalid-status", f"Known are: {', '.join(_LISTED_STATUSES)}.")
        limit = _one(values, "limit", "invalid-limit")
        if limit is not None and (not _is_number(limit) or not 1 <= int(limit) <= MOST_LIMIT):
            raise Problem("invalid-limit")
        order = _one(values, "order", "invalid-order")
        if order not in (None, "asc", "desc"):
            raise Problem("invalid-order", "Known are: asc, desc.")
        return cls(
            status=Status(status),
            limit=DEFAULT_LIMIT if limit is None else int(limit),
            newest_first=order == "desc",
            after=_after(_one(values, "after", "invalid-after"), Status(status)),
        )

    @property
    def path(self) -> str:
        """The canonical path of this page, for example `/images?limit=10`. Equal pages have equal paths."""
        parameters: dict[str, object] = {}
        if self.status is not Status.READY:
            parameters["status"] = self.status
        if self.limit != DEFAULT_LIMIT:
            parameters["limit"] = self.limit
        if self.newest_first:
            parameters["order"] = "desc"
        if self.after is not None:
            parameters["after"] = self.after
        return f"/images?{urlencode(parameters)}" if parameters else "/images"

    def next_link(self, images: Sequence[Image]) -> str | None:
        """Return the Link header (RFC 8288) to the next page, or None if `images` has no more than `limit`."""
        if len(images) <= self.limit:
            return None
        last = images[self.limit - 1]
        after = last.sequence if self.status is Status.READY else last.id
        following = Page(self.status, self.limit, self.newest_first, after)
        return f'<{following.path}>; rel="next"'


def _one(values: dict[str, list[str]], name: str, problem: str) -> str | None:
    given = values.get(name)
    if given is None:
        return None
    if len(given) > 1:
        raise Problem(problem, f"{name} is given more than once.")
    return given[0]


def _after(text: str | None, status: Status) -> int | str | None:
    if text is None:
        return None
    if status is Status.READY:
        if not _is_number(text):
            raise Problem("invalid-after", "It is the sequence of a ready image: a whole number.")
        return int(text)
    if ImageIdConverter().convert(text) is None:
        raise Problem("invalid-after", "It is the id of an image, where images of one status are listed.")
    return text


def _is_number(text: str) -> bool:
    # Every number of 18 digits fits into 63 bits.
    return re.fullmatch(r"[0-9]{1,18}", text) is not None
