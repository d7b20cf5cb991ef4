"""Bytes by key. `Storage` is what every backend does; each backend is a module beside this one.

What only some backends do is a protocol of its own: `SignsUrls`, `KeepsCopies`. A composition root asks for it once,
with `isinstance`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, runtime_checkable


@dataclass(frozen=True)
class Stored:
    """One entry of a listing; `changed` is in seconds since the epoch."""

    key: str
    bytes: int
    changed: float


class Draft(Protocol):
    """Bytes on their way into storage: a local temporary file, which is kept under a key or discarded."""

    async def write(self, chunk: bytes) -> None:
        """Append `chunk`. Raises StorageFull or StorageUnavailable."""

    def fileno(self) -> int:
        """Return the descriptor of the temporary file, open for reading and writing."""

    async def digest(self) -> tuple[int, str]:
        """Return the length and the SHA-256 (hex) of what `write` got; also once the draft is kept."""

    async def discard(self) -> None:
        """Remove the temporary file unless the draft was kept; safe to repeat."""


class Drafts(Protocol):
    """Where bytes wait until they are kept: a folder on a disk of this machine, also with an object store."""

    async def draft(self) -> Draft:
        """Begin a draft."""

    async def drafts(self, count: int) -> Sequence[Draft]:
        """Begin `count` drafts: six take a quarter of the time and CPU that they take one by one."""

    async def sweep_drafts(self, older_than_seconds: float) -> int:
        """Remove drafts that have not been written to for so long; return how many."""

    async def free_bytes(self) -> int:
        """Return how many bytes are free there."""


class Storage(Drafts, Protocol):
    """Where originals and renditions live. Methods raise StorageUnavailable, StorageFull and NoSuchKey only.

    Uploads in progress are drafts in it of another kind: see `shared/storage/resumable.py`.
    """

    async def prepare(self) -> None:
        """Make the storage usable, or raise an error that says why it is not."""

    async def close(self) -> None:
        """End what runs in the background, and close what is open."""

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        """Put each draft under its key; when this returns, all of them survive a power cut."""

    async def keep_new(self, key: str, draft: Draft) -> None:
        """Put a draft of a few MiB under its key, as durably, unless something is there. Raises StorageConflict.

        Of several processes that do so at the same time one succeeds.
        """

    async def exists(self, key: str) -> bool:
        """Tell whether there is anything under `key`."""

    async def read(self, key: str) -> bytes:
        """Return what is under `key`."""

    def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `first` to `last` (both included) under `key`, in pieces."""

    async def open_local(self, key: str) -> BinaryIO:
        """Return what is under `key` as a local file, read-only; the caller closes it."""

    async def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`."""

    def listing(self, prefix: str) -> AsyncIterator[Stored]:
        """Yield what is stored at or below `prefix` (`originals`, `renditions/{id}`, …), in order of ids.

        It is no snapshot: what is added or removed meanwhile may be in it or not.
        """

    async def delete(self, key: str) -> None:
        """Remove what is under `key`; no power cut brings it back. A missing key is no error."""

    async def delete_folder(self, prefix: str) -> None:
        """Remove everything below `prefix`. A missing prefix is no error."""


@runtime_checkable
class SignsUrls(Protocol):
    """A storage whose keys can be read by URL."""

    async def signed_url(self, key: str, seconds: float) -> str:
        """Return a URL by which anybody can read `key` for so long, whether it exists or not."""


@runtime_checkable
class KeepsCopies(Protocol):
    """A storage that keeps copies of renditions on this machine's disk."""

    async def forget_copies(self, image_id: str) -> None:
        """Remove this process's copies of an image."""

    async def check_copies(self, which_are_ready: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        """Remove this process's copies of images that are not ready any more."""
