"""The engine of the ledger's database: SQLite by default, or PostgreSQL."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncEngine

from shared import sqlite
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
    return sqlite.create_engine(settings, existing)
