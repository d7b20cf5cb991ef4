"""The page of the suite: tables and plots in docs/performance.md, and raw figures beside it."""

from __future__ import annotations

from pathlib import Path

from bench import machine, plots, scale_plots, suite
from bench.figures import Figure, table
from bench.suite import Told

BEGIN, END = "<!-- measured: from here on written by python -m bench -->", "<!-- measured: end -->"
PAGE, RAW, GLANCE = "performance.md", "figures.json", "bars.png"


def tables(told: dict[str, Told]) -> str:
    """Return a table of each group of figures, below the number of bars that are met."""
    figures = suite.all_figures(told)
    barred = [figure for figure in figures if figure.bar is not None]
    parts = [f"{sum(figure.is_met for figure in barred)} of {len(barred)} bars are met."]
    parts += [f"### {group.capitalize()}\n\n{table(ours)}" for group, ours in by_group(figures).items()]
    parts += [f"`bench.{name}` did not come to its end: {one.failure}." for name, one in told.items() if one.failure]
    return "\n\n".join(parts)


def by_group(figures: list[Figure]) -> dict[str, list[Figure]]:
    """Return the figures of each group, in their order."""
    groups: dict[str, list[Figure]] = {}
    for figure in figures:
        groups.setdefault(figure.group, []).append(figure)
    return groups


def write(told: dict[str, Told], folder: Path) -> None:
    """Write page, plots and figures to `folder`; figures of other modules stay."""
    folder.mkdir(parents=True, exist_ok=True)
    before = suite.load(folder / RAW)
    merged = {name: {**before, **told}[name] for name in suite.MODULES if name in before or name in told}
    suite.save(merged, folder / RAW)
    figures = suite.all_figures(merged)
    drawn: dict[str, list[str]] = {}
    if any(figure.bar is not None for figure in figures):
        plots.draw_bars(figures, folder / GLANCE)
    for group, ours in by_group(figures).items():
        picture = folder / f"performance-{group}.png"
        others = [figure for figure in ours if group != "scale" or figure.name.startswith("a backlog")]
        if plots.draw_sides(group, others, picture):
            drawn[group] = [picture.name]
    if scale_plots.draw_scale(figures, folder / "performance-machine.png"):
        drawn["scale"] = ["performance-machine.png", *drawn.get("scale", [])]
    page = folder / PAGE
    text = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n\n{_measured(merged, drawn)}\n\n{END}{rest.partition(END)[2]}")


def _measured(told: dict[str, Told], drawn: dict[str, list[str]]) -> str:
    parts = [_runs(told), tables(told)]
    if any(figure.bar is not None for figure in suite.all_figures(told)):
        parts.insert(1, f"![Each figure that has a bar, against it]({GLANCE})")
    text = "\n\n".join(parts)
    for group, names in drawn.items():
        title = f"### {group.capitalize()}\n"
        pictures = "".join(f"\n![{group.capitalize()}: what each side took]({name})\n" for name in names)
        text = text.replace(title, title + pictures)
    return text


def _runs(told: dict[str, Told]) -> str:
    """Return the machines, and a table of the modules' runs."""
    lines = []
    for facts in {_machine_of(one): None for one in told.values()}:
        lines.append(f"Measured on {facts}.")
    lines += ["", "| module | when | rounds | took | load before | cores that others used meanwhile |"]
    lines.append("|---|---|---|---|---|---|")
    for name, one in told.items():
        others = f"{one.others:.2f}" + (" (disturbed)" if one.others > machine.MOST_OTHERS else "")
        when, load = one.facts["date"], one.facts["load"]
        lines.append(f"| `bench.{name}` | {when} | {one.rounds} | {one.seconds:.0f} s | {load} | {others} |")
    return "\n".join(lines)


def _machine_of(one: Told) -> str:
    facts = one.facts
    return (
        f"{facts['cores']} cores ({facts['CPU']}), {facts['memory']}, {facts['kernel']}, Python {facts['Python']}, "
        f"Pillow {facts['Pillow']}, libjpeg-turbo {facts['libjpeg-turbo']}"
    )
