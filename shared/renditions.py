"""Renditions: what is made of an image, the ladder of thumbnails, and the storage keys of all of an image's files."""

from __future__ import annotations

from dataclasses import dataclass

#: Width and height in pixels.
Size = tuple[int, int]

#: The longest side in pixels of any original or rendition: libjpeg's own limit.
MAX_SIDE = 65_500

#: The file name of the full-size JPEG.
FULL = "image.jpeg"


@dataclass(frozen=True)
class Rendition:
    """A stored picture that was made of an image."""

    #: Its name in its attempt's folder, such as `image.jpeg` and `320x240.jpeg`: what it is, and its format.
    file: str
    size: Size
    #: Its length.
    bytes: int
    #: Its digest in hex.
    sha256: str
    #: The attempt whose folder holds it.
    attempt: int
    #: A digest of what it was made by: format, quality and so on.
    definition: str

    @property
    def format(self) -> str:
        return self.file.rpartition(".")[2]


def thumbnail_name(size: Size) -> str:
    """Return the file name of the thumbnail of this size."""
    return f"{size[0]}x{size[1]}.jpeg"


def size_named(file: str, full: Size) -> Size:
    """Return the size that a file name stands for: that of the image for `image.jpeg`, its own for `320x240.jpeg`."""
    stem = file.rpartition(".")[0]
    if stem == FULL.rpartition(".")[0]:
        return full
    width, height = stem.split("x")
    return int(width), int(height)


def original_key(image_id: str) -> str:
    """Return the storage key of an image's original."""
    return f"originals/{image_id}"


def renditions_prefix(image_id: str) -> str:
    """Return the storage prefix under which every attempt at this image has its folder."""
    return f"renditions/{image_id}"


def attempt_prefix(image_id: str, attempt: int) -> str:
    """Return the storage prefix of what one attempt has made."""
    return f"{renditions_prefix(image_id)}/{attempt}"


def rendition_key(image_id: str, rendition: Rendition) -> str:
    """Return the storage key of a rendition."""
    return f"{attempt_prefix(image_id, rendition.attempt)}/{rendition.file}"


def ladder(size: Size, smallest_side: int) -> list[Size]:
    """Return the thumbnails' sizes: halved, rounded down, while both sides are at least `smallest_side` pixels."""
    sizes: list[Size] = []
    width, height = size[0] // 2, size[1] // 2
    while min(width, height) >= max(smallest_side, 1):
        sizes.append((width, height))
        width, height = width // 2, height // 2
    return sizes
