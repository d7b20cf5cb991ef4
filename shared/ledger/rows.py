"""Conversion of ledger rows to images, and of renditions to their column."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from shared.images import Debt, DebtKind, Image, Lane, Original, Status, Work
from shared.renditions import Rendition

#: Fields of an image that are columns as they are.
_SAME = (
    *("id", "turn", "attempt", "failures", "losses", "due", "worker", "paused_until", "sequence", "owner"),
    *("error_type", "error_detail", "request", "trace", "created", "modified"),
)


def image_with_debts(row: Any) -> Image:
    """Return the image of a row of `images` with a column `debts` (`schema.debts_of_image`)."""
    pairs = (one.split(":") for one in row.debts.split(",")) if row.debts else ()
    return image_of(row, [Debt(int(number), DebtKind(kind)) for kind, number in pairs])


def image_of(row: Any, debts: Iterable[Debt] = ()) -> Image:
    """Return the image of a row of `images`, with these debts."""
    stored: dict[str, tuple[int, int, int, str, int, str]] = json.loads(row.renditions)
    return Image(
        **{name: getattr(row, name) for name in _SAME},
        status=Status(row.status),
        work=None if row.work is None else Work(row.work),
        lane=None if row.lane is None else Lane(row.lane),
        wanted=None if row.wanted is None else tuple(json.loads(row.wanted)),
        original=Original(row.original_type, row.original_bytes, row.original_sha256),
        size=None if row.width is None else (row.width, row.height),
        renditions={
            file: Rendition(file, (width, height), length, sha256, attempt, definition)
            for file, (width, height, length, sha256, attempt, definition) in stored.items()
        },
        debts=tuple(debts),
    )


def renditions_text(renditions: Mapping[str, Rendition]) -> str:
    """Return renditions as the JSON of the column `images.renditions`."""
    return json.dumps({r.file: [*r.size, r.bytes, r.sha256, r.attempt, r.definition] for r in renditions.values()})
