"""Storage on a local or shared disk: every put is fsynced, renamed into place, and its folder fsynced."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import aiofiles
from aiofiles.threadpool.binary import AsyncBufferedIOBase

from shared.cancellation import to_the_end
from shared.errors import AsgilookError, NoSuchKey, StorageFull, StorageUnavailable
from shared.storage import Draft, Stored
from shared.storage.pages import CachedPages

T = TypeVar("T")

#: Bytes of a large picture that are read, and sent, at a time.
PIECE_BYTES = 256 * 1024

_FANNED_OUT = ("originals", "renditions")
#: Folders between the root and an image: the kind of its key, then two by its time.
_FAN_OUT_DEPTH = 3
#: Folders that are remembered as durable; two are new every 65 s.
_MOST_DURABLE = 4096
#: What a file system without hard links answers, or one that has enough of them.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV)


class DiskDraft:
    """A temporary file in the storage's own file system, so that keeping it is a rename."""

    def __init__(self, path: Path, file: AsyncBufferedIOBase) -> None:
        self.path = path
        self._file = file
        self._kept = False

    async def write(self, chunk: bytes) -> None:
        with translated(self.path):
            await self._file.write(chunk)

    def fileno(self) -> int:
        return self._file.fileno()

    async def digest(self) -> tuple[int, str]:
        await self.flush()
        return await in_thread(self.path, functools.partial(_digest, self.path))

    async def discard(self) -> None:
        def remove() -> None:
            self.path.unlink(missing_ok=True)

        with contextlib.suppress(OSError):
            # What a buffer still holds need not reach a full disk: the file is going anyway.
            await self._file.close()
        if not self._kept:
            await in_thread(self.path, remove)

    async def flush(self) -> None:
        """Have all that was written be in the file, where others read it."""
        with translated(self.path):
            await self._file.flush()

    async def sync(self) -> None:
        """Have all that was written survive a power cut, under the temporary name."""
        await self.flush()
        await in_thread(self.path, lambda: os.fsync(self._file.fileno()))

    def rename(self, target: Path) -> None:
        """Move the file into place; blocks."""
        self.path.rename(target)
        self._kept = True


class DiskStorage:
    """The disk backend of `Storage`, below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._drafts = root / "drafts"
        self._durable: set[Path] = set()
        self._pages = CachedPages()

    async def prepare(self) -> None:
        def make() -> None:
            self._drafts.mkdir(parents=True, exist_ok=True)
            _fsync(self._root)
            for folder in self._root.absolute().parents:
                # Whoever made them, their entries are to survive a power cut; what is not ours to open is older.
                with contextlib.suppress(OSError):
                    _fsync(folder)
            probe = self._drafts / f"probe-{secrets.token_hex(8)}"
            probe.touch()
            probe.unlink()

        await in_thread(self._root, make)

    async def draft(self) -> DiskDraft:
        path = self._drafts / secrets.token_hex(16)
        with translated(path):
            return DiskDraft(path, await aiofiles.open(path, "x+b"))

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        await to_the_end(self._keep(drafts))

    async def _keep(self, drafts: Mapping[str, Draft]) -> None:
        targets: dict[Path, DiskDraft] = {}
        for key, draft in drafts.items():
            assert isinstance(draft, DiskDraft)  # noqa: S101 - a draft of another storage is a mistake of ours
            targets[self._path(key)] = draft
        await asyncio.gather(*(draft.sync() for draft in targets.values()))

        def put() -> None:
            for target, draft in targets.items():
                self._make_durable_folder(target.parent)
                draft.rename(target)
            for folder in {target.parent for target in targets}:
                _fsync(folder)

        await in_thread(self._root, put)

    async def carry_over(self, source: str, target: str) -> None:
        def link() -> None:
            place = self._path(target)
            self._make_durable_folder(place.parent)
            place.unlink(missing_ok=True)
            try:
                # A second name for the same bytes, which are never written to again.
                os.link(self._path(source), place)
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                shutil.copyfile(self._path(source), place)
                _fsync(place)
            _fsync(place.parent)

        await in_thread(self._path(source), link, absent=NoSuchKey)

    async def exists(self, key: str) -> bool:
        return await in_thread(self._root, self._path(key).exists)

    async def read(self, key: str) -> bytes:
        return await in_thread(self._path(key), self._path(key).read_bytes, absent=NoSuchKey)

    def read_now(self, key: str, length: int) -> bytes | None:
        return self._pages.read(f"{self._root}/{place_below(key)}", length)

    def is_near(self, key: str) -> bool:
        return True

    async def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        async for piece in stream_file(self._path(key), first, last):
            yield piece

    async def signed_url(self, key: str, seconds: float) -> str | None:
        return None

    async def open_local(self, key: str) -> BinaryIO:
        return await in_thread(self._path(key), lambda: self._path(key).open("rb"), absent=NoSuchKey)

    async def digest(self, key: str) -> tuple[int, str]:
        return await in_thread(self._path(key), functools.partial(_digest, self._path(key)), absent=NoSuchKey)

    async def folders(self, prefix: str) -> list[str]:
        def names() -> list[str]:
            with contextlib.suppress(FileNotFoundError):
                return sorted(entry.name for entry in os.scandir(self._path(prefix)) if entry.is_dir())
            return []

        return await in_thread(self._root, names)

    async def listing(self, prefix: str) -> AsyncIterator[Stored]:
        async for place in self._places(prefix):
            for stored in await in_thread(place, functools.partial(self._stored_below, place)):
                yield stored

    async def _places(self, prefix: str) -> AsyncIterator[Path]:
        """Yield where the keys at or below `prefix` lie: of a whole kind, a folder of 65 s at a time."""
        if prefix not in _FANNED_OUT:
            yield self._path(prefix)
            return
        for days in await in_thread(self._root, functools.partial(_in_order, self._root / prefix)):
            for seconds in await in_thread(days, functools.partial(_in_order, days)):
                yield seconds

    def _stored_below(self, place: Path) -> list[Stored]:
        if place.is_dir():
            return [stored for below in _in_order(place) for stored in self._stored_below(below)]
        kind, *rest = place.relative_to(self._root).parts
        key = "/".join([kind, *rest[_FAN_OUT_DEPTH - 1 :]] if kind in _FANNED_OUT else [kind, *rest])
        # What lies where no key would put it is none of ours.
        if key != kind and self._path(key) == place:
            with contextlib.suppress(FileNotFoundError):
                status = place.stat()
                return [Stored(key, status.st_size, status.st_mtime)]
        return []

    async def has_originals(self) -> bool:
        def look() -> bool:
            return any(path.is_file() for path in (self._root / "originals").rglob("*"))

        return await in_thread(self._root, look)

    async def delete(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            with contextlib.suppress(FileNotFoundError), path.open("rb"):
                path.unlink()
                # Open until its name is gone for good: nobody else gets its place on the disk under that name.
                _fsync(path.parent)

        await in_thread(self._root, remove)

    async def delete_folder(self, prefix: str) -> None:
        def remove() -> None:
            # A late attempt may add a file while we remove: two more looks cost nothing.
            for _ in range(2):
                shutil.rmtree(self._path(prefix), ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._path(prefix))

        await in_thread(self._root, remove)

    async def free_bytes(self) -> int | None:
        return await in_thread(self._root, lambda: shutil.disk_usage(self._root).free)

    async def sweep_drafts(self, older_than_seconds: float) -> int:
        def sweep() -> int:
            swept = 0
            for entry in os.scandir(self._drafts):
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > older_than_seconds:
                        Path(entry.path).unlink()
                        swept += 1
            return swept

        return await in_thread(self._drafts, sweep)

    async def forget_copies(self, image_id: str) -> None:
        """There are none."""

    async def check_copies(self, which_are_ready: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        """There are none."""

    async def clear_abandoned_copies(self) -> None:
        """There are none."""

    async def close(self) -> None:
        """Nothing is held."""

    def _make_durable_folder(self, folder: Path) -> None:
        """Make a folder whose own entry survives a power cut, whoever made it; blocks."""
        if folder == self._root:
            return
        self._make_durable_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        if folder not in self._durable:
            _fsync(folder.parent)
        if len(folder.relative_to(self._root).parts) <= _FAN_OUT_DEPTH:
            # Below are the images' own folders, which are made once and may be removed.
            if len(self._durable) >= _MOST_DURABLE:
                self._durable.clear()
            self._durable.add(folder)

    def _path(self, key: str) -> Path:
        return self._root / place_below(key)


def place_below(key: str) -> str:
    """Return where a key's file is, or its folder, below the storage's own."""
    kind, _, rest = key.partition("/")
    if kind in _FANNED_OUT and rest:
        # Ids begin with their time (UUIDv7): one folder every three days, below it one every 65 s.
        return f"{kind}/{rest[:5]}/{rest[5:8]}/{rest}"
    return key


async def stream_file(path: Path, first: int, last: int) -> AsyncIterator[bytes]:
    """Yield the bytes from `first` to `last` of a file, in pieces. Raises NoSuchKey or StorageUnavailable."""
    with translated(path, absent=NoSuchKey):
        async with aiofiles.open(path, "rb") as file:
            await file.seek(first)
            left = last - first + 1
            while left > 0 and (piece := await file.read(min(PIECE_BYTES, left))):
                left -= len(piece)
                yield piece


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _in_order(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


async def in_thread(path: Path, work: Callable[[], T], absent: type[AsgilookError] = StorageUnavailable) -> T:
    """Do `work`, which blocks and is about `path`, to its end. Raises StorageUnavailable, StorageFull or `absent`."""
    with translated(path, absent):
        # A thread goes on when its caller is cancelled: what it writes must not come after its caller's clean-up.
        return await to_the_end(asyncio.to_thread(work))


@contextlib.contextmanager
def translated(path: Path, absent: type[AsgilookError] = StorageUnavailable) -> Iterator[None]:
    """Tell an OSError in our own words; where `path` is a key's, `absent` is what its absence means."""
    try:
        yield
    except FileNotFoundError as exc:
        # Only where a key was asked for is its absence an answer; elsewhere the storage itself is gone.
        raise absent(f"nothing at {path}") from exc
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{exc.strerror}: {path}") from exc
        raise StorageUnavailable(f"{exc.strerror}: {path}") from exc
