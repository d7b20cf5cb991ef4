"""What Alembic runs: the migrations, in one transaction on the ledger's own engine."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from shared.ledger import create_engine
from shared.schema import metadata


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


async def _migrate() -> None:
    engine = create_engine(context.config.attributes["settings"])
    try:
        # BEGIN IMMEDIATE on SQLite: of two releases at once, one waits for the other and then finds nothing to do.
        async with engine.begin() as connection:
            await connection.run_sync(_run)
    finally:
        await engine.dispose()


asyncio.run(_migrate())
