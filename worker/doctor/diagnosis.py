"""What is wrong with one image, told from its row and from what is stored of it. Pure."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shared.images import (
    FULL,
    Image,
    Original,
    Owed,
    Rendition,
    Status,
    original_key,
    rendition_key,
    renditions_prefix,
)
from shared.storage import Stored

#: Seconds for which nothing that was just written counts: an upload in flight has an original before its row.
YOUNG_SECONDS = 3600.0


class Kind(StrEnum):
    """What may be wrong, as a person is told."""

    ORIGINAL_WITHOUT_ROW = "original without a row"
    RENDITIONS_WITHOUT_ROW = "renditions without a row"
    STALE_ATTEMPT = "stale attempt"
    OLD_DRAFT = "old draft"
    RENDITION_MISSING = "rendition missing"
    RENDITION_TORN = "rendition torn"
    BEYOND_MENDING = "beyond mending"
    ORIGINAL_TORN = "original torn"
    UNFINISHED_WITHOUT_ORIGINAL = "unfinished, no original"
    FAILED_WITHOUT_ORIGINAL = "failed, no original"
    READY_WITHOUT_ORIGINAL = "ready, no original"

    @property
    def is_wrong(self) -> bool:
        """Whether anything is to be done: a ready image may have been uploaded while originals were not kept."""
        return self is not Kind.READY_WITHOUT_ORIGINAL


#: What a worker makes again.
MADE_AGAIN = (Kind.RENDITION_MISSING, Kind.RENDITION_TORN)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and the bytes that are freed by mending it."""

    kind: Kind
    key: str
    detail: str = ""
    frees: int = 0


@dataclass(frozen=True)
class Look:
    """One image as ledger and storage have it; `altered` are the keys that were found to have another digest."""

    id: str
    row: Image | None = None
    files: Mapping[str, Stored] = field(default_factory=dict)
    altered: frozenset[str] = frozenset()

    def attempts(self) -> dict[str, list[Stored]]:
        """Return the files of each attempt by its folder's name."""
        found: dict[str, list[Stored]] = {}
        for key, stored in self.files.items():
            kind, _, *below = key.split("/")
            if kind == "renditions" and len(below) > 1:
                found.setdefault(below[0], []).append(stored)
        return found


def diagnose(look: Look, now: float, keep_originals: bool) -> list[Finding]:
    """Return all that is wrong with an image."""
    row = look.row
    if row is None:
        return _without_row(look, now)
    if row.status is Status.DELETING:
        return []
    findings = _of_original(look, row, keep_originals)
    if row.status is Status.READY:
        findings += _of_renditions(look, row)
    if row.status.is_final and row.owed is None:
        # Whoever owes something, or is still at work, has all other attempts removed in the end.
        findings += _of_attempts(look, row, now)
    return findings


def expected_keys(image: Image) -> dict[str, Original | Rendition]:
    """Return every key that an image's row names, and what is to be under it."""
    expected: dict[str, Original | Rendition] = {original_key(image.id): image.original}
    if image.published is not None:
        for name, rendition in image.renditions.items():
            expected[rendition_key(image.id, image.published, name)] = rendition
    return expected


def source_of(look: Look, row: Image) -> str:
    """Return the key that a worker makes a ready image's renditions of: the original where there is one."""
    original = original_key(row.id)
    return original if original in look.files else rendition_key(row.id, row.published or 0, FULL)


def is_young(stored: Stored, now: float, image_id: str = "") -> bool:
    """Tell whether something was written, or its id was made, within the hour.

    The id is made when an upload's last byte has been read, and its file is written to until then. Both count: the
    one is of the web process's clock, the other of the storage's, and a form may trickle on when its file is whole.
    """
    return now - max(stored.changed, birth_of(image_id)) <= YOUNG_SECONDS


def _without_row(look: Look, now: float) -> list[Finding]:
    findings = []
    original = look.files.get(original_key(look.id))
    if original is not None and not is_young(original, now, look.id):
        findings.append(Finding(Kind.ORIGINAL_WITHOUT_ROW, original.key, _written([original]), original.bytes))
    renditions = [stored for key, stored in look.files.items() if key != original_key(look.id)]
    if renditions and not any(is_young(stored, now, look.id) for stored in renditions):
        key = renditions_prefix(look.id)
        findings.append(Finding(Kind.RENDITIONS_WITHOUT_ROW, key, _written(renditions), _bytes_of(renditions)))
    return findings


def _of_original(look: Look, row: Image, keep_originals: bool) -> list[Finding]:
    key = original_key(row.id)
    fault = _fault(look, key, row.original)
    if fault is None or (row.status is Status.READY and not keep_originals):
        return []
    if key in look.files:
        return [Finding(Kind.ORIGINAL_TORN, key, fault)]
    if row.status is Status.READY:
        return [Finding(Kind.READY_WITHOUT_ORIGINAL, key)]
    if row.status is Status.FAILED:
        return [Finding(Kind.FAILED_WITHOUT_ORIGINAL, key)]
    return [Finding(Kind.UNFINISHED_WITHOUT_ORIGINAL, key, f"{row.status}, losses so far: {row.losses}")]


def _of_renditions(look: Look, row: Image) -> list[Finding]:
    faults = {key: _fault(look, key, what) for key, what in expected_keys(row).items()}
    broken = {key: fault for key, fault in faults.items() if fault is not None and key != original_key(row.id)}
    source = source_of(look, row)
    if broken and faults[source] is not None:
        # Nothing whole is left to make them of.
        if source in broken:
            return [Finding(Kind.BEYOND_MENDING, source, f"{faults[source]}, and there is no original")]
        return [Finding(Kind.BEYOND_MENDING, key, f"{fault}; its original is torn") for key, fault in broken.items()]
    asked = ["is asked for already"] if row.owed is Owed.THUMBNAILS else []
    return [
        Finding(Kind.RENDITION_TORN, key, "; ".join([fault, *asked]))
        if key in look.files
        else Finding(Kind.RENDITION_MISSING, key, "; ".join(asked))
        for key, fault in broken.items()
    ]


def _of_attempts(look: Look, row: Image, now: float) -> list[Finding]:
    findings = []
    for name, files in look.attempts().items():
        if name != str(row.published) and not any(is_young(stored, now) for stored in files):
            key = f"{renditions_prefix(row.id)}/{name}"
            findings.append(Finding(Kind.STALE_ATTEMPT, key, _written(files), _bytes_of(files)))
    return findings


def _fault(look: Look, key: str, expected: Original | Rendition) -> str | None:
    """Return what is wrong with what is under a key, or None."""
    stored = look.files.get(key)
    if stored is None:
        return "missing"
    if stored.bytes != expected.bytes:
        return f"{stored.bytes:,} bytes, not {expected.bytes:,}"
    return "another digest" if key in look.altered else None


def _written(files: list[Stored]) -> str:
    latest = time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(stored.changed for stored in files)))
    return f"{_bytes_of(files):,} bytes, of {latest} UTC"


def _bytes_of(files: list[Stored]) -> int:
    return sum(stored.bytes for stored in files)


def birth_of(image_id: str) -> float:
    """Return when an id was made, by its own word (UUIDv7); 0 where it says nothing."""
    try:
        number = uuid.UUID(image_id)
    except ValueError:
        return 0.0
    return (number.int >> 80) / 1000 if number.version == 7 else 0.0
