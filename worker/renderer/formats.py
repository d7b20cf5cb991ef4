"""The output formats, as the parent knows them: what checks a file that a child has written, and how long one may be.

A format is added here, with its encoder in `worker.child.encoders`, and with its settings in `shared.definitions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.renditions import Size
from worker.renderer import jpeg

#: Bytes that a file may have beyond those of its pixels.
_MARGIN = 64 * 1024


@dataclass(frozen=True)
class Format:
    """An output format.

    `size_of` parses a whole file and returns its width and height. It raises NotOurs for a file that our encoder does
    not write, and for anything in front of, within or behind the picture that its pixels do not need.
    """

    size_of: Callable[[bytes], Size]
    bytes_per_pixel: int

    def most_bytes(self, pixels: int) -> int:
        """Return how many bytes a file of so many pixels may have."""
        return self.bytes_per_pixel * pixels + _MARGIN


FORMATS: dict[str, Format] = {
    # Pure noise takes 1.2 bytes a pixel at our quality.
    "jpeg": Format(jpeg.size_of, bytes_per_pixel=4),
}


def most_bytes(pixels: int) -> int:
    """Return how many bytes a file of so many pixels may have, whatever its format."""
    return max(format.most_bytes(pixels) for format in FORMATS.values())
