"""Images: their status, their renditions, their storage keys, and the ladder of thumbnails."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

#: Width and height in pixels.
Size = tuple[int, int]

#: The longest side in pixels of any original or rendition: libjpeg's own limit.
MAX_SIDE = 65_500


class Status(StrEnum):
    """The status of an image. `READY` and `FAILED` are final until the image is deleted or retried."""

    QUEUED = "queued"
    PROCESSING = "processing"
    READY = "ready"
    FAILED = "failed"
    DELETING = "deleting"

    @property
    def is_final(self) -> bool:
        return self in (Status.READY, Status.FAILED)


class Owed(StrEnum):
    """The debt of a row: what the sweep does for it once it is due."""

    TOKENS = "tokens"
    LEFTOVERS = "leftovers"
    THUMBNAILS = "thumbnails"


@dataclass(frozen=True)
class Rendition:
    """A stored JPEG made from an original. `bytes` is its length, `sha256` its digest in hex."""

    size: Size
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Original:
    """The bytes as received: the media type told by their signature, their length, their digest in hex."""

    type: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Image:
    """One row of the ledger. Times are seconds since the epoch, by the ledger's own clock."""

    id: str
    status: Status
    attempt: int
    published: int | None
    failures: int
    losses: int
    wake: int
    due: float | None
    owed: Owed | None
    sequence: int | None
    original: Original
    size: Size | None
    renditions: dict[str, Rendition] = field(repr=False)
    error_type: str | None
    error_detail: str | None
    worker: str | None
    request: str | None
    created: float
    modified: float
    #: The traceparent (W3C Trace Context) of the request that queued this work.
    trace: str | None = None

    @property
    def thumbnails(self) -> list[Rendition]:
        """The stored thumbnails, largest first."""
        small = (rendition for name, rendition in self.renditions.items() if name != FULL)
        return sorted(small, key=lambda rendition: rendition.size, reverse=True)


#: The name of the full-size JPEG among an attempt's renditions.
FULL = "image.jpeg"


def thumbnail_name(size: Size) -> str:
    """Return the name under which the thumbnail of this size is stored."""
    return f"{size[0]}x{size[1]}.jpeg"


def original_key(image_id: str) -> str:
    """Return the storage key of an image's original."""
    return f"originals/{image_id}"


def renditions_prefix(image_id: str) -> str:
    """Return the storage prefix under which every attempt at this image has its folder."""
    return f"renditions/{image_id}"


def attempt_prefix(image_id: str, attempt: int) -> str:
    """Return the storage prefix of one attempt's renditions."""
    return f"{renditions_prefix(image_id)}/{attempt}"


def rendition_key(image_id: str, attempt: int, name: str) -> str:
    """Return the storage key of one rendition."""
    return f"{attempt_prefix(image_id, attempt)}/{name}"


def ladder(size: Size, smallest_side: int) -> list[Size]:
    """Return the thumbnails' sizes: halved, rounded down, while both sides are at least `smallest_side` pixels."""
    sizes: list[Size] = []
    width, height = size[0] // 2, size[1] // 2
    while min(width, height) >= max(smallest_side, 1):
        sizes.append((width, height))
        width, height = width // 2, height // 2
    return sizes
