"""The parts of our paths, each with exactly one spelling; anything else is no path of ours."""

from __future__ import annotations

import re
from functools import lru_cache

from falcon.routing import BaseConverter, CompiledRouterOptions

from shared.images import MAX_SIDE, Size


class ImageIdConverter(BaseConverter):
    """Takes an id as we write it: a dashed, lower-case UUID (falcon's own takes braces, capitals, no dashes)."""

    _PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

    def convert(self, value: str) -> str | None:
        return value if self._PATTERN.fullmatch(value) else None


class SizeConverter(BaseConverter):
    """Takes `{width}x{height}` in pixels, without sign or leading zero, each at most `MAX_SIDE`."""

    # Five digits hold MAX_SIDE, and keep int() from ever seeing more.
    _PATTERN = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

    def convert(self, value: str) -> Size | None:
        match = self._PATTERN.fullmatch(value)
        if match is None:
            return None
        size = int(match[1]), int(match[2])
        return size if max(size) <= MAX_SIDE else None


#: `/thumbnails/{id}/{w}x{h}.jpeg`.
_LONGEST_PICTURE = 12 + 36 + 1 + 5 + 1 + 5 + 5
_IMAGE_ID, _SIZE = ImageIdConverter(), SizeConverter()


def picture_at(path: str) -> tuple[str, Size | None] | None:
    """Return whose picture is at this path and its size, if it is a thumbnail; None where no picture can be there."""
    return _picture_at(path) if len(path) <= _LONGEST_PICTURE and path.endswith(".jpeg") else None


@lru_cache(maxsize=1024)
def _picture_at(path: str) -> tuple[str, Size | None] | None:
    match path[: -len(".jpeg")].split("/"):
        case ["", "images", name]:
            image_id = _IMAGE_ID.convert(name)
            return None if image_id is None else (image_id, None)
        case ["", "thumbnails", name, dimensions]:
            image_id, size = _IMAGE_ID.convert(name), _SIZE.convert(dimensions)
            return None if image_id is None or size is None else (image_id, size)
    return None


def register(router_options: CompiledRouterOptions) -> None:
    """Make `{…:image_id}` and `{…:size}` known to an app's routes; to be called before they are added."""
    router_options.converters["image_id"] = ImageIdConverter
    router_options.converters["size"] = SizeConverter
