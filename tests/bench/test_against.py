from __future__ import annotations

from pathlib import Path

import pytest

from bench.against import figure_of, lay_out
from bench.service import commands_of
from launch.processes import HERE, Part


@pytest.mark.parametrize(
    ("cost", "expected"),
    [("CPU of a cold view", 0.5), ("CPU of a second size", 0.5), ("time to 202, 3 MB", 2.0)],
)
def test_a_cost_is_ours_by_the_others_and_a_speed_the_others_by_ours(cost: str, expected: float) -> None:
    figure = figure_of(cost, [1.0, 1.0], [2.0, 2.0], ours="this", other="before")

    assert figure.value == expected
    assert figure.is_met


def test_a_ratio_is_made_of_each_pair_so_that_a_machine_that_slows_down_changes_none() -> None:
    figure = figure_of("CPU of a cold view", [1.0, 10.0, 4.0], [2.0, 20.0, 8.0], ours="this", other="before")

    assert figure.value == 0.5
    assert figure.note == "ratios 0.50 to 0.50"


def test_a_process_of_another_checkout_runs_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("web: pwd >$OUTPUT\n")

    part = Part("web", commands_of(tmp_path)["web"], {"OUTPUT": str(tmp_path / "output")}).start()

    assert part.process is not None
    assert part.process.wait(30) == 0
    assert (tmp_path / "output").read_text() == f"{tmp_path}\n"


@pytest.mark.skipif(not (HERE / ".git").exists(), reason="there is no other revision to lay out")
def test_another_revision_is_laid_out_whole(tmp_path: Path) -> None:
    lay_out("HEAD", tmp_path)

    assert (tmp_path / "Procfile").exists()
    assert (tmp_path / "shared" / "settings.py").exists()
