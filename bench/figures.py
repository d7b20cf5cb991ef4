"""Figures: ratios of what was measured side by side in one run, and amounts, each with its bar."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

#: Rounds of a measurement: each takes all of its sides, one after the other.
ROUNDS = 7
#: With fewer rounds a measurement is a trial, and long ones are made smaller.
ROUNDS_THAT_COUNT = 5

Runs = dict[str, list[float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Bar:
    """The least or the most that a figure may be."""

    kind: Literal["at least", "at most"]
    value: float

    def __str__(self) -> str:
        return f"{'≥' if self.kind == 'at least' else '≤'} {self.value:g}"

    def is_met_by(self, value: float) -> bool:
        return value >= self.value if self.kind == "at least" else value <= self.value


@dataclass(frozen=True)
class Figure:
    """One line of the table: a ratio, or an amount in `unit`, and the runs that it was made of."""

    #: The section of the page: rendering, serving, waiting or scale.
    group: str
    name: str
    value: float
    #: Empty for a ratio.
    unit: str = ""
    bar: Bar | None = None
    #: What each side took in each round, in `runs_unit`.
    runs: Runs = field(default_factory=dict)
    runs_unit: str = "ms"
    #: Further facts, in words.
    note: str = ""
    #: Whether the runs are parts that add up, rather than sides that compare.
    are_parts: bool = False

    @property
    def rounds(self) -> int:
        return min(map(len, self.runs.values()), default=1)

    @property
    def is_met(self) -> bool:
        """Return whether the bar is met; True without a bar."""
        return self.bar is None or self.bar.is_met_by(self.value)

    @property
    def shown_value(self) -> str:
        return f"{_short(self.value)} {self.unit}".rstrip()

    def as_json(self) -> dict[str, Any]:
        """Return what `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Figure:
        bar = content["bar"]
        return cls(**{**content, "bar": bar and Bar(**bar)})


def at_least(value: float) -> Bar:
    return Bar("at least", value)


def at_most(value: float) -> Bar:
    return Bar("at most", value)


def in_turns(sides: Mapping[str, Callable[[], T]], rounds: int = ROUNDS, what: str = "") -> dict[str, list[T]]:
    """Run every side once a round, in an order that turns around each time; return the results of each side.

    The first round only warms up: its results are dropped.
    """
    runs: dict[str, list[T]] = {name: [] for name in sides}
    for done in range(rounds + 1):
        progress(f"{what}: round {done} of {rounds}")
        order = list(sides) if done % 2 else list(sides)[::-1]
        for name in order:
            value = sides[name]()
            if done:
                runs[name].append(value)
    progress("")
    return runs


def ratios(runs: Runs, above: str, below: str) -> list[float]:
    """Return one side divided by another, round by round."""
    return [one / other for one, other in zip(runs[above], runs[below], strict=True)]


def ratio(runs: Runs, above: str, below: str) -> float:
    """Return the median of the rounds' ratios. A busy moment slows both sides of a round."""
    return statistics.median(ratios(runs, above, below))


def table(figures: Iterable[Figure]) -> str:
    """Return figures as a Markdown table."""
    lines = ["| figure | bar | measured | medians |", "|---|---|---|---|"]
    for figure in figures:
        met = "" if figure.bar is None else (" ✓" if figure.is_met else " ✗")
        medians = ", ".join(f"{name} {_short(statistics.median(values))}" for name, values in figure.runs.items())
        if medians:
            medians += f" {figure.runs_unit} ({figure.rounds} rounds)"
        told = "; ".join(filter(None, (medians, figure.note)))
        lines.append(f"| {figure.name} | {figure.bar or ''} | **{figure.shown_value}**{met} | {told} |")
    return "\n".join(lines)


def show(figures: Iterable[Figure]) -> Sequence[Figure]:
    """Print figures as they come, and return them."""
    shown = []
    for figure in figures:
        print(table([figure]).splitlines()[-1], flush=True)
        shown.append(figure)
    return shown


def rounds_asked_for() -> int:
    """Return the number of rounds from the command line, or the usual one."""
    return int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS


def progress(text: str) -> None:
    """Show progress on a terminal."""
    if sys.stderr.isatty():
        print(f"\r{text:<79}", end="\r" if not text else "", file=sys.stderr, flush=True)


def _short(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}" if abs(value) < 100 else f"{value:,.0f}"
