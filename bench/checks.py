"""The capacity model's predictions beside simulations and beside runs of a real service."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from bench.load import WARM_SECONDS, Load, Point
from bench.model import Demand, Machine, queue_of, view_shares
from bench.queueing import DAY_SECONDS, Queue, Simulated, arrivals, daily, percentile, simulate

#: The loads of the measured runs: shares of the predicted capacity, and views a second besides.
USES = (0.5, 0.8)
VIEWS = 50.0
MIX = {3.0: 0.5, 12.0: 0.5}
SECONDS = 60.0
#: Simulations of a measured run, which show how much chance alone changes a run of its length.
SIMULATIONS = 100


@dataclass(frozen=True)
class Check:
    """A load: predicted, simulated, and measured if it was."""

    load: Load
    queue: Queue
    #: Cores in use, as predicted.
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
    if point is not None:  # the load of that run, which may come from older figures
        uploads = point.uploads
    queue = queue_of(machine, MIX, uploads, 1 - left)
    chance = random.Random(1)  # noqa: S311 - no secret
    runs = [_simulated(queue, chance) for _ in range(SIMULATIONS)]
    cores = uploads * sum(machine.cpu(MIX).values()) + viewing
    return Check(Load(use, uploads, VIEWS, MIX, SECONDS), queue, cores, runs, point)


def _simulated(queue: Queue, chance: random.Random) -> Simulated:
    """Simulate a run as long as a measured one, warm-up included."""
    jobs = queue.jobs
    came = arrivals(lambda now: queue.rate, queue.rate, WARM_SECONDS + SECONDS, chance)
    run = simulate(came, lambda: chance.choice(jobs), queue.slots)
    first = bisect(came, WARM_SECONDS)
    return Simulated(run.waits[first:], run.times[first:], run.utilization)


def table_of_checks(checks: Sequence[Check]) -> str:
    """Return predicted, simulated and measured beside each other."""
    lines = [
        "| load | | predicted | simulated (9 of 10 runs) | measured | measured / predicted |",
        "|---|---|---|---|---|---|",
    ]
    for one in checks:
        name = f"**{one.load.asked:.0%}**: {one.load.uploads:.2f} uploads and {one.load.views:.0f} views a second"
        rows = [
            ("slots busy", one.queue.utilization, [run.utilization for run in one.runs], "", "{:.0%}"),
            ("median", one.queue.ready_within(0.5), [run.ready_within(0.5) for run in one.runs], "median", "{:.2f} s"),
            (
                "95 of 100",
                one.queue.ready_within(0.95),
                [run.ready_within(0.95) for run in one.runs],
                "slowest_of_20",
                "{:.2f} s",
            ),
            ("cores in use", one.cores, [], "cores", "{:.2f}"),
        ]
        for what, predicted, simulated, field, form in rows:
            spread = (
                " to ".join(form.format(percentile(simulated, share)) for share in (0.05, 0.95)) if simulated else ""
            )
            measured = getattr(one.point, field) if one.point and field else None
            cells = [name, what, form.format(predicted), spread]
            cells += ["", ""] if measured is None else [form.format(measured), f"{measured / predicted:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
            name = ""
    return "\n".join(lines)


def a_day(machine: Machine, seed: int = 1) -> str:
    """Simulate a day of the usual curve; return its busiest hour beside the prediction."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    demand = Demand(0, 0, MIX)
    most = 0.7 * machine.rate(MIX)
    curve = daily(most / demand.peak, demand.peak)
    queue = queue_of(machine, MIX, most)
    jobs = queue.jobs
    came = arrivals(curve, most, DAY_SECONDS, chance)
    run = simulate(came, lambda: chance.choice(jobs), machine.cores)
    noon = [taken for at, taken in zip(came, run.times, strict=True) if abs(at - DAY_SECONDS / 2) <= 1800]
    busiest, whole = ([percentile(times, share) for share in (0.5, 0.95)] for times in (noon, run.times))
    predicted = [queue.ready_within(share) for share in (0.5, 0.95)]
    return (
        f"A day of {len(came):,} uploads, half of 3 and half of 12 MP, its busiest hour with {demand.peak:g} times the "
        f"mean and 70 % of the capacity, simulated: in that hour a median of {busiest[0]:.2f} s and 95 of 100 within "
        f"{busiest[1]:.2f} s; the model says {predicted[0]:.2f} and {predicted[1]:.2f} s. Over the whole day: "
        f"{whole[0]:.2f} and {whole[1]:.2f} s."
    )
