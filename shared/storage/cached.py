"""A storage whose renditions are read through copies on this machine's disk.

A rendition never changes under its key, so a copy is never stale. The ledger decides whether an image may be served,
and is always asked first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from shared.cancellation import cancel
from shared.errors import NoSuchKey, StorageFull, StorageUnavailable
from shared.renditions import renditions_prefix
from shared.storage import SignsUrls, Storage
from shared.storage.files import in_thread, stream_file
from shared.storage.local_cache import LocalCache

logger = logging.getLogger(__name__)

#: Images for which the ledger is asked at a time.
_PAGE = 500


class CachedStorage:
    """Adds copies of renditions to any storage: at most `bound` bytes in `folder`.

    The copies leave `floor` bytes of the disk free, which uploads need for drafts.
    """

    def __init__(self, storage: Storage, folder: Path, bound: int, floor: int) -> None:
        self._storage = storage
        self._folder = folder
        self._cache = LocalCache(folder, bound)
        self._floor = floor
        self._fills: dict[str, asyncio.Task[Path | None]] = {}
        #: Keys whose copies are being written, but are not wanted any more.
        self._unwanted: set[str] = set()
        # Methods that do not concern copies are those of the storage.
        self.draft, self.drafts, self.sweep_drafts = storage.draft, storage.drafts, storage.sweep_drafts
        self.keep, self.keep_new, self.delete = storage.keep, storage.keep_new, storage.delete
        self.exists, self.open_local, self.free_bytes = storage.exists, storage.open_local, storage.free_bytes
        self.folders, self.listing = storage.folders, storage.listing
        if isinstance(storage, SignsUrls):
            self.signed_url = storage.signed_url

    async def prepare(self) -> None:
        await self._storage.prepare()
        await in_thread(self._folder, self._cache.open)

    async def close(self) -> None:
        # No copy may be written after the next process owns the folder.
        await cancel(*self._fills.values())
        self._cache.close()
        await self._storage.close()

    async def read(self, key: str) -> bytes:
        path = await self._copy_of(key)
        if path is not None:
            try:
                return await asyncio.to_thread(path.read_bytes)
            except OSError:
                # The copy has just made room for another one, or this disk is in trouble.
                self._cache.forget(key)
        return await self._storage.read(key)

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
        async for piece in self._storage.stream(key, first, last):
            yield piece

    async def delete_folder(self, prefix: str) -> None:
        await self._storage.delete_folder(prefix)
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

    async def _drop(self, prefix: str) -> None:
        # Copies that are being written are removed when they are complete. The caller does not wait for that.
        self._unwanted.update(key for key in self._fills if key.startswith(f"{prefix}/"))
        if paths := self._cache.forget_below(prefix):
            await in_thread(self._folder, lambda: _remove(paths))

    async def _copy_of(self, key: str) -> Path | None:
        """Return the path of a key's copy, or None if no copy can be made. Makes a missing copy. Raises NoSuchKey."""
        if not key.startswith("renditions/"):
            return None
        if (path := self._cache.path_of(key)) is not None:
            return path
        fill = self._fills.get(key)
        if fill is None:
            # Concurrent readers share one fill. The shield below keeps a cancelled reader from ending it.
            fill = self._fills[key] = asyncio.create_task(self._fill(key))
            fill.add_done_callback(lambda done: self._filled(key, done))
        return await asyncio.shield(fill)

    def _filled(self, key: str, fill: asyncio.Task[Path | None]) -> None:
        del self._fills[key]
        self._unwanted.discard(key)
        if not fill.cancelled():
            fill.exception()  # retrieved, or asyncio would log it if no reader waits any more

    async def _fill(self, key: str) -> Path | None:
        free = await in_thread(self._folder, lambda: shutil.disk_usage(self._folder).free)
        spare = free - self._floor
        if spare + self._cache.total <= 0:
            return None
        try:
            source = await self._storage.open_local(key)
        except StorageFull:
            return None
        with source:
            length = os.fstat(source.fileno()).st_size
            gone = self._cache.make_room(length, spare)
            if gone is None:
                return None
            place = self._cache.place_of(key)
            try:
                await in_thread(self._folder, lambda: _copy(source, place, gone))
                if key in self._unwanted:
                    await in_thread(self._folder, lambda: _remove([place]))
                    return None
            except StorageUnavailable as exc:
                logger.info("no copy could be made", extra={"key": key, "reason": str(exc)})
                return None
            finally:
                self._cache.give_back(length)
        self._cache.note(key, length)
        return place


def _copy(source: BinaryIO, place: Path, gone: list[Path]) -> None:
    _remove(gone)
    place.parent.mkdir(exist_ok=True)
    begun = place.with_name(f".{place.name}")
    try:
        with begun.open("wb") as file:
            shutil.copyfileobj(source, file)
        begun.rename(place)
    except OSError:
        with contextlib.suppress(OSError):
            begun.unlink()
        raise


def _remove(paths: list[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)
