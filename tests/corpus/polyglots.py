"""Pictures that are something else as well: a page, a script, an archive, a program, a document."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator

from tests.corpus.formats import (
    bmp,
    box,
    chunk,
    entry,
    gif_extension,
    gif_frame,
    gif_screen,
    riff_chunk,
    segment,
    tiff,
    with_chunks,
    with_segments,
)
from tests.corpus.honest import honest
from tests.corpus.specimens import FOREIGN, READY, UNREADABLE, Specimen, text_for


def specimens() -> Iterator[Specimen]:
    """Yield each payload in each format, where the format leaves room and behind its end."""
    for other in ("html", "javascript", "php", "zip", "pdf"):
        for format, original in _carriers().items():
            for place in ("behind", "inside"):
                name = f"polyglots/{format}-{other}-{place}"
                text = text_for(name)
                payload = _payload(other, text)
                content = original + payload if place == "behind" else _with_inside(format, original, payload)
                yield Specimen(name, content, READY, text)
    yield from _beginning_as_another()


def _carriers() -> dict[str, bytes]:
    names = {"jpeg": "baseline.jpeg", "png": "rgb.png", "gif": "plain.gif", "webp": "lossy.webp"}
    names |= {"tiff": "raw.tiff", "bmp": "plain.bmp", "avif": "plain.avif"}
    return {format: honest()[name] for format, name in names.items()}


def _payload(other: str, text: bytes) -> bytes:
    match other:
        case "html":
            return b"<html><body onload='alert(1)'>" + text + b"<script>alert(document.cookie)</script></body></html>"
        case "javascript":
            return b"*/=1;alert('" + text + b"');/*"
        case "php":
            return b"<?php /* " + text + b" */ system($_GET['c']); __halt_compiler(); ?>"
        case "pdf":
            script = b"<</S/JavaScript/JS(app.alert('" + text + b"'))>>"
            return (
                b"\n%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction" + script + b">>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
            )
        case _:
            archive = io.BytesIO()
            with zipfile.ZipFile(archive, "w") as writing:
                # What makes a file a program to Java, too.
                writing.writestr(zipfile.ZipInfo("META-INF/MANIFEST.MF"), b"Manifest-Version: 1.0\nMain-Class: " + text)
            return archive.getvalue()


def _with_inside(format: str, original: bytes, payload: bytes) -> bytes:
    match format:
        case "jpeg":
            return with_segments(original, segment(0xFE, payload))
        case "png":
            return with_chunks(original, chunk(b"tEXt", b"Comment\0" + payload))
        case "gif":
            at = 13 + 3 * (2 << (original[10] & 7))  # behind the colours
            return original[:at] + gif_extension(0xFE, payload[:255], *_rest(payload)) + original[at:]
        case "webp":
            data = original + riff_chunk(b"JUNK", payload)
            return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
        case "tiff":
            return tiff((16, 16), [bytes(range(256)) * 3], entry(270, 2, payload + b"\0"))
        case "bmp":
            return bmp(64, 64, bytes(192 * 64), gap=payload)
        case _:
            return original + box(b"free", payload)


def _rest(payload: bytes) -> list[bytes]:
    return [payload[at : at + 255] for at in range(255, len(payload), 255)]


def _beginning_as_another() -> Iterator[Specimen]:
    """Yield files whose first bytes mean something to somebody else, and whose picture is the second nature."""
    photo = honest()["baseline.jpeg"]
    for name, start, outcomes in (
        # "GIF89a" is also the name of a variable, and what stands behind it a comment.
        ("gif-that-is-a-script", b"GIF89a/*", UNREADABLE),
        ("bmp-that-is-a-script", b"BM/*" + bytes(10) + b"\x28\0\0\0", UNREADABLE),
        ("pdf-in-front-of-a-jpeg", b"%PDF-1.4\n%", FOREIGN),
        ("zip-in-front-of-a-jpeg", _payload("zip", b"x"), FOREIGN),
        ("shell-in-front-of-a-jpeg", b"#!/bin/sh\nexit 0\n", FOREIGN),
        ("html-in-front-of-a-jpeg", b"<script>alert(1)</script>", FOREIGN),
    ):
        yield Specimen(f"polyglots/{name}", start + photo, outcomes)
    name = "polyglots/gif-whose-width-opens-a-comment"
    text = text_for(name)
    # 0x2a2f, "/*" as the width; the comment ends in an extension, where the script begins.
    script = b"*/=1;alert('" + text + b"')//"
    content = gif_screen(0x2A2F, 64) + gif_extension(0xFE, script) + gif_frame(1, 1) + b";"
    yield Specimen(name, content, READY, text)
    name = "polyglots/jpeg-whose-first-segment-is-a-comment-of-javascript"
    text = text_for(name)
    # A segment of 0x2f2a bytes: "/*" once more, where a browser reads it as Latin-1.
    filling = (b"*/=alert('" + text + b"');/*").ljust(0x2F2A - 2, b"\0")
    yield Specimen(name, with_segments(photo[:2] + photo[20:], segment(0xE0, filling, 0x2F2A)), READY, text)
    name = "polyglots/jpeg-in-a-jpeg"
    text = text_for(name)
    yield Specimen(name, photo + with_segments(photo, segment(0xFE, text)), READY, text)
    name = "polyglots/png-behind-a-jpeg"
    text = text_for(name)
    hidden = with_chunks(honest()["rgb.png"], chunk(b"tEXt", b"a\0" + text))
    yield Specimen(name, photo + hidden, READY, text)
