"""`python -m worker.doctor` beside a service: what was broken by hand is told, mended, and served whole again."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uuid_utils

from launch.processes import HERE
from tests.integration.evidence import holdings_of, is_at_rest, original_of, renditions_of, row_of, rows_of
from tests.integration.faults import small_picture
from tests.integration.service import Response, Service, Services

pytestmark = pytest.mark.processes

LONG_AGO = time.time() - 7200


def examine(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the doctor with the settings of a service."""
    return subprocess.run(
        [sys.executable, "-m", "worker.doctor", *arguments],
        cwd=HERE,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


def upload(service: Service) -> dict[str, Any]:
    """Return the record of an image that is ready and owes nothing."""
    answer = service.upload(small_picture(), wait=20)
    assert answer.status == 201, answer
    record: dict[str, Any] = answer.json
    service.until(lambda: is_at_rest(row_of(service, record["id"])), what="settling")
    return record


def pictures_of(service: Service, record: Mapping[str, Any]) -> dict[str, Response]:
    return {path: service.get(path) for path in (record["image"], *record["thumbnails"])}


def are_made_again(service: Service, *records: Mapping[str, Any]) -> bool:
    """Tell whether these images' renditions have been published anew, and nothing is owed any more."""
    rows = [row_of(service, record["id"]) for record in records]
    return all(row["published"] > 1 and is_at_rest(row) for row in rows)


def put_old(path: Path, content: bytes = b"of long ago") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


def old_id() -> str:
    return str(uuid_utils.uuid7(nanoseconds=int(LONG_AGO * 1e9)))


@pytest.mark.one_machine("files that look hours old, which no object store lets one make")
def test_what_is_broken_by_hand_is_told_then_mended_and_pictures_are_served_whole(services: Services) -> None:
    service = services.deploy()
    no_thumbnail, torn_jpeg, altered_jpeg, stale = (upload(service) for _ in range(4))
    untouched = upload(service)
    records = (no_thumbnail, torn_jpeg, altered_jpeg, stale, untouched)
    whole = [pictures_of(service, record) for record in records]

    (renditions_of(service, no_thumbnail["id"]) / "1" / "320x180.jpeg").unlink()
    jpeg = renditions_of(service, torn_jpeg["id"]) / "1" / "image.jpeg"
    os.truncate(jpeg, jpeg.stat().st_size // 2)
    jpeg = renditions_of(service, altered_jpeg["id"]) / "1" / "image.jpeg"
    jpeg.write_bytes(jpeg.read_bytes()[:-100] + bytes(98) + b"\xff\xd9")
    nobodys = [
        put_old(renditions_of(service, stale["id"]) / "3" / "image.jpeg"),
        put_old(original_of(service, old_id())),
        put_old(renditions_of(service, old_id()) / "1" / "320x180.jpeg"),
    ]
    in_flight = service.data / "originals" / (young := str(uuid_utils.uuid7()))[:5] / young[5:8] / young
    put_old(in_flight)
    before = holdings_of(service), rows_of(service)

    told = examine(service.env, "--digests")

    assert (told.returncode, told.stderr) == (1, "")
    for kind, name in (
        ("rendition broken", f"{no_thumbnail['id']}/1/320x180.jpeg"),
        ("rendition broken", f"{torn_jpeg['id']}/1/image.jpeg"),
        ("rendition broken", f"{altered_jpeg['id']}/1/image.jpeg"),
        ("stale attempt", f"{stale['id']}/3"),
        ("original without a row", nobodys[1].name),
        ("renditions without a row", nobodys[2].parent.parent.name),
    ):
        assert [line for line in told.stdout.splitlines() if line.startswith(kind) and name in line], told.stdout
    assert (holdings_of(service), rows_of(service)) == before

    mended = examine(service.env, "--digests", "--mend")

    assert (mended.returncode, mended.stderr) == (0, ""), mended.stdout
    assert not any(path.exists() for path in nobodys)
    service.until(lambda: are_made_again(service, no_thumbnail, torn_jpeg, altered_jpeg), what="new attempts")
    again = examine(service.env, "--digests")
    assert (again.returncode, again.stderr) == (0, ""), again.stdout
    assert "Nothing is wrong." in again.stdout
    assert in_flight.exists()
    for record, pictures in zip(records, whole, strict=True):
        for path, answer in pictures_of(service, record).items():
            assert (answer.status, answer.body) == (200, pictures[path].body)
            assert (
                answer.headers["etag"]
                == f'"{hashlib.sha256(answer.body).hexdigest()}"'
                == pictures[path].headers["etag"]
            )


def test_it_needs_neither_redis_nor_a_service_at_work(services: Services) -> None:
    first = services.deploy()
    record = upload(first)
    whole = pictures_of(first, record)
    first.stop()
    for path in (renditions_of(first, record["id"]) / "1").iterdir():
        path.unlink()

    told, mended = examine(first.env), examine(first.env, "--mend")

    assert (told.returncode, mended.returncode) == (1, 0)
    service = services.deploy(data=first.data)
    service.until(lambda: are_made_again(service, record), what="a new attempt")
    assert [answer.body for answer in pictures_of(service, record).values()] == [
        answer.body for answer in whole.values()
    ]
    assert examine(service.env, "--digests").returncode == 0


@contextmanager
def clients_at_work(service: Service) -> Iterator[list[str]]:
    """Keep uploading, asking for thumbnails anew and deleting for the block; yields the images that stay."""
    stop, stay = threading.Event(), list[str]()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set():
                goes, stays = (service.upload(small_picture(), wait=20) for _ in range(2))
                assert (goes.status, stays.status) == (201, 201), (goes, stays)
                assert service.request("DELETE", f"/images/{goes.json['id']}").status == 204
                stay.append(stays.json["id"])
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        yield stay
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_beside_a_service_at_work_it_finds_nothing_and_removes_nothing(services: Services) -> None:
    """Uploads, publications and deletions change ledger and storage one after the other, under its eyes."""
    service = services.deploy(webs=1, workers=2)

    with clients_at_work(service) as stay:
        service.until(lambda: len(stay) >= 3, what="the first images")
        examined = [examine(service.env, "--digests", "--mend") for _ in range(3)]

    assert [(run.returncode, run.stderr) for run in examined] == [(0, "")] * 3, [run.stdout for run in examined]
    assert all("Nothing is wrong." in run.stdout for run in examined)
    assert len(stay) > 3
    for image_id in stay:
        record = service.get(f"/images/{image_id}").json
        assert record["status"] == "ready"
        assert {answer.status for answer in pictures_of(service, record).values()} == {200}
        assert original_of(service, image_id).exists()
    service.until(lambda: examine(service.env, "--digests").returncode == 0, what="a service that is well")
