"""Machines for uploads and views a day: `python -m bench.capacity --uploads 10000 --views 1000000`.

The model (`bench.model`) computes it from the figures of `python -m bench` in docs/figures.json. `--measure` checks the
model on this machine, in three minutes: a service of one web process and one worker gets uploads and views at rates
that the model gives. `--write` writes docs/capacity.md from the last figures; so does `--measure`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench import machine as here
from bench import scale_plots, suite
from bench.checks import MIX, USES, a_day, check, table_of_checks
from bench.load import Point, measure
from bench.model import Answer, Demand, Machine, plan
from bench.queueing import DAY_SECONDS
from launch.processes import HERE

DOCS = HERE / "docs"
RAW, MEASURED, PAGE, PLOT = "figures.json", "capacity.json", "capacity.md", "capacity.png"
BEGIN, END = "<!-- computed: from here on written by python -m bench.capacity -->", "<!-- computed: end -->"

#: What the page shows: uploads and views a day.
SCENARIOS = ((1_000, 100_000), (10_000, 1_000_000), (100_000, 10_000_000), (1_000_000, 100_000_000))


def table_of(demands: Sequence[Demand], answers: Sequence[Answer]) -> str:
    """Return a Markdown table with a column for each demand."""
    rows = {
        "uploads a day": [f"{demand.uploads:,.0f}" for demand in demands],
        "views a day": [f"{demand.views:,.0f}" for demand in demands],
        "in the busiest hour, a second": [
            f"{demand.uploads * demand.peak / DAY_SECONDS:.2f} and {demand.views * demand.peak / DAY_SECONDS:,.1f}"
            for demand in demands
        ],
        "**web processes**": [str(answer.web) for answer in answers],
        "**workers**, a slot a core": [str(answer.workers) for answer in answers],
        "machines like the one measured": [str(answer.machines) for answer in answers],
        "cores in use then": [f"{answer.cores:.2f}" for answer in answers],
        "slots busy then": [f"{answer.queue.utilization:.0%}" for answer in answers],
        "upload to ready then: median": [_seconds(answer.queue.ready_within(0.5)) for answer in answers],
        "… 95 of 100 within": [_seconds(answer.queue.ready_within(0.95)) for answer in answers],
        "views answered by 304, process, Redis, disk": [
            ", ".join(f"{share:.0%}" for share in answer.views.values()) for answer in answers
        ],
        "Redis, in use": [f"{answer.redis_mb:,.0f} MB" for answer in answers],
        "disk or object store, a month": [_gigabytes(answer.disk_gb_a_month) for answer in answers],
    }
    for database in answers[0].ledger_mb_a_month:
        rows[f"ledger on {database}, a month"] = [
            _gigabytes(answer.ledger_mb_a_month[database] / 1000) for answer in answers
        ]
    (head, first), *rest = rows.items()
    lines = [f"| {head} | {' | '.join(first)} |", f"|---|{'---|' * len(demands)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(cells)} |" for name, cells in rest)])


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _gigabytes(value: float) -> str:
    return f"{value * 1000:.0f} MB" if value < 1 else f"{value:,.0f} GB" if value < 1000 else f"{value / 1000:,.1f} TB"


def load_points(file: Path) -> tuple[dict[str, str], list[Point]]:
    if not file.exists():
        return {}, []
    content = json.loads(file.read_text())
    return content["facts"], [Point(**point) for point in content["points"]]


def write(machine: Machine, folder: Path) -> None:
    """Compute the page and draw the plot."""
    facts, points = load_points(folder / MEASURED)
    by_use = {point.asked: point for point in points}
    checks = [check(machine, use, by_use.get(use)) for use in USES]
    demands = [Demand(*scenario) for scenario in SCENARIOS]
    scale = suite.load(folder / RAW)["scale"]
    told = scale.facts
    parts = [
        f"From what was measured on {told['date']}: {told['cores']} cores ({told['CPU']}), of which others used "
        f"{scale.others:.2f} meanwhile, Pillow {told['Pillow']}. Photographs of 12 MP, 25 kB a view of 100,000 "
        "pictures; the busiest hour has three times the mean.",
        table_of(demands, [plan(machine, demand) for demand in demands]),
        "## Against a simulation and a measured run",
        *([_told_of(facts)] if facts else []),
        table_of_checks(checks),
        a_day(machine),
        f"![Time from upload to ready by how much is asked of the service: model, simulation, measured]({PLOT})",
    ]
    page = folder / PAGE
    text = page.read_text() if page.exists() else f"# Capacity\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{rest.partition(END)[2]}")
    scale_plots.draw_waiting(machine, MIX, checks, folder / PLOT)


def _told_of(facts: dict[str, str]) -> str:
    return (
        f"Measured on {facts['date']}, with the clients on the same {facts['cores']} cores. Others used "
        f"{facts['others']} cores meanwhile: what they use is not there for rendering, and the model does not know."
    )


def measure_all(machine: Machine, file: Path) -> None:
    """Run the service under each load, and write the results to a file."""
    busy = here.busy_cores()
    facts = here.facts()
    if busy > here.MOST_OTHERS:
        print(f"others use {busy:.1f} cores: what is timed now says little", file=sys.stderr, flush=True)
    points, others = [], here.Others.watch()
    for use in USES:
        one = check(machine, use)
        print(f"{use:.0%} of the capacity: {one.load.uploads:.2f} uploads a second", file=sys.stderr, flush=True)
        points.append(measure(one.load))
    facts["others"] = f"{others.cores():.2f}"
    file.write_text(json.dumps({"facts": facts, "points": [asdict(point) for point in points]}, indent=1) + "\n")


def read_mix(text: str) -> dict[float, float]:
    """Read `12`, or `3:0.5,12:0.5`: megapixels and their shares."""
    parts = (part.partition(":") for part in text.split(","))
    return {float(megapixels): float(share or 1) for megapixels, _, share in parts}


def main() -> int:
    words = argparse.ArgumentParser(
        prog="python -m bench.capacity", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    usual = Demand(10_000, 1_000_000)
    helps = {
        "uploads": "a day",
        "views": "a day",
        "peak": "the busiest hour, as a multiple of the day's mean",
        "batch": "pictures that are uploaded at once",
        "pictures": "different pictures and thumbnails that are viewed",
        "skew": "Zipf's exponent of how popular they are",
        "view_kb": "kB of one, on average",
        "not_modified": "the share of views that is answered 304",
        "within": "seconds within which 95 of 100 images are to be ready in the busiest hour",
    }
    for name, text in helps.items():
        default = getattr(usual, name)
        words.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{text} ({default:g})"
        )
    words.add_argument("--megapixels", type=read_mix, default=dict(usual.mix), help="12, or 3:0.5,12:0.5 (12)")
    words.add_argument(
        "--figures", type=Path, default=DOCS, help="the folder with figures.json, to be written to (docs)"
    )
    words.add_argument("--measure", action="store_true", help="check the model on this machine, and write the page")
    words.add_argument("--write", action="store_true", help="write the page")
    asked = words.parse_args()
    told = suite.load(asked.figures / RAW)
    if not {"scale", "rows"} <= set(told):
        raise SystemExit(f"{asked.figures / RAW} lacks figures: run python -m bench --only scale,rows first")
    machine = Machine.of(suite.all_figures(told), int(told["scale"].facts["cores"]))
    if asked.measure:
        measure_all(machine, asked.figures / MEASURED)
    if asked.measure or asked.write:
        write(machine, asked.figures)
        return 0
    demand = Demand(mix=asked.megapixels, **{name: getattr(asked, name) for name in helps})
    print(table_of([demand], [plan(machine, demand)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
