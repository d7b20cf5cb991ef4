"""What the service makes of a file, and what a thumbnail of a reference is."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np

from shared.renditions import Size, ladder
from tests.fidelity.colours import Pixels, Values, to_pixels
from tests.fidelity.kinds import WHITE
from tests.worker.pictures import jpeg_of
from worker.child.opening import open_picture
from worker.child.rendering import render

MAX_PIXELS = 50_000_000
#: Only the first: the reference is exact for one halving, and the others' sharpness is tested where rendering is.
THUMBNAILS = 1


def renditions(file: bytes) -> dict[Size, bytes]:
    """Render a file at its size, and at half its sides if it is large enough for a thumbnail."""
    picture = open_picture(io.BytesIO(file), max_pixels=MAX_PIXELS)
    sizes = (picture.size, *ladder(picture.size, 64)[:THUMBNAILS])
    outputs = {jpeg_of(size): io.BytesIO() for size in sizes}
    render(picture, outputs, WHITE)
    return {output.size: file.getvalue() for output, file in outputs.items()}


def decoded(jpeg: bytes) -> Pixels:
    """Decode a JPEG without Pillow."""
    pixels: Pixels = imagecodecs.jpeg8_decode(jpeg, outcolorspace="rgb")
    return pixels


def reduced(pixels: Pixels, size: Size) -> Pixels:
    """Return a picture of this size, each of whose pixels is the mean of the area that it covers."""
    width, height = size
    if pixels.shape[:2] == (height, width):
        return pixels
    rows = np.tensordot(_shares(height, pixels.shape[0]), pixels / 255, axes=(1, 0))
    return to_pixels(np.moveaxis(np.tensordot(_shares(width, pixels.shape[1]), rows, axes=(1, 1)), 0, 1))


def _shares(count: int, of: int) -> Values:
    edges, before = np.linspace(0, of, count + 1)[:, np.newaxis], np.arange(of)
    covered = (np.minimum(edges[1:], before + 1) - np.maximum(edges[:-1], before)).clip(0)
    return np.asarray(covered / covered.sum(axis=1, keepdims=True))
