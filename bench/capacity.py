"""What a number of uploads and views a day takes: `python -m bench.capacity --uploads 10000 --views 1000000`.

It is computed (`bench.model`) from what `python -m bench` has measured on this machine or another, docs/figures.json.
`--measure` checks the model on this machine, in three minutes: a service of one web process and one worker gets uploads
and views at rates of the model's. `--write` computes docs/capacity.md anew from what was measured last; `--measure`
does so, too.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import machine as here
from bench import scale_plots, suite
from bench.load import Load, Point, measure
from bench.model import Answer, Demand, Machine, plan, queue_of, view_shares
from bench.queueing import DAY_SECONDS, Queue, Simulated, arrivals, daily, percentile, simulate
from parts import HERE

DOCS = HERE / "docs"
RAW, MEASURED, PAGE, PLOT = "figures.json", "capacity.json", "capacity.md", "capacity.png"
BEGIN, END = "<!-- computed: from here on written by python -m bench.capacity -->", "<!-- computed: end -->"

#: What the measured runs ask for: shares of the predicted capacity, and views a second besides.
USES = (0.5, 0.8)
VIEWS = 50.0
MIX = {3.0: 0.5, 12.0: 0.5}
SECONDS = 60.0
#: What the page shows: uploads and views a day.
SCENARIOS = ((1_000, 100_000), (10_000, 1_000_000), (100_000, 10_000_000), (1_000_000, 100_000_000))
#: Simulations of a measured run: how much a run of its length varies by chance alone.
SIMULATIONS = 100


def table_of(demands: Sequence[Demand], answers: Sequence[Answer]) -> str:
    """Return what each demand takes as a Markdown table, a column a demand."""
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


@dataclass(frozen=True)
class Check:
    """A load as the model sees it, simulated, and measured where it was."""

    load: Load
    queue: Queue
    #: Cores that the model says are used.
    cores: float
    runs: Sequence[Simulated]
    point: Point | None = None


def check(machine: Machine, use: float, point: Point | None = None) -> Check:
    """Predict a run, and simulate it many times."""
    demand = Demand(0, 0, MIX, pictures=180, skew=0, not_modified=0)
    shares, _ = view_shares(demand, VIEWS, 1)
    viewing = VIEWS * sum(share * machine.views[kind] for kind, share in shares.items()) / 1000
    left = 1 - viewing / machine.cores
    uploads = use * machine.rate(MIX) * left
    if point is not None:  # what was asked for then, by figures that may have been others
        uploads = point.uploads
    queue = queue_of(machine, MIX, uploads, 1 - left)
    service = machine.service(MIX, min(queue.utilization, 1.0), left)
    chance = random.Random(1)  # noqa: S311 - no secret
    runs = [
        simulate(
            arrivals(lambda now: uploads, uploads, SECONDS, chance),
            lambda: chance.choice(service[chance.choices(list(MIX), list(MIX.values()))[0]]),
            machine.cores,
        )
        for _ in range(SIMULATIONS)
    ]
    cores = uploads * sum(machine.cpu(MIX).values()) + viewing
    return Check(Load(use, uploads, VIEWS, MIX, SECONDS), queue, cores, runs, point)


def table_of_checks(checks: Sequence[Check]) -> str:
    """Return predicted, simulated and measured beside each other."""
    lines = [
        "| load | | predicted | simulated (9 of 10 runs) | measured | measured / predicted |",
        "|---|---|---|---|---|---|",
    ]
    for one in checks:
        name = f"**{one.load.asked:.0%}**: {one.load.uploads:.2f} uploads and {one.load.views:.0f} views a second"
        rows = [
            ("slots busy", one.queue.utilization, [run.utilization for run in one.runs], "utilization", "{:.0%}"),
            ("median", one.queue.ready_within(0.5), [run.ready_within(0.5) for run in one.runs], "median", "{:.2f} s"),
            (
                "95 of 100",
                one.queue.ready_within(0.95),
                [run.ready_within(0.95) for run in one.runs],
                "slowest_of_20",
                "{:.2f} s",
            ),
            ("cores", one.cores, [], "cores", "{:.2f}"),
        ]
        for what, predicted, simulated, field, form in rows:
            spread = (
                " to ".join(form.format(percentile(simulated, share)) for share in (0.05, 0.95)) if simulated else ""
            )
            measured = getattr(one.point, field) if one.point else None
            cells = [name, what, form.format(predicted), spread]
            cells += ["", ""] if measured is None else [form.format(measured), f"{measured / predicted:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
            name = ""
    return "\n".join(lines)


def a_day(machine: Machine, seed: int = 1) -> str:
    """Simulate a day of the usual curve, and tell its busiest hour beside what the model says of it."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    demand = Demand(0, 0, MIX)
    most = 0.7 * machine.rate(MIX)
    curve = daily(most / demand.peak, demand.peak)
    queue = queue_of(machine, MIX, most)
    service = machine.service(MIX, queue.utilization)
    came = arrivals(curve, most, DAY_SECONDS, chance)
    run = simulate(
        came, lambda: chance.choice(service[chance.choices(list(MIX), list(MIX.values()))[0]]), machine.cores
    )
    noon = [taken for at, taken in zip(came, run.times, strict=True) if abs(at - DAY_SECONDS / 2) <= 1800]
    busiest, whole = ([percentile(times, share) for share in (0.5, 0.95)] for times in (noon, run.times))
    predicted = [queue.ready_within(share) for share in (0.5, 0.95)]
    return (
        f"A day of {len(came):,} uploads, half of 3 and half of 12 MP, its busiest hour with {demand.peak:g} times the "
        f"mean and 70 % of the capacity, simulated: in that hour a median of {busiest[0]:.2f} s and 95 of 100 within "
        f"{busiest[1]:.2f} s; the model says {predicted[0]:.2f} and {predicted[1]:.2f} s. Over the whole day: "
        f"{whole[0]:.2f} and {whole[1]:.2f} s."
    )


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
    told = suite.load(folder / RAW)["scale"].facts
    parts = [
        f"From what was measured on {told['date']}: {told['cores']} cores ({told['CPU']}), Pillow {told['Pillow']}. "
        "Photographs of 12 MP, 25 kB a view of 100,000 pictures; the busiest hour has three times the mean.",
        table_of(demands, [plan(machine, demand) for demand in demands]),
        "## Against a simulation and a measured run",
        *([f"Measured on {facts['date']}, with clients on the same {facts['cores']} cores."] if facts else []),
        table_of_checks(checks),
        a_day(machine),
        f"![Time from upload to ready by how much is asked of the service: model, simulation, measured]({PLOT})",
    ]
    page = folder / PAGE
    text = page.read_text() if page.exists() else f"# Capacity\n\n{BEGIN}\n{END}\n"
    head, _, rest = text.partition(BEGIN)
    page.write_text(f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{rest.partition(END)[2]}")
    scale_plots.draw_waiting(machine, MIX, checks, folder / PLOT)


def measure_all(machine: Machine, file: Path) -> None:
    """Run the service under each load, and write down what was measured."""
    busy = here.busy_cores()
    facts = here.facts()
    if busy > here.MOST_OTHERS:
        print(f"others use {busy:.1f} cores: what is timed now says little", file=sys.stderr, flush=True)
    points = []
    for use in USES:
        one = check(machine, use)
        print(f"{use:.0%} of the capacity: {one.load.uploads:.2f} uploads a second", file=sys.stderr, flush=True)
        points.append(measure(one.load, machine.cores))
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
