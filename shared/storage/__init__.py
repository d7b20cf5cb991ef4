"""Bytes by key. `Storage` is what its callers need of it; each backend is a module beside this one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol


@dataclass(frozen=True)
class Stored:
    """What a storage tells of a key without reading what is under it; `changed` is in seconds since the epoch."""

    key: str
    bytes: int
    changed: float


class Draft(Protocol):
    """Bytes on their way into storage: a local temporary file, kept under a key or discarded."""

    async def write(self, chunk: bytes) -> None:
        """Append `chunk`. Raises StorageFull or StorageUnavailable."""

    def fileno(self) -> int:
        """Return the descriptor of the temporary file, open for reading and writing."""

    async def digest(self) -> tuple[int, str]:
        """Return the length and the SHA-256 (hex) of what was written; also once the draft is kept."""

    async def discard(self) -> None:
        """Remove the temporary file unless the draft was kept; safe to repeat."""


class Storage(Protocol):
    """Where originals and renditions live. Methods raise StorageUnavailable, StorageFull and NoSuchKey only."""

    async def prepare(self) -> None:
        """Make the storage usable, or say why it is not."""

    async def draft(self) -> Draft:
        """Begin a draft."""

    async def drafts(self, count: int) -> Sequence[Draft]:
        """Begin so many drafts."""

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        """Put each draft under its key; when this returns, all of them survive a power cut."""

    async def carry_over(self, source: str, target: str) -> None:
        """Put what is under `source` under `target` as well, as durably as `keep`."""

    async def exists(self, key: str) -> bool:
        """Tell whether there is anything under `key`."""

    async def read(self, key: str) -> bytes:
        """Return what is under `key`."""

    def read_now(self, key: str, length: int) -> bytes | None:
        """Return the `length` bytes under a rendition's `key` where nobody has to wait for them, else None."""

    def is_near(self, key: str) -> bool:
        """Tell whether what is under `key`, if there is anything, is on a disk of this machine's."""

    def stream(self, key: str, first: int, last: int) -> AsyncIterator[bytes]:
        """Yield the bytes from `first` to `last` (both included) of what is under `key`, in pieces."""

    async def signed_url(self, key: str, seconds: float) -> str | None:
        """Return an address at which anybody may read what is under `key` for so long, or None where there is none."""

    async def open_local(self, key: str) -> BinaryIO:
        """Return what is under `key` as a local file, read-only; the caller closes it."""

    async def folders(self, prefix: str) -> list[str]:
        """Return the names of the folders directly below `prefix`."""

    async def digest(self, key: str) -> tuple[int, str]:
        """Return the length and the SHA-256 (hex) of what is under `key`."""

    def listing(self, prefix: str) -> AsyncIterator[Stored]:
        """Yield what is stored at or below `prefix` (`originals`, `renditions/{id}`, `drafts`, …), in order of ids.

        It takes its time and no snapshot: what comes and goes meanwhile may be in it or not.
        """

    async def has_originals(self) -> bool:
        """Tell whether any original is stored."""

    async def delete(self, key: str) -> None:
        """Remove what is under `key`, so that no power cut brings it back; nothing there is no error."""

    async def delete_folder(self, prefix: str) -> None:
        """Remove everything below `prefix`; nothing there is no error."""

    async def free_bytes(self) -> int | None:
        """Return the room that is left, or None where that has no meaning."""

    async def sweep_drafts(self, older_than_seconds: float) -> int:
        """Remove drafts that nobody has written to for so long; return how many."""

    async def forget_copies(self, image_id: str) -> None:
        """Let go of what this process itself has copied of an image that has changed, or is no more."""

    async def check_copies(self, which_are_ready: Callable[[Sequence[str]], Awaitable[set[str]]]) -> None:
        """Let go of what this process itself has copied of images that are not ready any more."""

    async def clear_abandoned_copies(self) -> None:
        """Remove what processes of this machine have copied that are no more."""

    async def close(self) -> None:
        """Let go of what this process holds."""
