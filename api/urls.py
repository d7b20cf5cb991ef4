"""The paths of the API and the converters of their parameters. Each resource has exactly one path."""

from __future__ import annotations

import re
from functools import cache

from falcon.routing import BaseConverter, CompiledRouterOptions

from shared.renditions import MAX_SIDE, Size, thumbnail_name


class ImageIdConverter(BaseConverter):
    """Accepts an id only as a dashed, lower-case UUID. Falcon's converter also accepts other spellings."""

    _PATTERN = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")

    def convert(self, value: str) -> str | None:
        return value if self._PATTERN.fullmatch(value) else None


class SizeConverter(BaseConverter):
    """Accepts `{width}x{height}` in pixels, without sign or leading zero, each at most `MAX_SIDE`."""

    # MAX_SIDE has at most five digits. Longer numbers are never passed to int().
    _PATTERN = re.compile(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})")

    def convert(self, value: str) -> Size | None:
        match = self._PATTERN.fullmatch(value)
        if match is None:
            return None
        size = int(match[1]), int(match[2])
        return size if max(size) <= MAX_SIDE else None


def record_path(image_id: str) -> str:
    """Return the path of an image's record."""
    return f"/images/{image_id}"


def jpeg_path(image_id: str) -> str:
    """Return the path of an image's full-size JPEG."""
    return f"/images/{image_id}.jpeg"


def thumbnail_path(image_id: str, size: Size) -> str:
    """Return the path of an image's thumbnail."""
    return f"/thumbnails/{image_id}/{thumbnail_name(size)}"


def with_converters(template: str) -> str:
    """Return a route's template with falcon's converters. Each converter has the name of its parameter."""
    return re.sub(r"\{(\w+)\}", r"{\1:\1}", template)


@cache
def readable(template: str) -> str:
    """Return a route's template without falcon's converters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", template)


def register(router_options: CompiledRouterOptions) -> None:
    """Register the converters `image_id` and `size` with an app. Call this before routes are added."""
    router_options.converters["image_id"] = ImageIdConverter
    router_options.converters["size"] = SizeConverter
