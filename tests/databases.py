"""For modules whose tests run on both databases: `from tests.databases import database`."""

from __future__ import annotations

import pytest


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    """The database that the ledger is on: one, then the other."""
    return str(request.param)
