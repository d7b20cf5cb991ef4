"""Both databases: for a module whose tests all run on both, `from tests.databases import database`; else the mark."""

from __future__ import annotations

import pytest

_BOTH = ["sqlite", "postgresql"]

#: Has one test run on both.
on_both_databases = pytest.mark.parametrize("database", _BOTH)


@pytest.fixture(params=_BOTH)
def database(request: pytest.FixtureRequest) -> str:
    """The database that the ledger is on: one, then the other."""
    return str(request.param)
