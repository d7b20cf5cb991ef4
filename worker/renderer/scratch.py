"""Scratch files: files in memory of limited size, to which a child writes renditions."""

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
        """The file's length. After the child has reported the rendition as written, this is the rendition's length."""
        return os.fstat(self.descriptor).st_size

    def copy_to(self, target: int) -> tuple[int, str]:
        """Check the rendition and write it to the descriptor `target`. Returns its length and SHA-256 (hex). Blocks.

        Raises NotOurs if the rendition does not have the output's format and size, and OSError if `target` fails.
        """
        # Read once: the checked bytes are then the written ones, even if the child changes the file meanwhile.
        content = os.pread(self.descriptor, self.bytes, 0)
        _check(content, self.output)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(target, rest) :]
        return len(content), sha256(content).hexdigest()


@contextmanager
def scratch_file(output: Output) -> Iterator[Scratch]:
    """Open a scratch file for the body. The file is emptied at the end."""
    descriptor = os.memfd_create("rendition", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        # The file takes no memory until it is written to. The seal keeps it from growing past this length.
        os.ftruncate(descriptor, FORMATS[output.format].most_bytes(math.prod(output.size)))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        yield Scratch(output, descriptor)
    finally:
        # The child may still have the file open. The seal keeps the empty file from growing, so it takes no memory.
        os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _check(content: bytes, output: Output) -> None:
    size = FORMATS[output.format].size_of(content)
    if size != output.size:
        raise NotOurs(f"is of {size}")
