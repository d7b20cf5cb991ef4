"""A hostile or odd file, and what may become of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

#: What may become of a file, each in one word: ready, or the type of the problem that its uploader is told.
READY = frozenset({"ready"})
UNREADABLE = frozenset({"unreadable-image"})
TOO_LARGE = frozenset({"image-too-large"})
TIMED_OUT = frozenset({"render-timed-out"})
FOREIGN = frozenset({"unsupported-format"})
EMPTY = frozenset({"empty-upload"})
#: For what a decoder may as well forgive, and does in one of its versions.
EITHER = READY | UNREADABLE
#: For chance damage, which may also reach the signature, or a side's length. That a decoder crashes is not in it.
ANYTHING = EITHER | TOO_LARGE | FOREIGN | TIMED_OUT | {"render-out-of-memory"}

#: What every planted text begins with, so that one search finds them all.
PLANTED = b"PLANTED."


@dataclass(frozen=True)
class Specimen:
    """A file by its name (the kind, a slash, its format, what is odd about it) and the `outcomes` it may have."""

    name: str
    content: bytes
    outcomes: frozenset[str]
    #: A text hidden in it, which must be found in no rendition.
    planted: bytes = b""

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


def text_for(name: str) -> bytes:
    """Return the text to plant in the specimen of this name: 20 ASCII letters, of no other specimen."""
    return PLANTED + hashlib.sha256(name.encode()).hexdigest()[:12].encode()
