"""Renditions: the pictures made from an image, the ladder of thumbnails, and the storage keys of an image's files."""

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
    """A stored picture that was made from an image."""

    #: The file name in the attempt's folder, such as `image.jpeg` or `320x240.jpeg`. It ends with the format.
    file: str
    size: Size
    #: The file's length.
    bytes: int
    #: The file's SHA-256 in hex.
    sha256: str
    #: The attempt whose folder holds the file.
    attempt: int
    #: A digest of the settings that it was made with (`shared.definitions`).
    definition: str

    @property
    def format(self) -> str:
        return self.file.rpartition(".")[2]


def thumbnail_name(size: Size) -> str:
    """Return the file name of the thumbnail of this size."""
    return f"{size[0]}x{size[1]}.jpeg"


def size_named(file: str, full: Size) -> Size:
    """Return the size that a file name stands for: `image.jpeg` has the image's size, `320x240.jpeg` names its own."""
    stem = file.rpartition(".")[0]
    if stem == FULL.rpartition(".")[0]:
        return full
    width, height = stem.split("x")
    return int(width), int(height)


def original_key(image_id: str) -> str:
    """Return the storage key of an image's original."""
    return f"originals/{image_id}"


def renditions_prefix(image_id: str) -> str:
    """Return the storage prefix of the folders of all attempts at this image."""
    return f"renditions/{image_id}"


def attempt_prefix(image_id: str, attempt: int) -> str:
    """Return the storage prefix of one attempt's renditions."""
    return f"{renditions_prefix(image_id)}/{attempt}"


def rendition_key(image_id: str, rendition: Rendition) -> str:
    """Return the storage key of a rendition."""
    return f"{attempt_prefix(image_id, rendition.attempt)}/{rendition.file}"


def ladder(size: Size, smallest_side: int) -> list[Size]:
    """Return the sizes of thumbnails: halved and rounded down while both sides have at least `smallest_side` pixels."""
    sizes: list[Size] = []
    width, height = size[0] // 2, size[1] // 2
    while min(width, height) >= max(smallest_side, 1):
        sizes.append((width, height))
        width, height = width // 2, height // 2
    return sizes
