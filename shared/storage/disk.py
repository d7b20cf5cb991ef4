"""Storage on a local or shared disk. Every put is fsynced and renamed into place, and its folder is fsynced."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from shared.errors import NoSuchKey
from shared.storage import Draft, Stored
from shared.storage.disk_draft import DiskDraft
from shared.storage.files import fsync_path, in_thread, stream_file

_FANNED_OUT = ("originals", "renditions")
#: Folders between the root and an image: one for the kind of key, then two for the time in the id.
_FAN_OUT_DEPTH = 3

#: Threads for fsyncs that run at the same time.
_fsync_threads = ThreadPoolExecutor(16, thread_name_prefix="fsync")


class DiskStorage:
    """The disk backend of `Storage`, below one folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._drafts = root / "drafts"

    async def prepare(self) -> None:
        def make() -> None:
            self._drafts.mkdir(parents=True, exist_ok=True)
            fsync_path(self._root)
            for folder in self._root.absolute().parents:
                # The parent folders may be new too. A folder that this user may not open is older than this process.
                with contextlib.suppress(OSError):
                    fsync_path(folder)
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
                drafts.append(DiskDraft.begin(self._drafts))

        try:
            await in_thread(self._drafts, begin)
        except BaseException:
            # Also after a cancellation: the caller does not get the drafts.
            for draft in drafts:
                await draft.discard()
            raise
        return drafts

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        await self._keep(drafts, DiskDraft.rename)

    async def keep_new(self, key: str, draft: Draft) -> None:
        await self._keep({key: draft}, DiskDraft.link)

    async def _keep(self, drafts: Mapping[str, Draft], move: Callable[[DiskDraft, Path], None]) -> None:
        targets: dict[Path, DiskDraft] = {}
        for key, draft in drafts.items():
            assert isinstance(draft, DiskDraft)  # noqa: S101 - a draft of another storage is a programming error
            targets[self._path(key)] = draft
        # One thread for all steps: each change between event loop and thread costs more than most steps.
        await in_thread(self._root, lambda: self._put(targets, move))

    def _put(self, targets: Mapping[Path, DiskDraft], move: Callable[[DiskDraft, Path], None]) -> None:
        folders = {target.parent for target in targets}
        # Make all bytes and folders durable before the first rename.
        _run_together([draft.sync for draft in targets.values()] + self._make_folders(folders))
        for target, draft in targets.items():
            move(draft, target)
        for folder in folders:
            fsync_path(folder)
        for draft in targets.values():
            draft.close()

    async def exists(self, key: str) -> bool:
        return await in_thread(self._root, self._path(key).exists)

    async def read(self, key: str) -> bytes:
        return await in_thread(self._path(key), self._path(key).read_bytes, absent=NoSuchKey)

    async def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        async for piece in stream_file(self._path(key), first, last):
            yield piece

    async def open_local(self, key: str) -> BinaryIO:
        return await in_thread(self._path(key), lambda: self._path(key).open("rb"), absent=NoSuchKey)

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
        """Yield the paths of the keys at or below `prefix`. For a whole kind, they are folders of 65 s each."""
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
        # A file that is not at the path of its key is not ours.
        if key != kind and self._path(key) == place:
            with contextlib.suppress(FileNotFoundError):
                status = place.stat()
                return [Stored(key, status.st_size, status.st_mtime)]
        return []

    async def delete(self, key: str) -> None:
        path = self._path(key)

        def remove() -> None:
            try:
                with path.open("rb") as file:
                    path.unlink()
                    # Fsync the folder first, then the unlinked file. While the file is open, no other file gets its
                    # blocks. Without a journal, the disk may still list the file under its draft's name. A repair after
                    # a power cut would then take blocks of another file for those of this file.
                    fsync_path(path.parent)
                    os.fsync(file.fileno())
            except FileNotFoundError:
                # Another process may have removed the file and died before its fsync.
                with contextlib.suppress(FileNotFoundError):
                    fsync_path(path.parent)

        await in_thread(self._root, remove)

    async def delete_folder(self, prefix: str) -> None:
        def remove() -> None:
            # A late attempt may add a file meanwhile, so try up to three times.
            for _ in range(2):
                shutil.rmtree(self._path(prefix), ignore_errors=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(self._path(prefix))

        await in_thread(self._root, remove)

    async def free_bytes(self) -> int:
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

    async def close(self) -> None:
        """Do nothing: no file stays open."""

    def _make_folders(self, folders: Iterable[Path]) -> list[Callable[[], None]]:
        """Make folders. Returns the fsyncs that make their entries durable, up to the root. Blocks."""
        above: set[Path] = set()
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            # Also for folders that existed: the process that made them may not have fsynced them yet.
            above.update(self._root / parent for parent in folder.relative_to(self._root).parents)
        return [functools.partial(fsync_path, folder) for folder in above]

    def _path(self, key: str) -> Path:
        return self._root / place_below(key)


def place_below(key: str) -> str:
    """Return the path of a key's file, or of a prefix's folder, below the storage's root."""
    kind, _, rest = key.partition("/")
    if kind in _FANNED_OUT and rest:
        # Ids begin with their time (UUIDv7). One folder covers three days, and each folder in it 65 s.
        return f"{kind}/{rest[:5]}/{rest[5:8]}/{rest}"
    return key


def _in_order(folder: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _run_together(fsyncs: Sequence[Callable[[], None]]) -> None:
    """Run all fsyncs at the same time. Blocks.

    They share one write of the disk's journal. Six files one after the other take four times as long.
    """
    # Wait for all of them, also if one fails: none may run while the caller cleans up.
    running = [_fsync_threads.submit(fsync) for fsync in fsyncs]
    for failure in [each.exception() for each in running]:
        if failure is not None:
            raise failure
