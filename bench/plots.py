"""Figures as pictures: every bar at a glance, and for each group what its sides took."""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet

from bench.figures import Figure
from bench.model import Machine, Mix, queue_of
from bench.queueing import arrivals, percentile, simulate

if TYPE_CHECKING:
    from bench.capacity import Check

MET, MISSED, QUIET = "#2a7f62", "#c0392b", "#8a8a8a"
#: Ours in one colour wherever it stands, everybody else in their own.
OURS = "#e08a1e"
OTHERS = ("#5b5f97", "#8fb8de", "#a3a380", "#b8b8b8", "#7d5a50", "#6b9080", "#c08497")
#: Words of the names that our own sides have.
_OUR_WORDS = ("ours", "asgilook", "service", "web", "worker", "lru")
_LINE_INCHES = 0.36


def draw_bars(figures: Sequence[Figure], path: Path) -> None:
    """Draw how far each figure is on the good side of its bar, as a multiple of it, on a scale of doublings."""
    barred = [figure for figure in figures if figure.bar is not None]
    sheet = Sheet(figsize=(11, 1.4 + _LINE_INCHES * len(barred)), layout="constrained")
    axes = sheet.subplots()
    for line, figure in enumerate(barred):
        times = margin(figure)
        colour = MET if figure.is_met else MISSED
        axes.plot([1, times], [line, line], color=colour, linewidth=5, solid_capstyle="butt", alpha=0.5)
        axes.plot(times, line, "o", color=colour, markersize=8)
        beside = axes.get_yaxis_transform()
        axes.text(1.02, line, figure.shown_value, color=colour, weight="bold", va="center", transform=beside)
        axes.text(1.14, line, f"bar {figure.bar}", color=QUIET, va="center", transform=beside)
    axes.axvline(1, color="#404040", linewidth=1.2)
    least, most = min(0.5, *map(margin, barred)) / 1.15, max(2.0, *map(margin, barred)) * 1.15
    axes.set_xscale("log", base=2)
    axes.set_xlim(least, most)
    ticks = [2.0**power for power in range(-6, 7) if least <= 2.0**power <= most]
    axes.set_xticks(ticks, ["the bar" if tick == 1 else f"{tick:g} x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(barred)), [f"{figure.name}" for figure in barred], fontsize=9)
    axes.set_ylim(len(barred) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    _without_frame(axes)
    axes.set_title("How many times better than its bar", loc="left", fontsize=11)
    sheet.savefig(path, dpi=90)


def margin(figure: Figure) -> float:
    """Return how many times better than its bar a figure is: above 1 it is met, whichever way the bar goes."""
    assert figure.bar is not None  # noqa: S101 - only what has one is asked
    least = 1 / 64
    if figure.bar.kind == "at least":
        return max(figure.value / figure.bar.value, least)
    return 1 / max(figure.value / figure.bar.value, least)


def draw_group(group: str, figures: Sequence[Figure], path: Path) -> bool:
    """Draw what each side took, one panel for each unit; tell whether there was anything to draw."""
    panels: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.runs:
            panels.setdefault(figure.runs_unit, []).append(figure)
        elif figure.unit:
            panels.setdefault(figure.unit, []).append(figure)
    if not panels:
        return False
    heights = [sum(len(_sides(figure)) + 0.7 for figure in ours) + 0.5 for ours in panels.values()]
    sheet = Sheet(figsize=(11, 0.9 + sum(0.27 * height + 0.5 for height in heights)), layout="constrained")
    column = sheet.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    names = sorted({side for figure in figures for side in figure.runs})
    colours = colours_of(names)
    for axes, (unit, ours) in zip(column, panels.items(), strict=True):
        _draw_sides(axes, ours, unit, colours)
    title = f"{group.capitalize()}: medians, and the least and the most of a round"
    column[0].set_title(title, loc="left", fontsize=11)
    sheet.savefig(path, dpi=90)
    return True


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Return each side's colour, the same in every panel."""
    others = [name for name in names if not _is_ours(name)]
    colours = {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(others)}
    return {name: colours.get(name, OURS) for name in names}


def _is_ours(name: str) -> bool:
    return any(word in name.lower().split() for word in _OUR_WORDS)


def _sides(figure: Figure) -> dict[str, list[float]]:
    return figure.runs or {"": [figure.value]}


def _draw_sides(axes: Axes, figures: Sequence[Figure], unit: str, colours: dict[str, str]) -> None:
    line, ticks, labels, most = 0.0, [], [], 0.0
    for figure in figures:
        for number, (side, values) in enumerate(_sides(figure).items()):
            middle = statistics.median(values)
            axes.barh(line, middle, height=0.8, color=colours.get(side, OURS))
            if len(values) > 1:
                axes.plot([min(values), max(values)], [line, line], color="#303030", linewidth=1)
            text = f" {middle:,.3g}" if middle < 1000 else f" {middle:,.0f}"
            axes.annotate(text, (max(middle, *values), line), va="center", fontsize=8)
            most = max(most, middle, *values)
            ticks.append(line)
            name = figure.name if number == 0 else ""
            labels.append(f"{name}   {side}" if side else name)
            line += 1
        line += 0.7
    axes.set_xlim(0, most * 1.12 or 1)
    axes.set_ylim(line - 0.7 + 0.1, -0.9)
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(unit, fontsize=9)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    _without_frame(axes)


def _without_frame(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def draw_waiting(machine: Machine, mix: Mix, checks: Sequence[Check], path: Path) -> None:
    """Draw the time to ready by how busy the slots are: the model's, simulated, and measured."""
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
            run = simulate(jobs, lambda queue=queue: chance.choice(queue.service), machine.cores)  # type: ignore[misc] # a default is no argument
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
    _without_frame(axes)
    sheet.savefig(path, dpi=100)
