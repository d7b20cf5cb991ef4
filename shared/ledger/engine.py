"""The engine of the ledger's database: SQLite by default, or PostgreSQL."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from shared.ledger import sqlite
from shared.settings import Settings


def create_engine(settings: Settings, *, existing: bool = False, migrating: bool = False) -> AsyncEngine:
    """Create the engine of the ledger that the settings name. The engine connects when a connection is needed.

    With `existing`, a missing SQLite file is not created. With `migrating`, commands on PostgreSQL have no time limit,
    and a writer on SQLite waits up to ten minutes for another release step.
    """
    if settings.is_on_postgresql:
        # Imported here, so that a ledger on SQLite does not load PostgreSQL's driver.
        from shared.ledger import postgresql

        return postgresql.create_engine(settings, migrating)
    return sqlite.create_engine(settings, existing, migrating)
