"""Rendering in steps: decode, convert to sRGB on a background, halve again and again, encode the outputs."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from PIL import Image

from shared.definitions import ENCODER_SETTINGS
from shared.renditions import Size
from worker.child.colour import flatten_to_srgb
from worker.child.decoding import decode
from worker.child.encoders import ENCODERS
from worker.child.failures import blame_the_file, out_of_memory
from worker.child.opening import OpenedPicture
from worker.renderer.outputs import Output


class Writable(Protocol):
    """The destination of an output. As with raw files, `write` may write only a part and returns how much."""

    def write(self, data: memoryview, /) -> int: ...


def render(
    picture: OpenedPicture, outputs: Mapping[Output, Writable], background: tuple[int, int, int]
) -> dict[str, float]:
    """Write each output into its file. Returns the milliseconds of each stage. Scales to each size once.

    A size is the picture's own, or one on its ladder of halvings. Raises UnreadableImage or RenderOutOfMemory if the
    file is at fault. Other errors of encoding and writing are raised as they are.
    """
    unwritten: dict[Size, list[Output]] = {}
    for output in outputs:
        unwritten.setdefault(output.size, []).append(output)
    if strangers := unwritten.keys() - set(_levels(picture.size)):
        raise ValueError(f"not on the ladder of {picture.size}: {sorted(strangers)}")
    if unknown := {output.format for output in outputs} - ENCODERS.keys():
        raise ValueError(f"not output formats: {sorted(unknown)}")
    stages: dict[str, float] = {}
    with blame_the_file(math.prod(picture.size)):
        with _timed(stages, "decode"):
            image = decode(picture)
        with _timed(stages, "colour"):
            level = flatten_to_srgb(image, picture.profile, background)
            del image
    # Pillow would copy the original's comment into each JPEG.
    level.info.clear()
    try:
        for size in _levels(picture.size):
            with _timed(stages, "scale"):
                level = _scale(level, size, is_first=level.size == picture.size)
            for output in unwritten.pop(size, ()):
                with _timed(stages, "encode"):
                    # Encode into memory first: Pillow does not notice a short write to a descriptor.
                    _write(ENCODERS[output.format](level, ENCODER_SETTINGS[output.format]), outputs[output])
            if not unwritten:
                break
    except MemoryError as exc:
        raise out_of_memory() from exc
    return stages


def _levels(size: Size) -> Iterator[Size]:
    width, height = size
    while width and height:
        yield width, height
        width, height = width // 2, height // 2


def _scale(level: Image.Image, size: Size, *, is_first: bool) -> Image.Image:
    if level.size == size:
        return level
    if not is_first:
        return level.resize(size, Image.Resampling.LANCZOS)
    # For one exact halving a box filter is as good as any, and ten times as fast. A second box filter in a row would be
    # visible. On an odd side a box filter would shift the picture by half a pixel, so another filter halves that side.
    across, down = (2 if side % 2 == 0 else 1 for side in level.size)
    if across == down == 1:
        return level.resize(size, Image.Resampling.BICUBIC)  # takes two thirds of the time of LANCZOS
    halved = level.reduce((across, down))
    return halved if halved.size == size else halved.resize(size, Image.Resampling.LANCZOS)


def _write(rest: memoryview, file: Writable) -> None:
    while rest:
        rest = rest[file.write(rest) :]


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = round(stages.get(name, 0.0) + (time.perf_counter() - start) * 1000, 3)
