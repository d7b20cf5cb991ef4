"""The index of copies of renditions on this machine's disk. It decides which copies make room for a new one.

Each process has its own folder, in which no other process counts, evicts or removes. The folder is empty at the start:
copies are not fsynced, so a power cut may have torn those of an earlier process.

    cache/{number}/lock                         locked by the process that owns the folder
    cache/{number}/{x}/{id}.{attempt}.{name}    a copy; its name begins with a dot until it is whole
"""

from __future__ import annotations

import fcntl
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import IO

#: File systems use whole blocks of this length.
_BLOCK_BYTES = 4096
#: The most bytes that a name takes in its folder.
_NAME_BYTES = 128
#: Folders of copies, by the last digit of the image's id, which is random.
_FOLDERS = 16
#: Bytes that the folders take on the disk in addition to the copies.
FIXED_BYTES = (_FOLDERS + 3) * _BLOCK_BYTES


class LocalCache:
    """The copies of one process, at most `bound` bytes of disk. The least recently used ones make room."""

    def __init__(self, root: Path, bound: int) -> None:
        self._root = root
        self._bound = bound - FIXED_BYTES
        self._folder = root
        self._lock: IO[bytes] | None = None
        #: Bytes on the disk by key, the most recently used key last.
        self._bytes: OrderedDict[str, int] = OrderedDict()
        self._keys_of: dict[str, set[str]] = {}
        self._copied = 0
        self._under_way = 0

    @property
    def total(self) -> int:
        """Bytes of disk that the copies take, including those being written."""
        return self._copied + self._under_way

    def open(self) -> None:
        """Take the first folder that no process owns, and remove the copies in all folders without an owner. Blocks."""
        number = 0
        while self._lock is None:
            self._folder = self._root / str(number)
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lock = _emptied(self._folder)
            number += 1
        for folder in self._root.iterdir():
            if folder != self._folder and folder.is_dir() and (lock := _emptied(folder)) is not None:
                lock.close()

    def images(self) -> list[str]:
        """Return the ids of the images that have copies."""
        return list(self._keys_of)

    def close(self) -> None:
        """Release the folder for the next process."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def path_of(self, key: str) -> Path | None:
        """Return the path of a key's copy, or None if there is no copy. Counts as a use of the copy."""
        if key not in self._bytes:
            return None
        self._bytes.move_to_end(key)
        return self.place_of(key)

    def place_of(self, key: str) -> Path:
        """Return the path for a key's copy."""
        _, image_id, attempt, name = key.split("/")
        return self._folder / image_id[-1] / f"{image_id}.{attempt}.{name}"

    def make_room(self, length: int, spare: int) -> list[Path] | None:
        """Reserve room for a copy of `length` bytes. Returns the copies to remove for it, or None if it cannot fit.

        `spare` is how many more bytes of disk the copies may take. If it is negative, they must free so many.
        """
        most = min(self._bound, self._copied + spare)
        if self._under_way + _on_disk(length) > most:
            return None
        self._under_way += _on_disk(length)
        gone = []
        while self.total > most:
            gone.append(self.place_of(next(iter(self._bytes))))
            self.forget(next(iter(self._bytes)))
        return gone

    def note(self, key: str, length: int) -> None:
        """Count a copy."""
        self.forget(key)
        self._bytes[key] = _on_disk(length)
        self._keys_of.setdefault(_image_of(key), set()).add(key)
        self._copied += _on_disk(length)

    def give_back(self, length: int) -> None:
        """Release reserved room."""
        self._under_way -= _on_disk(length)

    def forget(self, key: str) -> None:
        """Stop counting a copy."""
        if key not in self._bytes:
            return
        self._copied -= self._bytes.pop(key)
        keys = self._keys_of[_image_of(key)]
        keys.discard(key)
        if not keys:
            del self._keys_of[_image_of(key)]

    def forget_below(self, prefix: str) -> list[Path]:
        """Stop counting the copies below an image's or an attempt's prefix. Returns their paths."""
        keys = [key for key in self._keys_of.get(_image_of(prefix), ()) if key.startswith(f"{prefix}/")]
        for key in keys:
            self.forget(key)
        return [self.place_of(key) for key in keys]


def _emptied(folder: Path) -> IO[bytes] | None:
    """Lock a folder and remove the copies in it. Returns the lock, or None if another process owns the folder."""
    lock = (folder / "lock").open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        return None
    for entry in folder.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
    return lock


def _on_disk(length: int) -> int:
    return -(-length // _BLOCK_BYTES) * _BLOCK_BYTES + _NAME_BYTES


def _image_of(key: str) -> str:
    return key.split("/")[1]
