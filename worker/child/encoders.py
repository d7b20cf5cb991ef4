"""The output formats on the child's side: a function for each format that encodes a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

#: Returns a whole file. Arguments: an RGB picture, which is not changed, and its settings from `shared.definitions`.
Encoder = Callable[[Image.Image, Mapping[str, Any]], memoryview]


def _jpeg(level: Image.Image, settings: Mapping[str, Any]) -> memoryview:
    file = io.BytesIO()
    level.save(file, "JPEG", optimize=False, progressive=False, **settings)
    return file.getbuffer()


#: `worker.renderer.formats` has the check of each format's files.
ENCODERS: dict[str, Encoder] = {"jpeg": _jpeg}
