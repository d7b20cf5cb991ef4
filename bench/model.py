"""The capacity model: machines for so many uploads and views a day, from the costs of one of each. Pure.

The costs of an image and of a view are measured (`bench.pace`, `bench.views`). The share of views that find a copy
follows from the popularity of pictures (Zipf, with the exponent that Breslau et al. found for the web, INFOCOM 1999)
and from the life of a copy (Jung, Berger and Balakrishnan, Modeling TTL-based Internet caches, INFOCOM 2003). How long
images wait comes from `bench.queueing`. Assumptions are the constants below.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.figures import Figure
from bench.queueing import DAY_SECONDS, Queue

#: The most use of cores, slots and a web process that is planned for at the peak.
MOST_USE = 0.7
#: Seconds that a copy of a picture lives in a web process, and in Redis.
PROCESS_SECONDS, REDIS_SECONDS = 2.0, 600.0
#: Megabytes of an original, its JPEG and its thumbnails for each megapixel, of photographs (docs/growth.md).
ORIGINAL_MB, JPEG_MB, THUMBNAILS_MB = 0.33, 0.2, 0.067
#: Megabytes of Redis besides copies: itself, a queue of 300, tokens, beats.
REDIS_BASE_MB = 16.0
#: Requests for the record until an image is ready.
POLLS = 2.0
MOST_MACHINES = 1000

#: Megapixels, and their share of all uploads.
Mix = Mapping[float, float]


@dataclass(frozen=True)
class Costs:
    """What images of one size cost, in milliseconds."""

    megapixels: float
    #: Images a second with a slot for each core.
    rate: float
    #: CPU by kind of process.
    cpu: Mapping[str, float]
    #: From upload to ready on an idle service, image by image.
    alone: Sequence[float]
    #: From claim to ready while every slot was busy.
    busy: Sequence[float]


@dataclass(frozen=True)
class Machine:
    """What was measured on a machine."""

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
        """Read it from the figures of bench.scale and bench.rows. Raises KeyError if one is missing."""
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
        """Return the seconds that images of each size hold a slot, as varied as their renders.

        Their mean is the number of slots divided by the highest rate, at which every slot is busy.
        """
        mean = self._line(lambda size: self.cores / size.rate)
        return {megapixels: self._varied(megapixels, mean(megapixels)) for megapixels in mix}

    def taken(self, mix: Mix, use: float) -> dict[float, list[float]]:
        """Return the seconds from claim to ready, with the share `use` of all slots busy."""
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
        """Interpolate a value for other sizes, on the line through the smallest and the largest."""
        first, last = self.sizes[0], self.sizes[-1]
        slope = (value(last) - value(first)) / (last.megapixels - first.megapixels)
        # A small image still costs something, even if the line is steep.
        return lambda megapixels: max(value(first) + slope * (megapixels - first.megapixels), value(first) / 4)


def _rest(names: Mapping[str, Figure], start: str) -> list[str]:
    return [name.removeprefix(start) for name in names if name.startswith(start)]


def _mean(mix: Mix, value: Callable[[float], float]) -> float:
    return sum(share * value(megapixels) for megapixels, share in mix.items()) / sum(mix.values())


def samples(service: Mapping[float, Sequence[float]], mix: Mix, count: int = 200) -> list[float]:
    """Return the seconds of `count` images, sizes in the shares of the mix, evenly out of sorted ones."""
    drawn = []
    for megapixels, share in mix.items():
        ordered = service[megapixels]
        ours = max(1, round(count * share / sum(mix.values())))
        drawn += [ordered[(2 * number + 1) * len(ordered) // (2 * ours)] for number in range(ours)]
    return drawn


@dataclass(frozen=True)
class Demand:
    """The load of a service."""

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
    """The processes and machines for a demand, and their use in the busiest hour."""

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
    """Return the fewest processes and machines that meet a demand. Raises ValueError past MOST_MACHINES."""
    uploads, views = (a_day / DAY_SECONDS * demand.peak for a_day in (demand.uploads, demand.views))
    cpu = machine.cpu(demand.mix)
    for machines in range(1, MOST_MACHINES + 1):
        web, shares, copies, view = _web(machine, demand, uploads * cpu["web"])
        viewing = views * view
        # The measured cost of an upload does not include polls.
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
    """Return the queue for so many uploads a second, while views take the share `viewing` of all cores."""
    left, slots = 1 - viewing, machine.cores * workers
    service = [seconds / left for seconds in samples(machine.service(mix), mix)]
    use = min(1.0, uploads * statistics.fmean(service) / slots)
    taken = [seconds / left for seconds in samples(machine.taken(mix, use), mix)]
    return Queue(slots, uploads, service, batch, taken)


def _web(machine: Machine, demand: Demand, receiving: float) -> tuple[int, dict[str, float], float, float]:
    """Return the number of processes, the share of each kind of view, the copies, and a view's CPU seconds."""
    rate = demand.views / DAY_SECONDS * demand.peak
    for processes in range(1, 100 * MOST_MACHINES):
        shares, copies = view_shares(demand, rate, processes)
        view = sum(share * machine.views[kind] for kind, share in shares.items()) / 1000
        if rate * view + receiving <= MOST_USE * processes:
            break
    return processes, shares, copies, view


def view_shares(demand: Demand, rate: float, processes: int) -> tuple[dict[str, float], float]:
    """Return the share of views that each place answers, and how many copies Redis has.

    A copy that lives for T seconds and is asked for r times a second at random answers r T / (1 + r T) of the requests,
    and exists for the same share of the time.
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
    """Yield numbers of pictures and the share of views of each, by Zipf's law, similar ranks together."""
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
