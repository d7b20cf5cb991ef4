"""Receiving an upload: refused by its headers where that is possible, else streamed to a draft as it arrives."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import falcon
from falcon.asgi import Request
from falcon.asgi.multipart import BodyPart
from falcon.media import MultipartFormHandler

from api.problems import TROUBLE_SECONDS, Problem
from shared.cancellation import to_the_end
from shared.errors import LedgerUnavailable, NothingCommitted
from shared.formats import SIGNATURE_BYTES, TAKEN, media_type_of
from shared.images import Image, Original, original_key
from shared.ledger import Ledger
from shared.settings import Settings
from shared.storage import Draft, Storage
from shared.telemetry import logs, metrics, tracing

#: Bytes that a form's delimiters and headers may add to the file in it.
_FORM_BYTES = 64 * 1024
_COUNTED_FOR_SECONDS = 1.0
_DIGESTS = {"sha-256": hashlib.sha256, "sha-512": hashlib.sha512}


def too_large(settings: Settings) -> Problem:
    """Return the problem of an upload past the limit. It closes the connection: else the server would read the rest."""
    return Problem(
        "upload-too-large", f"At most {settings.max_upload_bytes:,} bytes are taken.", headers={"Connection": "close"}
    )


def digests_of(header: str | None) -> dict[str, bytes]:
    """Return the digests in a Content-Digest (RFC 9530, a dictionary of RFC 8941) that we can check."""
    digests: dict[str, bytes] = {}
    for member in filter(None, (part.strip() for part in (header or "").split(","))):
        match = re.fullmatch(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?:;.*)?", member)
        if match is None:
            raise Problem("malformed-digest", "It looks like sha-256=:base64:.")
        if (algorithm := _DIGESTS.get(match[1])) is None:
            continue
        try:
            digest = base64.b64decode(match[2], validate=True)
        except binascii.Error as exc:
            raise Problem("malformed-digest", f"The {match[1]} is not base64.") from exc
        if len(digest) != algorithm().digest_size:
            raise Problem("malformed-digest", f"The {match[1]} has not {algorithm().digest_size} bytes.")
        digests[match[1]] = digest
    if header is not None and not header.strip():
        raise Problem("malformed-digest", "It is empty.")
    return digests


class Uploads:
    """Takes uploads in: durable and committed, or gone without a trace."""

    def __init__(self, settings: Settings, ledger: Ledger, storage: Storage, uuid_generator: Callable[[], Any]) -> None:
        self._settings = settings
        self._ledger = ledger
        self._storage = storage
        self._uuid_generator = uuid_generator
        self._waiting = 0
        self._counted_at = -_COUNTED_FOR_SECONDS

    async def receive(self, req: Request) -> Image:
        """Return the image that this request's upload became. Raises Problem for one that is refused.

        What can be refused by its headers is refused before a byte of the body is read.
        """
        self._check_headers(req)
        await self._require_room(req.content_length or 0)
        began = time.monotonic()
        draft = await self._storage.draft()
        try:
            with tracing.span("receive"):
                media_type = await self._fill(draft, req)
            # From here on a client that goes away changes nothing: what is durable is committed, too.
            image = await to_the_end(self._store(draft, media_type))
            metrics.UPLOAD_BYTES.observe(image.original.bytes)
            metrics.UPLOAD_SECONDS.observe(time.monotonic() - began)
            # Context variables set in the shielded task do not propagate: set the id here too.
            logs.image_id.set(image.id)
            return image
        finally:
            await draft.discard()

    def _check_headers(self, req: Request) -> None:
        media_type = (req.content_type or "").partition(";")[0].strip().lower()
        if media_type == falcon.MEDIA_JSON or (media_type.startswith("multipart/") and not _is_form(req)):
            raise Problem("unsupported-media-type", f"{media_type} is not taken: send the picture's bytes, or a form.")
        if (req.get_header("Content-Encoding") or "identity").strip().lower() != "identity":
            raise Problem("unsupported-encoding")
        req.context.digests = digests_of(req.get_header("Content-Digest"))
        limit = self._settings.max_upload_bytes + (_FORM_BYTES if _is_form(req) else 0)
        if (req.content_length or 0) > limit:
            raise too_large(self._settings)

    async def _require_room(self, length: int) -> None:
        """Raise Problem if the disk is at its floor, or too many images wait."""
        free = await self._storage.free_bytes()
        if free is not None and free - length < self._settings.free_disk_floor:
            raise Problem("storage-full", headers={"Retry-After": "60"})
        if time.monotonic() - self._counted_at >= _COUNTED_FOR_SECONDS:
            self._waiting = await self._ledger.count_queued(self._settings.max_waiting)
            self._counted_at = time.monotonic()
        if self._waiting >= self._settings.max_waiting:
            raise Problem("too-many-waiting", headers={"Retry-After": str(TROUBLE_SECONDS)})

    async def _fill(self, draft: Draft, req: Request) -> str:
        body = _Body(req, self._settings)
        chunks = aiter(body)
        content = _only_file(req, chunks) if _is_form(req) else chunks
        media_type = await self._write(draft, content)
        # What follows a form's end belongs to the content that was sent.
        async for _ in chunks:
            pass
        body.check_digests()
        return media_type

    async def _write(self, draft: Draft, content: AsyncIterator[bytes]) -> str:
        """Write the content to a draft; return its media type."""
        head, media_type = b"", None
        length = 0

        async def write(chunk: bytes) -> None:
            nonlocal length
            length += len(chunk)
            if length > self._settings.max_upload_bytes:
                raise too_large(self._settings)
            await draft.write(chunk)

        async for chunk in content:
            if media_type is not None:
                await write(chunk)
                continue
            head += chunk
            if len(head) >= SIGNATURE_BYTES:
                media_type = _recognized(head)
                await write(head)
        if not head:
            raise Problem("empty-upload")
        if media_type is None:
            media_type = _recognized(head)
            await write(head)
        return media_type

    async def _store(self, draft: Draft, media_type: str) -> Image:
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
            # The original is durable before its row exists: a row without an original could never be kept.
            image = await self._ledger.add(image_id, original, logs.request_id.get())
        except NothingCommitted:
            await self._storage.delete(key)
            raise
        except LedgerUnavailable:
            # The commit may have gone through all the same: the original goes only if the row is certainly absent.
            found = await self._ledger.get_certainly(image_id, original)
            if found is None:
                await self._storage.delete(key)
                raise
            image = found
        self._waiting += 1
        return image


class _Body:
    """A request's body as it arrives: counted, and hashed by the algorithms of its Content-Digest."""

    def __init__(self, req: Request, settings: Settings) -> None:
        self._stream = req.stream
        self._settings = settings
        self._limit = settings.max_upload_bytes + (_FORM_BYTES if _is_form(req) else 0)
        self._wanted: Mapping[str, bytes] = req.context.digests
        self._digests = {name: _DIGESTS[name]() for name in self._wanted}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        length = 0
        async for chunk in self._stream:
            length += len(chunk)
            if length > self._limit:
                raise too_large(self._settings)
            for digest in self._digests.values():
                digest.update(chunk)
            yield chunk

    def check_digests(self) -> None:
        """Raise Problem if a digest is not the content's."""
        for name, digest in self._digests.items():
            if digest.digest() != self._wanted[name]:
                raise Problem("digest-mismatch", f"Its {name} is another one.")


async def _only_file(req: Request, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the content of the one file in a form."""
    try:
        form = await MultipartFormHandler().deserialize_async(
            chunks,  # type: ignore[arg-type] # falcon's BufferedReader takes any asynchronous iterator
            req.content_type,
            req.content_length,
        )
    except falcon.HTTPInvalidHeader as exc:
        raise Problem("malformed-multipart", exc.description) from exc
    found = False
    async for part in form:
        if not _has_filename(part):
            continue
        if found:
            raise Problem("several-files")
        found = True
        async for chunk in part.stream:
            yield chunk
    if not found:
        raise Problem("no-file")


def _has_filename(part: BodyPart) -> bool:
    try:
        return bool(part.filename)
    except UnicodeDecodeError:
        # Old clients send it in an encoding of their own. Nobody reads it.
        return True


def _is_form(req: Request) -> bool:
    return (req.content_type or "").partition(";")[0].strip().lower() == "multipart/form-data"


def _recognized(head: bytes) -> str:
    media_type = media_type_of(head)
    if media_type is None:
        raise Problem("unsupported-format", f"Taken are {TAKEN}.")
    return media_type
