"""Plots of figures: all bars on one sheet, and the sides of each group."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Sheet

from bench.figures import Figure
from bench.queueing import percentile

MET, MISSED, QUIET = "#2a7f62", "#c0392b", "#8a8a8a"
#: Ours always has this colour.
OURS = "#e08a1e"
OTHERS = ("#5b5f97", "#8fb8de", "#a3a380", "#b8b8b8", "#7d5a50", "#6b9080", "#c08497")
#: Words in the names of rivals.
_RIVALS = (
    "alone",
    "bare",
    "copy",
    "falcon",
    "fsyncs",
    "glide",
    "libjpeg",
    "nginx",
    "redis-py",
    "render",
    "rows",
    "sharp",
    "tutorial",
    "vips",
)
_LINE_INCHES = 0.36
#: Figures of one unit that differ by more get panels of their own, or the smaller ones could not be seen.
_MOST_TIMES = 12.0
#: With so many rounds, some were disturbed.
_MANY = 20
#: The most times better than its bar that is drawn.
_MOST_MARGIN = 16.0


def draw_bars(figures: Sequence[Figure], path: Path) -> None:
    """Draw how many times better than its bar each figure is, on a logarithmic scale."""
    barred = [figure for figure in figures if figure.bar is not None]
    sheet = Sheet(figsize=(12, 1.1 + _LINE_INCHES * len(barred)), layout="constrained")
    axes = sheet.subplots()
    for line, figure in enumerate(barred):
        times = min(margin(figure), _MOST_MARGIN)
        colour = MET if figure.is_met else MISSED
        axes.plot([1, times], [line, line], color=colour, linewidth=6, solid_capstyle="butt", alpha=0.4)
        axes.plot(times, line, ">" if margin(figure) > _MOST_MARGIN else "o", color=colour, markersize=8)
        beside = axes.get_yaxis_transform()
        measured = {"color": colour, "weight": "bold", "ha": "right", "va": "center", "fontsize": 9}
        axes.text(1.14, line, figure.shown_value, transform=beside, clip_on=False, **measured)  # type: ignore[arg-type] # as its stubs have it
        axes.text(1.155, line, str(figure.bar), color=QUIET, va="center", fontsize=9, transform=beside)
    axes.axvline(1, color="#404040", linewidth=1.2)
    least, most = min([0.5, *map(margin, barred)]) / 1.15, min(max([2.0, *map(margin, barred)]), _MOST_MARGIN) * 1.1
    axes.set_xscale("log", base=2)
    axes.set_xlim(least, most)
    ticks = [2.0**power for power in range(-6, 7) if least <= 2.0**power <= most]
    axes.set_xticks(ticks, ["the bar" if tick == 1 else f"{tick:g} x" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(barred)), [figure.name for figure in barred], fontsize=9)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(barred) - 0.4, -0.6)
    axes.grid(axis="x", alpha=0.3)
    without_frame(axes)
    title = "How many times better than its bar each figure is, and at the right what was measured and the bar"
    sheet.suptitle(title, x=0.01, ha="left", fontsize=11)
    sheet.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.15)


def margin(figure: Figure) -> float:
    """Return how many times better than its bar a figure is. Above 1 the bar is met."""
    assert figure.bar is not None  # noqa: S101 - only what has one is asked
    least = 1 / 64
    value, bar = figure.value, figure.bar.value
    # Decibels are logarithms, and their bar may be 0 or less.
    times = max(10 ** ((value - bar) / 20) if figure.unit == "dB" else value / bar, least)
    return times if figure.bar.kind == "at least" else 1 / times


def draw_sides(group: str, figures: Sequence[Figure], path: Path) -> bool:
    """Draw what each side took, figures of like unit and size in a panel. Returns False without figures."""
    panels = panels_of([figure for figure in figures if figure.runs])
    if not panels:
        return False
    heights = [sum(3.8 if figure.are_parts else len(figure.runs) + 1.3 for figure in ours) for ours in panels]
    sheet = Sheet(figsize=(10, 0.6 + sum(0.25 * height + 0.55 for height in heights)), layout="constrained")
    column = sheet.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    colours = colours_of(list(dict.fromkeys(side for figure in figures for side in figure.runs)))
    for axes, ours in zip(column, panels, strict=True):
        _draw_panel(axes, ours, colours)
    sheet.suptitle(
        f"{group.capitalize()}: medians; lines: least and most, or 9 of 10 of many rounds",
        x=0.01,
        ha="left",
        fontsize=12,
    )
    sheet.savefig(path, dpi=90)
    return True


def panels_of(figures: Sequence[Figure]) -> list[list[Figure]]:
    """Return figures grouped by scale: of one unit, and not too different in size."""
    panels: list[list[Figure]] = []
    for figure in figures:
        for panel in panels:
            sizes = [_largest(one) for one in (*panel, figure)]
            if panel[0].runs_unit == figure.runs_unit and max(sizes) <= _MOST_TIMES * min(sizes):
                panel.append(figure)
                break
        else:
            panels.append([figure])
    return panels


def _largest(figure: Figure) -> float:
    return max(statistics.median(values) for values in figure.runs.values())


def _longest(figure: Figure) -> float:
    if figure.are_parts:
        return sum(statistics.median(values) for values in figure.runs.values())
    return max(spread(values)[1] for values in figure.runs.values())


def colours_of(names: Sequence[str]) -> dict[str, str]:
    """Return each side's colour, the same in every panel."""
    others = [name for name in names if not _is_ours(name)]
    colours = {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(others)}
    return {name: colours.get(name, OURS) for name in names}


def _is_ours(name: str) -> bool:
    return not any(rival in name.lower() for rival in _RIVALS)


def _draw_panel(axes: Axes, figures: Sequence[Figure], colours: Mapping[str, str]) -> None:
    line, places = 0.0, {}
    for figure in figures:
        bar = "" if figure.bar is None else f", bar {figure.bar}"
        axes.text(
            *(0.0, line), f"{figure.name}: {figure.shown_value}{bar}", va="center", fontsize=9, weight="bold",
            color="#202020" if figure.is_met else MISSED, transform=axes.get_yaxis_transform(),
        )  # fmt: skip
        if figure.are_parts:
            line += 1
            draw_parts(axes, line, figure.runs)
            line += 1.5  # for the names of the parts
        for side, values in figure.runs.items() if not figure.are_parts else ():
            line += 1
            draw_bar(axes, line, values, colours[side])
            places[line] = side
        line += 1.3
    axes.set_xlim(0, max(_longest(figure) for figure in figures) * 1.12)
    axes.set_ylim(line - 0.6, -0.7)
    axes.set_yticks(list(places), list(places.values()), fontsize=9)
    unit = figures[0].runs_unit
    better = "more" if unit.endswith(("/s", "a second")) else "less"
    axes.set_xlabel(f"{unit}, {better} is better", fontsize=9, loc="right")
    tidy(axes)


def draw_bar(axes: Axes, line: float, values: Sequence[float], colour: str) -> None:
    """Draw a median with the range of most rounds, and its number."""
    middle = statistics.median(values)
    least, most = spread(values)
    axes.barh(line, middle, height=0.8, color=colour)
    if len(values) > 1:
        axes.plot([least, most], [line, line], color="#303030", linewidth=1)
    axes.annotate(f" {in_short(middle)}", (max(most, 0), line), va="center", fontsize=8)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the most of a few rounds; of many, the range of 9 in 10."""
    if len(values) < _MANY:
        return min(values), max(values)
    return percentile(values, 0.05), percentile(values, 0.95)


def draw_parts(axes: Axes, line: float, parts: Mapping[str, Sequence[float]]) -> None:
    """Draw the medians of parts as one bar, each with its name and number below."""
    left = 0.0
    whole = sum(statistics.median(values) for values in parts.values())
    for number, (name, values) in enumerate(parts.items()):
        middle = statistics.median(values)
        colour = (OURS, *OTHERS)[number % (1 + len(OTHERS))]
        axes.barh(line, middle, left=left, height=0.8, color=colour, edgecolor="white", linewidth=0.8)
        if middle > 0.01 * whole:
            below = line + 0.75 + 0.55 * (number % 3)  # in turns, since names are longer than short parts
            axes.text(left, below, f"{name} {in_short(middle)}", fontsize=8, va="center")
        left += middle
    axes.annotate(f" {in_short(left)}", (left, line), va="center", fontsize=8)


def in_short(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def tidy(axes: Axes) -> None:
    """Start bars at 0, and remove the frame."""
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    without_frame(axes)


def without_frame(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
