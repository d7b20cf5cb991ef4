"""A queue far past arq's limits drains: its window, its expiry, its keys of former lives, clocks that do not agree."""

from __future__ import annotations

import time
from calendar import timegm
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.crash.backlog import DAY, drain, ledger_name_of, new_ids, queue_up
from tests.crash.journal import keep_journal, losses_in
from tests.integration.evidence import lines_of, rows_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Services, ended

pytestmark = pytest.mark.processes

#: More than arq reads at a time, which is 100.
PAST_THE_WINDOW = 150
#: More than the sweep lets wait in the queue, which is 300.
PAST_THE_DEPTH = 350
CLOCK = Path(__file__).parent / "clock"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A service with two workers, whose queue each test fills and drains."""
    with ended(tmp_path_factory.mktemp("backlog")) as services:
        service = services.deploy(workers=2)
        keep_journal(service)
        yield service


def assert_drained(service: Deployed, image_ids: list[str], patience: float = 600) -> None:
    drained = drain(service, image_ids, patience)
    print(drained)
    assert drained.statuses == {"ready"}
    assert sorted(drained.listed) == sorted(image_ids)
    assert losses_in(service) == []
    assert [worker.poll() for worker in service.workers] == [None] * len(service.workers)


def test_a_backlog_of_days_ago_drains_and_nobody_overtakes_it_for_ever(service: Deployed) -> None:
    """Its job keys expired long ago. Who uploads meanwhile has his turn as well."""
    image_ids = new_ids(600)
    queue_up(service, image_ids, age=3 * DAY)

    late = [str(service.upload(small_picture()).json["id"]) for _ in range(5)]

    assert_drained(service, image_ids)
    service.until(lambda: {rows_of(service)[image_id]["status"] for image_id in late} == {"ready"})


# --- What former lives have left in Redis --------------------------------------------------------------------

Plant = Callable[["redis.client.Pipeline", str, list[str]], None]


def jobs_whose_keys_have_expired(pipe: Any, ledger: str, image_ids: list[str]) -> None:
    """At the head of the queue, more than a window of them, and enough to pass for a queue."""
    before = (time.time() - 4 * DAY) * 1000
    jobs = {f"work:{ledger}:{image_id}:0": before + number for number, image_id in enumerate(image_ids)}
    pipe.zadd(f"arq:queue2:{ledger}", jobs)


def keys_that_swallow_the_next_job(pipe: Any, ledger: str, image_ids: list[str]) -> None:
    """A job that nobody has in the queue, a result that was kept, and, which arq minds, a count of tries used up."""
    for image_id in image_ids:
        for kind, value in (("job", b"left over"), ("result", b"left over"), ("retry", b"5")):
            pipe.set(f"arq:{kind}:work:{ledger}:{image_id}:0", value, ex=86_400)


def jobs_that_pass_for_running(pipe: Any, ledger: str, image_ids: list[str]) -> None:
    """As arq's own workers leave them when they die, for 110 s; here for less. Whether there are any is not asked."""
    for image_id in image_ids:
        pipe.set(f"arq:in-progress:work:{ledger}:{image_id}:0", b"1", ex=15)


@pytest.mark.parametrize(
    ("plant", "count"),
    [
        (jobs_whose_keys_have_expired, PAST_THE_DEPTH),
        (keys_that_swallow_the_next_job, PAST_THE_WINDOW),
        (jobs_that_pass_for_running, PAST_THE_WINDOW),
    ],
)
def test_what_former_lives_left_in_redis_holds_nobody_up_for_good(service: Deployed, plant: Plant, count: int) -> None:
    image_ids = new_ids(count)
    with redis.Redis(port=service.valkey_port) as client, client.pipeline(transaction=True) as pipe:
        plant(pipe, ledger_name_of(service), image_ids)
        assert all(pipe.execute())

    queue_up(service, image_ids)

    assert_drained(service, image_ids)
    with redis.Redis(port=service.valkey_port) as client:
        service.until(lambda: client.zcard(f"arq:queue2:{ledger_name_of(service)}") == 0, what="an empty queue")


# --- Clocks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-60, 60], ids=["behind", "ahead"])
@pytest.mark.parametrize("whose", ["web", "worker"])
def test_clocks_a_minute_apart_hold_nobody_up(services: Services, whose: str, seconds: int) -> None:
    service = services.deploy(webs=0, workers=0)
    wrong = {"PYTHONPATH": str(CLOCK), "CLOCK_SHIFT_SECONDS": str(seconds)}
    service.start_web(**(wrong if whose == "web" else {}))
    service.start_worker(**(wrong if whose == "worker" else {}))
    service.until(service.is_ready, what="readiness")
    keep_journal(service)

    answers = [service.upload(small_picture(), wait=20) for _ in range(5)]

    assert [answer.status for answer in answers] == [201] * 5
    image_ids = new_ids(50)
    queue_up(service, image_ids, age=60)
    assert_drained(service, image_ids)
    # They are that much apart indeed, give or take what lies between the two lines.
    (web,) = lines_of(service, message="Application startup complete.")
    (worker,) = lines_of(service, message="the worker is ready")
    apart = told_at(worker) - told_at(web)
    assert abs(apart - (seconds if whose == "worker" else -seconds)) < 30


def told_at(line: dict[str, Any]) -> int:
    return timegm(time.strptime(line["time"][:19], "%Y-%m-%dT%H:%M:%S"))
