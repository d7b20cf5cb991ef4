"""The picture formats we take, told by their first bytes and never by their names."""

from __future__ import annotations

import importlib.util
import struct

#: As many leading bytes as `media_type_of` ever looks at.
SIGNATURE_BYTES = 64

#: Pillow's names of the formats that a child may open. An MPO (a phone's JPEG with more pictures behind the
#: first) comes out of Pillow's JPEG opener by itself; naming it here raises KeyError.
PILLOW_FORMATS: tuple[str, ...] = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "AVIF")

#: What people are told that we take.
TAKEN = "JPEG, PNG, GIF, WebP, TIFF, BMP and AVIF"

#: Whether the extra `heic` is installed. Its wheel is under the GPL: whoever wants it decides so.
HAS_HEIF = importlib.util.find_spec("pillow_heif") is not None
if HAS_HEIF:
    # Behind AVIF, which is in the same container and is asked first.
    PILLOW_FORMATS += ("HEIF",)
    TAKEN = "JPEG, PNG, GIF, WebP, TIFF, BMP, AVIF and HEIC"

_TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
#: ISO/IEC 23008-12, annexes B and D: coded by HEVC, and by whatever a decoder may know.
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")
_HEIF_BRANDS = (b"mif1", b"msf1")
_BMP_HEADER_SIZES = (12, 16, 40, 52, 56, 64, 108, 124)


def media_type_of(head: bytes) -> str | None:
    """Return the media type that `head` (the first `SIGNATURE_BYTES` of a file, or all of it) begins, or None."""
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
    # "BM" alone would let any text that begins so pass: the size of the header behind it is one of a few.
    return head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADER_SIZES


def _brands(head: bytes) -> set[bytes]:
    # ISO/IEC 14496-12, 4.3: a file type box holds a major brand, a minor version, then compatible brands.
    if head[4:8] != b"ftyp":
        return set()
    box = head[: min(struct.unpack_from(">I", head)[0], len(head))]
    return {box[8:12], *(box[i : i + 4] for i in range(16, len(box) - 3, 4))}
