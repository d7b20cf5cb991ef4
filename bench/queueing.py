"""Queues on paper and simulated: how long jobs wait for one of several slots. Pure.

On paper: M/G/c by the approximation of Allen and Cunneen (A. O. Allen, Probability, Statistics, and Queueing Theory,
1990), with the exponential tail of waiting times that M/M/c has exactly. Batches add the wait that they add to M^X/G/1
(Chaudhry and Templeton, A First Course in Bulk Queues, 1983) on one server as fast as all slots.
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
    """Jobs that come at random, `rate` a second in batches, and hold a slot for seconds drawn from `service`."""

    slots: int
    rate: float
    service: Sequence[float]
    batch: int = 1
    #: Seconds from getting a slot to being done, job by job, if they differ from `service`.
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
        """The share of jobs that must wait."""
        alone = erlang_c(self.slots, self.utilization * self.slots)
        return 1 - (1 - alone) * min(1.0, self.slots / self.batch)

    @cached_property
    def mean_wait(self) -> float:
        """The mean seconds that a job waits; infinite if jobs come faster than they are done."""
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
        """Return the seconds within which this share of jobs is done, waiting included."""
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
    """The result of a simulation, jobs in order of arrival."""

    waits: Sequence[float]
    #: Waiting included.
    times: Sequence[float]
    utilization: float

    def ready_within(self, share: float) -> float:
        return percentile(self.times, share)


def simulate(arrivals: Sequence[float], draw: Callable[[], tuple[float, float]], slots: int) -> Simulated:
    """Simulate jobs that come at these seconds; first come, first served.

    For each job is drawn how long it holds the slot, and how long it takes from then to be done.
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
    """Return the arrivals of a Poisson process whose rate changes over time, up to `most`.

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

    A raised cosine, to the power that makes its top so many times its mean.
    """

    def top(power: float) -> float:
        return math.sqrt(math.pi) * math.gamma(power + 1) / math.gamma(power + 0.5)

    least, most = 0.0, 100.0
    for _ in range(40):
        power = (least + most) / 2
        least, most = (power, most) if top(power) < peak else (least, power)
    return lambda now: mean * peak * ((1 - math.cos(2 * math.pi * now / DAY_SECONDS)) / 2) ** most


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan
