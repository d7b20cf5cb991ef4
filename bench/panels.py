"""A dashboard drawn as Grafana would lay it out: each panel at its place, with its title, its unit and its legend."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

from bench.prometheus import SCRAPE_SECONDS, Series

#: Inches of one unit of the dashboard's grid, across and down; of the margin; above it, for the disturbances.
_ACROSS, _DOWN, _MARGIN, _HEAD = 0.72, 0.40, 0.25, 0.6
#: Inches of a legend's line, characters in an inch of it, and its most lines (Grafana's would scroll).
_LINE, _CHARACTERS, _MOST_LINES = 0.17, 13.5, 4
#: Inches of a legend at a panel's right.
_LEGEND_BESIDE = 3.4
_COLOURS = (
    *("#2a7f62", "#e0a51e", "#3d7ab5", "#c0392b", "#7b5ea7", "#5bb0c4", "#d9782d", "#8a8f3c", "#b85c8e"),
    *("#4f5d75", "#9fc131", "#6d4c41", "#00897b", "#f06292", "#455a64", "#a1887f", "#1e88e5", "#fdd835"),
)

#: A place in inches from the figure's upper left corner: left, top, width, height.
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Event:
    """A disturbance of the service, and its beginning and end."""

    name: str
    began: float
    ended: float


@dataclass(frozen=True)
class Panel:
    """A panel of the dashboard's JSON, and the lines that its queries found, by their names in the legend."""

    definition: dict[str, Any]
    lines: list[tuple[str, Series]]

    @property
    def title(self) -> str:
        return str(self.definition["title"])

    @property
    def has_legend_beside(self) -> bool:
        return bool(self.definition["options"]["legend"]["placement"] == "right")

    @property
    def is_row(self) -> bool:
        return bool(self.definition["type"] == "row")


def fill(dashboard: dict[str, Any], query: Callable[[str], list[Series]]) -> list[Panel]:
    """Return the dashboard's panels with what `query` finds for each of their expressions."""
    panels = []
    for definition in dashboard["panels"]:
        found = [(target, series) for target in definition.get("targets", []) for series in query(target["expr"])]
        panels.append(Panel(definition, [(_name(target["legendFormat"], series), series) for target, series in found]))
    return panels


def draw(panels: Sequence[Panel], events: Sequence[Event], began: float, ended: float, path: Path) -> None:
    """Draw the dashboard into a PNG. Disturbances are named above it and shaded in each panel."""
    places = [panel.definition["gridPos"] for panel in panels]
    width = max(place["x"] + place["w"] for place in places) * _ACROSS + 2 * _MARGIN
    height = max(place["y"] + place["h"] for place in places) * _DOWN + 2 * _MARGIN + _HEAD
    canvas = _Canvas(width, height)
    told = "      ".join(f"({number}) {event.name}" for number, event in enumerate(events, 1))
    canvas.write(_MARGIN, _MARGIN, f"What was done to the service: {told}", fontsize=9.5, color="#555555")
    for panel, place in zip(panels, places, strict=True):
        left, top = _MARGIN + place["x"] * _ACROSS, _MARGIN + _HEAD + place["y"] * _DOWN
        if panel.is_row:
            canvas.write(left, top + 0.12, panel.title, fontsize=13)
        else:
            box = (left + 0.05, top + 0.05, place["w"] * _ACROSS - 0.1, place["h"] * _DOWN - 0.1)
            _draw_panel(canvas, panel, box, events, began, ended)
    drawn = io.BytesIO()
    canvas.figure.savefig(drawn, dpi=80)
    # A third of the bytes, and no visible difference.
    Image.open(drawn).convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, "PNG", optimize=True)


class _Canvas:
    """A figure whose places are in inches from its upper left corner."""

    def __init__(self, width: float, height: float) -> None:
        self.figure = Figure(figsize=(width, height), facecolor="#f4f5f5")
        self._width, self._height = width, height

    def axes(self, box: Box) -> Axes:
        left, top, width, height = box
        place = (left / self._width, 1 - (top + height) / self._height, width / self._width, height / self._height)
        return self.figure.add_axes(place)

    def write(self, left: float, top: float, text: str, **style: Any) -> None:
        self.figure.text(left / self._width, 1 - top / self._height, text, va="top", **style)


def _draw_panel(canvas: _Canvas, panel: Panel, box: Box, events: Sequence[Event], began: float, ended: float) -> None:
    left, top, width, height = box
    frame = canvas.axes(box)
    frame.set(xticks=[], yticks=[])
    frame.spines[:].set_color("#d8d8d8")
    canvas.write(left + 0.1, top + 0.08, panel.title, fontsize=10.5)

    below, beside = 0.32, 0.0
    if panel.has_legend_beside:
        beside = _LEGEND_BESIDE
        _draw_legend_beside(canvas, panel, (left + width - beside, top + 0.4, beside, height - 0.4))
    else:
        below += _draw_legend_below(canvas, panel, box)
    axes = canvas.axes((left + 0.68, top + 0.36, width - 0.8 - beside, height - 0.36 - below))
    defaults = panel.definition["fieldConfig"]["defaults"]
    for number, event in enumerate(events, 1):
        axes.axvspan(event.began - began, event.ended - began, color="#5b5f97", alpha=0.1, linewidth=0)
        above = axes.get_xaxis_transform()
        axes.text(event.began - began, 1, f"({number})", fontsize=6, color="#5b5f97", va="bottom", transform=above)
    for number, (_, series) in enumerate(panel.lines):
        _draw_line(axes, series, began, _colour(number), defaults["custom"])
    axes.set_xlim(0, ended - began)
    highest = max((max(series.values) for _, series in panel.lines), default=0.0)
    axes.set_ylim(defaults["min"], defaults.get("max", max(1.05 * highest, defaults["custom"].get("axisSoftMax", 0))))
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=defaults.get("decimals") == 0))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: in_unit(value, defaults["unit"])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f} s"))
    axes.tick_params(labelsize=7.5, length=2, color="#999999")
    axes.grid(alpha=0.25)
    axes.spines[:].set_visible(False)


def _draw_legend_below(canvas: _Canvas, panel: Panel, box: Box) -> float:
    """Write the legend at the bottom of a panel; return its inches."""
    left, top, width, height = box
    lines = _legend_lines([name for name, _ in panel.lines], int((width - 0.3) * _CHARACTERS))
    inches = _LINE * min(len(lines), _MOST_LINES)
    at = top + height - inches - 0.06
    for line in lines[:_MOST_LINES]:
        character = 0
        for number in line:
            name = panel.lines[number][0]
            _draw_entry(canvas, left + 0.15 + character / _CHARACTERS, at, number, name)
            character += len(name) + 4
        at += _LINE
    if hidden := sum(len(line) for line in lines[_MOST_LINES:]):
        canvas.write(left + width - 0.6, at - _LINE, f"{hidden} more", fontsize=7.5, color="#c0392b")
    return inches


def _draw_legend_beside(canvas: _Canvas, panel: Panel, box: Box) -> None:
    """Write a table of the lines and their highest values, the highest first."""
    left, top, width, height = box
    unit = panel.definition["fieldConfig"]["defaults"]["unit"]
    canvas.write(left + width - 0.75, top - 0.04, "max", fontsize=7.5, color="#555555")
    room = int((height - _LINE) / _LINE)
    order = sorted(range(len(panel.lines)), key=lambda number: -max(panel.lines[number][1].values))
    for place, number in enumerate(order[:room], 1):
        name, series = panel.lines[number]
        _draw_entry(canvas, left, top + place * _LINE, number, name)
        canvas.write(left + width - 0.75, top + place * _LINE, in_unit(max(series.values), unit), fontsize=7.5)
    if hidden := len(order) - room:
        canvas.write(left, top - 0.04, f"{hidden} more" if hidden > 0 else "", fontsize=7.5, color="#c0392b")


def _draw_entry(canvas: _Canvas, left: float, top: float, number: int, name: str) -> None:
    canvas.write(left, top, "■", fontsize=7.5, color=_colour(number))
    canvas.write(left + 0.14, top, name, fontsize=7.5)


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _draw_line(axes: Axes, series: Series, began: float, colour: str, custom: dict[str, Any]) -> None:
    times: list[float] = []
    values: list[float] = []
    for at, value in zip(series.times, series.values, strict=True):
        if times and at - began - times[-1] > 1.5 * SCRAPE_SECONDS:
            times.append(at - began)
            values.append(float("nan"))  # a gap
        times.append(at - began)
        values.append(value)
    is_stepped = custom.get("lineInterpolation") == "stepAfter"
    drawn = "steps-post" if is_stepped else None
    # Not clipped, or a line of zeros would vanish behind the frame.
    axes.plot(times, values, color=colour, linewidth=1.2 * custom["lineWidth"], drawstyle=drawn, clip_on=False)
    filling = {"color": colour, "alpha": custom["fillOpacity"] / 100, "linewidth": 0}
    axes.fill_between(times, values, step="post" if is_stepped else None, **filling)


def _legend_lines(names: Sequence[str], characters: int) -> list[list[int]]:
    """Return the names on each line of a legend that is so many characters wide."""
    lines: list[list[int]] = []
    left = 0
    for number, name in enumerate(names):
        if not lines or len(name) + 4 > left:
            lines.append([])
            left = characters
        lines[-1].append(number)
        left -= len(name) + 4
    return lines


def _name(legend: str, series: Series) -> str:
    return re.sub(r"{{(\w+)}}", lambda label: series.labels.get(label[1], ""), legend)


def in_unit(value: float, unit: str) -> str:
    """Return a value as Grafana writes it in its unit of this name."""
    match unit:
        case "s" if value and abs(value) < 0.001:
            return f"{value * 1e6:.3g} µs"
        case "s" if value and abs(value) < 1:
            return f"{value * 1e3:.3g} ms"
        case "s" if abs(value) < 60:
            return f"{value:.3g} s"
        case "s":
            return f"{value / 60:.3g} min"
        case "percentunit":
            return f"{value * 100:.3g} %"
        case "bytes" | "binBps":
            return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB")) + ("/s" if unit == "binBps" else "")
        case "decbytes":
            return _scaled(value, 1000, ("B", "kB", "MB", "GB"))
        case "Bps":
            return _scaled(value, 1000, ("B/s", "kB/s", "MB/s", "GB/s"))
        case "reqps":
            return f"{value:.3g} req/s"
        case "ops":
            return f"{value:.3g} ops/s"
        case "short":
            return _scaled(value, 1000, ("", "K", "Mil")).strip()
    raise SystemExit(f"a unit that is not known here: {unit}")


def _scaled(value: float, step: int, names: Sequence[str]) -> str:
    for name in names[:-1]:
        if abs(value) < step:
            return f"{value:.3g} {name}"
        value /= step
    return f"{value:.3g} {names[-1]}"
