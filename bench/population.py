"""Ledgers with as many rows as after years of use, as varied as real ones.

Most images are ready, one in a hundred has failed. The number of unfinished rows (queued, processing, deleted, with
renditions to be made, owing) is the same in every ledger: it depends on uploads and rendering, not on how much was
kept.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from shared.images import DebtKind, Lane, Status, Work
from shared.ledger.schema import debts, images
from shared.migrations.__main__ import migrate
from shared.renditions import FULL, Size, ladder, thumbnail_name
from shared.settings import Settings
from tests.postgresql import execute, started

#: What a row is: its status, or what waits or is owed beside `ready`.
Kind = Status | Work | DebtKind

#: Unfinished rows of each kind, in every ledger.
AT_WORK: dict[Kind, int] = {
    Status.QUEUED: 100,
    Status.PROCESSING: 40,
    Status.DELETING: 20,
    Work.RENDITIONS: 20,
    DebtKind.TOKENS: 20,
    DebtKind.NOTICE: 20,
    DebtKind.LEFTOVERS: 20,
}
#: One of so many images has failed, and at least so many have, which is more than a page.
FAILED_ONE_OF = 100
LEAST_FAILED = 150
#: Seconds until unfinished rows are due, which is after the measurement.
LATER_SECONDS = 1e6

_COLUMNS = images.c.keys()
_DEBT_COLUMNS = ("image_id", "kind", "due")
_YEARS_SECONDS = 2 * 365 * 86400.0
_SMALLEST_SIDE = 64


@dataclass
class Population:
    """The rows of a ledger: some ids by kind, the number of ready images, and what is owed as (id, kind, due)."""

    count: int
    ready: int = 0
    ids: dict[Kind, list[str]] = field(default_factory=lambda: {kind: [] for kind in (*Status, *Work, *DebtKind)})
    owed: list[tuple[str, str, float]] = field(default_factory=list)


def _shape(size: Size) -> tuple[Size, str, int]:
    """Return the size, the renditions as in the ledger but without digests, and their number."""
    sizes = [(FULL, size), *((thumbnail_name(small), small) for small in ladder(size, _SMALLEST_SIDE))]
    parts = [f'"{name}": [{w}, {h}, {max(w * h // 5, 900)}, "%064x", 1, "0123abcd"]' for name, (w, h) in sizes]
    return size, "{" + ", ".join(parts) + "}", len(sizes)


#: Sizes of uploads: mostly photographs of 12 MP, some screenshots, some small ones.
_SHAPES = [*[_shape((4000, 3000))] * 5, *[_shape((3000, 4000))] * 2, *[_shape((1920, 1080))] * 2, _shape((800, 600))]


def rows_of(population: Population, seed: int = 7) -> Iterator[tuple[Any, ...]]:
    """Yield the rows in order of their ids, and note in `population` what they are and what they owe."""
    chance, count, now = random.Random(seed), population.count, time.time()  # noqa: S311 - no secret
    kinds: dict[int, Kind] = {}
    # The newest are queued, those before them in processing; other unfinished rows lie anywhere.
    newest = [kind for kind in (Status.PROCESSING, Status.QUEUED) for _ in range(AT_WORK[kind])]
    kinds.update(enumerate(newest, count - len(newest)))
    anywhere = [kind for kind in AT_WORK if kind not in newest for _ in range(AT_WORK[kind])]
    anywhere += [Status.FAILED] * max(count // FAILED_ONE_OF, LEAST_FAILED)
    kinds.update(zip(chance.sample(range(count - len(newest)), len(anywhere)), anywhere, strict=True))
    for number in range(count):
        kind = kinds.get(number, Status.READY)
        status = kind if isinstance(kind, Status) else Status.READY
        later = now + LATER_SECONDS + number
        created = now - 3600 - (count - number) * _YEARS_SECONDS / count
        image_id = _id_at(created, chance)
        was_published = status in (Status.READY, Status.DELETING)
        size, renditions, made = chance.choice(_SHAPES) if was_published else (None, "{}", 0)
        population.ready += was_published
        if kind is not Status.READY or number % 50 == 0:
            population.ids[kind].append(image_id)
        if isinstance(kind, DebtKind):
            population.owed.append((image_id, str(kind), later))
        elif kind is Status.DELETING:
            population.owed.append((image_id, str(DebtKind.LEFTOVERS), later))
        work = kind if isinstance(kind, Work) else Work.CONVERT if kind in newest else None
        lane = None if work is None else Lane.UPLOAD if work is Work.CONVERT else Lane.DEMAND
        has_failed = status is Status.FAILED
        values = {
            "id": image_id,
            "status": str(status),
            "work": None if work is None else str(work),
            "lane": None if lane is None else lane.value,
            "turn": None if work is None else created,
            "attempt": 0 if status is Status.QUEUED else 1,
            "failures": 1 if has_failed else 0,
            "losses": 0,
            "due": None if work is None else later,
            "worker": "host:1" if status is Status.PROCESSING else None,
            "sequence": population.ready if was_published else None,
            "original_type": "image/jpeg",
            "original_bytes": chance.randrange(100_000, 8_000_000),
            "original_sha256": f"{chance.getrandbits(256):064x}",
            "width": size[0] if size else None,
            "height": size[1] if size else None,
            "renditions": renditions % tuple(chance.getrandbits(256) for _ in range(made)),
            "error_type": "unreadable-image" if has_failed else None,
            "error_detail": "The picture is damaged: it ends in the middle of its data." if has_failed else None,
            "request": f"{chance.getrandbits(128):032x}",
            "created": created,
            "modified": created + chance.uniform(0.1, 5.0),
        }
        yield tuple(map(values.get, _COLUMNS))


def _id_at(seconds: float, chance: random.Random) -> str:
    """Return a UUIDv7 of that moment."""
    bits = int(seconds * 1000) << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


#: What the ledger counts beside its rows, for nobody owns the images.
_COUNTS = (
    "UPDATE deployment SET sequence = (SELECT max(sequence) FROM images)",
    "INSERT INTO owners SELECT '', max(created), sum(original_bytes), count(*) FROM images",
)


async def fill_sqlite(settings: Settings, count: int) -> Population:
    """Fill a migrated ledger on SQLite."""
    population = Population(count)
    with closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3")) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("DELETE FROM owners")
        connection.executemany(_insert(images.name, _COLUMNS), rows_of(population))
        connection.executemany(_insert(debts.name, _DEBT_COLUMNS), population.owed)
        for statement in _COUNTS:
            connection.execute(statement)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return population


def _insert(table: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608 - ours


async def fill_postgresql(settings: Settings, count: int) -> Population:
    """Fill a migrated ledger on PostgreSQL, then vacuum as autovacuum would."""
    population = Population(count)
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.execute("DELETE FROM owners")
        await connection.copy_records_to_table(images.name, records=rows_of(population), columns=_COLUMNS)
        await connection.copy_records_to_table(debts.name, records=population.owed, columns=_DEBT_COLUMNS)
        for statement in (*_COUNTS, "VACUUM ANALYZE images", "VACUUM ANALYZE debts", "CHECKPOINT"):
            await connection.execute(statement)
    finally:
        await connection.close()
    return population


def on_sqlite(folder: Path) -> Settings:
    """Return the settings of a migrated ledger in this folder."""
    folder.mkdir()
    migrate(settings := Settings(storage_path=folder))
    return settings


@contextmanager
def postgresql_server() -> Iterator[str]:
    """Yield the address of a server: that of DATABASE_URL, or one of our own with its files in memory."""
    if given := os.environ.get("DATABASE_URL"):
        yield given.replace("postgres://", "postgresql://", 1)
        return
    with started() as server:
        yield server.url("postgres")


@contextmanager
def on_postgresql(server: str, name: str) -> Iterator[Settings]:
    """Yield the settings of a migrated ledger in a database of its own."""
    name = f"asgilook_bench_{os.getpid()}_{name}"
    execute(server, f"CREATE DATABASE {name}")
    try:
        address, question, options = server.partition("?")
        settings = Settings(database_url=f"{address.rpartition('/')[0]}/{name}{question}{options}")
        migrate(settings)
        yield settings
    finally:
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")
