"""What to look for in bytes: planted texts, and whatever a JPEG of ours has no use for."""

from __future__ import annotations

import contextlib
import re
import zlib
from collections.abc import Iterator

from tests.corpus.formats import in_utf16
from tests.corpus.specimens import PLANTED
from tests.worker.pictures import segments

#: APP0, DQT, SOF0, DHT, SOS.
_NEEDED = {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}


def traces(content: bytes, text: bytes = PLANTED) -> list[str]:
    """Return how `text` is written in `content`, in each way in which it is."""
    ways = {"ASCII": text, "UTF-16LE": in_utf16(text), "UTF-16BE": in_utf16(text, big_endian=True)}
    return [way for way, written in ways.items() if written in content]


def inflated(content: bytes) -> Iterator[bytes]:
    """Yield the first 64 KiB of whatever lies in `content` as a zlib stream."""
    for level in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        at = content.find(b"\x78" + level)
        while at >= 0:
            with contextlib.suppress(zlib.error):
                yield zlib.decompressobj().decompress(content[at:], 65536)
            at = content.find(b"\x78" + level, at + 1)


def odd_in(jpeg: bytes) -> str:
    """Say what is in a JPEG that pixels do not need, or is missing; nothing where it is as it should be."""
    if jpeg[:2] != b"\xff\xd8" or jpeg[-2:] != b"\xff\xd9":
        return "it does not begin, or does not end, as a JPEG"
    found = segments(jpeg)
    if {marker for marker, _ in found} != _NEEDED:
        return f"it has the segments {[hex(marker) for marker, _ in found]}"
    headers = [data for marker, data in found if marker == 0xE0]
    if len(headers) != 1 or not re.fullmatch(rb"JFIF\x00\x01.{6}\x00\x00", headers[0], re.DOTALL):
        return f"it has the headers {headers}"
    scan = jpeg[2 + sum(4 + len(data) for _, data in found) : -2]
    if markers := re.findall(rb"\xff[^\x00]", scan):
        return f"it has {markers[:3]} in its scan"
    return ""
