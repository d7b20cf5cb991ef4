"""How many publications a second the ledger takes: `python -m bench.publishing [publishers ...]`, on both databases.

Each publisher is a process that publishes one image after the other. All update the one row with the counters: a
publisher that holds it keeps the others waiting until its commit is on the disk. SQLite's file is below TMPDIR.
DATABASE_URL names a PostgreSQL to measure, since our own one does not fsync. Images go through all other steps, too;
the bytes of `images` and `debts` and the dead rows that each image leaves are printed as well.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import sqlite3
import sys
import tempfile
import time
from contextlib import closing
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import uuid_utils

from bench.population import on_postgresql, on_sqlite, postgresql_server
from bench.rows import ORIGINAL, SIZE, like_a_photograph, there
from shared.ledger import Ledger
from shared.settings import Settings
from tests.postgresql import execute

PUBLISHERS = (1, 2, 4)
#: Images of each publisher.
IMAGES = 100


async def publish(settings: Settings, number: int, begin: Barrier) -> tuple[float, float]:
    """Publish images once all publishers are ready; return the beginning and the end."""
    ledger = Ledger.connect(settings)
    try:
        claimed = []
        for _ in range(IMAGES):
            image = await ledger.add(str(uuid_utils.uuid7()), ORIGINAL, "0c" * 16)
            claimed.append(there(await ledger.claim(image.id, f"host:{number}")))
        await asyncio.to_thread(begin.wait, 300)
        began = time.time()
        published = [
            there(await ledger.publish(image, SIZE, like_a_photograph(image.attempt), seconds=0.1)) for image in claimed
        ]
        ended = time.time()
        for image in published:
            await ledger.paid(image.debts)
        return began, ended
    finally:
        await ledger.close()


def publisher(settings: Settings, number: int, begin: Barrier, results: Any) -> None:
    results.put(asyncio.run(publish(settings, number, begin)))


def rate(settings: Settings, publishers: int) -> float:
    """Return images a second of so many publishers together."""
    context = multiprocessing.get_context("spawn")
    begin, results = context.Barrier(publishers), context.Queue()
    processes = [context.Process(target=publisher, args=(settings, n, begin, results)) for n in range(publishers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    if any(process.exitcode != 0 for process in processes):
        raise SystemExit(f"of {publishers} publishers one did not come to its end")
    times = [results.get() for _ in processes]
    seconds: float = max(ended for _, ended in times) - min(began for began, _ in times)
    return publishers * IMAGES / seconds


def rates(database: str, settings: Settings, counts: list[int]) -> None:
    for count in counts:
        print(f"{database:12} {count:3} publishers {rate(settings, count):8.0f} publications a second", flush=True)


def sequences_on_sqlite(settings: Settings) -> list[int]:
    with closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3")) as connection:
        return [number for (number,) in connection.execute("SELECT sequence FROM images ORDER BY sequence")]


def main() -> int:
    counts = [int(text) for text in sys.argv[1:]] or [*PUBLISHERS]
    total = sum(counts) * IMAGES
    with tempfile.TemporaryDirectory() as folder:
        settings = on_sqlite(Path(folder) / "ledger")
        rates("SQLite", settings, counts)
        given = [sequences_on_sqlite(settings)]
    with postgresql_server() as server, on_postgresql(server, "publishing") as settings:
        is_durable = execute(server, "SHOW fsync")[0]["fsync"] == "on"
        rates("PostgreSQL" if is_durable else "PostgreSQL*", settings, counts)
        rows = execute(settings.database_url, "SELECT sequence FROM images ORDER BY sequence")
        given.append([row["sequence"] for row in rows])
        execute(settings.database_url, "VACUUM images, debts")
        query = """SELECT relname, pg_table_size(relid) AS rows, pg_indexes_size(relid) AS indices,
            n_tup_upd, n_tup_hot_upd, n_tup_del FROM pg_stat_user_tables WHERE relname IN ('images', 'debts')"""
        tables = execute(settings.database_url, query)
    if not is_durable:
        print("* which does not fsync")
    for table in tables:
        rows, indices, updates, hot, deletes = (value / total for name, value in table.items() if name != "relname")
        print(f"PostgreSQL, {table['relname']}, for each of {total:,} images:", end=" ")
        print(f"{rows:.0f} bytes of rows and {indices:.0f} of indices,", end=" ")
        print(f"{updates:.1f} updates, of which {hot:.1f} touched no index (HOT), {deletes:.1f} deletes")
    if given != [list(range(1, total + 1))] * 2:
        raise SystemExit("a place in the list was given twice, or not at all")
    return 0


if __name__ == "__main__":
    sys.exit(main())
