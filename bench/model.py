"""The capacity model: what a number of uploads and views a day takes, of what one of each costs. Pure.

What an image and a view cost is measured (`bench.pace`, `bench.views`); how many views find a copy follows from how
popular pictures are (Zipf, with the exponent that Breslau et al. found for the web, INFOCOM 1999) and from how long a
copy lives (Jung, Berger and Balakrishnan, Modeling TTL-based Internet caches, INFOCOM 2003); how long images wait from
`bench.queueing`. What is only assumed has a name in capitals.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.figures import Figure
from bench.queueing import DAY_SECONDS, Queue

#: Of the cores, the slots, and of a web process no more is planned for at the peak.
MOST_USE = 0.7
#: How long copies of pictures live: in a web process, and in Redis.
PROCESS_SECONDS, REDIS_SECONDS = 2.0, 600.0
#: Megabytes of an original, its JPEG and its thumbnails for each megapixel, of photographs (docs/growth.md).
ORIGINAL_MB, JPEG_MB, THUMBNAILS_MB = 0.33, 0.2, 0.067
#: What Redis has besides copies: its own, a queue of 300, tokens, beats.
REDIS_BASE_MB = 16.0
#: Records that are asked for until an image is ready, by a client that waits for it or polls.
POLLS = 2.0
MOST_MACHINES = 1000

#: Megapixels, and the share of all uploads that have so many.
Mix = Mapping[float, float]


@dataclass(frozen=True)
class Costs:
    """What images of one size took where they were measured, in milliseconds."""

    megapixels: float
    #: Images a second with a slot for each core.
    rate: float
    #: CPU by kind of process.
    cpu: Mapping[str, float]
    #: From upload to ready while nothing else was done, image by image.
    alone: Sequence[float]
    #: From claim to ready while every slot was busy.
    busy: Sequence[float]


@dataclass(frozen=True)
class Machine:
    """What was measured, and on how many cores."""

    cores: int
    sizes: Sequence[Costs]
    #: CPU milliseconds of web and Valkey together for a view, by where its answer came from.
    views: Mapping[str, float]
    #: Bytes in Redis for a byte of a picture.
    copy_factor: float
    #: Bytes of a row in each ledger.
    rows: Mapping[str, float]

    @classmethod
    def of(cls, figures: Sequence[Figure], cores: int) -> Machine:
        """Find what is needed among the figures of bench.scale and bench.rows. Raises KeyError for what is missing."""
        named = {figure.name: figure for figure in figures}
        sizes = []
        for size in _rest(named, "CPU for an image, "):
            cpu = {kind: statistics.median(runs) for kind, runs in named[f"CPU for an image, {size}"].runs.items()}
            times = named[f"upload to ready, {size}, alone"].runs
            rate = named[f"images a second, {size}, 1 worker"].value
            megapixels = float(size.split()[0])
            sizes.append(Costs(megapixels, rate, cpu, times["alone"], times["from its claim, every slot busy"]))
        copies = named["Redis for a copy of a thumbnail"].runs
        return cls(
            cores,
            sizes,
            {kind: named[f"CPU for a view, {kind}"].value for kind in _rest(named, "CPU for a view, ")},
            statistics.median(copies["in Redis"]) / statistics.median(copies["as sent"]),
            {database: named[f"a row, {database}"].value for database in _rest(named, "a row, ")},
        )

    def cpu(self, mix: Mix) -> dict[str, float]:
        """Return the CPU seconds that an image costs each kind of process."""
        kinds = self.sizes[0].cpu
        return {kind: _mean(mix, self._line(lambda size, kind=kind: size.cpu[kind])) / 1000 for kind in kinds}  # type: ignore[misc] # a default is no argument

    def rate(self, mix: Mix) -> float:
        """Return images a second with a slot for each core."""
        return 1 / _mean(mix, self._line(lambda size: 1 / size.rate))

    def service(self, mix: Mix) -> dict[float, list[float]]:
        """Return the seconds that images of each size have a slot, as varied as their renders.

        On average what the highest rate comes to: then every slot is busy, by definition.
        """
        mean = self._line(lambda size: self.cores / size.rate)
        return {megapixels: self._varied(megapixels, mean(megapixels)) for megapixels in mix}

    def taken(self, mix: Mix, use: float) -> dict[float, list[float]]:
        """Return the seconds that they take from their claim to being ready, with the share `use` of all slots busy."""
        alone = self._line(lambda size: statistics.fmean(size.alone) / 1000)
        busy = self._line(lambda size: statistics.fmean(size.busy) / 1000)
        return {
            megapixels: self._varied(megapixels, (1 - use) * alone(megapixels) + use * busy(megapixels))
            for megapixels in mix
        }

    def _varied(self, megapixels: float, mean: float) -> list[float]:
        nearest = min(self.sizes, key=lambda size: abs(size.megapixels - megapixels))
        usual = statistics.fmean(nearest.busy)
        return sorted(mean * milliseconds / usual for milliseconds in nearest.busy)

    def _line(self, value: Callable[[Costs], float]) -> Callable[[float], float]:
        """Return what a value comes to at other sizes: on the line through the smallest and the largest."""
        first, last = self.sizes[0], self.sizes[-1]
        slope = (value(last) - value(first)) / (last.megapixels - first.megapixels)
        # Nothing is for free, however steep the line.
        return lambda megapixels: max(value(first) + slope * (megapixels - first.megapixels), value(first) / 4)


def _rest(names: Mapping[str, Figure], start: str) -> list[str]:
    return [name.removeprefix(start) for name in names if name.startswith(start)]


def _mean(mix: Mix, value: Callable[[float], float]) -> float:
    return sum(share * value(megapixels) for megapixels, share in mix.items()) / sum(mix.values())


def samples(service: Mapping[float, Sequence[float]], mix: Mix, count: int = 200) -> list[float]:
    """Return seconds of so many images of all sizes, in the shares of the mix, evenly out of sorted ones."""
    drawn = []
    for megapixels, share in mix.items():
        ordered = service[megapixels]
        ours = max(1, round(count * share / sum(mix.values())))
        drawn += [ordered[(2 * number + 1) * len(ordered) // (2 * ours)] for number in range(ours)]
    return drawn


@dataclass(frozen=True)
class Demand:
    """What is asked of a service."""

    #: A day.
    uploads: float
    views: float
    mix: Mix = field(default_factory=lambda: {12.0: 1.0})
    #: The busiest hour, as a multiple of the day's mean.
    peak: float = 3.0
    #: Pictures that are uploaded at once.
    batch: int = 1
    #: Different pictures and thumbnails that are viewed.
    pictures: int = 100_000
    #: Zipf's exponent.
    skew: float = 0.8
    #: Of a picture that is viewed, on average.
    view_kb: float = 25.0
    #: The share of views that is answered 304.
    not_modified: float = 0.1
    #: Seconds within which 95 of 100 images are to be ready in the busiest hour.
    within: float = 10.0


@dataclass(frozen=True)
class Answer:
    """What it takes, and what comes of it in the busiest hour."""

    web: int
    workers: int
    machines: int
    #: Cores in use.
    cores: float
    #: The share of views that is answered from each place.
    views: Mapping[str, float]
    queue: Queue
    redis_mb: float
    disk_gb_a_month: float
    ledger_mb_a_month: Mapping[str, float]


def plan(machine: Machine, demand: Demand) -> Answer:
    """Return the least that meets a demand, in machines like the one that was measured. Raises ValueError past many."""
    uploads, views = (a_day / DAY_SECONDS * demand.peak for a_day in (demand.uploads, demand.views))
    cpu = machine.cpu(demand.mix)
    for machines in range(1, MOST_MACHINES + 1):
        web, shares, copies, view = _web(machine, demand, uploads * cpu["web"])
        viewing = views * view
        # What polls cost comes on top of what an upload was measured to cost.
        cores = uploads * (sum(cpu.values()) + POLLS * machine.views["record"] / 1000) + viewing
        here = machine.cores * machines
        if viewing >= here:
            continue
        queue = queue_of(machine, demand.mix, uploads, viewing / here, machines, demand.batch)
        is_roomy = max(cores / here, queue.utilization) <= MOST_USE
        if is_roomy and queue.ready_within(0.95) <= demand.within:
            break
    else:
        raise ValueError(f"more than {MOST_MACHINES} machines")
    month = demand.uploads * 30
    kept = _mean(demand.mix, lambda megapixels: megapixels) * (ORIGINAL_MB + JPEG_MB + THUMBNAILS_MB)
    return Answer(
        web,
        machines,
        machines,
        cores,
        shares,
        queue,
        REDIS_BASE_MB + copies * demand.view_kb * machine.copy_factor / 1000,
        month * kept / 1000,
        {database: month * row / 1e6 for database, row in machine.rows.items()},
    )


def queue_of(
    machine: Machine, mix: Mix, uploads: float, viewing: float = 0.0, workers: int = 1, batch: int = 1
) -> Queue:
    """Return the queue that so many uploads a second make, where views take the share `viewing` of all cores."""
    left, slots = 1 - viewing, machine.cores * workers
    service = [seconds / left for seconds in samples(machine.service(mix), mix)]
    use = min(1.0, uploads * statistics.fmean(service) / slots)
    taken = [seconds / left for seconds in samples(machine.taken(mix, use), mix)]
    return Queue(slots, uploads, service, batch, taken)


def _web(machine: Machine, demand: Demand, receiving: float) -> tuple[int, dict[str, float], float, float]:
    """Return how many processes, where views are answered from, how many copies there are, and a view's CPU seconds."""
    rate = demand.views / DAY_SECONDS * demand.peak
    for processes in range(1, 100 * MOST_MACHINES):
        shares, copies = view_shares(demand, rate, processes)
        view = sum(share * machine.views[kind] for kind, share in shares.items()) / 1000
        if rate * view + receiving <= MOST_USE * processes:
            break
    return processes, shares, copies, view


def view_shares(demand: Demand, rate: float, processes: int) -> tuple[dict[str, float], float]:
    """Return the share of views that each place answers, and how many copies Redis has.

    What lives for T after it was fetched, and is asked for r times a second at random, is found r T / (1 + r T) of the
    times, and is there for as much of the time.
    """
    in_process = in_redis = copies = 0.0
    asked = rate * (1 - demand.not_modified)
    for count, popularity in popularities(demand.pictures, demand.skew):
        here = asked * popularity / processes * PROCESS_SECONDS
        past = asked * popularity / (1 + here)
        there = past * REDIS_SECONDS
        in_process += count * popularity * here / (1 + here)
        in_redis += count * popularity / (1 + here) * there / (1 + there)
        copies += count * there / (1 + there)
    sent = 1 - demand.not_modified
    shares = {
        "304": demand.not_modified,
        "process": sent * in_process,
        "Redis": sent * in_redis,
        "disk": sent * (1 - in_process - in_redis),
    }
    return shares, copies


def popularities(pictures: int, skew: float) -> Iterator[tuple[int, float]]:
    """Yield how many pictures share which share of all views: Zipf's law, ranks of about the same weight together."""
    groups = []
    first = 1
    while first <= pictures:
        last = min(pictures, max(first, int(first * 1.1)))
        count = last - first + 1
        groups.append((count, math.sqrt(first * last) ** -skew))
        first = last + 1
    whole = sum(count * weight for count, weight in groups)
    for count, weight in groups:
        yield count, weight / whole
