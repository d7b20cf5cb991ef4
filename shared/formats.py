"""The accepted image formats. A file's first bytes decide its format, never its name."""

from __future__ import annotations

import importlib.util
import struct

#: The most leading bytes that `media_type_of` needs.
SIGNATURE_BYTES = 64

#: Pillow's names of the formats that a child may open. MPO (a phone's JPEG with further pictures) is not among them:
#: the JPEG opener also opens it, and the name would raise KeyError.
PILLOW_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")

#: The accepted formats, as messages name them.
TAKEN = "JPEG, PNG, GIF, WebP, TIFF, BMP and AVIF"

#: Whether the extra `heic` is installed. Its wheel is under the GPL, so it is the operator's choice.
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
if HAS_HEIF:
    # After AVIF, which has the same container and must be tried first.
    PILLOW_FORMATS += ("HEIF",)
    TAKEN = "JPEG, PNG, GIF, WebP, TIFF, BMP, AVIF and HEIC"

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: ISO/IEC 23008-12, annexes B and D: brands of files with HEVC, and brands of files with any codec.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_HEIF_BRANDS = (b"mif1", b"msf1")
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)


def media_type_of(head: bytes) -> str | None:
    """Return the media type of a file, or None if it is not accepted.

    `head` is the file's first `SIGNATURE_BYTES`, or all of a shorter file.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith(_TIFF_STARTS):
        return "image/tiff"
    if _is_bmp(head):
        return "image/bmp"
    brands = _brands(head)
    if not brands.isdisjoint((b"avif", b"avis")):
        return "image/avif"
    if HAS_HEIF and not brands.isdisjoint(_HEIC_BRANDS):
        return "image/heic"
    if HAS_HEIF and not brands.isdisjoint(_HEIF_BRANDS):
        return "image/heif"
    return None


def _is_bmp(head: bytes) -> bool:
    # Many texts begin with "BM", so check the header size too: it is one of a few numbers.
    return head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADER_SIZES


def _brands(head: bytes) -> set[bytes]:
    # ISO/IEC 14496-12, 4.3: a file type box has a major brand, a minor version, then compatible brands.
    if head[4:8] != b"ftyp":
        return set()
    box = head[: min(struct.unpack_from(">I", head)[0], len(head))]
    return {box[8:12], *(box[i : i + 4] for i in range(16, len(box) - 3, 4))}
