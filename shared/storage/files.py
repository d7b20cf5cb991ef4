"""Files of a local disk: work on them in threads, and translation of their OSErrors."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import aiofiles

from shared.cancellation import to_the_end
from shared.errors import AsgilookError, NoSuchKey, StorageFull, StorageUnavailable

T = TypeVar("T")

#: Bytes of a large picture that are read and sent at a time.
PIECE_BYTES = 256 * 1024
#: The flag by which `preadv2` fails instead of waiting for the disk; 0 on systems without it.
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


async def stream_file(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    """Yield the bytes from `first` to `last` (both included) of a file. Raises NoSuchKey or StorageUnavailable."""
    with translated(path, absent=NoSuchKey):
        async with aiofiles.open(path, "rb") as file:
            while first <= last:
                length = min(PIECE_BYTES, last - first + 1)
                # A copy from the page cache takes less time than a change to a thread and back. Without this, a stream
                # of 12 MB takes 2.5 times as long.
                piece = read_cached(file.fileno(), first, length)
                if piece is None:
                    await file.seek(first)
                    piece = await file.read(length)
                if not piece:
                    break
                first += len(piece)
                yield piece


def read_cached(descriptor: int, first: int, length: int) -> bytes | None:
    """Return a part of an open file if all of the part is in the system's page cache, otherwise None."""
    part = bytearray(length)
    try:
        got = os.preadv(descriptor, [part], first, _NOWAIT) if _NOWAIT else 0
    except OSError:
        return None
    return bytes(part) if got == length else None


def fsync_path(path: Path) -> None:
    """Make a file's bytes, or a folder's entries, survive a power cut. Blocks."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def in_thread(path: Path, work: Callable[[], T], absent: type[AsgilookError] = StorageUnavailable) -> T:
    """Run `work`, which blocks, in a thread. Raises StorageUnavailable, StorageFull, or `absent` if a file is missing.

    Error messages name `path`. A cancellation is raised only after the thread has ended: the thread must not write
    after its caller has cleaned up.
    """
    with translated(path, absent):
        return await to_the_end(asyncio.to_thread(work))


@contextlib.contextmanager
def translated(path: Path, absent: type[AsgilookError] = StorageUnavailable) -> Iterator[None]:
    """Raise StorageFull or StorageUnavailable for an OSError, and `absent` for a missing file."""
    try:
        yield
    except FileNotFoundError as exc:
        raise absent(f"nothing at {path}") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{exc.strerror}: {path}") from exc
        raise StorageUnavailable(f"{exc.strerror}: {path}") from exc
