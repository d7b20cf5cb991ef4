"""The engine of the ledger's database: SQLite by default, or PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import quote

import aiosqlite
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.cancellation import to_the_end
from shared.settings import Settings


def create_engine(settings: Settings, *, existing: bool = False, migrating: bool = False) -> AsyncEngine:
    """Create the engine of the ledger that the settings name; connections are made when they are needed.

    Where it is to be an `existing` one, no file is made in the place of one that is missing. Who is `migrating` has
    all the time in the world.
    """
    if settings.is_on_postgresql:
        # Only who uses it loads its driver.
        from shared import postgresql

        return postgresql.create_engine(settings, migrating)
    return _sqlite_engine(settings, existing)


def _sqlite_engine(settings: Settings, existing: bool) -> AsyncEngine:
    url = make_url(settings.database_url).set(drivername="sqlite+aiosqlite")
    database = url.database or ""
    engine = create_async_engine(
        url, async_creator=lambda: _connected(database, existing), pool_size=4, max_overflow=0, pool_timeout=10
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # A transaction that reads first and writes later fails at once on SQLite when another wrote between.
        # Single reads need no transaction at all.
        if not connection.get_execution_options().get("reading"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


async def _connected(database: str, existing: bool) -> aiosqlite.Connection:
    if existing:
        database = f"file:{quote(database)}?mode=rw"
    connection = aiosqlite.connect(database, uri=existing, timeout=10, isolation_level=None)
    # As SQLAlchemy does it: a thread keeps no process from ending.
    connection._thread.daemon = True
    try:
        return await connection
    except BaseException:
        # Its thread tells its end to our event loop, and prints a traceback where that has been closed meanwhile.
        if connection._thread.is_alive():
            await to_the_end(asyncio.to_thread(connection._thread.join))
        raise
