"""What worker and child say to each other: length-prefixed msgpack maps, bounded, nothing in them executable."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack

#: Stands before each message: how many bytes it has.
HEADER = struct.Struct(">I")
#: No message is longer; the longest that is meant to be sent has some hundred bytes.
MAX_FRAME = 64 * 1024
#: A full-size picture and its ladder down to one pixel are 17 renditions.
MAX_DESCRIPTORS = 32

Message = dict[str, Any]

#: What a child may say once, before it answers that it has rendered.
LARGEST_WRITTEN: Message = {"written": "largest"}


class BadFrame(ValueError):
    """The other side sent something that is no message."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Return `message` as one frame, its length in front."""
    body: bytes = msgpack.packb(message)
    return HEADER.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """Return how many bytes follow `header`. Raises BadFrame where no message has that length."""
    length = int(HEADER.unpack(header)[0])
    if not 0 < length <= MAX_FRAME:
        raise BadFrame(f"a frame of {length} bytes")
    return length


def unpack(body: bytes) -> Message:
    """Return the message in a frame's body. Raises BadFrame for anything but a map with text for keys."""
    try:
        message = msgpack.unpackb(body)
    except (ValueError, RecursionError) as exc:
        raise BadFrame("not msgpack") from exc
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise BadFrame("not a map of names")
    return message
