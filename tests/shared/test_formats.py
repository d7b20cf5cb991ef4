"""A format is told by a file's first bytes, and never by a name."""

from __future__ import annotations

import io
import struct

import pytest
from PIL import Image

from shared.formats import HAS_HEIF, PILLOW_FORMATS, SIGNATURE_BYTES, media_type_of

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "TIFF": "image/tiff",
    "BMP": "image/bmp",
    "AVIF": "image/avif",
}


def test_every_format_that_a_child_opens_has_a_media_type() -> None:
    assert set(MEDIA_TYPES) == set(PILLOW_FORMATS) - {"HEIF"}


@pytest.mark.parametrize("name", MEDIA_TYPES)
def test_a_real_file_is_told_by_its_first_bytes(name: str) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, name)

    assert media_type_of(file.getvalue()[:SIGNATURE_BYTES]) == MEDIA_TYPES[name]


def avif(major: bytes, *compatible: bytes) -> bytes:
    brands = b"".join(compatible)
    return struct.pack(">I", 16 + len(brands)) + b"ftyp" + major + bytes(4) + brands


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (b"\xff\xd8\xff\xe1", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"MM\0*\0\0\0\x08", "image/tiff"),
        (b"II+\0\x08\0\0\0", "image/tiff"),
        (b"MM\0+\0\x08\0\0", "image/tiff"),
        (b"BM" + bytes(12) + struct.pack("<I", 12), "image/bmp"),
        (b"BM" + bytes(12) + struct.pack("<I", 124), "image/bmp"),
        (avif(b"avif"), "image/avif"),
        (avif(b"avis", b"mif1"), "image/avif"),
        (avif(b"mif1", b"miaf", b"avif"), "image/avif"),
    ],
)
def test_every_spelling_of_a_signature_is_known(head: bytes, media_type: str) -> None:
    assert media_type_of(head) == media_type


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"\xff\xd8",
        b"\x89PNG",
        b"GIF88a",
        b"RIFF\0\0\0\0WAVE",
        b"RIFF",
        b"BM is how this text begins, and it is no picture",
        b"BM",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.7",
        b"PK\x03\x04",
        b"hello, this is called photo.jpg",
        b"\0\0\x01\0",
        b"\0\0\0\x0cJXL \r\n\x87\n",
        avif(b"mp42", b"isom") + b"avif",
        b"\0\0\0\x20ftyp",
        b"\0\0",
    ],
)
def test_anything_else_has_no_media_type(head: bytes) -> None:
    assert media_type_of(head) is None


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (avif(b"heic", b"mif1", b"heic"), "image/heic"),
        (avif(b"mif1", b"heic"), "image/heic"),
        (avif(b"heix"), "image/heic"),
        (avif(b"mif1", b"miaf"), "image/heif"),
    ],
)
def test_heic_is_taken_where_its_extra_is_installed_and_nowhere_else(head: bytes, media_type: str) -> None:
    assert media_type_of(head) == (media_type if HAS_HEIF else None)


def test_no_more_is_looked_at_than_is_promised() -> None:
    late = avif(b"mp42", *[b"miaf"] * 30, b"avif")

    assert media_type_of(late[:SIGNATURE_BYTES]) is None
