"""SQLite's connections: a transaction ends with its connection's turn, whatever became of it, and costs few hops."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.ledger import Ledger
from shared.ledger.engine import create_engine
from shared.ledger.sqlite import _Connection
from shared.settings import Settings
from tests.ledgers import claimed, queued


@pytest.fixture
async def engine(settings: Settings) -> AsyncIterator[AsyncEngine]:
    """An engine on a migrated ledger, to which a table of numbers was added."""
    engine = create_engine(settings)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE numbers (number INTEGER PRIMARY KEY)"))
    yield engine
    await engine.dispose()


async def numbers(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        await connection.execution_options(reading=True)
        return [row.number for row in await connection.execute(text("SELECT number FROM numbers ORDER BY number"))]


async def add(engine: AsyncEngine, *added: int) -> None:
    async with engine.begin() as connection:
        for number in added:
            await connection.execute(text("INSERT INTO numbers VALUES (:number)"), {"number": number})


@pytest.fixture
def hops(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the event loop has the threads of connections run."""
    run: list[str] = []
    real = _Connection._execute

    async def note(connection: _Connection, function: Any, *args: Any, **kwargs: Any) -> Any:
        run.append(getattr(function, "__name__", "?"))
        return await real(connection, function, *args, **kwargs)  # type: ignore[no-untyped-call] # aiosqlite's

    monkeypatch.setattr(_Connection, "_execute", note)
    return run


async def test_a_claim_is_two_hops_to_the_thread(ledger: Ledger, hops: list[str]) -> None:
    """The transaction begins with its first statement, and rows come with theirs; then there is the commit."""
    image = await queued(ledger)
    hops.clear()

    await claimed(ledger, image)

    assert len(hops) == 2
    assert hops[-1] == "commit"


async def test_a_read_is_one_hop_to_the_thread(ledger: Ledger, hops: list[str]) -> None:
    image = await queued(ledger)
    hops.clear()

    await ledger.get(image.id)

    assert len(hops) == 1


async def test_a_transaction_that_fails_leaves_nothing_and_keeps_nobody_waiting(engine: AsyncEngine) -> None:
    await add(engine, 1)

    with pytest.raises(IntegrityError):
        await add(engine, 2, 1)

    await asyncio.wait_for(add(engine, 3), 5)
    assert await numbers(engine) == [1, 3]


async def test_a_transaction_whose_first_statement_fails_leaves_nothing(engine: AsyncEngine) -> None:
    with pytest.raises(OperationalError):
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO nowhere VALUES (1)"))

    await asyncio.wait_for(add(engine, 3), 5)
    assert await numbers(engine) == [3]


async def test_what_follows_a_beginning_that_failed_is_no_transaction_of_its_own(
    engine: AsyncEngine, settings: Settings
) -> None:
    """Outside of a transaction each statement would be committed at once."""
    async with engine.connect() as connection:
        await connection.execution_options(reading=True)
        await connection.execute(text("PRAGMA busy_timeout = 0"))
        await connection.rollback()
        await connection.execution_options(reading=False)
        transaction = await connection.begin()
        with closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError):
                await connection.execute(text("INSERT INTO numbers VALUES (1)"))
        await connection.execute(text("INSERT INTO numbers VALUES (2)"))
        await transaction.rollback()

    assert await numbers(engine) == []


async def test_a_transaction_that_is_cancelled_is_rolled_back(engine: AsyncEngine) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with engine.begin() as connection:
            await connection.execute(text("INSERT INTO numbers VALUES (1)"))
            begun.set()
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await begun.wait()
    working.cancel()
    await asyncio.wait([working])

    await asyncio.wait_for(add(engine, 2), 5)
    assert await numbers(engine) == [2]


async def test_a_transaction_without_statements_begins_none_in_the_next_reader(engine: AsyncEngine) -> None:
    async with engine.begin():
        pass

    async with engine.connect() as connection:
        await connection.execution_options(reading=True)
        await connection.execute(text("SELECT number FROM numbers"))
        is_writing = (await connection.get_raw_connection()).driver_connection.in_transaction  # type: ignore[union-attr] # there is one

    assert not is_writing


async def test_a_transaction_holds_the_one_write_lock_from_its_first_statement_on(
    engine: AsyncEngine, settings: Settings
) -> None:
    """What reads first and writes later would fail on SQLite as soon as another one wrote between."""
    async with engine.begin() as connection:
        await connection.execute(text("SELECT number FROM numbers"))
        raw = await connection.get_raw_connection()

        assert raw.driver_connection.in_transaction  # type: ignore[union-attr] # there is one
        writing = asyncio.create_task(add(engine, 2))
        await connection.execute(text("INSERT INTO numbers VALUES (1)"))
        assert not writing.done()

    await writing
    assert await numbers(engine) == [1, 2]
