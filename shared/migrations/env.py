"""Alembic's entry point: runs the migrations in one transaction on the ledger's own engine."""

from __future__ import annotations

import asyncio

from alembic import context
from sqlalchemy import Connection

from shared.ledger.engine import create_engine
from shared.ledger.schema import metadata
from shared.migrations import release_0_1
from shared.settings import Settings


def _run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


async def _migrate() -> None:
    settings: Settings = context.config.attributes["settings"]
    engine = create_engine(settings, migrating=True)
    try:
        if not settings.is_on_postgresql:
            # Wait before the transaction begins: it excludes all writers, so a live worker could not renew its lease.
            async with engine.execution_options(reading=True).connect() as connection:
                await release_0_1.wait_for_workers(connection)
        # If two release steps run at once, one waits and then finds nothing to do. On SQLite BEGIN IMMEDIATE makes it
        # wait.
        async with engine.begin() as connection:
            if settings.is_on_postgresql:
                from shared.ledger import postgresql

                await postgresql.take_turn(connection)
                await release_0_1.wait_for_workers(connection)
            await connection.run_sync(_run)
    finally:
        await engine.dispose()


asyncio.run(_migrate())
