"""The way of falcon's tutorial, step by step: a JPEG at Pillow's defaults, opened again for each of its thumbnails."""

from __future__ import annotations

import io

from PIL import Image

from shared.renditions import Size, ladder

#: The tutorial's default.
MIN_THUMB_SIZE = 64


def render(original: bytes) -> dict[Size, bytes]:
    """Return the pictures that the tutorial makes of an upload, by size."""
    size = Image.open(io.BytesIO(original)).size
    stored = convert(original)
    return {size: stored} | {small: thumbnail(stored, small) for small in ladder(size, MIN_THUMB_SIZE)}


def convert(original: bytes) -> bytes:
    """Return what `Store.save` stores."""
    image = Image.open(io.BytesIO(original)).convert("RGB")
    converted = io.BytesIO()
    image.save(converted, "JPEG")
    return converted.getvalue()


def thumbnail(stored: bytes, size: Size) -> bytes:
    """Return what `Store.make_thumbnail` answers."""
    resized = io.BytesIO()
    reduced(stored, size).save(resized, "JPEG")
    return resized.getvalue()


def reduced(stored: bytes, size: Size) -> Image.Image:
    """Return a thumbnail before it is encoded."""
    image = Image.open(io.BytesIO(stored))
    image.thumbnail(size)
    return image
