"""Plots of scale: what a machine does and uses, and how long images wait by how busy it is."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet

from bench.checks import Check
from bench.figures import Figure
from bench.model import Machine, Mix, queue_of
from bench.plots import MISSED, OTHERS, OURS, draw_bar, in_short, tidy, without_frame
from bench.queueing import arrivals, percentile, simulate

#: Colours of the kinds of process, and of few and many rows.
COLOURS = {"child": OTHERS[0], "worker": OTHERS[1], "web": OURS, "Valkey": OTHERS[2]}


def draw_scale(figures: Sequence[Figure], path: Path) -> bool:
    """Draw the figures of bench.scale and bench.rows on one sheet. Returns False without figures."""
    named = {figure.name: figure for figure in figures}
    panels = [
        ("Images a second, whole service", "images/s", _pace(named)),
        ("CPU for an image", "ms", _stacks(named, "CPU for an image, ")),
        ("CPU for a view, answered from", "ms", _stacks(named, "CPU for a view, ")),
        ("A page of the list, a poll", "ms", _rows(named)),
        ("Start", "s", _values(named, "start of ")),
        ("Memory at rest (PSS)", "MB", _sides(named, "idle memory")),
        ("CPU at rest", "% of a core", _sides(named, "idle CPU")),
        ("Growth of web's memory, and the bar", "MB", _growth(named)),
    ]
    drawn = [panel for panel in panels if panel[2]]
    if not drawn:
        return False
    rows = (len(drawn) + 1) // 2
    sheet = Sheet(figsize=(13, 2.6 * rows), layout="constrained")
    grid = sheet.subplots(rows, 2, squeeze=False).ravel()
    for axes, (title, unit, bars) in zip(grid, drawn, strict=False):
        _draw(axes, bars)
        axes.set_title(title, loc="left", fontsize=10, weight="bold")
        axes.set_xlabel(unit, fontsize=9, loc="right")
    for axes in grid[len(drawn) :]:
        axes.set_visible(False)
    limits = [figure for figure in figures if figure.unit == "MB" and figure.bar is not None]
    if limits and limits[0].bar is not None:
        last = grid[len(drawn) - 1]
        last.axvline(limits[0].bar.value, color=MISSED, linewidth=1.5)
        last.set_xlim(0, max(last.get_xlim()[1], limits[0].bar.value * 1.1))
    sheet.savefig(path, dpi=90)
    return True


#: A bar's label and its parts: kinds of process, and their values.
Bars = dict[str, Mapping[str, Sequence[float]]]


def _pace(named: Mapping[str, Figure]) -> Bars:
    found = {
        name.split(",")[1].split(":")[0].strip(): figure for name, figure in named.items() if " with 1 slot" in name
    }
    return {f"{size}, {side}": {"": runs} for size, figure in found.items() for side, runs in figure.runs.items()}


def _stacks(named: Mapping[str, Figure], start: str) -> Bars:
    return {name.removeprefix(start): figure.runs for name, figure in named.items() if name.startswith(start)}


def _values(named: Mapping[str, Figure], start: str) -> Bars:
    found = {name.removeprefix(start): figure for name, figure in named.items() if name.startswith(start)}
    return {name: {"": runs} for name, figure in found.items() for runs in figure.runs.values()}


def _sides(named: Mapping[str, Figure], start: str) -> Bars:
    runs = [figure.runs for name, figure in named.items() if name.startswith(start)]
    return {side: {side.split()[0]: values} for one in runs for side, values in one.items()}


def _growth(named: Mapping[str, Figure]) -> Bars:
    found = {name: figure for name, figure in named.items() if name.startswith("web's memory ")}
    return {
        name.removeprefix("web's memory ").removesuffix(": growth"): {"web": [figure.value]}
        for name, figure in found.items()
    }


def _rows(named: Mapping[str, Figure]) -> Bars:
    found = {name.partition(":")[0]: figure for name, figure in named.items() if name.startswith(("a page", "a poll"))}
    return {f"{name}: {side}": {"": runs} for name, figure in found.items() for side, runs in figure.runs.items()}


def _draw(axes: Axes, bars: Bars) -> None:
    kinds = list(dict.fromkeys(kind for parts in bars.values() for kind in parts if kind))
    for line, parts in enumerate(bars.values()):
        if len(parts) == 1:
            ((kind, values),) = parts.items()
            draw_bar(axes, line, values, COLOURS.get(kind, OURS))
            continue
        left = 0.0
        for kind, values in parts.items():
            middle = statistics.median(values)
            axes.barh(line, middle, left=left, height=0.8, color=COLOURS.get(kind, OURS))
            left += middle
        axes.annotate(f" {in_short(left)}", (left, line), va="center", fontsize=8)
    if any(len(parts) > 1 for parts in bars.values()):
        for kind in kinds:
            axes.barh(0, 0, color=COLOURS.get(kind, OURS), label=kind)
        axes.legend(fontsize=8, frameon=False, loc="best")
    axes.set_xlim(0, axes.get_xlim()[1] * 1.06)
    axes.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    tidy(axes)


def draw_waiting(machine: Machine, mix: Mix, checks: Sequence[Check], path: Path) -> None:
    """Draw the time to ready by the use of slots: predicted, simulated and measured."""
    sheet = Sheet(figsize=(9, 5.2), layout="constrained")
    axes = sheet.subplots()
    most = machine.rate(mix)
    uses = [number / 50 for number in range(1, 48)]
    queues = [queue_of(machine, mix, use * most) for use in uses]
    chance = random.Random(1)  # noqa: S311 - no secret
    for share, colour, name in ((0.5, OTHERS[0], "median"), (0.95, OURS, "95 of 100 within")):
        axes.plot(uses, [queue.ready_within(share) for queue in queues], color=colour, label=f"{name}: model")
        for number, use in enumerate(uses[4::5]):
            queue = queues[4::5][number]
            jobs = arrivals(lambda now, queue=queue: queue.rate, queue.rate, 20_000 / queue.rate, chance)  # type: ignore[misc] # a default is no argument
            run = simulate(jobs, lambda queue=queue: chance.choice(queue.jobs), machine.cores)  # type: ignore[misc] # a default is no argument
            label = None if number else f"{name}: simulated, 20,000 images"
            axes.plot(use, run.ready_within(share), "o", color=colour, markersize=5, alpha=0.6, label=label)
        for number, one in enumerate(check for check in checks if check.point):
            assert one.point is not None  # noqa: S101 - only those
            value = one.point.median if share == 0.5 else one.point.slowest_of_20
            spread = [percentile([run.ready_within(share) for run in one.runs], edge) for edge in (0.05, 0.95)]
            use = one.load.asked
            axes.plot([use, use], spread, color=colour, linewidth=6, alpha=0.25, solid_capstyle="butt")
            label = None if number else f"{name}: measured, {one.load.seconds:.0f} s"
            axes.plot(use, value, "D", color=colour, markeredgecolor="#202020", markersize=8, label=label)
    top = max([queues[42].ready_within(0.95), *(check.point.slowest_of_20 for check in checks if check.point)])
    axes.set_xlim(0, 1)
    axes.set_ylim(0, top * 1.1)
    axes.set_xticks([number / 10 for number in range(11)], [f"{number * 10} %" for number in range(11)])
    axes.set_xlabel(f"uploads, of the {most:.1f} a second that this machine renders ({machine.cores} slots)")
    axes.set_ylabel("seconds from upload to ready")
    axes.set_title("Waiting; bars: what chance alone makes of a run of that length", loc="left", fontsize=11)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", fontsize=9, frameon=False)
    without_frame(axes)
    sheet.savefig(path, dpi=100)
