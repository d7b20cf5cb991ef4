"""The service on an object store: what is on a machine's own disk may go at any time, and the store may be away."""

from __future__ import annotations

import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from launch.processes import free_port
from tests.integration.evidence import comparable, status_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Response, ended
from tests.objects import SECRET_KEY, ObjectServer, Troublemaker, environment, new_prefix

pytestmark = [pytest.mark.processes, pytest.mark.one_machine("it brings an object store, and an SQLite that all share")]

REDIRECTED = 20_000


@pytest.fixture(scope="module")
def trouble(object_server: ObjectServer) -> Iterator[Troublemaker]:
    trouble = Troublemaker(object_server.port)
    yield trouble
    trouble.end()


@pytest.fixture(scope="module")
def service(trouble: Troublemaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Two web processes and a worker, which share a ledger and a store, and no folder but the ledger's."""
    folder = tmp_path_factory.mktemp("objects")
    (folder / "ledger").mkdir()
    where: dict[str, Any] = environment(trouble.address)
    with ended(folder) as services:
        yield services.deploy(
            webs=2,
            ASGI_LOOK_STORAGE=new_prefix(),
            ASGI_LOOK_REDIRECT_BYTES=str(REDIRECTED),
            DATABASE_URL=f"sqlite:///{folder / 'ledger' / 'ledger.sqlite3'}",
            **where,
        )


@pytest.fixture(autouse=True)
def _behaves(trouble: Troublemaker, service: Deployed) -> Iterator[None]:
    """Have the next test begin without trouble, and no test tell a secret."""
    yield
    trouble.refuse()
    assert SECRET_KEY not in service.output


def forget_responses(service: Deployed) -> None:
    """Have every answer made anew: Redis is expendable."""
    with closing(Redis(port=service.valkey_port)) as client:
        client.flushall()


def copies(folder: Path, image_id: str) -> list[str]:
    return sorted(path.name for path in (folder / "cache").rglob(f"{image_id}.*"))


def thumbnails(service: Deployed, record: Response) -> dict[str, Response]:
    return {str(path): service.get(path) for path in record.json["thumbnails"]}


def test_an_upload_becomes_pictures_served_from_the_store_and_leaves_with_all_its_copies(
    service: Deployed, trouble: Troublemaker
) -> None:
    record = service.upload(small_picture(), wait=20)
    assert record.status == 201
    image_id = record.json["id"]

    def each_web_process_has_copies_of_its_own() -> bool:
        # Again where the notice of the image's publication, which is on its way yet, has taken them.
        for web in (0, 1):
            for path in record.json["thumbnails"]:
                forget_responses(service)
                assert service.get(path, web=web).status == 200
        return len(copies(service.data, image_id)) == 2 * len(record.json["thumbnails"])

    service.until(each_web_process_has_copies_of_its_own)
    stored = [path for kind in ("originals", "renditions") for path in (service.data / kind).rglob("*")]
    assert stored == []
    assert service.request("DELETE", f"/images/{image_id}").status == 204
    assert service.get(record.json["thumbnails"][0], web=1).status == 404
    service.until(lambda: copies(service.data, image_id) == [], what="the copies' end")
    trouble.requests.clear()


def test_copies_of_a_deleted_image_go_though_its_notice_was_not_heard(service: Deployed) -> None:
    """DELETE promises that every copy is gone, whatever becomes of a message that nobody keeps."""
    record = service.upload(small_picture(), wait=20)
    image_id, path = record.json["id"], record.json["thumbnails"][0]

    def the_other_web_process_has_a_copy() -> bool:
        forget_responses(service)
        assert service.get(path, web=1).status == 200
        return copies(service.data, image_id) != []

    service.until(the_other_web_process_has_a_copy)
    with closing(Redis(port=service.valkey_port)) as client:
        client.client_kill_filter(_type="pubsub")
        assert service.request("DELETE", f"/images/{image_id}").status == 204

    service.until(lambda: copies(service.data, image_id) == [], what="the copies' end")


def test_a_large_picture_is_fetched_from_the_store_itself(service: Deployed) -> None:
    record = service.upload(small_picture(), wait=20)
    path = record.json["image"]

    answer = service.get(path)
    head = service.request("HEAD", path)

    assert answer.status == 302
    assert answer.headers["cache-control"] == "no-store"
    # A page of another origin shows it: browsers ask this of every answer on the way.
    assert answer.headers["cross-origin-resource-policy"] == "cross-origin"
    with urllib.request.urlopen(answer.headers["location"]) as picture:  # noqa: S310 - the store's address
        content = picture.read()
        assert picture.headers["Content-Type"] == "image/jpeg"
    assert content.startswith(b"\xff\xd8")
    assert len(content) == int(head.headers["content-length"]) > REDIRECTED
    assert head.status == 200
    assert service.get(path, {"If-None-Match": head.headers["etag"]}).status == 304
    small = service.get(record.json["thumbnails"][-1])
    assert (small.status, small.headers["content-type"]) == (200, "image/jpeg")


def test_while_the_store_refuses_uploads_are_refused_and_what_was_acknowledged_is_kept(
    service: Deployed, trouble: Troublemaker
) -> None:
    """Promise 1, and that a client may come back: nothing is acknowledged that the store has not confirmed."""
    acknowledged: list[str] = []
    refused: list[Response] = []
    succeeded_after: list[str] = []
    stores_is_back = threading.Event()

    def upload_again_and_again(web: int) -> None:
        while not stores_is_back.is_set() or not succeeded_after:
            answer = service.upload(small_picture(), web=web)
            if answer.status == 202:
                acknowledged.append(answer.json["id"])
                if stores_is_back.is_set():
                    succeeded_after.append(answer.json["id"])
            else:
                refused.append(answer)

    clients = [threading.Thread(target=upload_again_and_again, args=(web,)) for web in (0, 1)]
    for client in clients:
        client.start()
    service.until(lambda: len(acknowledged) >= 4, what="the first uploads")
    trouble.refuse("GET", "HEAD", "PUT", "POST", "DELETE")
    service.until(lambda: len(refused) >= 2, what="refusals")
    trouble.refuse()
    stores_is_back.set()
    for client in clients:
        client.join(60)

    assert {answer.status for answer in refused} == {503}
    assert all(int(answer.headers["retry-after"]) > 0 for answer in refused)
    assert succeeded_after
    service.until(
        lambda: all(status_of(service, image_id) == "ready" for image_id in acknowledged),
        seconds=90,
        what="all that was acknowledged",
    )


def test_readyz_names_a_store_that_is_away(service: Deployed, trouble: Troublemaker) -> None:
    trouble.refuse("GET", "HEAD")

    answer = service.get("/readyz")

    assert (answer.status, answer.json["storage"]) == (503, "away")
    trouble.refuse()
    service.until(service.is_ready, what="readiness")


def test_a_web_process_that_starts_again_with_an_empty_disk_serves_all_there_is(
    service: Deployed, tmp_path: Path
) -> None:
    """Killed here, started there: nothing that counts was on its disk."""
    record = service.upload(small_picture(), wait=20)
    before = thumbnails(service, record)
    waiting = service.upload(small_picture())
    service.webs[0].kill()
    service.webs[0].wait()
    forget_responses(service)

    service.start_web_again(0, ASGI_LOOK_STORAGE_PATH=str(tmp_path / "empty"))
    service.until(service.is_ready, what="readiness")

    after = thumbnails(service, record)
    assert {path: comparable(answer) for path, answer in after.items()} == {
        path: comparable(answer) for path, answer in before.items()
    }
    assert before
    service.until(lambda: status_of(service, waiting.json["id"]) == "ready", what="what was waiting")


def test_a_web_process_that_sees_another_prefix_does_not_run(service: Deployed) -> None:
    stranger = service.start(service.commands["web"], PORT=str(free_port()), ASGI_LOOK_STORAGE=new_prefix())

    assert stranger.wait(30) != 0
    assert "Set them to the same values for web and worker" in service.output


def test_the_doctor_finds_nothing_wrong_with_what_the_others_have_stored(service: Deployed) -> None:
    record = service.upload(small_picture(), wait=20)
    assert record.status == 201

    doctor = service.start([sys.executable, "-m", "worker.doctor", "--digests"])

    assert doctor.wait(60) == 0, service.output
