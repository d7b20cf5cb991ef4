"""The ledger of release 0.1: whether its workers are alive, and what the migration will do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from alembic.migration import MigrationContext
from sqlalchemy import Connection, column, func, make_url, select, table
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.errors import ReleaseStillRunning
from shared.images import Status
from shared.ledger.engine import create_engine
from shared.ledger.schema import REVISION, now
from shared.settings import Settings

T = TypeVar("T")

logger = logging.getLogger("migrations")

#: The revisions of release 0.1 and of its predecessors. Their tables do not differ in the columns that are read here.
_REVISIONS = ("0001", "0002", "0003")
#: Seconds that a lease of 0.1 lasts. A live worker renews it every 3 s.
_LEASE_SECONDS = 12.0
#: Seconds between two reads of the leases.
_LOOK_SECONDS = 0.5
#: Rows that the migration converts in a second on a busy machine: docs/deploy/upgrading.md.
_ROWS_A_SECOND = 10_000

_images = table("images", *(column(name) for name in ("status", "owed", "worker", "due")))

_THEN = {"queued": "queued, in the order of uploads", "processing": "queued again; no loss is counted"}
_OWES = {
    "tokens": "owes tokens, a notice, leftovers",
    "leftovers": "owes leftovers",
    "thumbnails": "renditions wanted, after what is queued",
}


@dataclass(frozen=True)
class _Lease:
    worker: str
    due: float


async def wait_for_workers(connection: AsyncConnection) -> None:
    """Wait until no worker of release 0.1 holds an image. Raises ReleaseStillRunning if a worker is alive."""
    leases = await connection.run_sync(_leases_of)
    if not leases:
        return
    logger.info("waiting until the leases of release 0.1 are over", extra={"leases": len(leases)})
    # If a lease ends later than all of these, a live worker has claimed or renewed it meanwhile.
    last = max(lease.due for lease in leases)
    deadline = time.monotonic() + _LEASE_SECONDS
    while leases and time.monotonic() < deadline:
        if alive := {lease.worker for lease in leases if lease.due > last}:
            raise ReleaseStillRunning(
                f"a worker of release 0.1 is still running: {', '.join(sorted(alive))}. "
                "Stop all its workers and web processes, then migrate again"
            )
        await asyncio.sleep(_LOOK_SECONDS)
        leases = await connection.run_sync(_leases_of)


async def plan(settings: Settings) -> str:
    """Return a text about what the migration will do. Changes nothing."""
    database = None if settings.is_on_postgresql else Path(make_url(settings.database_url).database or "")
    if database is not None and not database.exists():
        return _nothing_there()
    engine = create_engine(settings, existing=True, migrating=True)
    try:
        revision = await _read(engine, _revision)
        if revision is None:
            return _nothing_there()
        if revision == REVISION:
            return f"The ledger is at revision {REVISION}, which this code needs. There is nothing to do."
        if revision not in _REVISIONS:
            return f"The ledger is at revision {revision}, which this code does not know. A newer release made it."
        rows = await _read(engine, _rows_of)
        size = await _read(engine, _size_of)
        workers = sorted({lease.worker for lease in await _read(engine, _leases_of)})
    finally:
        await engine.dispose()
    return _plan(revision, rows, size, workers)


def _nothing_there() -> str:
    return f"There is no ledger yet. The migration will create it, at revision {REVISION}."


def _plan(revision: str, rows: dict[tuple[str, str | None], int], size: int, workers: list[str]) -> str:
    count = sum(rows.values())
    lines = [f"The ledger is at revision {revision}, of release 0.1. This code needs {REVISION}.", ""]
    lines += [f"The migration will change its {count:,} images, in one transaction:", ""]
    for (status, owed), number in rows.items():
        before = status if owed is None else f"{status}, owes {owed}"
        after = _THEN.get(status, status) if owed is None else f"{status}; {_OWES[owed]}"
        lines.append(f"{number:>12,}  {before:<26} ->  {after}")
    lines += [
        "",
        "Files in storage stay where they are. No address and no order of a list changes.",
        f"It will take about {max(1, round(count / _ROWS_A_SECOND))} s, and {max(1, round(2 * size / 1e6)):,} MB of "
        "disk space. If it is killed, nothing has changed: run it again.",
        "",
        "Before you run it:",
        "- Stop all web and worker processes of release 0.1. What is left over gets errors, and harms nothing.",
        "- Make a backup of the ledger. There is no way back: release 0.1 refuses the ledger from then on.",
    ]
    if workers:
        lines += [
            f"- At this moment workers of release 0.1 hold images: {', '.join(workers)}. The migration waits until the",
            "  leases of dead workers are over, at most 12 s. It refuses to begin while a worker is alive.",
        ]
    return "\n".join([*lines, "", "Nothing has been changed now."])


def _leases_of(connection: Connection) -> list[_Lease]:
    if _revision(connection) not in _REVISIONS:
        return []
    held = select(_images.c.worker, _images.c.due).where(_images.c.worker.is_not(None), _images.c.due > now())
    return [_Lease(row.worker, row.due) for row in connection.execute(held)]


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _rows_of(connection: Connection) -> dict[tuple[str, str | None], int]:
    """Return the number of rows by status and debt, in the order of an image's life."""
    kind = (_images.c.status, _images.c.owed)
    rows = connection.execute(select(*kind, func.count().label("number")).group_by(*kind))
    found = {(row.status, row.owed): int(row.number) for row in rows}
    return dict(sorted(found.items(), key=lambda item: (list(Status).index(Status(item[0][0])), item[0][1] or "")))


def _size_of(connection: Connection) -> int:
    """Return the bytes of the table of images, on SQLite those of the whole database."""
    if connection.dialect.name == "postgresql":
        return int(connection.execute(select(func.pg_total_relation_size("images"))).scalar_one())
    pages, page = (connection.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("page_count", "page_size"))
    return int(pages * page)


async def _read(engine: AsyncEngine, work: Callable[[Connection], T]) -> T:
    # Without this option, SQLite would begin a transaction for writing.
    async with engine.execution_options(reading=True).connect() as connection:
        return await connection.run_sync(work)
