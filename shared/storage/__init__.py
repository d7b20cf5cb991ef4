"""Bytes by key. `Storage` is the interface of every backend. Each backend is a module in this package.

An ability that only some backends have is a separate protocol: `SignsUrls`, `KeepsCopies`. The constructors that need
one check for it with `isinstance`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable


@dataclass(frozen=True)
class Stored:
    """One entry of a listing. `changed` is in seconds since the epoch."""

    key: str
    bytes: int
    changed: float


class Draft(Protocol):
    """A local temporary file with bytes for storage. It is kept under a key, or discarded."""

    async def write(self, chunk: bytes) -> None:
        """Append `chunk`. Raises StorageFull or StorageUnavailable."""

    def fileno(self) -> int:
        """Return the descriptor of the temporary file, open for reading and writing."""

    async def digest(self) -> tuple[int, str]:
        """Return the length and the SHA-256 (hex) of the bytes that `write` got, also after the draft was kept."""

    async def discard(self) -> None:
        """Remove the temporary file unless the draft was kept. Safe to repeat."""


class Drafts(Protocol):
    """The place of drafts: a folder on a disk of this machine, also with an object store."""

    async def draft(self) -> Draft:
        """Begin a draft."""

    async def drafts(self, count: int) -> Sequence[Draft]:
        """Begin `count` drafts. Six of them take a quarter of the time and CPU that they take one by one."""

    async def sweep_drafts(self, older_than_seconds: float) -> int:
        """Remove drafts that were not written to for so long. Returns how many."""

    async def free_bytes(self) -> int:
        """Return the free bytes of the drafts' disk."""


class Storage(Drafts, Protocol):
    """The place of originals and renditions.

    Methods raise only StorageUnavailable, StorageFull, NoSuchKey and StorageConflict. Resumable drafts are stored here,
    too (`shared/storage/resumable.py`). No request makes one yet.
    """

    async def prepare(self) -> None:
        """Make the storage usable. Raises an error with the reason if it is not."""

    async def close(self) -> None:
        """End background tasks and close what is open."""

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        """Put each draft under its key. When this returns, all of them survive a power cut."""

    async def keep_new(self, key: str, draft: Draft) -> None:
        """Put a draft of a few MiB under its key, equally durable. Raises StorageConflict if the key is taken.

        If several processes do this at the same time, one of them succeeds.
        """

    async def exists(self, key: str) -> bool:
        """Return whether there is anything under `key`."""

    async def read(self, key: str) -> bytes:
        """Return the bytes under `key`."""

    def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `first` to `last` (both included) under `key`, in pieces."""

    async def open_local(self, key: str) -> BinaryIO:
        """Return the bytes under `key` as a local file, read-only. The caller closes it."""

    async def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`."""

    def listing(self, prefix: str) -> AsyncIterator[Stored]:
        """Yield the files at or below `prefix` (`originals`, `renditions/{id}`, …), in the order of ids.

        The listing is no snapshot: files that are added or removed meanwhile may be in it or not.
        """

    async def delete(self, key: str) -> None:
        """Remove the file under `key`. After this, a power cut does not bring it back. A missing key is no error."""

    async def delete_folder(self, prefix: str) -> None:
        """Remove everything below `prefix`. A missing prefix is no error."""


@runtime_checkable
class SignsUrls(Protocol):
    """A storage whose keys can be read by URL."""

    async def signed_url(self, key: str, seconds: float) -> str:
        """Return a URL by which anybody can read `key` for so long. Does not check that the key exists."""


@runtime_checkable
class KeepsCopies(Protocol):
    """A storage that keeps copies of renditions on this machine's disk."""

    async def forget_copies(self, image_id: str) -> None:
        """Remove this process's copies of an image."""

    async def check_copies(self, which_are_ready: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        """Remove this process's copies of images that are not ready any more."""
