"""Renditions that this process served a moment ago, and the rows that they were served by.

Nothing here is older than `MOST_SECONDS`, counted from before its source was read. So a rendition that is deleted is
gone everywhere within that time, and at once from the process that deletes it or hears of it.
"""

from __future__ import annotations

import itertools
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from api.renditions.x_accel import HEADERS
from api.server.headers import SAFETY_HEADERS
from shared.images import Image
from shared.redis.response_cache import Copy

#: Seconds from when its source was about to be read until a rendition, or a row, is read anew.
MOST_SECONDS = 2.0
#: The part of all room that one rendition may take.
_LARGEST_PART = 8
#: What an entry takes beside its body, and a row for each of its renditions: generously.
_ENTRY_BYTES = 4096
_RENDITION_BYTES = 512
#: Images of which it is remembered that they changed. What began before the oldest of these changes is not kept.
_MOST_CHANGES = 1000

#: A header by which a proxy is told which file to send. A 304 has none.
_FILE_LINE = re.compile(rb"(?<![^\n])(?:%b): [^\r]*\r\n" % b"|".join(sorted(name.encode() for name in HEADERS)))
_ETAG = re.compile(rb"(?<![^\n])etag: ([^\r]*)")
_LAST_MODIFIED = re.compile(rb"(?<![^\n])last-modified: ([^\r]*)")
_HIT = b"x-asgilook-cache: Hit\r\n"
_SAFETY = [(b"\n%b: " % name, b"%b: %b\r\n" % (name, value)) for name, value in SAFETY_HEADERS]


@dataclass(frozen=True, slots=True)
class Moment:
    """When something began: its place in the order of everything, and the time by the clock."""

    order: int
    seconds: float


class Entry:
    """A rendition as it is answered: the header lines in one piece, of a 200 and of a 304."""

    __slots__ = ("_validators", "body", "copy", "image_id", "lines", "safety", "unmodified")

    def __init__(self, image_id: str, copy: Copy) -> None:
        self.image_id = image_id
        self.copy = copy
        self.body = copy.body
        self._validators: tuple[str, float | None] | None = None
        self.lines = b"%b%bcontent-length: %d\r\n" % (copy.lines, _HIT, len(copy.body))
        self.unmodified = _FILE_LINE.sub(b"", copy.lines) + _HIT
        present = b"\n" + copy.lines
        #: The safety headers that the copy has none of its own for.
        self.safety = b"".join([line for name, line in _SAFETY if name not in present])

    @property
    def validators(self) -> tuple[str, float | None]:
        """Its ETag, and its Last-Modified in seconds since the epoch."""
        if self._validators is None:
            etag, modified = (pattern.search(self.copy.lines) for pattern in (_ETAG, _LAST_MODIFIED))
            self._validators = (
                etag[1].decode("latin-1") if etag else "",
                parsedate_to_datetime(modified[1].decode("latin-1")).timestamp() if modified else None,
            )
        return self._validators


@dataclass(frozen=True, slots=True)
class Row:
    """The row of an image that is ready, the token that was there before it was read, and when that was."""

    image: Image
    token: bytes
    began: Moment


class Memory:
    """Entries by path and rows by image id, up to so many bytes, those used last; none of an image that has changed."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._order = itertools.count(1)
        #: What is held by path or by id, since when, and what it takes; the one used last at the end.
        self._held: OrderedDict[str, tuple[Entry | Row, Moment, int]] = OrderedDict()
        self._paths_of: dict[str, set[str]] = {}
        #: The order of an image's last change, the latest at the end; and that of the last change that is not there.
        self._changes: OrderedDict[str, int] = OrderedDict()
        self._changed_before = 0
        self.bytes = 0

    def now(self) -> Moment:
        """Return this moment. Ask before the source is read: the order tells whether the image has changed since."""
        return Moment(next(self._order), self._clock())

    def is_current(self, image_id: str, began: Moment) -> bool:
        """Return whether what was read since then may still be told: it is not old, and the image has not changed."""
        changed = self._changes.get(image_id, self._changed_before)
        return began.order > changed and not self._is_old(began.seconds)

    def entry(self, path: str) -> Entry | None:
        """Return the rendition at a path, if it was read a moment ago."""
        held = self._get(path)
        return held if isinstance(held, Entry) else None

    def row(self, image_id: str) -> Row | None:
        """Return the row of an image that is ready, if it was read a moment ago."""
        held = self._get(image_id)
        return held if isinstance(held, Row) else None

    def keep_entry(self, path: str, image_id: str, copy: Copy, began: Moment) -> None:
        """Keep a rendition, unless it is too large or the image has changed since."""
        if len(copy.body) <= self._most_bytes // _LARGEST_PART and self.is_current(image_id, began):
            self._keep(path, Entry(image_id, copy), began, len(copy.body) + _ENTRY_BYTES)
            self._paths_of.setdefault(image_id, set()).add(path)
            self._make_room()

    def keep_row(self, row: Row) -> None:
        """Keep the row of an image that is ready, unless the image has changed since."""
        if self.is_current(row.image.id, row.began):
            self._keep(row.image.id, row, row.began, _ENTRY_BYTES + _RENDITION_BYTES * len(row.image.renditions))
            self._make_room()

    def forget(self, image_id: str) -> None:
        """Drop all that there is of an image: it has changed, or is no more."""
        self._changes[image_id] = next(self._order)
        self._changes.move_to_end(image_id)
        if len(self._changes) > _MOST_CHANGES:
            _, self._changed_before = self._changes.popitem(last=False)
        self._drop(image_id)
        for path in tuple(self._paths_of.get(image_id, ())):
            self._drop(path)

    def forget_all(self) -> None:
        """Drop everything: changes may have been missed."""
        self._changes.clear()
        self._changed_before = next(self._order)
        self._held.clear()
        self._paths_of.clear()
        self.bytes = 0

    def _is_old(self, read_at: float) -> bool:
        return self._clock() - read_at >= MOST_SECONDS

    def _get(self, key: str) -> Entry | Row | None:
        held = self._held.get(key)
        if held is None:
            return None
        if self._is_old(held[1].seconds):
            self._drop(key)
            return None
        self._held.move_to_end(key)
        return held[0]

    def _keep(self, key: str, what: Entry | Row, began: Moment, cost: int) -> None:
        self._drop(key)
        self._held[key] = what, began, cost
        self.bytes += cost

    def _make_room(self) -> None:
        while self.bytes > self._most_bytes and self._held:
            self._drop(next(iter(self._held)))

    def _drop(self, key: str) -> None:
        held, _, cost = self._held.pop(key, (None, None, 0))
        self.bytes -= cost
        if isinstance(held, Entry):
            paths = self._paths_of[held.image_id]
            paths.discard(key)
            if not paths:
                del self._paths_of[held.image_id]
