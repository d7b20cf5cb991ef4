"""Drafts as temporary files on a local disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sys
from collections import deque
from io import FileIO
from pathlib import Path

from shared.errors import StorageConflict
from shared.storage.files import in_thread

#: Bytes of memory that a draft collects before a thread writes them. A thread costs more than a small write.
WRITTEN_AT_ONCE = 256 * 1024


class DiskDraft:
    """A temporary file in the storage's own file system, so that a rename keeps it."""

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file
        self._is_kept = False
        #: Chunks that are not written yet, and their bytes of memory. A list costs less than a growing buffer.
        self._collected: deque[bytes] = deque()
        self._collected_bytes = 0
        self._digest = hashlib.sha256()
        self._length = 0

    @classmethod
    def begin(cls, folder: Path) -> DiskDraft:
        """Make a temporary file in `folder`. Blocks."""
        path = folder / secrets.token_hex(16)
        return cls(path, path.open("x+b", buffering=0))

    async def write(self, chunk: bytes) -> None:
        self._collected.append(chunk)
        # Count the size of the object: a hostile client may send one byte at a time.
        self._collected_bytes += sys.getsizeof(chunk)
        if self._collected_bytes >= WRITTEN_AT_ONCE:
            await self.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    async def digest(self) -> tuple[int, str]:
        await self.flush()
        return self._length, self._digest.hexdigest()

    async def discard(self) -> None:
        if not (self._is_kept and self._file.closed):
            await in_thread(self.path, self._discard)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._is_kept:
            self.path.unlink(missing_ok=True)

    async def flush(self) -> None:
        """Write the collected chunks to the file."""
        if self._collected:
            await in_thread(self.path, self._flush)

    def _flush(self) -> None:
        self._collected_bytes = 0
        while self._collected:
            piece = self._collected.popleft()
            self._digest.update(piece)
            self._length += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]

    def sync(self) -> None:
        """Make the file's bytes survive a power cut, still under the temporary name. Blocks."""
        self._flush()
        os.fsync(self._file.fileno())

    def rename(self, target: Path) -> None:
        """Move the file to `target` and replace what is there. Blocks."""
        self.path.rename(target)
        self.path, self._is_kept = target, True

    def link(self, target: Path) -> None:
        """Move the file to `target`. Raises StorageConflict if something is there. Blocks."""
        try:
            target.hardlink_to(self.path)
        except FileExistsError:
            raise StorageConflict(f"something is at {target}") from None
        self.path.unlink()
        self.path, self._is_kept = target, True

    def close(self) -> None:
        """Close the file. Blocks."""
        self._file.close()
