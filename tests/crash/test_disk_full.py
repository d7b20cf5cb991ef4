"""Disks that are full, read-only or gone: what cannot be kept is refused, and what was taken waits for better times."""

from __future__ import annotations

import functools
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from redis import Redis
from redis.exceptions import ResponseError

from tests.crash.disks import bind, bound, filled, memory_disk, unbind
from tests.integration.evidence import files_of, holdings_of, lines_of, original_of, row_of, rows_of, status_of
from tests.integration.faults import RawClient, begin_render, frozen_worker, small_picture
from tests.integration.service import Deployed, Response, Service, children_of, ended
from tests.integration.test_uploads import FRAMINGS, Framing, request
from tests.worker.pictures import encoded

pytestmark = [
    pytest.mark.processes,
    pytest.mark.usefixtures("mounting"),
    pytest.mark.one_machine("what a machine's disk has no room for"),
]

KIB = 1024
MIB = 1024 * KIB
FLOOR = 16 * MIB


@functools.cache
def swelling_picture() -> bytes:
    """Return a file of some kilobytes whose JPEG has megabytes: noise that repeats itself."""
    noise = np.random.default_rng(7).integers(0, 256, (8, 64), np.uint8)
    return encoded(Image.fromarray(np.tile(noise, (200, 40))), "PNG").getvalue()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mounting: None) -> Iterator[Deployed]:
    """A service that keeps everything on one small disk, and takes uploads to its last byte.

    An upload of unknown length counts as the largest, which must fit on the disk.
    """
    folder = tmp_path_factory.mktemp("small")
    with memory_disk(folder / "disk", 32 * MIB) as disk, ended(folder) as services:
        yield services.deploy(
            data=disk / "data", ASGI_LOOK_FREE_DISK_FLOOR="0", ASGI_LOOK_MAX_UPLOAD_BYTES=str(8 * MIB)
        )


def test_below_the_floor_an_upload_is_refused_before_it_is_read(tmp_path: Path) -> None:
    """Its client, who waits for `100 Continue` before it sends a byte, is told `507` instead."""
    with memory_disk(tmp_path / "disk", 64 * MIB) as disk, ended(tmp_path) as services:
        service = services.deploy(data=disk / "data", ASGI_LOOK_FREE_DISK_FLOOR=str(FLOOR))
        before = holdings_of(service)

        with filled(disk, leave=FLOOR - MIB):
            for framing in FRAMINGS:
                headers, _ = framing(small_picture())
                answer = all_that_is_answered(service, request(headers, more=b"Expect: 100-continue\r\n"))
                assert answer.startswith(b"HTTP/1.1 507 ")
                assert b"urn:asgilook:problem:storage-full" in answer
                assert b"100 Continue" not in answer

        assert holdings_of(service) == before
        assert service.upload(small_picture(), wait=20).status == 201


def test_an_upload_that_would_go_below_the_floor_is_refused_and_a_smaller_one_is_taken(service: Deployed) -> None:
    with filled(service.data, leave=2 * MIB):
        answer = all_that_is_answered(service, request(b"Content-Length: %d\r\n" % (3 * MIB)))

        assert answer.startswith(b"HTTP/1.1 507 ")
        assert service.upload(small_picture(), wait=20).status == 201


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_upload_that_finds_the_disk_full_before_its_end_is_refused_and_leaves_nothing(
    service: Deployed, framing: Framing
) -> None:
    headers, body = framing(small_picture() + bytes(2 * MIB))
    before = holdings_of(service)
    client = RawClient(service.ports[0])
    with closing(client.socket):
        client.send(request(headers) + body[: -128 * KIB])
        # Most of it: a refusal while much more is on its way resets the connection.
        service.until(lambda: draft_bytes(service) > MIB, what="a draft")

        with filled(service.data):
            client.send(body[-128 * KIB :])
            answer = client.answer()

            assert_refused(answer, 507, "storage-full")
            service.until(lambda: holdings_of(service) == before, what="the draft's end")
    assert service.upload(small_picture(), wait=20).status == 201


def test_a_render_that_finds_the_disk_full_waits_until_there_is_room(service: Deployed) -> None:
    before = files_of(service)
    with filled(service.data, leave=MIB):
        image_id = begin(service, swelling_picture())
        until_trouble(service, image_id)

        original = str(original_of(service, image_id).relative_to(service.data))
        # It is tried again and again meanwhile: what a try is at goes, what it had left behind would stay.
        service.until(lambda: files_of(service) == sorted([*before, original]), what="the drafts' end")
        assert row_of(service, image_id)["published"] is None
        assert status_of(service, image_id) in ("queued", "processing")
        assert service.get(f"/images/{image_id}.jpeg").status == 404

    until_ready(service, image_id)
    assert [path for path in files_of(service) if path.startswith("drafts")] == []


def test_a_ledger_without_room_takes_no_upload_and_answers_what_it_knows(tmp_path: Path) -> None:
    """Valkey's file is on the same disk: it refuses to write as well, and must not matter."""
    with memory_disk(tmp_path / "disk", 32 * MIB) as disk, ended(tmp_path) as services:
        storage = tmp_path / "storage"
        service = services.deploy(
            data=disk / "data",
            ASGI_LOOK_STORAGE_PATH=str(storage),
            DATABASE_URL=f"sqlite:///{disk / 'data' / 'ledger.sqlite3'}",
            ASGI_LOOK_RENDER_SLOTS="1",
        )
        known = service.upload(small_picture(), wait=20).json
        (child,) = children_of(service.workers[0].pid)
        os.kill(child, signal.SIGSTOP)
        rendered = begin_render(service, small_picture())
        before = holdings(service, storage)

        with filled(disk):
            for _ in range(3):
                assert_refused(service.upload(small_picture()), 503, "unavailable")
            assert holdings(service, storage) == before
            for path in ("/images", f"/images/{known['id']}", known["image"], *known["thumbnails"]):
                assert service.get(path).status == 200
            # A render that ends now cannot be recorded, neither as done nor as handed back.
            os.kill(child, signal.SIGCONT)
            until_trouble(service, rendered)
            assert status_of(service, rendered) == "processing"

        assert service.upload(small_picture(), wait=20).status == 201
        service.until(lambda: row_of(service, rendered)["status"] == "ready", seconds=60, what="readiness")
        assert row_of(service, rendered)["failures"] == 0
        assert "Traceback" not in service.output


def test_a_valkey_without_room_keeps_no_upload_out_and_no_deleted_picture_alive(tmp_path: Path) -> None:
    """It refuses to write and goes on answering what it has, copies of responses too: not for long."""
    with memory_disk(tmp_path / "disk", 8 * MIB) as disk, ended(tmp_path) as services:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "valkey").symlink_to(disk, target_is_directory=True)
        service = services.deploy(webs=2, data=tmp_path / "data")
        record = service.upload(small_picture(), wait=20).json
        service.until(lambda: service.get(record["image"], web=1).headers["x-asgilook-cache"] == "Hit", what="a copy")

        with filled(disk):
            service.until(lambda: not takes_writes(service), what="Valkey's refusal")
            assert service.request("DELETE", f"/images/{record['id']}").status == 204
            service.until(lambda: service.get(record["image"], web=1).status == 404, what="the copy's end")
            image_id = begin(service, small_picture())

        until_ready(service, image_id)
        assert [image["id"] for image in service.get("/images", web=1).json] == [image_id]


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "read-only"])
def test_a_storage_that_is_gone_or_read_only_is_waited_for(tmp_path: Path, is_gone: bool) -> None:
    (real := tmp_path / "real").mkdir()
    with bound(real, tmp_path / "storage") as storage, ended(tmp_path) as services:
        service = services.deploy(
            data=tmp_path / "data",
            ASGI_LOOK_STORAGE_PATH=str(storage),
            DATABASE_URL=f"sqlite:///{tmp_path / 'data' / 'ledger.sqlite3'}",
        )
        with frozen_worker(service):
            image_id = begin(service, small_picture())
            unbind(storage)
            if not is_gone:
                bind(real, storage, read_only=True)
            before = holdings(service, real)
        until_trouble(service, image_id)

        assert_refused(service.upload(small_picture()), 503, "unavailable")
        ready = service.get("/readyz")
        assert (ready.status, ready.json["storage"]) == (503, "away")
        assert holdings(service, real) == before
        if is_gone:
            assert list(storage.iterdir()) == []
        else:
            unbind(storage)
        bind(real, storage)

        until_ready(service, image_id)
        assert service.upload(small_picture(), wait=20).status == 201


def begin(service: Service, picture: bytes) -> str:
    """Upload a picture; return the image's id."""
    answer = service.upload(picture)
    assert answer.status == 202, answer
    return str(answer.json["id"])


def all_that_is_answered(service: Service, sent: bytes) -> bytes:
    """Send this much of a request and no more; return all that comes until the server hangs up."""
    client = RawClient(service.ports[0])
    with closing(client.socket):
        client.send(sent)
        first = client.socket.recv(65536)
        # The server waits a second for what it has refused, unless there is no more to come.
        client.socket.shutdown(socket.SHUT_WR)
        return first + b"".join(iter(lambda: client.socket.recv(65536), b""))


def assert_refused(answer: Response, status: int, problem: str) -> None:
    assert (answer.status, answer.json["type"]) == (status, f"urn:asgilook:problem:{problem}")
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) > 0


def takes_writes(service: Deployed) -> bool:
    """Tell whether the service's Valkey can still write."""
    with closing(Redis(port=service.valkey_port)) as client:
        try:
            client.set("probe", bytes(64 * KIB))
        except ResponseError:
            return False
    return True


def draft_bytes(service: Service) -> int:
    """Return how much has arrived of uploads that are under way."""
    return sum(path.stat().st_size for path in (service.data / "drafts").iterdir())


def holdings(service: Service, storage: Path) -> tuple[list[str], list[str]]:
    """Return everything that is stored, where the storage has a place of its own: files and rows."""
    return files_of(Service(storage, storage, {})), sorted(rows_of(service))


def until_trouble(service: Service, image_id: str) -> None:
    """Return when an attempt at this image has ended in a trouble of ours."""
    trouble = {"message": "handed back in trouble", "image": image_id}
    service.until(lambda: lines_of(service, **trouble), seconds=60, what="the trouble")


def until_ready(service: Service, image_id: str) -> None:
    """Return when the image is ready, by nobody's help and nobody's fault, and its pictures are served."""
    service.until(lambda: row_of(service, image_id)["status"] == "ready", seconds=60, what="readiness")
    row = row_of(service, image_id)
    assert (row["failures"], row["losses"]) == (0, 0)
    record = service.get(f"/images/{image_id}").json
    for path in (record["image"], *record["thumbnails"]):
        assert service.get(path).body.endswith(b"\xff\xd9")
