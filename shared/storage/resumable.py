"""Drafts with a name that are written in several steps. Any process can continue a draft that another one began.

Such a draft consists of pieces in the storage. The key of each piece is the offset of its first byte:

    uploads/{name}/{offset}

A piece appears whole and durable, or not at all, and is never replaced. So the pieces are always a beginning of the
bytes that were sent, also after a crash. If two writers write at one offset, the later one gets an error.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator

from shared.errors import StorageConflict, TooManyPieces
from shared.storage import Draft, Storage, Stored

#: Bytes after which a piece is kept and the next one begun. A piece is sent to an object store in one request.
ENOUGH_BYTES = 5 * 1024 * 1024
#: The most pieces of one draft. Otherwise a client that sends single bytes could fill the storage with files.
MOST_PIECES = 1000


class ResumableDraft:
    """The draft `name`, a UUID, in any storage. A draft that was never written to is empty."""

    def __init__(self, storage: Storage, name: str, most_pieces: int = MOST_PIECES) -> None:
        # The name becomes a folder, which `discard` deletes.
        if str(uuid.UUID(name)) != name:
            raise ValueError(f"no canonical UUID: {name}")
        self._storage = storage
        self._name = name
        self._most_pieces = most_pieces

    async def length(self) -> int:
        """Return the draft's length: at least the last length that `append` returned."""
        return _end_of(await self._pieces())

    async def append(self, offset: int, chunks: AsyncIterator[bytes]) -> int:
        """Append small `chunks` to a draft of `offset` bytes. Returns its new length; all of the bytes are durable.

        If `chunks` raises an error, the bytes before it are kept and the error is raised. Raises StorageConflict if the
        draft has another length or another writer was faster, and TooManyPieces if it has too many pieces. After any
        error, `length` returns where to continue.

        A `discard` or a sweep at the same time may remove bytes that the returned length counts. Nothing here prevents
        that: a row of the ledger must decide which of them goes first. `length` returns what is left.
        """
        pieces = await self._pieces()
        if offset != _end_of(pieces):
            raise StorageConflict(f"{self._name} has {_end_of(pieces)} bytes, not {offset}")
        if len(pieces) >= self._most_pieces:
            raise TooManyPieces(f"{self._name} has {len(pieces)} pieces")
        ended: Exception | None = None
        while ended is None:
            draft = await self._storage.draft()
            try:
                length, ended = await _fill(draft, chunks)
                if length:
                    await self._storage.keep_new(self._key(offset), draft)
            finally:
                await draft.discard()
            offset += length
        if not isinstance(ended, StopAsyncIteration):
            raise ended
        return offset

    async def join(self) -> Draft:
        """Return an ordinary draft with the same bytes, which has their digest. The pieces stay until `discard`."""
        joined = await self._storage.draft()
        try:
            for piece in await self._pieces():
                async for chunk in self._storage.stream(piece.key, 0, piece.bytes - 1):
                    await joined.write(chunk)
        except BaseException:
            await joined.discard()
            raise
        return joined

    async def discard(self) -> None:
        """Remove the draft. Safe to repeat."""
        await self._storage.delete_folder(f"uploads/{self._name}")

    async def _pieces(self) -> list[Stored]:
        pieces: list[Stored] = []
        end = 0
        async for stored in self._storage.listing(f"uploads/{self._name}"):
            # Other pieces are left over from a discard that was interrupted.
            if stored.key == self._key(end):
                pieces.append(stored)
                end += stored.bytes
        return pieces

    def _key(self, offset: int) -> str:
        # Padded, so that listings are in the order of offsets.
        return f"uploads/{self._name}/{offset:012}"


async def _fill(draft: Draft, chunks: AsyncIterator[bytes]) -> tuple[int, Exception | None]:
    """Write a piece. Returns its length and, if nothing follows, the error or StopAsyncIteration of `chunks`."""
    length = 0
    while length < ENOUGH_BYTES:
        try:
            chunk = await anext(chunks)
        except Exception as exc:  # any class: the source of `chunks` decides how it reports a client's failure
            return length, exc
        await draft.write(chunk)
        length += len(chunk)
    return length, None


def _end_of(pieces: list[Stored]) -> int:
    return sum(piece.bytes for piece in pieces)


async def sweep_resumable_drafts(storage: Storage, older_than_seconds: float) -> int:
    """Discard resumable drafts that were not written to for so long. Returns how many."""
    latest: dict[str, float] = {}
    async for stored in storage.listing("uploads"):
        name = stored.key.split("/")[1]
        latest[name] = max(stored.changed, latest.get(name, 0.0))
    forgotten = [name for name, changed in latest.items() if time.time() - changed > older_than_seconds]
    for name in forgotten:
        # Not by a ResumableDraft: an operator's own file here has no UUID for a name.
        await storage.delete_folder(f"uploads/{name}")
    return len(forgotten)
