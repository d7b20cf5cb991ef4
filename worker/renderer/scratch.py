"""Scratch files in memory, bounded in size: a child writes its JPEGs to them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from shared.images import Size
from worker.renderer import jpeg

#: Pure noise takes 1.2 bytes a pixel at our quality. A file of more than 4 bytes a pixel, and this margin, is not ours.
_BYTES_PER_PIXEL = 4
_MARGIN = 64 * 1024


class NotOurs(Exception):
    """A scratch file holds something else than the JPEG that was asked for."""


def most_bytes(pixels: int) -> int:
    """Return how many bytes a JPEG of so many pixels may have."""
    return _BYTES_PER_PIXEL * pixels + _MARGIN


@dataclass(frozen=True)
class Scratch:
    """A file in memory for one JPEG of `size`."""

    size: Size
    descriptor: int

    @property
    def bytes(self) -> int:
        """Its length: that of the JPEG, once the child has said that it is written."""
        return os.fstat(self.descriptor).st_size

    def copy_to(self, target: int) -> tuple[int, str]:
        """Check the JPEG and write it to the descriptor `target`; return its length and SHA-256 (hex); blocks.

        Raises NotOurs where it is no JPEG of that size as our encoder makes them, OSError where `target` fails.
        """
        # Read once, so that the bytes that are checked are those that are written, even if the child changes the file.
        content = os.pread(self.descriptor, self.bytes, 0)
        _check(content, self.size)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(target, rest) :]
        return len(content), sha256(content).hexdigest()


@contextmanager
def scratch_file(size: Size) -> Iterator[Scratch]:
    """Open a scratch file. It is emptied at the end: a child that keeps it open gains nothing."""
    descriptor = os.memfd_create("rendition", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # It takes no memory before it is written to, and cannot grow past this.
        os.ftruncate(descriptor, most_bytes(size[0] * size[1]))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield Scratch(size, descriptor)
    finally:
        # A child may still have it open. Sealed, it cannot grow again, and so takes no memory.
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _check(content: bytes, size: Size) -> None:
    try:
        found = jpeg.size_of(content)
    except jpeg.ForeignJpeg as exc:
        raise NotOurs(f"a rendition {exc}") from exc
    if found != size:
        raise NotOurs(f"a rendition of {size} is of {found}")
