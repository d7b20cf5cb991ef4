"""The messages between worker and child: msgpack maps of limited length, each after its length. No pickle."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import msgpack

#: The length of a message in bytes, sent before it.
HEADER = struct.Struct(">I")
#: The most bytes of a message. Honest ones have some hundred.
MAX_FRAME = 64 * 1024
#: The most descriptors of a message, one for each output. The largest picture and its ladder down to one pixel make 16
#: renditions in each format. The kernel allows 253 with a message.
MAX_DESCRIPTORS = 128

Message = dict[str, Any]


class BadFrame(ValueError):
    """The other side sent bytes that are no message."""


def pack(message: Mapping[str, Any]) -> bytes:
    """Return `message` as one frame: its length, then its msgpack."""
    body: bytes = msgpack.packb(message)
    return HEADER.pack(len(body)) + body


def length_of(header: bytes) -> int:
    """Return how many bytes follow `header`. Raises BadFrame for a length of 0 or more than MAX_FRAME."""
    length = int(HEADER.unpack(header)[0])
    if not 0 < length <= MAX_FRAME:
        raise BadFrame(f"a frame of {length} bytes")
    return length


def unpack(body: bytes) -> Message:
    """Return the message in a frame's body. Raises BadFrame for anything but a map with text keys."""
    try:
        message = msgpack.unpackb(body)
    except (ValueError, RecursionError) as exc:
        raise BadFrame("not msgpack") from exc
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise BadFrame("not a map of names")
    return message
