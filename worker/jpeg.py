"""What a JPEG of ours looks like, byte by byte, for who does not trust its writer (ITU-T T.81, annex B)."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from shared.images import Size

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _DQT, _SOF0, _DHT, _SOS = 0xE0, 0xDB, 0xC0, 0xC4, 0xDA

#: JFIF 1.x, its density, and no thumbnail.
_JFIF = struct.Struct(">5s2sBHHBB")
#: 8 bits, height, width, then three components: Y at 4:2:0, Cb, Cr.
_FRAME = struct.Struct(">BHHB9s")
_COMPONENTS = b"\x01\x22\x00\x02\x11\x01\x03\x11\x01"
#: All three components in one scan, each with the Huffman tables of its kind, from first to last coefficient.
_SCAN = b"\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"
#: In a scan an FF is followed by 00; by anything else it begins something that is none of a scan's.
_NO_SCAN = re.compile(rb"\xff(?!\0)")
_TABLE_IDS = {_DQT: {0x00, 0x01}, _DHT: {0x00, 0x10, 0x01, 0x11}}


class ForeignJpeg(ValueError):
    """These bytes are no baseline JPEG as our encoder writes them."""


def size_of(jpeg: bytes) -> Size:
    """Return the width and height of a JPEG that is whole and has nothing in it but what pixels need.

    That is: a JFIF header, each table once, one frame, one scan, the end; no metadata, comment, restart marker, second
    picture or byte behind. What its scan decodes to is not looked at. Raises ForeignJpeg for everything else.
    """
    size: Size | None = None
    tables: list[tuple[int, int]] = []
    for position, (marker, segment) in enumerate(_segments(jpeg)):
        if (position == 0) != (marker == _APP0):
            raise ForeignJpeg("does not begin with one JFIF header")
        if marker == _APP0:
            _check_jfif(segment)
        elif marker == _SOF0 and size is None:
            size = _size_in(segment)
        elif marker in _TABLE_IDS:
            tables += ((marker, table) for table in _tables_in(marker, segment))
        elif marker != _SOS:
            raise ForeignJpeg(f"has a segment that is not ours: {marker:#x}")
    if size is None:
        raise ForeignJpeg("has no frame")
    if sorted(tables) != sorted((marker, table) for marker, ids in _TABLE_IDS.items() for table in ids):
        raise ForeignJpeg("has other tables than ours")
    return size


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield each segment up to the scan's header, if after that nothing but the scan and an end comes."""
    if jpeg[:2] != _SOI:
        raise ForeignJpeg("does not begin as a JPEG")
    start = 2
    while True:
        if len(jpeg) < start + 4 or jpeg[start] != 0xFF:
            raise ForeignJpeg("has no segment where one should be")
        marker, length = jpeg[start + 1], int.from_bytes(jpeg[start + 2 : start + 4])
        end = start + 2 + length
        if length < 2 or end > len(jpeg):
            raise ForeignJpeg("has a segment of a length that cannot be")
        segment = jpeg[start + 4 : end]
        yield marker, segment
        start = end
        if marker == _SOS:
            if segment != _SCAN:
                raise ForeignJpeg("has a scan that is not ours")
            break
    if jpeg[-2:] != _EOI or len(jpeg) - 2 <= start:
        raise ForeignJpeg("has no end, or nothing before it")
    if _NO_SCAN.search(jpeg, start, len(jpeg) - 2):
        raise ForeignJpeg("has more in it than one scan")


def _check_jfif(segment: bytes) -> None:
    if len(segment) != _JFIF.size:
        raise ForeignJpeg("has a JFIF header of another length")
    name, (major, _), unit, _, _, width, height = _JFIF.unpack(segment)
    if name != b"JFIF\0" or major != 1 or unit > 2 or width or height:
        raise ForeignJpeg("has a JFIF header that is not ours")


def _size_in(segment: bytes) -> Size:
    if len(segment) != _FRAME.size:
        raise ForeignJpeg("has a frame of another length")
    bits, height, width, count, components = _FRAME.unpack(segment)
    if bits != 8 or count != 3 or components != _COMPONENTS or not width or not height:
        raise ForeignJpeg("has a frame that is not ours")
    return width, height


def _tables_in(marker: int, segment: bytes) -> Iterator[int]:
    """Yield the number of each table in a segment of them."""
    start = 0
    while start < len(segment):
        number = segment[start]
        # A table of 8-bit quantizers has 64 of them; one of Huffman codes says of each length how many there are.
        size = 1 + (64 if marker == _DQT else 16 + sum(segment[start + 1 : start + 17]))
        if start + size > len(segment) or number not in _TABLE_IDS[marker]:
            raise ForeignJpeg("has a table that is not ours")
        yield number
        start += size
