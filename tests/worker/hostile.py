"""A real child into which faults are planted: an original that begins with `FAULT name` sets one off.

One that has `FAULT slow 10` near its beginning, in a comment for example, is rendered after 10 s of computing.

Run by tests in place of `worker.child`, with the same arguments.
"""

from __future__ import annotations

import ctypes
import os
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

from worker.child import __main__ as child
from worker.child import opening, rendering
from worker.renderer.outputs import Output
from worker.renderer.protocol import pack

CONNECTION = socket.socket(fileno=int(sys.argv[1]))
HOARD: list[bytes] = []
seconds_to_waste = 0.0
REAL_OPEN, REAL_RENDER = opening.open_picture, rendering.render


def hang() -> NoReturn:
    while True:
        select.select([], [], [])


def spin() -> NoReturn:
    while True:
        pass


def say(content: bytes) -> Callable[[], None]:
    def speak() -> None:
        CONNECTION.sendall(content)
        hang()

    return speak


def allocate() -> NoReturn:
    hoard = []
    while True:
        hoard.append(bytearray(16 * 1024 * 1024))


def leak() -> None:
    HOARD.append(b"x" * (200 * 1024 * 1024))


def hang_up() -> NoReturn:
    CONNECTION.close()
    hang()


def fail_on_disk() -> NoReturn:
    raise OSError(5, "Input/output error")


FAULTS: dict[str, Callable[[], object]] = {
    "hang": hang,
    "spin": spin,
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "vanish": lambda: os._exit(3),
    "hang-up": hang_up,
    "leak": leak,
    "allocate": allocate,
    "disk": fail_on_disk,
    "bug": lambda: int("no number"),
    "garbage": say(b"\xff" * 4096),
    "long": say(struct.pack(">I", 1 << 30)),
    "empty": say(struct.pack(">I", 0)),
    "no-map": say(pack({})[:3] + b"\x01\xc0"),
    "no-size": say(pack({"format": "JPEG"})),
    "odd-size": say(pack({"size": [0, -1], "format": "JPEG"})),
    "true-size": say(pack({"size": [True, True], "format": "JPEG"})),
    "large-size": say(pack({"size": [60_000, 60_000], "format": "JPEG"})),
    "odd-format": say(pack({"size": [1, 1], "format": "EXE"})),
    "odd-error": say(pack({"error": 5, "detail": "x"})),
    "long-error": say(pack({"error": "unreadable-image", "detail": "x" * 5000})),
    "odd-cause": say(pack({"error": "unreadable-image", "detail": "x", "cause": [[]]})),
    "talkative": say(pack({"size": [4, 4], "format": "PNG"}) + pack({"stages": {"decode": 1.0}}) + b"more"),
    "talks-later": say(pack({"error": "unreadable-image", "detail": "x"}) + b"more"),
    "odd-stages": say(pack({"stages": [1, 2]})),
    "endless-stage": say(pack({"stages": {"decode": float("inf")}})),
    "lie": say(pack({"stages": {"decode": 1.0}})),
}


def open_picture(file: BinaryIO, **limits: int) -> opening.OpenedPicture:
    global seconds_to_waste
    beginning = file.read(64)
    slow = re.search(rb"FAULT slow (\d+)", beginning)
    seconds_to_waste = float(slow[1]) if slow else 0.0
    # Behind a GIF's signature it passes for a picture at the upload, too.
    word = beginning.removeprefix(b"GIF89a ").split(b"\n")[0].decode("latin-1").split()
    if word[:2] == ["FAULT", "open"]:
        FAULTS[word[2]]()
    if word[:2] == ["FAULT", "render"]:
        # It claims to be of 4 x 4 pixels; what goes wrong does so when they are asked for.
        return opening.OpenedPicture((4, 4), "PNG", None, None, word[2].encode())
    file.seek(0)
    return REAL_OPEN(file, **limits)


def render(
    picture: opening.OpenedPicture,
    outputs: dict[Output, Any],
    background: tuple[int, int, int],
) -> dict[str, float]:
    if picture._image is None and picture.profile is not None:
        FAULTS[picture.profile.decode()]()
    until = time.monotonic() + seconds_to_waste
    while time.monotonic() < until:
        pass
    return REAL_RENDER(picture, outputs, background)


if __name__ == "__main__":
    opening.open_picture = open_picture
    rendering.render = render  # type: ignore[assignment] # its outputs are a Mapping, and so is a dict
    try:
        child.main(CONNECTION, *(int(argument) for argument in sys.argv[2:]))
    except (EOFError, ConnectionError):
        sys.exit(0)
