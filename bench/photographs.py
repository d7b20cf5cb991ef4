"""Photographs to render: of scikit-image, in the public domain, or of a folder that ASGI_LOOK_BENCH_PHOTOS names."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

from PIL import Image
from skimage import data

from shared.renditions import Size

#: Of scikit-image's wheel: a person, a cup, a cat, a rocket, galaxies, a workshop, an eye, a tissue.
NAMES = (
    *("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "motorcycle_left.png"),
    *("retina.jpg", "ihc.png"),
)
#: The shortest side that a photograph must have, in pixels.
_LEAST_SIDE = 256


def photographs() -> Iterator[tuple[str, Image.Image]]:
    """Yield photographs, cropped to multiples of 32, so that all sides round sizes alike."""
    for path in _paths():
        with Image.open(path) as opened:
            image = opened.convert("RGB")
        width, height = (side // 32 * 32 for side in image.size)
        if min(width, height) >= _LEAST_SIDE:
            yield path.name, image.crop((0, 0, width, height))


def mosaic(size: Size) -> Image.Image:
    """Return photographs side by side that fill `size`, none enlarged."""
    width, height = size
    picture = Image.new("RGB", size)
    images = cycle([image for _, image in photographs()])
    top = 0
    while top < height:
        left, lowest = 0, height
        while left < width:
            image = next(images)
            picture.paste(image, (left, top))
            left, lowest = left + image.width, min(lowest, top + image.height)
        top = lowest
    return picture


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    """Return an encoded picture; a JPEG like a camera's: quality 92, baseline, 4:2:0."""
    file = io.BytesIO()
    if format == "JPEG":
        options = {"quality": 92, "subsampling": "4:2:0"} | options
    image.save(file, format, **options)
    return file.getvalue()


def _paths() -> Iterator[Path]:
    if folder := os.environ.get("ASGI_LOOK_BENCH_PHOTOS"):
        yield from sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    else:
        yield from (Path(data.__file__).parent / name for name in NAMES)
