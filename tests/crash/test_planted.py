"""`python -m tests.crash.planted` takes minutes for each of its faults; that each can still be planted is told here."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.planted import PLANTED, Planted, plant


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_fault_can_be_planted(planted: Planted, tmp_path: Path) -> None:
    plant(planted, tmp_path / "asgilook")

    text = (tmp_path / "asgilook" / planted.file).read_text()
    compile(text, planted.file, "exec")
    assert planted.old not in text
