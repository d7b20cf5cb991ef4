"""Workers and children that die, freeze or are told to stop in the middle of a render: one outcome, published once."""

from __future__ import annotations

import os
import signal

import pytest

from tests.integration.evidence import (
    attempts_of,
    comparable,
    is_at_rest,
    lines_of,
    renditions_of,
    row_of,
    rows_of,
    status_of,
)
from tests.integration.faults import begin_render, freeze, let_request_pass, thaw, worker_of
from tests.integration.service import Deployed, Services, children_of

pytestmark = pytest.mark.processes


def until_ready(service: Deployed, image_id: str) -> None:
    """Return when the image is ready and nothing about it is owed any more."""
    service.until(lambda: row_of(service, image_id)["status"] == "ready", seconds=60, what="readiness")
    service.until(lambda: is_at_rest(row_of(service, image_id)), what="settling")
    assert status_of(service, image_id) == "ready"


def test_another_worker_claims_within_twenty_seconds_what_a_killed_one_had(services: Services) -> None:
    """The bound is the contract: a lease of 12 s, a pass of the sweep every 2.5 s at the latest."""
    service = services.deploy(workers=2)
    image_id = begin_render(service)
    killed = worker_of(service, image_id)

    killed.kill()

    service.until(lambda: row_of(service, image_id)["attempt"] == 2, seconds=20, what="the second attempt")
    until_ready(service, image_id)
    row = row_of(service, image_id)
    assert (row["published"], row["losses"], row["failures"]) == (2, 0, 0)
    assert attempts_of(service, image_id) == ["2"]
    (over,) = lines_of(service, message="a lease was over", image=image_id)
    assert over["losses"] == 1


def test_a_worker_that_was_frozen_changes_nothing_when_it_wakes(services: Services) -> None:
    """What it had stored before it froze is put there by the test: that moment is too short to be met."""
    service = services.deploy(workers=2)
    image_id = begin_render(service)
    sleeper = worker_of(service, image_id)
    freeze(sleeper)
    until_ready(service, image_id)
    paths = ["/images", f"/images/{image_id}", f"/images/{image_id}.jpeg"]
    paths += service.get(f"/images/{image_id}").json["thumbnails"]
    published = [comparable(service.get(path)) for path in paths]
    row = row_of(service, image_id)
    (folder := renditions_of(service, image_id) / "1").mkdir()
    (folder / "image.jpeg").write_bytes(b"from an attempt that has lost")

    thaw(sleeper)

    gave_up = {"message": "others have taken the image from this attempt", "image": image_id}
    service.until(lambda: lines_of(service, **gave_up), what="the sleeper's giving up")
    service.until(lambda: attempts_of(service, image_id) == ["2"], what="the leftovers' end")
    assert [comparable(service.get(path)) for path in paths] == published
    assert row_of(service, image_id) == row
    # It is none the worse for it: alone, it renders the next one.
    (other,) = (worker for worker in service.workers if worker is not sleeper)
    other.terminate()
    other.wait(20)
    second = begin_render(service)
    assert worker_of(service, second) is sleeper
    until_ready(service, second)


def test_a_worker_that_wakes_while_another_renders_its_image_publishes_nothing(services: Services) -> None:
    """Its child has finished long ago, and the row is being processed, as it was: only the attempt's number differs."""
    service = services.deploy(workers=2)
    image_id = begin_render(service)
    sleeper = worker_of(service, image_id)
    freeze(sleeper)
    service.until(lambda: row_of(service, image_id)["attempt"] == 2, what="the second attempt")

    thaw(sleeper)

    until_ready(service, image_id)
    assert row_of(service, image_id)["published"] == 2
    service.until(lambda: attempts_of(service, image_id) == ["2"], what="the leftovers' end")
    assert lines_of(service, message="others have taken the image from this attempt", image=image_id, attempt=1)


def test_a_killed_child_costs_its_image_one_attempt(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_RENDER_SLOTS="1")
    image_id = begin_render(service)
    (child,) = children_of(service.workers[0].pid)

    os.kill(child, signal.SIGKILL)

    until_ready(service, image_id)
    assert row_of(service, image_id)["published"] == 2
    assert attempts_of(service, image_id) == ["2"]
    assert lines_of(service, message="an attempt was lost", image=image_id)
    assert child not in children_of(service.workers[0].pid)


def test_a_child_that_crashes_once_costs_its_image_one_attempt(services: Services) -> None:
    """Any signal that we did not send is the decoder's own doing, and once may be chance."""
    service = services.deploy(ASGI_LOOK_RENDER_SLOTS="1")
    image_id = begin_render(service)
    (child,) = children_of(service.workers[0].pid)

    os.kill(child, signal.SIGSEGV)

    service.until(lambda: row_of(service, image_id)["attempt"] == 2, what="the second attempt")
    assert row_of(service, image_id)["failures"] == 1
    until_ready(service, image_id)
    assert row_of(service, image_id)["published"] == 2


def test_a_worker_told_to_stop_hands_back_what_it_cannot_finish(services: Services) -> None:
    # Without any grace its own request for a job, which lasts half a second, may get this image once more.
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS="1")
    image_id = begin_render(service)
    (stopped,) = service.workers
    service.start_worker()

    stopped.terminate()

    assert stopped.wait(20) == 0
    service.until(lambda: row_of(service, image_id)["attempt"] == 2, what="the second attempt")
    row = row_of(service, image_id)
    assert (row["losses"], row["failures"]) == (0, 0)
    until_ready(service, image_id)
    assert attempts_of(service, image_id) == ["2"]
    assert lines_of(service, message="handed back", image=image_id)


def test_a_worker_told_to_stop_finishes_what_it_can(services: Services) -> None:
    """However often it is told so at once: Heroku may signal a process more than once."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS="60")
    image_id = begin_render(service)

    for _ in range(3):
        service.workers[0].terminate()

    assert service.workers[0].wait(60) == 0
    assert status_of(service, image_id) == "ready"
    assert row_of(service, image_id)["published"] == 1


def test_a_worker_told_twice_to_stop_hands_back_at_once(services: Services) -> None:
    """Its grace is longer than the test may last."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS="3600", ASGI_LOOK_RENDER_SLOTS="1")
    (worker,) = service.workers
    (child,) = children_of(worker.pid)
    os.kill(child, signal.SIGSTOP)
    image_id = begin_render(service)
    worker.terminate()
    service.until(lambda: lines_of(service, message="the worker takes nothing new"))
    let_request_pass()
    worker.terminate()

    assert worker.wait(20) == 0
    assert status_of(service, image_id) == "queued"
    assert [row["losses"] for row in rows_of(service).values()] == [0]
    service.start_worker()
    until_ready(service, image_id)
