"""Bulk work makes room for an upload where no slot is free, and is done later, without blame."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.crash.journal import keep_journal, losses_in
from tests.integration.evidence import attempts_of, is_at_rest, lines_of, query, row_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Services, children_of

pytestmark = pytest.mark.processes

DEMAND, BULK = 1, 3


def make_again(service: Deployed, image_id: str, lane: int) -> None:
    """Have an image's renditions made again, by the ledger alone: the sweep enqueues the work."""
    values = f"work = 'renditions', lane = {lane}, turn = {time.time()}, due = {time.time()}"
    query(service, f"UPDATE images SET {values} WHERE id = '{image_id}'")  # noqa: S608 - of ours


def begin_stuck(service: Deployed, image_id: str, lane: int) -> int:
    """Have an image's renditions begun by a child that will never end them; return the child's process id."""
    (child,) = children_of(service.workers[0].pid)
    os.kill(child, signal.SIGSTOP)
    make_again(service, image_id, lane)
    service.until(lambda: row_of(service, image_id)["worker"] is not None, what="a claim")
    return child


def test_bulk_work_makes_room_for_an_upload_and_is_done_afterwards(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_RENDER_SLOTS="1")
    bulk = str(service.upload(small_picture(), wait=20).json["id"])
    service.until(lambda: is_at_rest(row_of(service, bulk)), what="settling")
    keep_journal(service)
    child = begin_stuck(service, bulk, BULK)

    upload = service.upload(small_picture(), wait=20)

    assert upload.status == 201
    assert child not in children_of(service.workers[0].pid)
    service.until(lambda: is_at_rest(row_of(service, bulk)), what="the bulk work's end")
    row = row_of(service, bulk)
    assert (row["status"], row["published"], row["losses"], row["failures"]) == ("ready", 3, 0, 0)
    assert attempts_of(service, bulk) == ["3"]
    assert losses_in(service) == []
    assert [line["why"] for line in lines_of(service, message="handed back", image=bulk)] == ["preempted"]


def test_without_redis_bulk_work_makes_room_as_well(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_RENDER_SLOTS="1")
    bulk = str(service.upload(small_picture(), wait=20).json["id"])
    service.until(lambda: is_at_rest(row_of(service, bulk)), what="settling")
    begin_stuck(service, bulk, BULK)
    service.valkey.kill()
    service.valkey.wait()

    upload = str(service.upload(small_picture()).json["id"])

    service.until(lambda: row_of(service, upload)["status"] == "ready", what="readiness")
    service.until(lambda: row_of(service, bulk)["published"] == 3, what="the bulk work's end")
    service.start_valkey()
    service.until(lambda: is_at_rest(row_of(service, bulk)), what="settling")


def test_work_that_somebody_waits_for_is_not_put_off(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_RENDER_SLOTS="1")
    wanted = str(service.upload(small_picture(), wait=20).json["id"])
    service.until(lambda: is_at_rest(row_of(service, wanted)), what="settling")
    child = begin_stuck(service, wanted, DEMAND)

    upload = str(service.upload(small_picture(), wait=2).json["id"])

    assert row_of(service, upload)["status"] == "queued"
    assert child in children_of(service.workers[0].pid)
    os.kill(child, signal.SIGCONT)
    service.until(lambda: row_of(service, upload)["status"] == "ready", what="readiness")
    assert row_of(service, wanted)["published"] == 2
