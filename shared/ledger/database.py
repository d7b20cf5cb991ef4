"""Transactions of the ledger's database, and the translation of their errors."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.cancellation import to_the_end
from shared.errors import LedgerUnavailable, NothingCommitted
from shared.ledger import sqlite

T = TypeVar("T")
Work = Callable[[AsyncConnection], Awaitable[T]]


class Database:
    """Runs functions in a transaction, or on a connection that only reads. Raises LedgerUnavailable."""

    def __init__(self, engine: AsyncEngine, single_row: Select[Any]) -> None:
        self._engine = engine
        self._single_row = single_row
        #: The same engine, without transactions on SQLite: single reads need none.
        self._reading_engine = engine.execution_options(reading=True)
        self.is_postgresql = engine.dialect.name == "postgresql"
        # SQLite allows one writer at a time and serves waiting writers in no order. With this lock they wait in order,
        # and the pool's other connections stay free for readers.
        self._writing: AbstractAsyncContextManager[Any] = nullcontext() if self.is_postgresql else asyncio.Lock()
        self._rows = None if self.is_postgresql else sqlite.RowReader(engine.url.database or "", single_row)

    async def close(self) -> None:
        """Close all connections."""
        if self._rows is not None:
            await self._rows.close()
        await self._engine.dispose()

    async def row(self, image_id: str) -> Any | None:
        """Return the row that `single_row` selects for an image, or None."""
        if self._rows is not None:
            return await to_the_end(self._row_from_sqlite(self._rows, image_id))

        async def work(connection: AsyncConnection) -> Any | None:
            return (await connection.execute(self._single_row, {"of_id": image_id})).one_or_none()

        return await self.read(work)

    async def _row_from_sqlite(self, rows: sqlite.RowReader, image_id: str) -> Any | None:
        try:
            return await rows.read(image_id)
        except (sqlite3.Error, OSError) as exc:
            raise NothingCommitted(str(exc)) from exc

    async def read(self, work: Work[T]) -> T:
        """Run `work`, which only reads."""
        # Not cancellable: aiosqlite's thread must not report its result to a closed event loop.
        return await to_the_end(self._in_reading_connection(work))

    async def write(self, work: Work[T]) -> T:
        """Run `work` and commit. Raises NothingCommitted if that is certain, otherwise LedgerUnavailable."""
        async with self._writing:
            return await to_the_end(self._in_transaction(work))

    async def _in_reading_connection(self, work: Work[T]) -> T:
        try:
            async with self._reading_engine.connect() as connection:
                return await work(connection)
        except (SQLAlchemyError, OSError) as exc:
            raise NothingCommitted(_reason_of(exc)) from exc

    async def _in_transaction(self, work: Work[T]) -> T:
        committing = False
        try:
            async with self._engine.begin() as connection:
                result = await work(connection)
                committing = True
            return result
        except (SQLAlchemyError, OSError) as exc:
            raise (LedgerUnavailable if committing else NothingCommitted)(_reason_of(exc)) from exc


def has_no_table(error: DBAPIError) -> bool:
    """Return whether a statement failed because a table does not exist."""
    # 42P01 is PostgreSQL's SQLSTATE for an undefined table. Its message is not clear: it also names the table if the
    # right to read is missing.
    state = getattr(error.orig, "sqlstate", None)
    return "no such table" in str(error.orig) if state is None else state == "42P01"


def _reason_of(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error) or "it does not answer in time"
