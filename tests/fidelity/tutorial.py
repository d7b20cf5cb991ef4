"""The way of falcon's tutorial, to have something to compare with: whatever Pillow hands out, made RGB, and saved."""

from __future__ import annotations

import io

from PIL import Image


def rendition(file: bytes) -> bytes:
    """Return the JPEG that the tutorial would store; its thumbnails are made of the same pixels."""
    image = Image.open(io.BytesIO(file)).convert("RGB")
    output = io.BytesIO()
    image.save(output, "JPEG")
    return output.getvalue()
