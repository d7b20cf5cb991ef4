"""Storage on a local or shared disk: every put is fsynced, renamed into place, and its folder fsynced."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import functools
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import BinaryIO, ClassVar, TypeVar

import aiofiles

from shared.cancellation import to_the_end
from shared.errors import AsgilookError, NoSuchKey, StorageFull, StorageUnavailable
from shared.storage import Draft, Stored, pages
from shared.storage.pages import CachedPages

T = TypeVar("T")

#: Bytes of a large picture that are read, and sent, at a time.
PIECE_BYTES = 256 * 1024
#: Bytes of a draft that wait in memory until they are worth a thread's while.
WRITTEN_AT_ONCE = 128 * 1024
#: Drafts that are written to while their next pieces come in. Where there are more the disk is what all of them wait
#: for, and whatever has come in meanwhile is memory that brings nothing.
_MOST_AHEAD = 4

_FANNED_OUT = ("originals", "renditions")
#: Folders between the root and an image: the kind of its key, then two by its time.
_FAN_OUT_DEPTH = 3
#: Folders that are remembered as durable; two are new every 65 s.
_MOST_DURABLE = 4096
#: What a file system without hard links answers, or one that has enough of them.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EXDEV)

#: Threads that wait for the disk, for whoever waits for several things at once.
_waiters = ThreadPoolExecutor(16, thread_name_prefix="fsync")


class DiskDraft:
    """A temporary file in the storage's own file system, so that keeping it is a rename."""

    #: What threads are writing.
    _writings: ClassVar[set[asyncio.Future[None]]] = set()

    def __init__(self, path: Path, file: FileIO) -> None:
        self.path = path
        self._file = file
        self._kept = False
        #: What is not written yet, and how much that is.
        self._pieces: list[bytes] = []
        self._waiting = 0
        self._writing: asyncio.Future[None] | None = None
        self._digest = hashlib.sha256()
        self._length = 0
        #: Whether all that is in the file has come through `write`.
        self._is_hashed = True

    async def write(self, chunk: bytes) -> None:
        self._pieces.append(chunk)
        self._waiting += len(chunk)
        # To hand something to a thread takes longer than to write a piece as it comes from a connection. While these
        # are written, the next ones come in.
        if self._waiting >= WRITTEN_AT_ONCE:
            await self.settle()
            pieces, self._pieces, self._waiting = self._pieces, [], 0
            self._writing = asyncio.ensure_future(asyncio.to_thread(self._write, pieces))
            self._writings.add(self._writing)
            self._writing.add_done_callback(self._writings.discard)
            if len(self._writings) > _MOST_AHEAD:
                await self.settle()

    async def settle(self) -> None:
        """Return when no thread is writing any more. Raises StorageFull or StorageUnavailable."""
        writing, self._writing = self._writing, None
        if writing is not None:
            with translated(self.path):
                await to_the_end(writing)

    def fileno(self) -> int:
        self._is_hashed = False
        return self._file.fileno()

    async def digest(self) -> tuple[int, str]:
        await self.flush()
        if self._is_hashed:
            return self._length, self._digest.hexdigest()
        return await in_thread(self.path, functools.partial(_digest, self.path))

    async def discard(self) -> None:
        try:
            with contextlib.suppress(StorageUnavailable):
                await self.settle()
        finally:
            # Also where its caller is cancelled once more while a thread still writes.
            if not (self._kept and self._file.closed):
                await in_thread(self.path, self._discard)

    def _discard(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._kept:
            self.path.unlink(missing_ok=True)

    async def flush(self) -> None:
        """Have all that was written be in the file, where others read it."""
        await self.settle()
        if self._pieces:
            await in_thread(self.path, self._flush)

    def _flush(self) -> None:
        pieces, self._pieces, self._waiting = self._pieces, [], 0
        self._write(pieces)

    def _write(self, pieces: list[bytes]) -> None:
        pieces.reverse()
        while pieces:
            # Each is gone from memory as soon as it is written.
            piece = pieces.pop()
            self._digest.update(piece)
            self._length += len(piece)
            rest = memoryview(piece)
            while rest:
                rest = rest[self._file.write(rest) or 0 :]

    def sync(self) -> None:
        """Have all that was written survive a power cut, under the temporary name; blocks."""
        self._flush()
        os.fsync(self._file.fileno())

    def rename(self, target: Path) -> None:
        """Move the file into place; blocks."""
        self.path.rename(target)
        self.path, self._kept = target, True

    def close(self) -> None:
        """Close what is in place; blocks."""
        self._file.close()


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
        return (await self.drafts(1))[0]

    async def drafts(self, count: int) -> list[DiskDraft]:
        drafts: list[DiskDraft] = []

        def begin() -> None:
            for _ in range(count):
                drafts.append(_begin_draft(self._drafts))

        try:
            await in_thread(self._drafts, begin)
        except BaseException:
            # Also where its caller was cancelled meanwhile, and never has them.
            for draft in drafts:
                await draft.discard()
            raise
        return drafts

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        targets: dict[Path, DiskDraft] = {}
        for key, draft in drafts.items():
            assert isinstance(draft, DiskDraft)  # noqa: S101 - a draft of another storage is a mistake of ours
            targets[self._path(key)] = draft
            await draft.settle()
        # At once: each change between loop and thread costs more than most of these steps.
        await in_thread(self._root, lambda: self._put(targets))

    def _put(self, targets: Mapping[Path, DiskDraft]) -> None:
        folders = {target.parent for target in targets}
        _wait_together([draft.sync for draft in targets.values()] + self._make_folders(folders))
        for folder in folders:
            self._note_durable(folder)
        for target, draft in targets.items():
            draft.rename(target)
        for folder in folders:
            _fsync(folder)
        for draft in targets.values():
            draft.close()

    async def carry_over(self, source: str, target: str) -> None:
        def link() -> None:
            place = self._path(target)
            _wait_together(self._make_folders([place.parent]))
            self._note_durable(place.parent)
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
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                path.unlink()
                # Open until its name is gone for good, and until the disk knows that it has none: nobody else gets its
                # place before. A disk without a journal has it under its draft's name as well, and its repair would
                # take what another folder keeps there for this file's.
                _fsync(path.parent)
                os.fsync(file.fileno())

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

    def _make_folders(self, folders: Iterable[Path]) -> list[Callable[[], None]]:
        """Make folders; return the fsyncs by which their own entries survive a power cut, whoever made them; blocks."""
        fresh: set[Path] = set()
        for folder in folders:
            below_root = folder.relative_to(self._root)
            for made in (*reversed(below_root.parents), below_root):
                place = self._root / made
                if made.parts and (_make(place) or place not in self._durable):
                    fresh.add(place.parent)
        return [functools.partial(_fsync, above) for above in fresh]

    def _note_durable(self, folder: Path) -> None:
        """Remember a folder, and those above it, whose entries have been fsynced."""
        parts = folder.relative_to(self._root).parts
        # Below are the images' own folders, which are made once and may be removed.
        for depth in range(1, min(len(parts), _FAN_OUT_DEPTH) + 1):
            if len(self._durable) >= _MOST_DURABLE:
                self._durable.clear()
            self._durable.add(self._root.joinpath(*parts[:depth]))

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
            while first <= last:
                length = min(PIECE_BYTES, last - first + 1)
                # What the system has in memory is there sooner than a thread begins.
                piece = pages.read_part(file.fileno(), first, length)
                if piece is None:
                    await file.seek(first)
                    piece = await file.read(length)
                if not piece:
                    break
                first += len(piece)
                yield piece


def _begin_draft(folder: Path) -> DiskDraft:
    path = folder / secrets.token_hex(16)
    return DiskDraft(path, path.open("x+b", buffering=0))


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        return os.fstat(file.fileno()).st_size, hashlib.file_digest(file, "sha256").hexdigest()


def _in_order(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _make(folder: Path) -> bool:
    """Make a folder; return whether there was none: it may have been removed since it was durable."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wait_together(work: Sequence[Callable[[], None]]) -> None:
    """Do work that waits for the disk, all of it at once; blocks.

    The disk's journal is written once for all who wait then: six files one after the other take four times as long.
    """
    if len(work) == 1:
        work[0]()
        return
    # Each to its end, also where one fails: nothing is to come after its caller's clean-up.
    waiting = [_waiters.submit(contextvars.copy_context().run, each) for each in work]
    for failure in [each.exception() for each in waiting]:
        if failure is not None:
            raise failure


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
