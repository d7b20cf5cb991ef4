"""`python -m worker --check` beside nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.errors import LedgerUnavailable
from shared.settings import Settings
from worker.__main__ import check


async def test_a_check_where_there_is_no_ledger_creates_none(tmp_path: Path) -> None:
    """The next release would find a file without tables."""
    with pytest.raises(LedgerUnavailable):
        await check(Settings(storage_path=tmp_path))

    assert list(tmp_path.iterdir()) == []
