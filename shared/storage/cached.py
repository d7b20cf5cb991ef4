"""A bounded copy, on this machine's disk, of what a web process has read from an object store.

A rendition never changes under its key, so a copy is never stale; whether its image may be served is the ledger's word,
which is asked first. Each process has a folder of its own, where nobody else counts, evicts or removes:

    cache/{number}/lock                         held by the process that has the folder; its successor takes both over
    cache/{number}/boot                         the start of the machine that the copies are of
    cache/{number}/{xx}/{id}.{attempt}.{name}   a copy; its name begins with a point until it is whole
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import shutil
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Any, BinaryIO

from shared.errors import NoSuchKey, StorageUnavailable
from shared.images import renditions_prefix
from shared.storage.disk import in_thread, stream_file
from shared.storage.objects import ObjectStorage

logger = logging.getLogger(__name__)

#: What a file takes up is counted in these, as file systems do.
_BLOCK_BYTES = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class LocalCache:
    """Which copies there are, and which of them go for a new one: those that were not used for longest."""

    def __init__(self, root: Path, bound: int) -> None:
        self._root = root
        self._bound = bound
        self._folder = root
        self._lock: IO[bytes] | None = None
        #: Bytes on the disk by key, the one used last at the end.
        self._bytes: OrderedDict[str, int] = OrderedDict()
        self._keys_of: dict[str, set[str]] = {}
        self._copied = 0
        self._under_way = 0

    @property
    def total(self) -> int:
        """Bytes on the disk, those under way included."""
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
        for entry in self._folder.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
        boot.write_text(now)

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
        for path in self.make_room(0) or ():
            path.unlink()

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
        return self._folder / image_id[-2:] / f"{image_id}.{attempt}.{name}"

    def make_room(self, length: int) -> list[Path] | None:
        """Reserve room for so many bytes; return the copies that have to go for it, or None where all is under way."""
        if self._under_way + _on_disk(length) > self._bound:
            return None
        self._under_way += _on_disk(length)
        gone = []
        while self.total > self._bound:
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
    """An object store whose renditions are read through a cache on this machine's disk."""

    def __init__(self, url: str, local: Path, bound: int, **options: Any) -> None:
        super().__init__(url, local, **options)
        self._folder = local / "cache"
        self._cache = LocalCache(self._folder, bound)
        self._fills: dict[str, asyncio.Task[Path | None]] = {}

    @property
    def cache_bytes(self) -> int:
        """Bytes that the copies take up on this machine's disk."""
        return self._cache.total

    async def prepare(self) -> None:
        await super().prepare()
        await in_thread(self._folder, self._cache.open)

    async def close(self) -> None:
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

    async def forget_copies(self, image_id: str) -> None:
        await self._drop(renditions_prefix(image_id))

    async def _drop(self, prefix: str) -> None:
        # What is on its way would come after us.
        under_way = [fill for key, fill in self._fills.items() if key.startswith(f"{prefix}/")]
        if under_way:
            await asyncio.wait(under_way)
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
        if not fill.cancelled():
            fill.exception()  # seen, also where everybody has gone

    async def _fill(self, key: str) -> Path | None:
        found = await self.get(key)
        length = found.whole_length
        gone = self._cache.make_room(length)
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
            await in_thread(begun, lambda: begun.rename(place))
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


def _on_disk(length: int) -> int:
    return -(-length // _BLOCK_BYTES) * _BLOCK_BYTES


def _image_of(key: str) -> str:
    return key.split("/")[1]
