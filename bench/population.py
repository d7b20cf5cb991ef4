"""Ledgers with as many rows as after years of use, as varied as real ones.

Most images are ready, one in a hundred has failed. The number of unfinished rows (queued, processing, deleted, owing)
is the same in every ledger: it depends on uploads and rendering, not on how much was kept.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from shared.images import FULL, Owed, Size, Status, ladder, thumbnail_name
from shared.ledger.schema import images
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.postgresql import execute, started

#: Unfinished rows of each kind, in every ledger.
AT_WORK = {
    Status.QUEUED: 100,
    Status.PROCESSING: 40,
    Status.DELETING: 20,
    Owed.LEFTOVERS: 20,
    Owed.THUMBNAILS: 20,
    Owed.TOKENS: 20,
}
#: One of so many images has failed, and at least so many have, which is more than a page.
FAILED_ONE_OF = 100
LEAST_FAILED = 150
#: Seconds until unfinished rows are due, which is after the measurement.
LATER_SECONDS = 1e6

_COLUMNS = images.c.keys()
_YEARS_SECONDS = 2 * 365 * 86400.0
_SMALLEST_SIDE = 64


@dataclass
class Population:
    """The rows of a ledger: some ids by status or debt, and the number of ready images."""

    count: int
    ready: int = 0
    ids: dict[Status | Owed, list[str]] = field(default_factory=lambda: {kind: [] for kind in (*Status, *Owed)})


def _shape(size: Size) -> tuple[Size, str, int]:
    """Return the size, the renditions as in the ledger but without digests, and their number."""
    sizes = [(FULL, size), *((thumbnail_name(small), small) for small in ladder(size, _SMALLEST_SIDE))]
    parts = [f'"{name}": [{w}, {h}, {max(w * h // 5, 900)}, "%064x"]' for name, (w, h) in sizes]
    return size, "{" + ", ".join(parts) + "}", len(sizes)


#: Sizes of uploads: mostly photographs of 12 MP, some screenshots, some small ones.
_SHAPES = [*[_shape((4000, 3000))] * 5, *[_shape((3000, 4000))] * 2, *[_shape((1920, 1080))] * 2, _shape((800, 600))]


def rows_of(population: Population, seed: int = 7) -> Iterator[tuple[Any, ...]]:
    """Yield the rows in order of their ids, and note in `population` what they are."""
    chance, count, now = random.Random(seed), population.count, time.time()  # noqa: S311 - no secret
    kinds: dict[int, Status | Owed] = {}
    # The newest are queued, those before them in processing; other unfinished rows lie anywhere.
    newest = [kind for kind in (Status.PROCESSING, Status.QUEUED) for _ in range(AT_WORK[kind])]
    kinds.update(enumerate(newest, count - len(newest)))
    anywhere = [kind for kind in (Status.DELETING, *Owed) for _ in range(AT_WORK[kind])]
    anywhere += [Status.FAILED] * max(count // FAILED_ONE_OF, LEAST_FAILED)
    kinds.update(zip(chance.sample(range(count - len(newest)), len(anywhere)), anywhere, strict=True))
    for number in range(count):
        kind = kinds.get(number, Status.READY)
        status = kind if isinstance(kind, Status) else Status.READY
        owed = kind if isinstance(kind, Owed) else Owed.LEFTOVERS if kind is Status.DELETING else None
        created = now - 3600 - (count - number) * _YEARS_SECONDS / count
        image_id = _id_at(created, chance)
        was_published = status in (Status.READY, Status.DELETING)
        size, renditions, made = chance.choice(_SHAPES) if was_published else (None, "{}", 0)
        population.ready += was_published
        if kind is not Status.READY or number % 50 == 0:
            population.ids[kind].append(image_id)
        has_failed = status is Status.FAILED
        yield (
            image_id,
            str(status),
            0 if status is Status.QUEUED else 1,
            1 if was_published else None,
            1 if has_failed else 0,
            0,
            1,
            None if status.is_final and owed is None else now + LATER_SECONDS + number,
            None if owed is None else str(owed),
            population.ready if was_published else None,
            "image/jpeg",
            chance.randrange(100_000, 8_000_000),
            f"{chance.getrandbits(256):064x}",
            size[0] if size else None,
            size[1] if size else None,
            renditions % tuple(chance.getrandbits(256) for _ in range(made)),
            "unreadable-image" if has_failed else None,
            "The picture is damaged: it ends in the middle of its data." if has_failed else None,
            "host:1" if status is Status.PROCESSING else None,
            f"{chance.getrandbits(128):032x}",
            created,
            created + chance.uniform(0.1, 5.0),
            None,
        )


def _id_at(seconds: float, chance: random.Random) -> str:
    """Return a UUIDv7 of that moment."""
    bits = int(seconds * 1000) << 80 | 7 << 76 | chance.getrandbits(12) << 64 | 2 << 62 | chance.getrandbits(62)
    text = f"{bits:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


async def fill_sqlite(settings: Settings, count: int) -> Population:
    """Fill a migrated ledger on SQLite."""
    population = Population(count)
    insert = f"INSERT INTO images ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - ours
    with closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3")) as connection:
        connection.execute("PRAGMA synchronous=OFF")
        connection.executemany(insert, rows_of(population))
        connection.execute("UPDATE ledger SET sequence = ?", [population.ready])
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return population


async def fill_postgresql(settings: Settings, count: int) -> Population:
    """Fill a migrated ledger on PostgreSQL, then vacuum as autovacuum would."""
    population = Population(count)
    connection = await asyncpg.connect(settings.database_url)
    try:
        await connection.copy_records_to_table("images", records=rows_of(population), columns=_COLUMNS)
        await connection.execute("UPDATE ledger SET sequence = $1", population.ready)
        await connection.execute("VACUUM ANALYZE images")
        await connection.execute("CHECKPOINT")
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
