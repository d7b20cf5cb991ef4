from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import report, suite
from bench.figures import Figure, at_least, at_most, table
from bench.plots import margin, panels_of

FAST = Figure("serving", "ours / theirs", 2.0, bar=at_least(0.9), runs={"ours": [1.0, 2.0], "theirs": [4.0, 4.0]})
HEAVY = Figure("scale", "growth", 20.0, "MB", at_most(16.0))
FACTS = dict.fromkeys(
    ("date", "cores", "CPU", "memory", "kernel", "Python", "Pillow", "libjpeg-turbo", "load"), "something"
)


def told(*figures: Figure, failure: str = "") -> suite.Told:
    return suite.Told(list(figures), FACTS, 7, 1.0, 0.0, failure)


def test_a_figure_is_the_same_after_it_was_written_down() -> None:
    assert [Figure.from_json(json.loads(json.dumps(figure.as_json()))) for figure in (FAST, HEAVY)] == [FAST, HEAVY]


def test_the_table_tells_which_bars_are_met() -> None:
    assert table([FAST, HEAVY]).splitlines()[2:] == [
        "| ours / theirs | ≥ 0.9 | **2.00** ✓ | ours 1.50, theirs 4.00 ms (2 rounds) |",
        "| growth | ≤ 16 | **20.0 MB** ✗ |  |",
    ]


def test_what_is_better_than_its_bar_lies_above_one_whichever_way_the_bar_goes() -> None:
    assert margin(FAST) == pytest.approx(2.0 / 0.9)
    assert margin(HEAVY) == pytest.approx(16.0 / 20.0)


@pytest.mark.parametrize(("bar", "times"), [(0.0, 2.0), (-2.0, 2.5), (12.0, 0.5)])
def test_decibels_have_a_margin_whatever_their_bar(bar: float, times: float) -> None:
    closeness = Figure("rendering", "PSNR", 6.0, "dB", at_least(bar))

    assert margin(closeness) == pytest.approx(times, rel=0.01)
    assert (margin(closeness) >= 1) == closeness.is_met


def test_what_could_not_be_seen_beside_another_has_a_panel_of_its_own() -> None:
    small = Figure("serving", "small", 1.0, runs={"ours": [0.1]})
    other_unit = Figure("serving", "other", 1.0, runs={"ours": [3.0]}, runs_unit="s")

    assert panels_of([FAST, small, other_unit, FAST]) == [[FAST, FAST], [small], [other_unit]]


def test_what_other_modules_have_told_stays_and_so_does_the_text_around(tmp_path: Path) -> None:
    (tmp_path / report.PAGE).write_text(f"before\n\n{report.BEGIN}\nold figures\n{report.END}\n\nbehind\n")

    report.write({"serving": told(FAST)}, tmp_path)
    report.write({"rows": told(HEAVY, failure="it ended with code 1")}, tmp_path)

    page = (tmp_path / report.PAGE).read_text()
    assert page.startswith("before\n")
    assert page.endswith("\nbehind\n")
    assert "old figures" not in page
    assert "1 of 2 bars are met." in page
    assert "`bench.rows` did not come to its end: it ended with code 1." in page
    assert list(suite.load(tmp_path / report.RAW)) == ["serving", "rows"]
    assert (tmp_path / report.GLANCE).exists()


def test_a_module_that_fails_is_told_and_ends_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    one = suite.run("figures", 1)  # which is there, and has no figures(rounds)

    assert one.failure == "it ended with code 1"
    assert one.figures == []
    assert "has no attribute 'figures'" in capfd.readouterr().err


def test_a_module_that_is_not_in_this_checkout_is_seen_beforehand() -> None:
    assert suite.is_there("rows")
    assert not suite.is_there("nothing_of_ours")
