from __future__ import annotations

import math
import random

import pytest

from bench.queueing import DAY_SECONDS, Queue, arrivals, daily, erlang_c, percentile, simulate


def test_erlangs_formula_has_the_values_of_the_textbooks() -> None:
    assert erlang_c(1, 0.7) == pytest.approx(0.7)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    assert erlang_c(5, 5.0) == 1.0


def test_with_one_slot_the_mean_wait_is_that_of_pollaczek_and_khinchine() -> None:
    service = [0.5, 1.5]  # mean 1, squared coefficient of variation 1/4

    assert Queue(1, 0.8, service).mean_wait == pytest.approx(0.8 * 1.25 / (2 * 0.2))


def test_a_batch_waits_for_its_own_as_well() -> None:
    alone, batches = Queue(1, 0.5, [1.0]), Queue(1, 0.5, [1.0], batch=4)

    # M^X/D/1: of 4 that come together the last waits for 3 at least.
    assert batches.mean_wait == pytest.approx(alone.mean_wait + 3 / (2 * 0.5))


def test_where_more_comes_than_can_be_done_nothing_is_ever_ready() -> None:
    queue = Queue(2, 3.0, [1.0])

    assert not queue.is_stable
    assert queue.mean_wait == math.inf
    assert queue.ready_within(0.95) == math.inf


def test_an_idle_service_takes_what_its_work_takes() -> None:
    queue = Queue(4, 0.001, [1.0, 2.0, 3.0])

    assert queue.ready_within(0.5) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(("slots", "use", "batch"), [(1, 0.5, 1), (2, 0.5, 1), (2, 0.8, 1), (8, 0.8, 1), (2, 0.6, 10)])
def test_the_model_agrees_with_a_simulation(slots: int, use: float, batch: int) -> None:
    """Allen and Cunneen's is an approximation, and a simulation of so many jobs one draw of many."""
    chance = random.Random(7)
    service = [0.05, 0.06, 0.07, 0.2, 0.25, 0.3]
    rate = use * slots / (sum(service) / len(service))
    queue = Queue(slots, rate, service, batch)

    run = simulate(
        arrivals(lambda now: rate, rate, 20_000 / rate, chance, batch), lambda: chance.choice(queue.jobs), slots
    )

    assert run.utilization == pytest.approx(queue.utilization, rel=0.05)
    assert sum(run.waits) / len(run.waits) == pytest.approx(queue.mean_wait, rel=0.2)
    assert run.ready_within(0.5) == pytest.approx(queue.ready_within(0.5), rel=0.15)
    assert run.ready_within(0.95) == pytest.approx(queue.ready_within(0.95), rel=0.15)


def test_jobs_get_slots_in_the_order_in_which_they_come_and_may_go_on_without() -> None:
    taken = iter([(4.0, 4.0), (1.0, 1.0), (1.0, 1.5), (1.0, 1.0)])

    run = simulate([0.0, 0.0, 0.0, 1.5], lambda: next(taken), slots=2)

    assert run.waits == [0.0, 0.0, 1.0, 0.5]
    assert run.times == [4.0, 1.0, 2.5, 1.5]
    assert run.utilization == pytest.approx(7.0 / (2 * 4.0))


def test_a_day_has_its_mean_and_its_peak() -> None:
    rate = daily(2.0, 3.0)

    seconds = [number * DAY_SECONDS / 1000 for number in range(1000)]
    assert sum(map(rate, seconds)) / 1000 == pytest.approx(2.0, rel=0.01)
    assert max(map(rate, seconds)) == rate(DAY_SECONDS / 2) == pytest.approx(6.0)


def test_as_many_come_as_the_rate_says_and_at_the_same_times_again() -> None:
    rate = daily(0.1, 3.0)

    came, again = (arrivals(rate, 0.3, DAY_SECONDS, random.Random(3)) for _ in range(2))

    assert came == again == sorted(came)
    assert len(came) == pytest.approx(8640, rel=0.05)


def test_a_percentile_is_one_of_the_values() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.0
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.95) == 4.0
