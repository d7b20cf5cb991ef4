"""The output formats, as a child knows them: a function for each that encodes a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

#: Returns a whole file, given an RGB picture, which it leaves as it is, and settings of `shared.definitions`.
Encoder = Callable[[Image.Image, Mapping[str, Any]], memoryview]


def _jpeg(level: Image.Image, settings: Mapping[str, Any]) -> memoryview:
    file = io.BytesIO()
    level.save(file, "JPEG", optimize=False, progressive=False, **settings)
    return file.getbuffer()


#: For each, `worker.renderer.formats` has what checks its files.
ENCODERS: dict[str, Encoder] = {"jpeg": _jpeg}
