"""The service with its ledger on PostgreSQL, in real processes: what breaks on the way loses no image."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from launch.processes import HERE
from tests.integration.evidence import attempts_of, files_of, is_at_rest, row_of, rows_of, status_of
from tests.integration.faults import begin_render, freeze, small_picture, thaw, worker_of
from tests.integration.service import Deployed, Response, Services
from tests.postgresql import Postgresql, execute

pytestmark = [pytest.mark.processes, pytest.mark.one_machine("it brings a PostgreSQL, and a disk that all share")]


@pytest.fixture
def url(postgresql: Postgresql) -> Iterator[str]:
    """The address of an empty ledger."""
    url = postgresql.database()
    yield url
    postgresql.drop(url)


def until_settled(service: Deployed) -> None:
    """Return when every image is ready, and owes nothing any more."""
    service.until(
        lambda: all(row["status"] == "ready" and is_at_rest(row) for row in rows_of(service).values()),
        seconds=90,
        what="settling",
    )


def test_an_upload_becomes_a_picture_and_who_has_another_ledger_refuses_to_start(
    services: Services, url: str, postgresql: Postgresql
) -> None:
    service = services.deploy(DATABASE_URL=url.replace("postgresql://", "postgres://"))

    answer = service.upload(small_picture(), wait=20)
    listed = service.get("/images").json
    other = service.start_worker(DATABASE_URL=(other_url := postgresql.database()))

    assert answer.status == 201
    assert [image["id"] for image in listed] == [answer.json["id"]]
    assert service.get(answer.json["image"]).status == 200
    assert service.get("/readyz").json["ledger"] == "ok"
    until_settled(service)
    doctor = subprocess.run([sys.executable, "-m", "worker.doctor"], cwd=HERE, env=service.env, check=False)
    assert doctor.returncode == 0
    assert not (service.data / "ledger.sqlite3").exists()
    assert other.wait(30) == 1
    assert "the storage already holds originals of another one." in service.output
    assert "Set DATABASE_URL to the ledger of these originals" in service.output
    postgresql.drop(other_url)


def test_another_worker_goes_on_with_what_a_killed_one_had(services: Services, url: str) -> None:
    service = services.deploy(workers=2, DATABASE_URL=url)
    image_id = begin_render(service)

    worker_of(service, image_id).kill()

    service.until(lambda: row_of(service, image_id)["attempt"] == 2, seconds=30, what="the second attempt")
    until_settled(service)
    row = row_of(service, image_id)
    assert (row["published"], row["losses"], row["failures"]) == (2, 0, 0)
    assert attempts_of(service, image_id) == ["2"]


def test_a_worker_frozen_in_its_commit_does_not_hold_the_counter(services: Services, url: str) -> None:
    """It is frozen between taking the next place in the list and its commit: the server ends its transaction."""
    service = services.deploy(DATABASE_URL=url, ASGI_LOOK_RENDER_SLOTS="1")
    for statement in (
        "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2); RETURN NEW; END'",
        "CREATE TRIGGER dawdle AFTER UPDATE OF sequence ON deployment FOR EACH ROW EXECUTE FUNCTION dawdle()",
    ):
        execute(url, statement)
    first = service.upload(small_picture()).json["id"]
    sleeping = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'"
    service.until(lambda: execute(url, sleeping), what="a publication")
    freeze(service.workers[0])
    assert execute(url, sleeping)
    service.start_worker()

    second = service.upload(small_picture(), wait=20)

    assert (second.status, second.json["sequence"]) == (201, 1), second
    thaw(service.workers[0])
    until_settled(service)
    assert [image["id"] for image in service.get("/images").json] == [second.json["id"], first]


def test_a_restart_in_the_middle_of_uploads_loses_nothing_that_was_acknowledged(
    services: Services, own_postgresql: Postgresql
) -> None:
    """Who is refused is told to come back, leaves nothing behind, and succeeds then."""
    service = services.deploy(webs=2, workers=2, DATABASE_URL=own_postgresql.database())
    acknowledged: list[str] = []
    refused: list[Response] = []
    enough = threading.Event()

    def upload(number: int) -> None:
        while not enough.is_set():
            answer = service.upload(small_picture(), web=number % 2)
            if answer.status == 202:
                acknowledged.append(answer.json["id"])
            else:
                refused.append(answer)
                # As told, but not as long: there are many of us.
                enough.wait(0.1)

    uploaders = [threading.Thread(target=upload, args=(number,)) for number in range(4)]
    for uploader in uploaders:
        uploader.start()
    service.until(lambda: len(acknowledged) >= 8, what="uploads")
    own_postgresql.stop()
    service.until(lambda: len(refused) >= 8, what="refusals")
    own_postgresql.start()
    before = len(acknowledged)
    service.until(lambda: len(acknowledged) >= before + 8, what="uploads that succeed again")
    enough.set()
    for uploader in uploaders:
        uploader.join()

    assert {(answer.status, answer.headers.get("retry-after")) for answer in refused} == {(503, "5")}
    until_settled(service)
    rows = rows_of(service)
    assert acknowledged == [image_id for image_id in acknowledged if image_id in rows]
    assert {status_of(service, image_id) for image_id in acknowledged} == {"ready"}
    assert sorted(row["sequence"] for row in rows.values()) == list(range(1, len(rows) + 1))
    originals = {path.rpartition("/")[2] for path in files_of(service) if path.startswith("originals")}
    assert originals >= rows.keys()
    # Of those whose commit was under way when the server went, nobody can tell before it is back.
    assert len(originals - set(acknowledged)) <= len(uploaders)
