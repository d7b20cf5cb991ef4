"""Pictures that say their own number, in every size they are rendered to: a mixed-up rendition cannot pass."""

from __future__ import annotations

import functools

import numpy as np
from PIL import Image, ImageDraw

from tests.worker.pictures import encoded, photo

_BITS = 16
#: The band with the number is this part of the picture's height.
_BAND = 8
#: Sizes and formats as people upload them, from a screenshot to a camera's picture of 12 MP.
KINDS: tuple[tuple[tuple[int, int], str], ...] = (
    ((640, 360), "PNG"),
    ((640, 480), "JPEG"),
    ((1000, 667), "WEBP"),
    ((1280, 960), "JPEG"),
    ((1601, 1201), "JPEG"),
    ((4000, 3000), "JPEG"),
)


@functools.cache
def _plain(size: tuple[int, int]) -> Image.Image:
    return photo(size)


def size_of(number: int) -> tuple[int, int]:
    """Return the size of the picture with this number."""
    return KINDS[number % len(KINDS)][0]


def numbered(number: int) -> bytes:
    """Return the file of a picture with a number below 65,536 in black and white along its upper edge."""
    size, format = KINDS[number % len(KINDS)]
    picture = _plain(size).copy()
    draw = ImageDraw.Draw(picture)
    for bit in range(_BITS):
        left, right = size[0] * bit // _BITS, size[0] * (bit + 1) // _BITS - 1
        shade = "white" if number >> bit & 1 else "black"
        draw.rectangle((left, 0, right, -(-size[1] // _BAND)), fill=shade)
    return encoded(picture, format, **({"method": 0} if format == "WEBP" else {})).getvalue()


def number_in(picture: Image.Image) -> int:
    """Return the number that a picture says, whatever size it was rendered to; decodes all of it."""
    small = picture.convert("L").resize((_BITS, _BAND), Image.Resampling.BOX)
    return sum(1 << bit for bit, level in enumerate(np.asarray(small)[0]) if level > 127)
