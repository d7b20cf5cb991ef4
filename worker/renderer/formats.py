"""The output formats on the parent's side: the check of a file that a child has written, and its largest length.

To add a format, add its check here, its encoder in `worker.child.encoders`, and its settings in `shared.definitions`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from shared.renditions import Size
from worker.renderer import jpeg

#: Bytes that a file may have in addition to `bytes_per_pixel`.
_MARGIN = 64 * 1024


@dataclass(frozen=True)
class Format:
    """An output format.

    `size_of` parses a whole file and returns its width and height. It raises NotOurs if our encoder cannot have written
    the file, or if the file holds any byte that its pixels do not need.
    """

    size_of: Callable[[bytes], Size]
    bytes_per_pixel: int

    def most_bytes(self, pixels: int) -> int:
        """Return the most bytes that a file of so many pixels may have."""
        return self.bytes_per_pixel * pixels + _MARGIN


FORMATS: dict[str, Format] = {
    # Pure noise takes 1.2 bytes per pixel at our quality.
    "jpeg": Format(jpeg.size_of, bytes_per_pixel=4),
}


def most_bytes(pixels: int) -> int:
    """Return the most bytes that a file of so many pixels may have in any format."""
    return max(format.most_bytes(pixels) for format in FORMATS.values())
