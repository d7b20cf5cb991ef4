"""SQLite as the ledger's database: durable at each commit, one writer at a time, few hops between loop and thread.

Each connection has its own thread (aiosqlite). A hop to the thread costs two wake-ups and a turn of the event loop,
which is more than most statements cost. So one hop runs a statement and fetches its rows. The hop of a transaction's
first statement also begins the transaction.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections import namedtuple
from collections.abc import Iterable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiosqlite
from sqlalchemy import Select, event, make_url
from sqlalchemy.dialects.sqlite import dialect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.cancellation import to_the_end
from shared.settings import Settings

#: Seconds that a writer waits for another process's transaction.
BUSY_SECONDS = 10.0
#: Seconds that a release step waits for another one.
_RELEASE_SECONDS = 600.0


def create_engine(settings: Settings, existing: bool = False, migrating: bool = False) -> AsyncEngine:
    """Create the engine of a ledger on SQLite. With `existing`, a missing file is not created.

    With `migrating`, a writer waits up to ten minutes for another release step.
    """
    url = make_url(settings.database_url).set(drivername="sqlite+aiosqlite")
    database = url.database or ""
    engine = create_async_engine(
        url,
        async_creator=lambda: _connected(database, existing, _RELEASE_SECONDS if migrating else BUSY_SECONDS),
        pool_size=4,
        max_overflow=0,
        pool_timeout=10,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # A single read needs no transaction.
        if not connection.get_execution_options().get("reading"):
            connection.connection.driver_connection.begin()

    return engine


async def _connected(database: str, existing: bool, busy_seconds: float) -> _Connection:
    def connect() -> _SqliteConnection:
        return sqlite3.connect(
            f"file:{quote(database)}?mode=rw" if existing else database,
            uri=existing,
            timeout=busy_seconds,
            isolation_level=None,
            check_same_thread=False,
            factory=_SqliteConnection,
        )

    # Open the file before aiosqlite starts its thread. If the thread could not open it, the thread would outlive the
    # error and print a traceback once the event loop is closed.
    connection = _Connection(await to_the_end(asyncio.to_thread(connect)))
    await connection
    return connection


class RowReader:
    """Reads single rows by one statement, over its own connection.

    SQLAlchemy's asyncio layer takes ten times the CPU time (`python -m bench.rows`), and most requests read only one
    row from the ledger.
    """

    def __init__(self, database: str, statement: Select[Any]) -> None:
        self._database = database
        self._statement = str(statement.compile(dialect=dialect()))
        self._row = namedtuple("_Row", [column.name for column in statement.selected_columns])  # type: ignore[misc]
        self._connecting: asyncio.Task[_Connection] | None = None

    async def read(self, *parameters: Any) -> Any | None:
        """Return the row, or None. Raises sqlite3.Error."""
        if self._connecting is None or (self._connecting.done() and self._connecting.exception() is not None):
            self._connecting = asyncio.create_task(_connected(self._database, True, BUSY_SECONDS))
        connection = await asyncio.shield(self._connecting)
        rows = (await connection.run(self._statement, parameters)).rows
        return self._row(*rows[0]) if rows else None

    async def close(self) -> None:
        if self._connecting is not None:
            with suppress(sqlite3.Error):
                await (await self._connecting).close()


@dataclass(frozen=True)
class _Outcome:
    """The outcome of a statement, with all of its rows."""

    description: Any
    rows: list[Any]
    rowcount: int
    lastrowid: int | None

    def fetchall(self) -> _Outcome:
        """Return the whole outcome: aiosqlite's `execute_fetchall` passes the result of this call to the event loop."""
        return self


class _SqliteConnection(sqlite3.Connection):
    """The connection on the thread's side."""

    #: Whether the next statement begins a transaction.
    begins = False

    def execute(self, statement: str, parameters: Any = ()) -> _Outcome:  # type: ignore[override] # see fetchall
        if self.begins and not self.in_transaction:
            # IMMEDIATE: otherwise a transaction that reads and then writes fails if another one wrote in between.
            super().execute("BEGIN IMMEDIATE")
        with closing(super().execute(statement, parameters)) as cursor:
            rows = cursor.fetchall() if cursor.description else []
            return _Outcome(cursor.description, rows, cursor.rowcount, cursor.lastrowid)


class _Connection(aiosqlite.Connection):
    """The connection on the event loop's side. Each statement is one hop to the thread."""

    def __init__(self, connection: _SqliteConnection) -> None:
        super().__init__(lambda: connection, iter_chunk_size=64)
        # As SQLAlchemy does: the thread must not keep the process from ending.
        self._thread.daemon = True
        self._sqlite = connection
        self._may_be_in_transaction = False

    def begin(self) -> None:
        """Make the next statement the first of a transaction."""
        self._sqlite.begins = True

    def cursor(self) -> _Cursor:  # type: ignore[override] # not awaitable: SQLAlchemy only enters it
        return _Cursor(self)

    async def commit(self) -> None:
        # SQLAlchemy also commits after a mere read. Then there is nothing to commit.
        if self._may_be_in_transaction:
            await super().commit()
        self._sqlite.begins = self._may_be_in_transaction = False

    async def rollback(self) -> None:
        # SQLAlchemy rolls back whenever a connection returns to the pool. Mostly there is nothing to roll back.
        if self._may_be_in_transaction:
            await super().rollback()
        self._sqlite.begins = self._may_be_in_transaction = False

    async def run(self, statement: str, parameters: Iterable[Any]) -> _Outcome:
        # If the statement fails or is cancelled, a transaction may have begun or not. If not, the next statement begins
        # it.
        self._may_be_in_transaction = True
        outcome: _Outcome = await self.execute_fetchall(statement, parameters)  # type: ignore[assignment] # see fetchall
        self._sqlite.begins, self._may_be_in_transaction = False, self.in_transaction
        return outcome


class _Cursor:
    """The part of a cursor that SQLAlchemy needs. The rows arrive with the statement."""

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
        outcome = await self._connection.run(statement, parameters)
        self.description, self._rows = outcome.description, outcome.rows
        self.rowcount, self.lastrowid = outcome.rowcount, outcome.lastrowid

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def close(self) -> None:
        """Do nothing: all rows have arrived with the statement."""
