"""An output format for tests only: its pixels as they are. Run as a module, a child that knows it beside JPEG.

The child's first argument is empty, or `ordered:written`: two formats, of which it writes one for the other.

The format is added as any other is: with an encoder, what checks its files, and settings.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Mapping
from typing import Any

from PIL import Image

from shared.definitions import ENCODER_SETTINGS
from shared.renditions import Size
from worker.renderer.formats import Format
from worker.renderer.outputs import NotOurs

_HEADER = struct.Struct(">3s3sHH")
#: The order of the colours in a pixel.
SETTINGS = {"order": "BGR"}


def encode(level: Image.Image, settings: Mapping[str, Any]) -> memoryview:
    pixels = level.tobytes("raw", settings["order"])
    return memoryview(_HEADER.pack(b"toy", settings["order"].encode(), *level.size) + pixels)


def size_of(content: bytes) -> Size:
    if len(content) < _HEADER.size:
        raise NotOurs("has no header")
    name, _, width, height = _HEADER.unpack_from(content)
    if name != b"toy" or len(content) != _HEADER.size + 3 * width * height:
        raise NotOurs("is no toy")
    return width, height


def decoded(content: bytes) -> Image.Image:
    return Image.frombytes("RGB", size_of(content), content[_HEADER.size :], "raw", SETTINGS["order"])


TOY = Format(size_of, bytes_per_pixel=3)

if __name__ == "__main__":
    import socket

    from worker.child import __main__ as child
    from worker.child.encoders import ENCODERS

    fault, *arguments = sys.argv[1:]
    connection, *limits = (int(argument) for argument in arguments)
    ENCODERS["toy"], ENCODER_SETTINGS["toy"] = encode, SETTINGS
    if fault:
        ordered, written = fault.split(":")
        encoder, options = ENCODERS[written], ENCODER_SETTINGS[written]
        ENCODERS[ordered] = lambda level, _: encoder(level, options)
    try:
        child.main(socket.socket(fileno=connection), *limits)
    except (EOFError, ConnectionError):
        sys.exit(0)
