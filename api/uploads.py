"""Receiving an upload by HTTP: checking its headers, and finding the file in a form. `shared/intake` does the rest."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator

import falcon
from falcon.asgi import Request
from falcon.asgi.multipart import BodyPart
from falcon.media import MultipartFormHandler

from api.problems import Problem
from shared.images import Image
from shared.intake import DIGESTS, Content, Intake
from shared.settings import Settings
from shared.telemetry import logs

#: Bytes that a form may add to its file: delimiters, headers, other fields.
_FORM_BYTES = 64 * 1024


def digests_of(header: str | None) -> dict[str, bytes]:
    """Return the digests in a Content-Digest (RFC 9530, a dictionary of RFC 8941), by algorithm.

    Unknown algorithms are ignored. Raises Problem if the header is malformed.
    """
    digests: dict[str, bytes] = {}
    for member in filter(None, (part.strip() for part in (header or "").split(","))):
        match = re.fullmatch(r"([a-z*][a-z0-9_.*-]*)=:([A-Za-z0-9+/]*={0,2}):(?:;.*)?", member)
        if match is None:
            raise Problem("malformed-digest", "It looks like sha-256=:base64:.")
        if (algorithm := DIGESTS.get(match[1])) is None:
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
    """Takes uploads in by HTTP."""

    def __init__(self, settings: Settings, intake: Intake) -> None:
        self._settings = settings
        self._intake = intake

    async def receive(self, req: Request) -> Image:
        """Store the request's upload and return its image. Raises Problem, and the errors of `Intake.receive`.

        Headers are checked before any of the body is read.
        """
        media_type = (req.content_type or "").partition(";")[0].strip().lower()
        is_form = media_type == falcon.MEDIA_MULTIPART
        if media_type == falcon.MEDIA_JSON or (media_type.startswith("multipart/") and not is_form):
            raise Problem("unsupported-media-type", f"{media_type} is not taken: send the picture's bytes, or a form.")
        if (req.get_header("Content-Encoding") or "identity").strip().lower() != "identity":
            raise Problem("unsupported-encoding")
        digests = digests_of(req.get_header("Content-Digest"))
        at_most, around = self._settings.max_upload_bytes, _FORM_BYTES if is_form else 0
        content = Content(req.stream, at_most, around=around, length=req.content_length, digests=digests)
        file = _only_file(req, content) if is_form else None
        return await self._intake.receive(content, file, request=logs.request_id.get())


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
        # Old clients use other encodings. Only the presence of a file name matters.
        return True
