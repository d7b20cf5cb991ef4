"""Drafts that have a name and are written in several goes: any process goes on with what another one began.

A draft of this kind is nothing but pieces in the storage, each kept under the offset of its first byte:

    uploads/{name}/{offset}

A piece appears whole and durable, or not at all, and none is ever replaced. So what is there is always a beginning of
what was sent: no crash tears it, and of two writers at one offset the later one gets an error.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

from shared.errors import StorageConflict, TooManyPieces
from shared.storage import Draft, Storage, Stored

#: Bytes after which a piece is kept and another one begun. An object store takes a piece in one request, from memory.
ENOUGH_BYTES = 5 * 1024 * 1024
#: Pieces of one draft. A client that sends single bytes would else fill the storage with files.
MOST_PIECES = 1000


class ResumableDraft:
    """The draft `name`, a UUID, in any storage. One that was never written to is empty."""

    def __init__(self, storage: Storage, name: str, most_pieces: int = MOST_PIECES) -> None:
        self._storage = storage
        self._name = name
        self._most_pieces = most_pieces

    async def length(self) -> int:
        """Return how many bytes there are: all that `append` has returned, and perhaps more."""
        return _end_of(await self._pieces())

    async def append(self, offset: int, chunks: AsyncIterator[bytes]) -> int:
        """Append `chunks`, which are small, to a draft of `offset` bytes; return its new length, all of it durable.

        If `chunks` raises an error, what came before is kept, and the error raised. Raises StorageConflict if the draft
        has another length, or if another writer was faster. After any error `length` tells where to go on.
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
        """Return an ordinary draft with the same bytes, which tells their digest. This one stays until `discard`."""
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
        """Remove the draft; safe to repeat."""
        await self._storage.delete_folder(f"uploads/{self._name}")

    async def _pieces(self) -> list[Stored]:
        pieces: list[Stored] = []
        end = 0
        async for stored in self._storage.listing(f"uploads/{self._name}"):
            # Others are what a discard has left that was cut off.
            if stored.key == self._key(end):
                pieces.append(stored)
                end += stored.bytes
        return pieces

    def _key(self, offset: int) -> str:
        # As many digits as let listings come in order.
        return f"uploads/{self._name}/{offset:012}"


async def _fill(draft: Draft, chunks: AsyncIterator[bytes]) -> tuple[int, Exception | None]:
    """Write a piece. Return its length and, if nothing follows, the error or StopAsyncIteration of `chunks`."""
    length = 0
    while length < ENOUGH_BYTES:
        try:
            chunk = await anext(chunks)
        except Exception as exc:  # of any class: a client's trouble is told by its way in
            return length, exc
        await draft.write(chunk)
        length += len(chunk)
    return length, None


def _end_of(pieces: list[Stored]) -> int:
    return sum(piece.bytes for piece in pieces)


async def sweep_resumable_drafts(storage: Storage, older_than_seconds: float) -> int:
    """Discard resumable drafts that have not been written to for so long; return how many."""
    latest: dict[str, float] = {}
    async for stored in storage.listing("uploads"):
        name = stored.key.split("/")[1]
        latest[name] = max(stored.changed, latest.get(name, 0.0))
    forgotten = [name for name, changed in latest.items() if time.time() - changed > older_than_seconds]
    for name in forgotten:
        await ResumableDraft(storage, name).discard()
    return len(forgotten)
