"""Intake of originals, for every way of uploading: receive, recognise, store, commit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping
from typing import Any, Self

from shared.cancellation import to_the_end
from shared.errors import (
    DigestMismatch,
    DiskAtFloor,
    EmptyUpload,
    LedgerUnavailable,
    NothingCommitted,
    TooManyWaiting,
    TruncatedUpload,
    UnknownFormat,
    UploadTooLarge,
)
from shared.formats import SIGNATURE_BYTES, TAKEN, media_type_of
from shared.images import Image, Original
from shared.ledger import Ledger
from shared.renditions import original_key
from shared.settings import Settings
from shared.storage import Draft, Storage
from shared.telemetry import logs, metrics, tracing

#: The digests that can be checked, by their names in RFC 9530.
DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}
_COUNTED_FOR_SECONDS = 1.0


class Content:
    """The chunks that a client sends, counted against the limit and hashed by the algorithms of `digests`.

    `at_most` limits the bytes of the file, and `around` the other bytes of the content. `length` is the content's
    announced length. Raises UploadTooLarge, at once if `length` is too large, and TruncatedUpload if fewer bytes come.
    """

    def __init__(
        self,
        chunks: AsyncIterable[bytes],
        at_most: int,
        *,
        around: int = 0,
        length: int | None = None,
        digests: Mapping[str, bytes] | None = None,
    ) -> None:
        self.at_most = at_most
        self.length = length or 0
        self._limit = at_most + around
        if self.length > self._limit:
            raise UploadTooLarge(at_most)
        self._chunks = aiter(chunks)
        self._received = 0
        self._expected = digests or {}
        self._hashes = {name: DIGESTS[name]() for name in self._expected}

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            if self._received < self.length:
                raise TruncatedUpload(f"{self._received} of {self.length} bytes came")
            raise StopAsyncIteration
        self._received += len(chunk)
        if self._received > self._limit:
            raise UploadTooLarge(self.at_most)
        for digest in self._hashes.values():
            digest.update(chunk)
        return chunk

    def check_digests(self) -> None:
        """Raise DigestMismatch if the content does not have the expected digests."""
        for name, digest in self._hashes.items():
            if digest.digest() != self._expected[name]:
                raise DigestMismatch(f"Its {name} is another one.")


def recognise(head: bytes) -> str:
    """Return the media type of a file. Raises EmptyUpload or UnknownFormat.

    `head` is the file's first SIGNATURE_BYTES, or all of a shorter file.
    """
    if not head:
        raise EmptyUpload
    media_type = media_type_of(head)
    if media_type is None:
        raise UnknownFormat(f"Taken are {TAKEN}.")
    return media_type


class Intake:
    """Makes images of uploads: durable and committed, or nothing of them is left. The caller enqueues the images."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        storage: Storage,
        uuid_generator: Callable[[], Any],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._storage = storage
        self._uuid_generator = uuid_generator
        self._clock = clock
        #: Bytes that the uploads under way may still write, as each announced them.
        self._under_way = 0
        self._waiting = 0
        self._counted_at = -_COUNTED_FOR_SECONDS

    async def receive(
        self,
        content: Content,
        file: AsyncIterator[bytes] | None = None,
        *,
        request: str | None = None,
        owner: str | None = None,
    ) -> Image:
        """Store and commit an upload, and return its image.

        If the file is only a part of the content, `file` yields the file and reads the content. `request` is the id of
        the request. Raises UploadRefused, StorageUnavailable, LedgerUnavailable, and any error of `content` or `file`.
        """
        length = content.length or content.at_most
        await self.require_room(length)
        self._under_way += length
        began = self._clock()
        draft = None
        try:
            draft = await self._storage.draft()
            with tracing.span("receive"):
                media_type = await _fill(draft, content if file is None else file, content.at_most)
                # The digests include the bytes after the file.
                async for _ in content:
                    pass
                content.check_digests()
            image = await self.commit(draft, media_type, request, owner)
            metrics.UPLOAD_SECONDS.observe(self._clock() - began)
            return image
        finally:
            self._under_way -= length
            if draft is not None:
                await draft.discard()

    async def require_room(self, length: int) -> None:
        """Raise TooManyWaiting if too many images wait, DiskAtFloor if `length` bytes would leave too few free.

        All uploads under way in this process count as well. What they have written already counts twice.
        """
        if self._clock() - self._counted_at >= _COUNTED_FOR_SECONDS:
            self._waiting = await self._ledger.count_queued(self._settings.max_waiting)
            self._counted_at = self._clock()
        if self._waiting >= self._settings.max_waiting:
            raise TooManyWaiting
        # Last: the caller counts its upload as under way before another one is looked at.
        if await self._storage.free_bytes() - self._under_way - length < self._settings.free_disk_floor:
            raise DiskAtFloor

    async def commit(
        self, draft: Draft, media_type: str, request: str | None = None, owner: str | None = None
    ) -> Image:
        """Keep a complete draft as the original of a new image, and commit the image. The caller discards the draft.

        A cancellation is not raised, because the client must learn that the image is committed. The caller can see
        it by `Task.cancelling`.
        """
        storing = asyncio.ensure_future(self._store(draft, media_type, request, owner))
        with contextlib.suppress(asyncio.CancelledError):
            await to_the_end(storing)
        image = storing.result()
        metrics.UPLOAD_BYTES.observe(image.original.bytes)
        # Context variables set in the shielded task do not propagate: set the id here too.
        logs.image_id.set(image.id)
        return image

    async def _store(self, draft: Draft, media_type: str, request: str | None, owner: str | None) -> Image:
        image_id = str(self._uuid_generator())
        logs.image_id.set(image_id)
        key = original_key(image_id)
        try:
            await self._storage.keep({key: draft})
            original = Original(media_type, *await draft.digest())
        except BaseException:
            await self._storage.delete(key)
            raise
        try:
            # The original is durable before its row exists: an image without an original could never become ready.
            image = await self._ledger.add(image_id, original, request, owner=owner)
        except NothingCommitted:
            await self._storage.delete(key)
            raise
        except LedgerUnavailable:
            # The commit may have succeeded. Delete the original only if the row is certainly absent.
            found = await self._ledger.get_certainly(image_id, original)
            if found is None:
                await self._storage.delete(key)
                raise
            image = found
        self._waiting += 1
        return image


async def _fill(draft: Draft, file: AsyncIterator[bytes], at_most: int) -> str:
    """Write a file to a draft. Returns the file's media type."""
    head = b""
    async for chunk in file:
        head += chunk
        if len(head) >= SIGNATURE_BYTES:
            break
    media_type = recognise(head)
    length = 0
    piece: bytes | None = head
    while piece is not None:
        length += len(piece)
        if length > at_most:
            raise UploadTooLarge(at_most)
        await draft.write(piece)
        piece = await anext(file, None)
    return media_type
