"""The way of falcon's tutorial, to have something to compare with: whatever Pillow hands out, made RGB, and saved."""

from __future__ import annotations

import io

from PIL import Image

from shared.images import Size


def rendition(file: bytes, size: Size | None = None) -> bytes:
    """Return the JPEG that the tutorial would store, or a thumbnail that fits into `size`."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    if size is not None:
        image.thumbnail(size)
    output = io.BytesIO()
    image.save(output, "JPEG")
    return output.getvalue()
