"""Ledgers of release 0.1 with any number of images, in every status and with every debt, and what becomes of them.

The rows are written by SQL: 0.1 itself would take hours. `make_0_1.py` has images that 0.1 made.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import asyncpg

from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.postgresql import execute

#: The revision of 0.1's ledger.
REVISION = "0003"
#: The digest of what 0.1's JPEGs were made by, on the background that is the default.
DEFINITION = "7425a376"
#: The status, the debt, and whether a worker is named: each kind of row that 0.1 leaves.
KINDS: Sequence[tuple[str, str | None, bool]] = (
    ("queued", None, False),
    ("processing", None, True),
    ("ready", None, False),
    ("ready", "tokens", False),
    ("ready", "leftovers", False),
    ("ready", "thumbnails", False),
    ("ready", "thumbnails", True),
    ("failed", None, False),
    ("failed", "tokens", False),
    ("failed", "leftovers", False),
    ("deleting", "tokens", False),
    ("deleting", "leftovers", False),
)
COLUMNS = (
    *("id", "status", "attempt", "published", "failures", "losses", "wake", "due", "owed", "sequence"),
    *("original_type", "original_bytes", "original_sha256", "width", "height", "renditions"),
    *("error_type", "error_detail", "worker", "request", "created", "modified", "trace"),
)
_SIZES = ((4000, 3000), (2000, 1500), (1000, 750), (500, 375), (250, 187), (125, 93))

Row = dict[str, Any]


def rows_of(count: int, began: float) -> Iterator[Row]:
    """Yield the rows of `count` images in the order of their uploads, of one kind after another."""
    for number in range(count):
        status, owed, has_worker = KINDS[number % len(KINDS)]
        is_published = status in ("ready", "deleting")
        sizes = _SIZES[: 1 + number % len(_SIZES)] if is_published else ()
        files = ["image.jpeg", *(f"{width}x{height}.jpeg" for width, height in sizes[1:])]
        renditions = {
            file: [width, height, width * height // 5, f"{number:032x}{index:032x}"]
            for index, (file, (width, height)) in enumerate(zip(files, sizes, strict=False))
        }
        is_due = owed is not None or status in ("queued", "processing")
        yield {
            "id": f"01900000-0000-7000-8000-{number:012x}",
            "status": status,
            "attempt": 0 if status == "queued" else 1 + number % 3,
            "published": 1 + number % 3 if is_published else None,
            "failures": number % 2,
            "losses": number % 5,
            "wake": 1 + number % 4,
            "due": began + number / 1000 if is_due else None,
            "owed": owed,
            "sequence": number + 1 if is_published else None,
            "original_type": "image/png",
            "original_bytes": 1000 + number,
            "original_sha256": f"{number:064x}",
            "width": sizes[0][0] if sizes else None,
            "height": sizes[0][1] if sizes else None,
            "renditions": json.dumps(renditions),
            "error_type": "unreadable-image" if status == "failed" else None,
            "error_detail": "This is no picture: it ends too soon, or [so]." if status == "failed" else None,
            "worker": f"host:{number}" if has_worker else None,
            "request": f"request-{number}",
            "created": began + number / 1000,
            "modified": began + number / 1000 + 0.5,
            "trace": f"00-{number:032x}-{1:016x}-01" if number % 2 else None,
        }


def make(settings: Settings, rows: Sequence[Row]) -> None:
    """Create a ledger as 0.1 leaves it, with these rows."""
    migrate(settings, REVISION)
    values = [tuple(row[column] for column in COLUMNS) for row in rows]
    sequence = max((row["sequence"] or 0 for row in rows), default=0)
    if settings.is_on_postgresql:
        asyncio.run(_copy(settings.database_url, values))
    else:
        insert = f"INSERT INTO images ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - ours
        with closing(sqlite3.connect(_file_of(settings))) as connection, connection:
            connection.executemany(insert, values)
    write(settings, f"UPDATE ledger SET sequence = {sequence}")  # noqa: S608 - a number


async def _copy(url: str, values: Sequence[tuple[Any, ...]]) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.copy_records_to_table("images", records=values, columns=COLUMNS)
    finally:
        await connection.close()


def migrated(row: Row, due: float) -> Row:
    """Return what becomes of a row of `images`; work is `due` then."""
    work = "convert" if row["status"] in ("queued", "processing") else None
    if (row["status"], row["owed"]) == ("ready", "thumbnails"):
        work = "renditions"
    renditions = json.loads(row["renditions"])
    same = {name: value for name, value in row.items() if name not in ("published", "wake", "owed")}
    return {
        **same,
        "status": "queued" if row["status"] == "processing" else row["status"],
        "work": work,
        "lane": {"convert": 0, "renditions": 1, None: None}[work],
        "turn": row["created"] if work else None,
        "wanted": None,
        "due": due if work else None,
        "worker": None,
        "paused_until": None,
        "owner": None,
        "renditions": {file: [*found, row["published"], DEFINITION] for file, found in renditions.items()},
    }


def debts_of(row: Row) -> set[tuple[str, str, float]]:
    """Return the debts that become of a row: the image, the kind, when it is due."""
    kinds = {"tokens": ("tokens", "notice", "leftovers"), "leftovers": ("leftovers",)}.get(row["owed"], ())
    return {(row["id"], kind, row["due"]) for kind in kinds}


def read(settings: Settings, statement: str) -> list[Row]:
    """Execute one statement in the ledger; return its rows."""
    if settings.is_on_postgresql:
        return execute(settings.database_url, statement)
    with closing(sqlite3.connect(_file_of(settings))) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def write(settings: Settings, statement: str) -> None:
    """Execute one statement in the ledger, and commit it."""
    if settings.is_on_postgresql:
        execute(settings.database_url, statement)
        return
    with closing(sqlite3.connect(_file_of(settings), timeout=30)) as connection, connection:
        connection.execute(statement)


def dump(settings: Settings) -> Mapping[str, list[Row]]:
    """Return all of a ledger, by table: the tables and indices that exist, and the rows."""
    if settings.is_on_postgresql:
        names = read(settings, "SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        structure = read(settings, "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1")
        structure += read(settings, "SELECT relname FROM pg_class WHERE relkind = 'S' ORDER BY 1")
    else:
        names = read(settings, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")
        structure = read(settings, "SELECT name, sql FROM sqlite_master ORDER BY 1")
    tables = {str(row["name"]): read(settings, f"SELECT * FROM {row['name']} ORDER BY 1") for row in names}  # noqa: S608
    return {"structure": structure, **tables}


def _file_of(settings: Settings) -> Path:
    return settings.storage_path / "ledger.sqlite3"
