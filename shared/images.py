"""Images: their status, their work, and the debts that commits leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from shared.renditions import FULL, Rendition, Size


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


class Work(StrEnum):
    """The work on an image: its first renditions, or more of them while it is ready."""

    CONVERT = "convert"
    RENDITIONS = "renditions"


class Lane(IntEnum):
    """How urgent work is. All work of a lane comes before that of the next one."""

    UPLOAD = 0
    #: A client waits for a missing rendition.
    DEMAND = 1
    AHEAD = 2
    BULK = 3

    @property
    def is_preemptible(self) -> bool:
        """Whether running work of this lane makes room for more urgent work."""
        return self >= Lane.AHEAD


class DebtKind(StrEnum):
    """The kinds of debts that a commit may leave."""

    #: Change the cache tokens, because copies in Redis are older than the commit.
    TOKENS = "tokens"
    #: Send a notice of the commit to all processes.
    NOTICE = "notice"
    #: Remove files that the row does not name.
    LEFTOVERS = "leftovers"


@dataclass(frozen=True)
class Debt:
    """One debt of an image."""

    id: int
    kind: DebtKind


@dataclass(frozen=True)
class Original:
    """The bytes as received: media type by their signature, length, and SHA-256 in hex."""

    type: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Image:
    """One row of the ledger. Times are seconds since the epoch, by the ledger's own clock."""

    id: str
    status: Status
    work: Work | None
    #: The place of the work in the order of work: its lane, then its turn. None without work.
    lane: Lane | None
    turn: float | None
    #: The file names of the renditions to make. None means the JPEG, its ladder, and all thumbnails that the row names.
    wanted: tuple[str, ...] | None
    #: The number of the last attempt. The number only rises: it is the fence against attempts that lost their image.
    attempt: int
    failures: int
    losses: int
    #: When work may be claimed, or when its lease ends.
    due: float | None
    #: The worker that holds the image, or None.
    worker: str | None
    #: Until then, requests for renditions of a ready image are ignored.
    paused_until: float | None
    sequence: int | None
    owner: str | None
    original: Original
    size: Size | None
    #: By their file names.
    renditions: Mapping[str, Rendition] = field(repr=False)
    error_type: str | None
    error_detail: str | None
    request: str | None
    #: The traceparent (W3C Trace Context) of the request that queued this work.
    trace: str | None
    created: float
    modified: float
    debts: tuple[Debt, ...] = ()

    @property
    def thumbnails(self) -> list[Rendition]:
        """The stored JPEG thumbnails, largest first. The record does not list other formats."""
        small = (one for one in self.renditions.values() if one.file != FULL and one.format == "jpeg")
        return sorted(small, key=lambda rendition: rendition.size, reverse=True)

    def owes(self, *kinds: DebtKind) -> list[Debt]:
        """Return the debts of these kinds."""
        return [debt for debt in self.debts if debt.kind in kinds]

    def has_published(self, attempt: int) -> bool:
        """Return whether a rendition of this attempt is in use."""
        return any(rendition.attempt == attempt for rendition in self.renditions.values())
