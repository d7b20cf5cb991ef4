"""SQLite behind the ledger: durable at each commit, one writer at a time, few hops between loop and thread.

A connection has a thread of its own (aiosqlite), and each word to it costs two wake-ups and a turn of the event loop:
more than most statements. So a statement is one word, its rows included, and brings the transaction's beginning along.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote

import aiosqlite
from sqlalchemy import event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.cancellation import to_the_end
from shared.settings import Settings

#: Seconds that a writer waits for another process's transaction.
_BUSY_SECONDS = 10.0


def create_engine(settings: Settings, existing: bool = False) -> AsyncEngine:
    """Create the engine of a ledger on SQLite; where it is to be an `existing` one, no file is made."""
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
        # Single reads need no transaction at all.
        if not connection.get_execution_options().get("reading"):
            connection.connection.driver_connection.begins = True

    return engine


async def _connected(database: str, existing: bool) -> _Connection:
    if existing:
        database = f"file:{quote(database)}?mode=rw"
    connection = _Connection(
        lambda: sqlite3.connect(database, uri=existing, timeout=_BUSY_SECONDS, isolation_level=None)
    )
    try:
        await connection
    except BaseException:
        # Its thread tells its end to our event loop, and prints a traceback where that has been closed meanwhile.
        if connection._thread.is_alive():
            await to_the_end(asyncio.to_thread(connection._thread.join))
        raise
    return connection


class _Connection(aiosqlite.Connection):
    """A connection whose statements are one word each to its thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)
        # As SQLAlchemy does it: a thread keeps no process from ending.
        self._thread.daemon = True
        #: Whether the next statement is a transaction's first.
        self.begins = False
        self._may_be_in_transaction = False

    def cursor(self) -> _Cursor:  # type: ignore[override] # it is no awaitable: SQLAlchemy only enters it
        return _Cursor(self)

    async def commit(self) -> None:
        # After a mere read, too: there is nothing to be committed then.
        if self._may_be_in_transaction:
            await super().commit()
        self.begins = self._may_be_in_transaction = False

    async def rollback(self) -> None:
        # Asked for whenever a connection goes back to its pool: mostly there is nothing left.
        if self._may_be_in_transaction:
            await super().rollback()
        self.begins = self._may_be_in_transaction = False

    async def run(self, statement: Callable[[sqlite3.Connection], Any]) -> Any:
        """Have a statement run in the thread, as the transaction's first where that is to begin."""
        connection, begins = self._conn, self.begins

        def work() -> Any:
            if begins and not connection.in_transaction:
                # A transaction that reads first and writes later fails at once on SQLite when another wrote between.
                connection.execute("BEGIN IMMEDIATE")
            return statement(connection)

        # Who is cancelled meanwhile, or fails, does not know how far it came: what has not begun begins with the next.
        self._may_be_in_transaction = True
        result = await self._execute(work)  # type: ignore[no-untyped-call] # aiosqlite's own way to its thread
        self.begins, self._may_be_in_transaction = False, self.in_transaction
        return result


class _Cursor:
    """What SQLAlchemy needs of a cursor; its rows have come with its statement."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> _Cursor:
        return self

    async def execute(self, statement: str, parameters: Iterable[Any] = ()) -> None:
        await self._run(lambda connection: connection.execute(statement, parameters))  # type: ignore[arg-type] # a sequence, always

    async def executemany(self, statement: str, parameters: Iterable[Any]) -> None:
        await self._run(lambda connection: connection.executemany(statement, parameters))

    async def _run(self, execute: Callable[[sqlite3.Connection], sqlite3.Cursor]) -> None:
        def work(connection: sqlite3.Connection) -> tuple[Any, list[Any], int, int | None]:
            cursor = execute(connection)
            rows = cursor.fetchall() if cursor.description else []
            description, lastrowid = cursor.description, cursor.lastrowid
            cursor.close()
            return description, rows, cursor.rowcount, lastrowid

        self.description, self._rows, self.rowcount, self.lastrowid = await self._connection.run(work)

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def close(self) -> None:
        """It is closed since its statement was run."""
