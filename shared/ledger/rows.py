"""Conversion of ledger rows to images, and of renditions to their column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from shared.images import Debt, DebtKind, Image, Lane, Original, Status, Work
from shared.renditions import Rendition


def image_of(row: Any, debts: Iterable[Debt] = ()) -> Image:
    """Return the image of a row of `images`. `debts` are its debts if the row has no column `debts`."""
    stored: dict[str, tuple[int, int, int, str, int, str]] = json.loads(row.renditions)
    return Image(
        id=row.id,
        status=Status(row.status),
        work=None if row.work is None else Work(row.work),
        lane=None if row.lane is None else Lane(row.lane),
        turn=row.turn,
        wanted=None if row.wanted is None else tuple(json.loads(row.wanted)),
        attempt=row.attempt,
        failures=row.failures,
        losses=row.losses,
        due=row.due,
        worker=row.worker,
        paused_until=row.paused_until,
        sequence=row.sequence,
        owner=row.owner,
        original=Original(row.original_type, row.original_bytes, row.original_sha256),
        size=None if row.width is None else (row.width, row.height),
        renditions={
            file: Rendition(file, (width, height), length, sha256, attempt, definition)
            for file, (width, height, length, sha256, attempt, definition) in stored.items()
        },
        error_type=row.error_type,
        error_detail=row.error_detail,
        request=row.request,
        trace=row.trace,
        created=row.created,
        modified=row.modified,
        debts=_debts_in(row.debts) if hasattr(row, "debts") else tuple(debts),
    )


def renditions_text(renditions: Mapping[str, Rendition]) -> str:
    """Return renditions as the JSON of the column `images.renditions`."""
    return json.dumps({r.file: [*r.size, r.bytes, r.sha256, r.attempt, r.definition] for r in renditions.values()})


def _debts_in(text: str | None) -> tuple[Debt, ...]:
    pairs = (one.split(":") for one in text.split(",")) if text else ()
    return tuple(Debt(int(number), DebtKind(kind)) for kind, number in pairs)
