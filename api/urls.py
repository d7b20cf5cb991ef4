"""Our paths, and the converters of their parameters: each path has exactly one spelling."""

from __future__ import annotations

import re
from functools import cache

from falcon.routing import BaseConverter, CompiledRouterOptions

from shared.renditions import MAX_SIDE, Size, thumbnail_name


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
    """Return falcon's form of a route's template: a parameter's converter has the parameter's name."""
    return re.sub(r"\{(\w+)\}", r"{\1:\1}", template)


@cache
def readable(template: str) -> str:
    """Return a route's template without falcon's converters."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", template)


def register(router_options: CompiledRouterOptions) -> None:
    """Make `{…:image_id}` and `{…:size}` known to an app's routes; to be called before they are added."""
    router_options.converters["image_id"] = ImageIdConverter
    router_options.converters["size"] = SizeConverter
