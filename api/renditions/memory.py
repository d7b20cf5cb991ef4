"""Renditions that this process served a moment ago, and the ledger rows that they belong to.

No entry is older than `MOST_SECONDS`, counted from before its source was read. A deleted rendition is therefore gone
from every process within that time. The process that deletes it, or receives the notice, forgets it at once.
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

#: Seconds for which an entry is used, counted from before its source was read.
MOST_SECONDS = 2.0
#: One rendition may take the memory's size divided by this.
_LARGEST_PART = 8
#: Upper estimates: an entry without its body, or a row; and each rendition that a row names.
_ENTRY_BYTES = 4096
_RENDITION_BYTES = 512
#: The most images whose last change is remembered. A read that began before a forgotten change is not kept.
_MOST_CHANGES = 1000

#: Header lines that name a file to the proxy. A 304 sends no file, so they are removed from it.
_FILE_LINE = re.compile(rb"(?<![^\n])(?:%b): [^\r]*\r\n" % b"|".join(sorted(name.encode() for name in HEADERS)))
_ETAG = re.compile(rb"(?<![^\n])etag: ([^\r]*)")
_LAST_MODIFIED = re.compile(rb"(?<![^\n])last-modified: ([^\r]*)")
_HIT = b"x-asgilook-cache: Hit\r\n"
_SAFETY = [(b"\n%b: " % name, b"%b: %b\r\n" % (name, value)) for name, value in SAFETY_HEADERS]


@dataclass(frozen=True, slots=True)
class Moment:
    """A point in time: its number in the order of events in this process, and its time by the clock."""

    order: int
    seconds: float


class Entry:
    """A rendition, with the header lines of its 200 and its 304 in one piece each."""

    __slots__ = ("_validators", "body", "copy", "image_id", "lines", "safety", "unmodified")

    def __init__(self, image_id: str, copy: Copy) -> None:
        self.image_id = image_id
        self.copy = copy
        self.body = copy.body
        self._validators: tuple[str, float | None] | None = None
        self.lines = b"%b%bcontent-length: %d\r\n" % (copy.lines, _HIT, len(copy.body))
        self.unmodified = _FILE_LINE.sub(b"", copy.lines) + _HIT
        present = b"\n" + copy.lines
        #: The lines of the safety headers that the copy lacks.
        self.safety = b"".join([line for name, line in _SAFETY if name not in present])

    @property
    def validators(self) -> tuple[str, float | None]:
        """The ETag, and Last-Modified in seconds since the epoch."""
        if self._validators is None:
            etag, modified = (pattern.search(self.copy.lines) for pattern in (_ETAG, _LAST_MODIFIED))
            self._validators = (
                etag[1].decode("latin-1") if etag else "",
                parsedate_to_datetime(modified[1].decode("latin-1")).timestamp() if modified else None,
            )
        return self._validators


@dataclass(frozen=True, slots=True)
class Row:
    """The row of a ready image, and the cache token and the moment before the row was read."""

    image: Image
    token: bytes
    began: Moment


class Memory:
    """Entries by path and rows by image id. Those used least recently are dropped when `most_bytes` are exceeded."""

    def __init__(self, most_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_bytes = most_bytes
        self._clock = clock
        self._order = itertools.count(1)
        #: By path or image id: entry or row, the moment before its read, its bytes. The last used is at the end.
        self._held: OrderedDict[str, tuple[Entry | Row, Moment, int]] = OrderedDict()
        self._paths_of: dict[str, set[str]] = {}
        #: By image id: the order of its last change, the latest at the end.
        self._changes: OrderedDict[str, int] = OrderedDict()
        #: The order of the last change that is not in `_changes`.
        self._changed_before = 0
        self.bytes = 0

    def now(self) -> Moment:
        """Return the present moment. Call this before the source is read: the order shows whether the image changed."""
        return Moment(next(self._order), self._clock())

    def is_current(self, image_id: str, began: Moment) -> bool:
        """Return whether what was read after `began` may be served: it is not too old, and no change is known since."""
        changed = self._changes.get(image_id, self._changed_before)
        return began.order > changed and not self._is_old(began.seconds)

    def entry(self, path: str) -> Entry | None:
        """Return the rendition at a path, or None if it is not held or too old."""
        held = self._get(path)
        return held if isinstance(held, Entry) else None

    def row(self, image_id: str) -> Row | None:
        """Return the row of a ready image, or None if it is not held or too old."""
        held = self._get(image_id)
        return held if isinstance(held, Row) else None

    def keep_entry(self, path: str, image_id: str, copy: Copy, began: Moment) -> None:
        """Keep a rendition, unless it is too large or too old, or the image has changed since `began`."""
        if len(copy.body) <= self._most_bytes // _LARGEST_PART and self.is_current(image_id, began):
            self._keep(path, Entry(image_id, copy), began, len(copy.body) + _ENTRY_BYTES)
            self._paths_of.setdefault(image_id, set()).add(path)
            self._make_room()

    def keep_row(self, row: Row) -> None:
        """Keep the row of a ready image, unless it is too old or the image has changed since."""
        if self.is_current(row.image.id, row.began):
            self._keep(row.image.id, row, row.began, _ENTRY_BYTES + _RENDITION_BYTES * len(row.image.renditions))
            self._make_room()

    def forget(self, image_id: str) -> None:
        """Drop the row and all entries of an image: it has changed or was deleted."""
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
