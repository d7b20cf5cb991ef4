"""Scratch files in memory, bounded in size: a child writes its renditions to them."""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256

from worker.renderer.formats import FORMATS
from worker.renderer.outputs import NotOurs, Output


@dataclass(frozen=True)
class Scratch:
    """A file in memory for one output."""

    output: Output
    descriptor: int

    @property
    def bytes(self) -> int:
        """Its length: that of the rendition, once the child has said that it is written."""
        return os.fstat(self.descriptor).st_size

    def copy_to(self, target: int) -> tuple[int, str]:
        """Check the rendition and write it to the descriptor `target`; return its length and SHA-256 (hex); blocks.

        Raises NotOurs where it is not of the output's format and size, OSError where `target` fails.
        """
        # Read once, so that the bytes that are checked are those that are written, even if the child changes the file.
        content = os.pread(self.descriptor, self.bytes, 0)
        _check(content, self.output)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(target, rest) :]
        return len(content), sha256(content).hexdigest()


@contextmanager
def scratch_file(output: Output) -> Iterator[Scratch]:
    """Open a scratch file. It is emptied at the end: a child that keeps it open gains nothing."""
    descriptor = os.memfd_create("rendition", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # It takes no memory before it is written to, and cannot grow past this.
        os.ftruncate(descriptor, FORMATS[output.format].most_bytes(math.prod(output.size)))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield Scratch(output, descriptor)
    finally:
        # A child may still have it open. Sealed, it cannot grow again, and so takes no memory.
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _check(content: bytes, output: Output) -> None:
    size = FORMATS[output.format].size_of(content)
    if size != output.size:
        raise NotOurs(f"is of {size}")
