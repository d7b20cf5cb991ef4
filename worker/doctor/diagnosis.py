"""Pure functions that find what is wrong with one image, from its row and its files."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from shared.images import DebtKind, Image, Original, Status
from shared.renditions import FULL, Rendition, original_key, rendition_key, renditions_prefix
from shared.storage import Stored

#: Younger files are left alone: an upload stores its original before its row.
YOUNG_SECONDS = 3600.0


class Kind(StrEnum):
    """What may be wrong. The values are printed."""

    ORIGINAL_WITHOUT_ROW = "original without a row"
    RENDITIONS_WITHOUT_ROW = "renditions without a row"
    STALE_ATTEMPT = "stale attempt"
    STALE_FILE = "stale file"
    RENDITION_BROKEN = "rendition broken"
    BEYOND_MENDING = "beyond mending"
    ORIGINAL_TORN = "original torn"
    ORIGINAL_MISSING = "original missing"
    READY_WITHOUT_ORIGINAL = "ready, no original"

    @property
    def is_wrong(self) -> bool:
        """Whether this is a fault. A ready image may lack its original, if originals were not kept at its upload."""
        return self is not Kind.READY_WITHOUT_ORIGINAL


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `key` is a storage key, or the prefix of a folder."""

    kind: Kind
    key: str
    detail: str = ""


@dataclass(frozen=True)
class Snapshot:
    """One image's row and files. `altered` are the keys of files whose digest is not the expected one."""

    id: str
    row: Image | None = None
    files: Mapping[str, Stored] = field(default_factory=dict)
    altered: frozenset[str] = frozenset()

    def attempts(self) -> dict[str, list[Stored]]:
        """Return the files of each attempt, by the name of its folder."""
        found: dict[str, list[Stored]] = {}
        for key, stored in self.files.items():
            kind, _, *below = key.split("/")
            if kind == "renditions" and len(below) > 1:
                found.setdefault(below[0], []).append(stored)
        return found


def diagnose(snapshot: Snapshot, now: float, keep_originals: bool) -> list[Finding]:
    """Return everything that is wrong with an image."""
    row = snapshot.row
    if row is None:
        return _without_row(snapshot, now)
    if row.status is Status.DELETING:
        return []
    findings = _of_original(snapshot, row, keep_originals)
    if row.status is Status.READY:
        findings += _of_renditions(snapshot, row)
    if row.status.is_final and row.work is None and not row.owes(DebtKind.LEFTOVERS):
        # Otherwise an attempt is working, or settling will remove stale files.
        findings += _of_attempts(snapshot, row, now)
    return findings


def expected_keys(image: Image) -> dict[str, Original | Rendition]:
    """Return every key that an image's row names, with the expected length and digest of its file."""
    expected: dict[str, Original | Rendition] = {original_key(image.id): image.original}
    return expected | {rendition_key(image.id, rendition): rendition for rendition in image.renditions.values()}


def source_of(snapshot: Snapshot, row: Image) -> str:
    """Return the key of the file that renditions are made from: the original if it exists, otherwise the JPEG."""
    original = original_key(row.id)
    return original if original in snapshot.files else rendition_key(row.id, row.renditions[FULL])


def is_young(stored: Stored, now: float, image_id: str = "") -> bool:
    """Return whether a file was written, or its image's id was created, within the last hour.

    The id is created when the last byte of the upload has been read. Both times count, because web and storage have
    different clocks, and because a slow form may continue after its file.
    """
    return now - max(stored.changed, birth_of(image_id)) <= YOUNG_SECONDS


def _without_row(snapshot: Snapshot, now: float) -> list[Finding]:
    findings = []
    original = snapshot.files.get(original_key(snapshot.id))
    if original is not None and not is_young(original, now, snapshot.id):
        findings.append(Finding(Kind.ORIGINAL_WITHOUT_ROW, original.key, _written([original])))
    renditions = [stored for key, stored in snapshot.files.items() if key != original_key(snapshot.id)]
    if renditions and not any(is_young(stored, now, snapshot.id) for stored in renditions):
        key = renditions_prefix(snapshot.id)
        findings.append(Finding(Kind.RENDITIONS_WITHOUT_ROW, key, _written(renditions)))
    return findings


def _of_original(snapshot: Snapshot, row: Image, keep_originals: bool) -> list[Finding]:
    key = original_key(row.id)
    fault = _fault(snapshot, key, row.original)
    if fault is None or (row.status is Status.READY and not keep_originals):
        return []
    if key in snapshot.files:
        return [Finding(Kind.ORIGINAL_TORN, key, fault)]
    if row.status is Status.READY:
        return [Finding(Kind.READY_WITHOUT_ORIGINAL, key)]
    return [Finding(Kind.ORIGINAL_MISSING, key, f"the image is {row.status}")]


def _of_renditions(snapshot: Snapshot, row: Image) -> list[Finding]:
    faults = {key: _fault(snapshot, key, what) for key, what in expected_keys(row).items()}
    broken = {key: fault for key, fault in faults.items() if fault is not None and key != original_key(row.id)}
    if faults[source_of(snapshot, row)] is None:
        return [Finding(Kind.RENDITION_BROKEN, key, fault) for key, fault in broken.items()]
    return [
        Finding(Kind.BEYOND_MENDING, key, f"{fault}; nothing whole is left to make it of")
        for key, fault in broken.items()
    ]


def _of_attempts(snapshot: Snapshot, row: Image, now: float) -> list[Finding]:
    named = expected_keys(row)
    findings = []
    for name, files in snapshot.attempts().items():
        stale = [stored for stored in files if stored.key not in named]
        if any(is_young(stored, now) for stored in stale):
            continue
        if len(stale) == len(files):
            findings.append(Finding(Kind.STALE_ATTEMPT, f"{renditions_prefix(row.id)}/{name}", _written(files)))
        else:
            findings += (Finding(Kind.STALE_FILE, stored.key, _written([stored])) for stored in stale)
    return findings


def _fault(snapshot: Snapshot, key: str, expected: Original | Rendition) -> str | None:
    """Return what is wrong with the file of a key, or None."""
    stored = snapshot.files.get(key)
    if stored is None:
        return "missing"
    if stored.bytes != expected.bytes:
        return f"{stored.bytes:,} bytes, not {expected.bytes:,}"
    return "another digest" if key in snapshot.altered else None


def _written(files: list[Stored]) -> str:
    latest = time.strftime("%Y-%m-%d %H:%M", time.gmtime(max(stored.changed for stored in files)))
    return f"{sum(stored.bytes for stored in files):,} bytes, of {latest} UTC"


def birth_of(image_id: str) -> float:
    """Return when an id was created, in seconds since the epoch: a UUIDv7 contains that. Returns 0 for any other id."""
    try:
        number = uuid.UUID(image_id)
    except ValueError:
        return 0.0
    return (number.int >> 80) / 1000 if number.version == 7 else 0.0
