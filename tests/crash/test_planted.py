"""The crash suite can fail: with one thing that a promise rests on taken out, it does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash.planted import PLANTED, Planted, failures, plant

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name.replace(" ", "-"))
def test_a_planted_fault_is_found(planted: Planted, tmp_path: Path) -> None:
    plant(planted, tmp_path / "asgilook")

    found = failures(planted, tmp_path / "asgilook")

    print(*found, sep="\n")
    assert found != []
