"""Queues on paper and simulated: how long jobs wait for one of several slots. Pure.

On paper: M/G/c by the approximation of Allen and Cunneen (A. O. Allen, Probability, Statistics, and Queueing Theory,
1990), whose waiting times have the exponential tail that those of M/M/c have exactly; jobs that come in batches add
what they add to M^X/G/1 (Chaudhry and Templeton, A First Course in Bulk Queues, 1983) on a server as fast as all.
"""

from __future__ import annotations

import heapq
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

DAY_SECONDS = 86_400.0


@dataclass(frozen=True)
class Queue:
    """Jobs that come at random, `rate` a second in batches of so many, and have a slot for seconds like `service`."""

    slots: int
    rate: float
    service: Sequence[float]
    batch: int = 1
    #: Seconds from having a slot to being done, job by job, where that is not the same.
    taken: Sequence[float] = ()

    @property
    def jobs(self) -> list[tuple[float, float]]:
        """Seconds in the slot, and to being done, of each kind of job."""
        return list(zip(self.service, self.taken or self.service, strict=True))

    @cached_property
    def utilization(self) -> float:
        return self.rate * statistics.fmean(self.service) / self.slots

    @property
    def is_stable(self) -> bool:
        return self.utilization < 1

    @cached_property
    def waiting_share(self) -> float:
        """The share of jobs that find no free slot."""
        alone = erlang_c(self.slots, self.utilization * self.slots)
        return 1 - (1 - alone) * min(1.0, self.slots / self.batch)

    @cached_property
    def mean_wait(self) -> float:
        """The seconds that a job waits on average; infinite where more comes than can be done."""
        if not self.is_stable:
            return math.inf
        mean = statistics.fmean(self.service)
        variation = statistics.pvariance(self.service) / mean**2
        left = self.slots * (1 - self.utilization)
        alone = erlang_c(self.slots, self.utilization * self.slots) * mean / left * (1 + variation) / 2
        return alone + (self.batch - 1) * mean / (2 * left)

    def waited_at_most(self, seconds: float) -> float:
        """Return the share of jobs that wait no longer."""
        if seconds < 0:
            return 0.0
        if not self.is_stable:
            return 0.0
        share, mean = self.waiting_share, self.mean_wait
        return 1 - share * math.exp(-seconds * share / mean) if share * mean > 0 else 1.0

    def ready_within(self, share: float) -> float:
        """Return the seconds within which this share of jobs is done, their waiting included."""
        if not self.is_stable:
            return math.inf

        def done(seconds: float) -> float:
            return statistics.fmean(self.waited_at_most(seconds - taken) for _, taken in jobs)

        jobs = self.jobs
        least, most = 0.0, max(taken for _, taken in jobs)
        while done(most) < share:
            most *= 2
        for _ in range(30):
            middle = (least + most) / 2
            least, most = (middle, most) if done(middle) < share else (least, middle)
        return most


def erlang_c(slots: int, offered: float) -> float:
    """Return the share of jobs that wait in M/M/c: Erlang's second formula, by the recursion of his first."""
    if offered >= slots:
        return 1.0
    blocked = 1.0
    for count in range(1, slots + 1):
        blocked = offered * blocked / (count + offered * blocked)
    use = offered / slots
    return blocked / (1 - use * (1 - blocked))


@dataclass(frozen=True)
class Simulated:
    """What became of the jobs of one simulation, in the order in which they came."""

    waits: Sequence[float]
    #: Waiting included.
    times: Sequence[float]
    utilization: float

    def ready_within(self, share: float) -> float:
        return percentile(self.times, share)


def simulate(arrivals: Sequence[float], draw: Callable[[], tuple[float, float]], slots: int) -> Simulated:
    """Have jobs that come at these seconds wait for a slot, first come, first served.

    For each is drawn how long it has the slot, and how long it takes from then on to be done.
    """
    free = [0.0] * slots
    waits, times, busy = [], [], 0.0
    for arrival in arrivals:
        begun = max(arrival, heapq.heappop(free))
        held, taken = draw()
        heapq.heappush(free, begun + held)
        busy += held
        waits.append(begun - arrival)
        times.append(begun + taken - arrival)
    span = max(free) if arrivals else 1.0
    return Simulated(waits, times, busy / (span * slots))


def arrivals(
    rate: Callable[[float], float], most: float, seconds: float, chance: random.Random, batch: int = 1
) -> list[float]:
    """Return when jobs come: a Poisson process whose rate follows the clock, `most` at the most.

    By thinning (Lewis and Shedler, Naval Research Logistics Quarterly 26, 1979): candidates come at the highest rate.
    """
    times: list[float] = []
    now = chance.expovariate(most / batch)
    while now < seconds:
        if chance.random() * most < rate(now):
            times += [now] * batch
        now += chance.expovariate(most / batch)
    return times


def daily(mean: float, peak: float) -> Callable[[float], float]:
    """Return a rate over the seconds of a day: `peak` times the mean at noon, little at night.

    A raised cosine to the power at which its top is so many times its mean.
    """

    def top(power: float) -> float:
        return math.sqrt(math.pi) * math.gamma(power + 1) / math.gamma(power + 0.5)

    least, most = 0.0, 100.0
    for _ in range(40):
        power = (least + most) / 2
        least, most = (power, most) if top(power) < peak else (least, power)
    return lambda now: mean * peak * ((1 - math.cos(2 * math.pi * now / DAY_SECONDS)) / 2) ** most


def percentile(values: Sequence[float], share: float) -> float:
    """Return what this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
