"""A bounded copy, on this machine's disk, of what a web process has read from an object store.

A rendition never changes under its key, so a copy is never stale; whether its image may be served is the ledger's word,
which is asked first. Each process has a folder of its own, where nobody else counts, evicts or removes:

    cache/{number}/lock                         held by the process that has the folder; its successor takes both over
    cache/{number}/boot                         the start of the machine that the copies are of
    cache/{number}/{x}/{id}.{attempt}.{name}    a copy; its name begins with a point until it is whole
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO

from shared.cancellation import cancel
from shared.errors import NoSuchKey, StorageUnavailable
from shared.images import renditions_prefix
from shared.storage.disk import in_thread, stream_file
from shared.storage.objects import ObjectStorage
from shared.storage.pages import CachedPages

logger = logging.getLogger(__name__)

#: What a file takes up is counted in these, as file systems do.
_BLOCK_BYTES = 4096
#: What a name takes up in its folder, at the most.
_NAME_BYTES = 128
#: Folders that copies are in, by the last digit of their image's id, which is random; and what is there besides copies.
_FOLDERS = 16
FIXED_BYTES = (_FOLDERS + 3) * _BLOCK_BYTES
#: Images that the ledger is asked about at a time.
_PAGE = 500
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LocalCache:
    """Which copies there are, and which of them go for a new one: those that were not used for longest."""

    def __init__(self, root: Path, bound: int) -> None:
        self._root = root
        self._bound = bound - FIXED_BYTES
        self._folder = root
        self._lock: IO[bytes] | None = None
        #: Bytes on the disk by key, the one used last at the end.
        self._bytes: OrderedDict[str, int] = OrderedDict()
        self._keys_of: dict[str, set[str]] = {}
        self._copied = 0
        self._under_way = 0

    @property
    def total(self) -> int:
        """Bytes that copies take up on the disk, those under way included."""
        return self._copied + self._under_way

    def open(self) -> None:
        """Take over a folder that nobody has, and what is in it; blocks."""
        number = 0
        while self._lock is None:
            self._folder = self._root / str(number)
            self._folder.mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "lock").open("ab")
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._lock = lock
            except BlockingIOError:
                lock.close()
                number += 1
        self._clear_if_torn()
        self._take_stock()

    def _clear_if_torn(self) -> None:
        """Begin anew where the machine has been: copies are not fsynced, and a power cut tears them."""
        boot, now = self._folder / "boot", _BOOT_ID.read_text() if _BOOT_ID.exists() else ""
        if now and boot.exists() and boot.read_text() == now:
            return
        _clear(self._folder)
        boot.write_text(now)

    def clear_abandoned(self) -> None:
        """Remove what is in the folders that nobody has: of processes that have ended without a successor; blocks."""
        for folder in self._root.iterdir():
            if folder != self._folder and folder.is_dir():
                with (folder / "lock").open("ab") as lock, contextlib.suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    _clear(folder)

    def images(self) -> list[str]:
        """Return the images that there are copies of."""
        return list(self._keys_of)

    def _take_stock(self) -> None:
        found: list[tuple[float, str, int]] = []
        for folder in (entry for entry in self._folder.iterdir() if entry.is_dir()):
            for path in folder.iterdir():
                if path.name.startswith(".") or path.name.count(".") < 2:
                    path.unlink()
                else:
                    status = path.stat()
                    found.append((status.st_mtime, path.name, status.st_size))
        for _, name, length in sorted(found):
            image_id, attempt, rendition = name.split(".", 2)
            self.note(f"renditions/{image_id}/{attempt}/{rendition}", length)
        # There may be less room than there was.
        while self._copied > self._bound and self._bytes:
            oldest = next(iter(self._bytes))
            self.forget(oldest)
            self.place_of(oldest).unlink()

    def close(self) -> None:
        """Leave the folder to who comes next."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path_of(self, key: str) -> Path | None:
        """Return where the copy of a key is, used by this, or None where there is none."""
        if key not in self._bytes:
            return None
        self._bytes.move_to_end(key)
        return self.place_of(key)

    def place_of(self, key: str) -> Path:
        """Return where a key's copy is to be."""
        _, image_id, attempt, name = key.split("/")
        return self._folder / image_id[-1] / f"{image_id}.{attempt}.{name}"

    def make_room(self, length: int, spare: int | None = None) -> list[Path] | None:
        """Reserve room for so many bytes; return the copies that have to go for it, or None where that is not enough.

        `spare` is what may be taken of the disk beyond what the copies have, or has to be given back to it.
        """
        most = self._bound if spare is None else min(self._bound, self._copied + spare)
        if self._under_way + _on_disk(length) > most:
            return None
        self._under_way += _on_disk(length)
        gone = []
        while self.total > most:
            gone.append(self.place_of(next(iter(self._bytes))))
            self.forget(next(iter(self._bytes)))
        return gone

    def note(self, key: str, length: int) -> None:
        """Count a copy that is there."""
        self.forget(key)
        self._bytes[key] = _on_disk(length)
        self._keys_of.setdefault(_image_of(key), set()).add(key)
        self._copied += _on_disk(length)

    def give_back(self, length: int) -> None:
        """Give room back that was reserved."""
        self._under_way -= _on_disk(length)

    def forget(self, key: str) -> None:
        """Count a copy no longer."""
        if key not in self._bytes:
            return
        self._copied -= self._bytes.pop(key)
        keys = self._keys_of[_image_of(key)]
        keys.discard(key)
        if not keys:
            del self._keys_of[_image_of(key)]

    def forget_below(self, prefix: str) -> list[Path]:
        """Count copies below an image's prefix, or an attempt's, no longer; return where they are."""
        keys = [key for key in self._keys_of.get(_image_of(prefix), ()) if key.startswith(f"{prefix}/")]
        for key in keys:
            self.forget(key)
        return [self.place_of(key) for key in keys]


class CachedObjectStorage(ObjectStorage):
    """An object store whose renditions are read through a cache on this machine's disk.

    `floor` bytes of the disk are left free for drafts: an upload is refused where they have no room.
    """

    def __init__(self, url: str, local: Path, bound: int, floor: int = 0, **options: Any) -> None:
        super().__init__(url, local, **options)
        self._folder = local / "cache"
        self._cache = LocalCache(self._folder, bound)
        self._floor = floor
        self._pages = CachedPages()
        self._fills: dict[str, asyncio.Task[Path | None]] = {}
        #: The keys of those whose copies are not to be kept.
        self._unwanted: set[str] = set()

    @property
    def cache_bytes(self) -> int:
        """Bytes that the copies take up on this machine's disk."""
        return self._cache.total

    async def prepare(self) -> None:
        await super().prepare()
        await in_thread(self._folder, self._cache.open)

    async def close(self) -> None:
        # Whoever has the folder next counts what is there.
        await cancel(*self._fills.values())
        self._cache.close()

    async def read(self, key: str) -> bytes:
        path = await self._copy_of(key)
        if path is not None:
            try:
                return await asyncio.to_thread(path.read_bytes)
            except OSError:
                # It has just made room for another one, or this disk is in trouble: the store has it.
                self._cache.forget(key)
        return await super().read(key)

    def read_now(self, key: str, length: int) -> bytes | None:
        path = self._cache.path_of(key)
        return None if path is None else self._pages.read(str(path), length)

    def is_near(self, key: str) -> bool:
        return self._cache.path_of(key) is not None

    async def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        path = await self._copy_of(key)
        if path is not None:
            try:
                async for piece in stream_file(path, first, last):
                    first += len(piece)
                    yield piece
                return
            except (NoSuchKey, StorageUnavailable):
                self._cache.forget(key)
        async for piece in super().stream(key, first, last):
            yield piece

    async def delete_folder(self, prefix: str) -> None:
        await super().delete_folder(prefix)
        await self._drop(prefix)
        if under_way := [fill for key, fill in self._fills.items() if key.startswith(f"{prefix}/")]:
            await asyncio.wait(under_way)

    async def forget_copies(self, image_id: str) -> None:
        await self._drop(renditions_prefix(image_id))

    async def check_copies(self, which_are_ready: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        images = self._cache.images()
        for start in range(0, len(images), _PAGE):
            page = images[start : start + _PAGE]
            for image_id in set(page) - await which_are_ready(page):
                await self.forget_copies(image_id)

    async def clear_abandoned_copies(self) -> None:
        await in_thread(self._folder, self._cache.clear_abandoned)

    async def _drop(self, prefix: str) -> None:
        # What is on its way goes when it comes: nobody has to wait for it.
        self._unwanted.update(key for key in self._fills if key.startswith(f"{prefix}/"))
        if paths := self._cache.forget_below(prefix):
            await in_thread(self._folder, lambda: _remove(paths))

    async def _copy_of(self, key: str) -> Path | None:
        """Return where a copy is, made now if need be, or None where there can be none. Raises NoSuchKey."""
        if not key.startswith("renditions/"):
            return None
        if (path := self._cache.path_of(key)) is not None:
            return path
        fill = self._fills.get(key)
        if fill is None:
            # Of those who ask at the same time, one fetches; none who goes away takes it along.
            fill = self._fills[key] = asyncio.create_task(self._fill(key))
            fill.add_done_callback(lambda done: self._filled(key, done))
        return await asyncio.shield(fill)

    def _filled(self, key: str, fill: asyncio.Task[Path | None]) -> None:
        del self._fills[key]
        self._unwanted.discard(key)
        if not fill.cancelled():
            fill.exception()  # seen, also where everybody has gone

    async def _fill(self, key: str) -> Path | None:
        found = await self.get(key)
        length = found.whole_length
        try:
            free = await in_thread(self._folder, lambda: shutil.disk_usage(self._folder).free)
        except StorageUnavailable:
            return None
        gone = self._cache.make_room(length, free - self._floor)
        if gone is None:
            return None
        place = self._cache.place_of(key)
        begun = place.with_name(f".{place.name}")
        try:
            file = await in_thread(self._folder, lambda: _begin(begun, gone))
            try:
                async for piece in found.pieces():
                    await in_thread(begun, lambda piece=piece: file.write(piece))  # type: ignore[misc] # a default is no argument
            finally:
                await in_thread(begun, file.close)
            if key not in self._unwanted:
                await in_thread(begun, lambda: begun.rename(place))
            if key in self._unwanted:
                await in_thread(begun, lambda: _remove([begun, place]))
                return None
        except StorageUnavailable as exc:
            # The store's trouble or this disk's: who asks the store itself is told which.
            logger.info("no copy could be made", extra={"key": key, "reason": str(exc)})
            with contextlib.suppress(StorageUnavailable):
                await in_thread(begun, lambda: _remove([begun]))
            return None
        finally:
            self._cache.give_back(length)
        self._cache.note(key, length)
        return place


def _begin(place: Path, gone: list[Path]) -> BinaryIO:
    _remove(gone)
    place.parent.mkdir(exist_ok=True)
    return place.open("wb")


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)


def _on_disk(length: int) -> int:
    return -(-length // _BLOCK_BYTES) * _BLOCK_BYTES + _NAME_BYTES


def _image_of(key: str) -> str:
    return key.split("/")[1]
