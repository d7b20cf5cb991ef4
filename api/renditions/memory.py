"""The pictures that were served a moment ago, in this process's memory: what is asked for again costs hardly anything.

What is here is no older than `MOST_SECONDS`, counted from before its source was read: a picture that is deleted is gone
everywhere within so long, and at once from the process that deletes it, or hears of it.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from api.renditions.x_accel import HEADERS
from api.server.headers import SAFETY_HEADERS
from shared.images import Image
from shared.redis.response_cache import Copy

#: Seconds from when its source was read until a picture, or its row, is asked for anew.
MOST_SECONDS = 2.0
#: Which part of the whole one picture may have.
_LARGEST_PART = 8
#: What an entry takes beside the picture's bytes, and a row for each of its renditions: its objects, generously.
_ENTRY_BYTES = 4096
_RENDITION_BYTES = 512

#: What says which file is to be sent, which is none where a client has it.
_FILE_LINES = re.compile(rb"(?<![^\n])(?:%b): [^\r]*\r\n" % b"|".join(sorted(name.encode() for name in HEADERS)))
_ETAG = re.compile(rb"(?<![^\n])etag: ([^\r]*)")
_HIT, _MISS = b"x-asgilook-cache: Hit\r\n", b"x-asgilook-cache: Miss\r\n"
_SAFETY = [(b"\n%b: " % name, b"%b: %b\r\n" % (name, value)) for name, value in SAFETY_HEADERS]


class Entry:
    """A picture as it is answered."""

    __slots__ = ("_etag", "body", "copy", "image_id", "is_hit", "lines", "read_at", "safety", "unmodified")

    def __init__(self, image_id: str, copy: Copy, read_at: float, is_hit: bool) -> None:
        self.image_id = image_id
        self.copy = copy
        self.is_hit = is_hit
        #: When its source was about to be read.
        self.read_at = read_at
        self.body = copy.body
        self._etag: bytes | None = None
        # In one piece, for an answer that is given without a detour: of a 304, then of all; what the guard would add.
        lines, files = copy.lines, b""
        if b"\nx-" in lines:
            files = b"".join(_FILE_LINES.findall(lines))
            lines = _FILE_LINES.sub(b"", lines)
        self.unmodified = lines + (_HIT if is_hit else _MISS)
        self.lines = b"%b%bcontent-length: %d\r\n" % (self.unmodified, files, len(copy.body))
        present = b"\n" + lines
        self.safety = b"".join([line for name, line in _SAFETY if name not in present])

    @property
    def etag(self) -> bytes:
        if self._etag is None:
            match = _ETAG.search(self.copy.lines)
            self._etag = match[1] if match else b""
        return self._etag

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """The same as `lines`, name by name."""
        return [(name, value) for name, _, value in (line.partition(b": ") for line in self.lines.split(b"\r\n")[:-1])]


@dataclass(frozen=True, slots=True)
class Found:
    """What is known of a picture that is asked for: the picture; its image, if it is to be streamed; what is wrong."""

    entry: Entry | None = None
    image: Image | None = None
    error: Exception | None = None


_FOUND = "asgilook.found"


def put_into(scope: MutableMapping[str, Any], found: Found | None) -> None:
    """Have whoever handles a request know what was found."""
    scope[_FOUND] = found


def found_in(scope: MutableMapping[str, Any]) -> Found | None:
    """Return what was found, where somebody has looked."""
    found: Found | None = scope.get(_FOUND)
    return found


@dataclass(frozen=True, slots=True)
class _Row:
    image: Image
    read_at: float


class Recent:
    """What was served lately, up to so many bytes: pictures by their paths, and the rows that they were served by."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        #: By path or by id; the one used last at the end.
        self._held: OrderedDict[str, tuple[Entry | _Row, int]] = OrderedDict()
        self._paths_of: dict[str, set[str]] = {}
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._held)

    def entry(self, path: str) -> Entry | None:
        """Return the picture at a path, if it was read a moment ago."""
        held = self._held.get(path)
        if held is None:
            return None
        if self.is_old(held[0].read_at):
            self._drop(path)
            return None
        self._held.move_to_end(path)
        assert isinstance(held[0], Entry)  # noqa: S101 - no path is an id
        return held[0]

    def row(self, image_id: str) -> tuple[Image, float] | None:
        """Return the row of an image that is ready, and when it was about to be read, if that was a moment ago."""
        held = self._held.get(image_id)
        if held is None:
            return None
        row = held[0]
        if self.is_old(row.read_at):
            self._drop(image_id)
            return None
        self._held.move_to_end(image_id)
        assert isinstance(row, _Row)  # noqa: S101 - no id is a path
        return row.image, row.read_at

    def is_old(self, read_at: float) -> bool:
        """Tell whether what was read then may not be told any more."""
        return self._clock() - read_at >= MOST_SECONDS

    def keep_entry(self, path: str, entry: Entry) -> None:
        """Keep a picture, unless it is too large."""
        cost = len(entry.body) + _ENTRY_BYTES
        if len(entry.body) <= self._most_bytes // _LARGEST_PART:
            self._keep(path, entry, cost)
            self._paths_of.setdefault(entry.image_id, set()).add(path)
            self._make_room()

    def keep_row(self, image: Image, read_at: float) -> None:
        """Keep the row of an image that is ready."""
        self._keep(image.id, _Row(image, read_at), _ENTRY_BYTES + _RENDITION_BYTES * len(image.renditions))
        self._make_room()

    def forget(self, image_id: str) -> None:
        """Let go of all that there is of an image: it has changed, or is no more."""
        self._drop(image_id)
        for path in tuple(self._paths_of.get(image_id, ())):
            self._drop(path)

    def forget_all(self) -> None:
        """Let go of everything: who knows what has changed."""
        self._held.clear()
        self._paths_of.clear()
        self.bytes = 0

    def _keep(self, key: str, what: Entry | _Row, cost: int) -> None:
        self._drop(key)
        self._held[key] = what, cost
        self.bytes += cost

    def _make_room(self) -> None:
        while self.bytes > self._most_bytes and self._held:
            self._drop(next(iter(self._held)))

    def _drop(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is None:
            return
        self.bytes -= held[1]
        if isinstance(held[0], Entry):
            paths = self._paths_of[held[0].image_id]
            paths.discard(key)
            if not paths:
                del self._paths_of[held[0].image_id]
