from __future__ import annotations

from dataclasses import replace

import pytest

from bench.capacity import table_of
from bench.checks import check, table_of_checks
from bench.figures import Figure
from bench.model import Costs, Demand, Machine, plan, popularities, queue_of, view_shares

SMALL = Costs(3.0, 20.0, {"web": 5.0, "worker": 10.0, "child": 40.0, "Valkey": 1.0}, (50.0, 60.0), (80.0, 120.0))
LARGE = Costs(12.0, 8.0, {"web": 8.0, "worker": 16.0, "child": 150.0, "Valkey": 1.0}, (200.0, 220.0), (230.0, 270.0))
VIEWS = {"disk": 1.5, "Redis": 0.4, "process": 0.2, "304": 0.2, "record": 1.0}
MACHINE = Machine(2, [SMALL, LARGE], VIEWS, 1.05, {"SQLite": 900.0})


def test_a_machine_is_found_among_the_figures() -> None:
    figures = [Figure("scale", f"CPU for a view, {kind}", value, "ms") for kind, value in VIEWS.items()]
    for size in (SMALL, LARGE):
        name = f"{size.megapixels:g} MP"
        figures += [
            Figure("scale", f"images a second, {name}, 1 worker", size.rate, "/s"),
            Figure("scale", f"CPU for an image, {name}", 1.0, "ms", runs={k: [v] for k, v in size.cpu.items()}),
            Figure(
                "scale",
                f"upload to ready, {name}, alone",
                1.0,
                "ms",
                runs={"alone": list(size.alone), "from its claim, every slot busy": list(size.busy)},
            ),
        ]
    figures.append(
        Figure("scale", "Redis for a copy of a thumbnail", 1.05, "kB", runs={"in Redis": [21.0], "as sent": [20.0]})
    )
    figures.append(Figure("scale", "a row, SQLite", 900.0, "bytes"))

    machine = Machine.of(figures, 2)

    assert machine.views == VIEWS
    assert machine.copy_factor == pytest.approx(1.05)
    assert machine.rows == {"SQLite": 900.0}
    assert machine.rate({3.0: 1.0}) == pytest.approx(20.0)
    assert machine.cpu({12.0: 1.0}) == pytest.approx({"web": 0.008, "worker": 0.016, "child": 0.15, "Valkey": 0.001})


def test_a_size_in_between_costs_what_lies_in_between() -> None:
    assert MACHINE.cpu({7.5: 1.0})["child"] == pytest.approx(0.095)
    assert 1 / MACHINE.rate({3.0: 0.5, 12.0: 0.5}) == pytest.approx((1 / 20 + 1 / 8) / 2)


def test_an_image_takes_longer_the_more_is_rendered_and_viewed_beside_it() -> None:
    mix = {3.0: 1.0}
    alone, busy, beside_views = (
        queue_of(MACHINE, mix, uploads, viewing).jobs[0] for uploads, viewing in ((0.0, 0.0), (20.0, 0.0), (10.0, 0.5))
    )

    # In its slot, and until it is ready: 55 ms alone, 100 ms where every slot is busy, twice that on half of the cores.
    assert [seconds / 0.8 for seconds in alone] == pytest.approx([0.1, 0.055])
    assert [seconds / 0.8 for seconds in busy] == pytest.approx([0.1, 0.1])
    assert [seconds / 0.8 for seconds in beside_views] == pytest.approx([0.2, 0.2])


def test_what_a_machine_renders_at_the_most_fills_its_slots() -> None:
    mix = {3.0: 0.5, 12.0: 0.5}

    assert queue_of(MACHINE, mix, MACHINE.rate(mix)).utilization == pytest.approx(1.0)
    assert not queue_of(MACHINE, mix, 1.01 * MACHINE.rate(mix)).is_stable


def test_a_small_service_takes_one_of_each() -> None:
    answer = plan(MACHINE, Demand(1_000, 100_000))

    assert (answer.web, answer.workers, answer.machines) == (1, 1, 1)
    assert answer.queue.ready_within(0.95) < 1.0


def test_ten_times_as_much_takes_not_quite_ten_times_as_many() -> None:
    some, many = (plan(MACHINE, Demand(uploads, 100 * uploads)) for uploads in (200_000, 2_000_000))

    assert 5 * some.workers <= many.workers < 10 * some.workers
    assert 9 * some.cores < many.cores < 10 * some.cores  # more views find a copy
    assert many.disk_gb_a_month == pytest.approx(10 * some.disk_gb_a_month)


def test_albums_take_longer_and_more_workers_where_they_may_not() -> None:
    demand = Demand(20_000, 0)

    albums = replace(demand, batch=50)

    assert plan(MACHINE, albums).queue.ready_within(0.95) > plan(MACHINE, demand).queue.ready_within(0.95)
    assert plan(MACHINE, replace(albums, within=2.0)).workers > plan(MACHINE, albums).workers


def test_each_view_is_answered_from_one_place() -> None:
    shares, copies = view_shares(Demand(0, 0), rate=100.0, processes=1)

    assert sum(shares.values()) == pytest.approx(1.0)
    assert all(share > 0 for share in shares.values())
    assert 0 < copies < Demand(0, 0).pictures


def test_one_picture_that_everybody_views_is_in_every_process() -> None:
    shares, copies = view_shares(Demand(0, 0, pictures=1, not_modified=0.0), rate=1000.0, processes=2)

    assert shares["process"] == pytest.approx(1000 / 1001, rel=1e-3)
    assert copies == pytest.approx(1.0, rel=0.01)


def test_more_processes_have_fewer_of_their_own_copies_each() -> None:
    one, many = (view_shares(Demand(0, 0), 100.0, processes)[0]["process"] for processes in (1, 20))

    assert many < one


def test_popularities_are_shares_of_all_pictures() -> None:
    groups = list(popularities(100_000, 0.8))

    assert sum(count for count, _ in groups) == 100_000
    assert sum(count * share for count, share in groups) == pytest.approx(1.0)
    assert groups[0][1] > 100 * groups[-1][1]


def test_an_operator_gets_a_table_with_a_column_for_each_demand() -> None:
    demands = [Demand(1_000, 100_000), Demand(1_000_000, 100_000_000)]

    lines = table_of(demands, [plan(MACHINE, demand) for demand in demands]).splitlines()

    assert lines[0] == "| uploads a day | 1,000 | 1,000,000 |"
    assert {line.count("|") for line in lines} == {4}
    assert "| **web processes** | 1 |" in "\n".join(lines)


@pytest.mark.parametrize("use", [0.5, 0.8])
def test_what_is_predicted_for_a_run_lies_among_simulations_of_it(use: float) -> None:
    one = check(MACHINE, use)

    times = sorted(run.ready_within(0.95) for run in one.runs)
    assert one.queue.utilization == pytest.approx(use)
    assert times[5] < one.queue.ready_within(0.95) < times[-5]
    assert f"**{use:.0%}**" in table_of_checks([one])
