"""A strict parser for the JPEGs that our encoder writes (ITU-T T.81, annex B). It checks the files of children."""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Iterator

from shared.renditions import Size
from worker.renderer.outputs import NotOurs

_SOI, _EOI = b"\xff\xd8", b"\xff\xd9"
_APP0, _DQT, _SOF0, _DHT = 0xE0, 0xDB, 0xC0, 0xC4

#: JFIF 1.x, its density, no thumbnail.
_JFIF = struct.Struct(">5s2sBHHBB")
#: The start of a frame of 8 bits. Its height and width follow, then three components: Y at 4:2:0, Cb, Cr.
_FRAME_BEGINS = b"\xff\xc0\x00\x11\x08"
_SIDES = struct.Struct(">HH")
_COMPONENTS = b"\x03\x01\x22\x00\x02\x11\x01\x03\x11\x01"
#: One scan of all three components, each with the Huffman tables of its kind, from first to last coefficient.
_SCAN_HEADER = b"\xff\xda\x00\x0c\x03\x01\x00\x02\x11\x03\x11\x00\x3f\x00"
#: The scan header is searched for in the first so many bytes. In our files it begins at byte 609.
_MOST_HEADER = 4096
#: Within a scan, an FF is always followed by 00. FF and any other byte begin another segment.
_NO_SCAN = re.compile(rb"\xff[^\0]")
#: Bytes of a scan that are searched at a time: a search holds the interpreter's lock, and other threads wait.
_SEARCHED_AT_ONCE = 1024 * 1024
_TABLE_IDS = {_DQT: {0x00, 0x01}, _DHT: {0x00, 0x10, 0x01, 0x11}}


class ForeignJpeg(NotOurs):
    """These bytes are not a baseline JPEG of our encoder."""


def size_of(jpeg: bytes) -> Size:
    """Return the width and height of a JPEG that is whole and holds only what its pixels need.

    Accepted are a JFIF header, each table once, one frame, one scan and the end marker. Raises ForeignJpeg for anything
    else: metadata, comments, restart markers, a second picture, bytes after the end. The scan is not decoded.
    """
    scan = jpeg.find(_SCAN_HEADER, 0, _MOST_HEADER)
    frame = jpeg.find(_FRAME_BEGINS, 0, max(scan, 0))
    if frame < 0:
        raise ForeignJpeg("has no frame, or no scan, of ours")
    sides = frame + len(_FRAME_BEGINS)
    height, width = _SIDES.unpack_from(jpeg, sides)
    if not width or not height:
        raise ForeignJpeg("has a side of nothing")
    # Headers differ only in the size. Without it they are found in the cache of `_check_header`.
    _check_header(jpeg[:sides] + jpeg[sides + _SIDES.size : scan], sides)
    _check_scan(jpeg, scan + len(_SCAN_HEADER))
    return width, height


def _check_scan(jpeg: bytes, start: int) -> None:
    end = len(jpeg) - len(_EOI)
    if end <= start or jpeg[end:] != _EOI or jpeg[end - 1] == 0xFF:
        raise ForeignJpeg("has no end, or nothing before it")
    for first in range(start, end, _SEARCHED_AT_ONCE):
        # Search one byte more, because the byte after an FF decides.
        if _NO_SCAN.search(jpeg, first, min(first + _SEARCHED_AT_ONCE + 1, end)):
            raise ForeignJpeg("has more in it than one scan")


@functools.lru_cache(maxsize=16)
def _check_header(header: bytes, sides: int) -> None:
    """Check everything before the scan. The frame's height and width, at offset `sides`, were cut out."""
    if not header.startswith(_SOI):
        raise ForeignJpeg("does not begin as a JPEG")
    start = len(_SOI)
    markers: list[int] = []
    tables: list[tuple[int, int]] = []
    while start < len(header):
        marker, segment, start = _segment_at(header, start, sides)
        markers.append(marker)
        if marker == _APP0:
            _check_jfif(segment)
        elif marker in _TABLE_IDS:
            tables += ((marker, table) for table in _tables_in(marker, segment))
        elif marker != _SOF0 or segment[1:] != _COMPONENTS:
            raise ForeignJpeg(f"has a segment that is not ours: {marker:#x}")
    if markers[:1] != [_APP0] or markers.count(_APP0) != 1:
        raise ForeignJpeg("does not begin with one JFIF header")
    if markers.count(_SOF0) != 1:
        raise ForeignJpeg("has other frames than one")
    if sorted(tables) != sorted((marker, table) for marker, ids in _TABLE_IDS.items() for table in ids):
        raise ForeignJpeg("has other tables than ours")


def _segment_at(header: bytes, start: int, sides: int) -> tuple[int, bytes, int]:
    """Return a segment's marker, its content, and where the next segment begins."""
    if len(header) < start + 4 or header[start] != 0xFF:
        raise ForeignJpeg("has no segment where one should be")
    marker, length = header[start + 1], int.from_bytes(header[start + 2 : start + 4])
    end = start + 2 + length
    if start < sides <= end:
        end -= _SIDES.size
    if length <= 2 or end > len(header):
        raise ForeignJpeg("has a segment of a length that cannot be, or of nothing")
    return marker, header[start + 4 : end], end


def _check_jfif(segment: bytes) -> None:
    if len(segment) != _JFIF.size:
        raise ForeignJpeg("has a JFIF header of another length")
    name, (major, _), unit, _, _, width, height = _JFIF.unpack(segment)
    if name != b"JFIF\0" or major != 1 or unit > 2 or width or height:
        raise ForeignJpeg("has a JFIF header that is not ours")


def _tables_in(marker: int, segment: bytes) -> Iterator[int]:
    """Yield the number of each table in a segment."""
    start = 0
    while start < len(segment):
        number = segment[start]
        # A quantization table has 64 values of 8 bits. A Huffman table begins with the number of codes of each length.
        size = 1 + (64 if marker == _DQT else 16 + sum(segment[start + 1 : start + 17]))
        if start + size > len(segment) or number not in _TABLE_IDS[marker]:
            raise ForeignJpeg("has a table that is not ours")
        yield number
        start += size
