"""An attempt that stalls, and goes on when others have finished or deleted its image, changes nothing.

It stops where it could do the most harm: with all its pictures made and none of them kept, or kept and not published.
`tests/integration/test_worker_lost.py` has those that freeze in the middle of a render.
"""

from __future__ import annotations

import functools
import signal
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.crash.arming import ONE_AT_A_TIME, Ambush, Arm, is_stopped
from tests.integration.evidence import (
    attempts_of,
    comparable,
    files_of,
    is_at_rest,
    lines_of,
    renditions_of,
    row_of,
    rows_of,
)
from tests.integration.faults import thaw
from tests.integration.service import Deployed, Services, ended, is_apart
from tests.worker.pictures import encoded, photo

pytestmark = pytest.mark.processes

STORAGE = "shared.storage.objects:ObjectStorage" if is_apart() else "shared.storage.disk:DiskStorage"
NOT_KEPT = Arm(f"{STORAGE}.keep", "before", "stop")
KEPT = Arm("shared.ledger.ledger:Ledger.publish", "before", "stop")
#: For one that was not kept: its renewal may find the lease gone before anything else, but keeping goes on to its end.
DIES_WHEN_KEPT = Arm(f"{STORAGE}.{'_keep' if is_apart() else '_put'}", "after", "kill")
BOTH = pytest.mark.parametrize("where", [NOT_KEPT, KEPT], ids=["not kept", "kept"])

#: Between the pixels of the pictures here, and those of the one that is to fail.
LIMIT = {"ASGI_LOOK_MAX_PIXELS": "100000"}


@dataclass(frozen=True)
class Stalled:
    """A worker that stands still over an image, in its attempt of that number."""

    image_id: str
    process: subprocess.Popen[bytes]
    attempt: int = 0


def start_stalling(service: Deployed, folder: Path, image_id: str, *where: Arm) -> Stalled:
    """Start a worker that waits to be woken, then stops over the image, and may die when it goes on."""
    arms = (replace(arm, about=image_id) for arm in where)
    ambush = Ambush(folder, ONE_AT_A_TIME, Arm("worker.consumer:Consumer.run", "before", "stop"), *arms)
    return Stalled(image_id, service.start_worker(ASGI_LOOK_RENDER_SLOTS="1", **ambush.env))


def stall(service: Deployed, stalling: Stalled) -> Stalled:
    """Wake the worker; return when it has stopped over its image."""
    service.until(lambda: is_stopped(stalling.process), seconds=60, what="a worker that waits")
    thaw(stalling.process)
    service.until(lambda: is_stopped(stalling.process), seconds=60, what="a worker that stalls")
    row = row_of(service, stalling.image_id)
    assert row["worker"].endswith(f":{stalling.process.pid}")
    return replace(stalling, attempt=row["attempt"])


def upload(service: Deployed, size: tuple[int, int] = (320, 180)) -> str:
    answer = service.upload(encoded(photo(size), "PNG").getvalue())
    assert answer.status == 202, answer
    return str(answer.json["id"])


def wake(service: Deployed, stalled: Stalled) -> None:
    """Let a worker go on; return when it has given its attempt up and has ended."""
    gave_up = {"message": "others have taken the image from this attempt", "image": stalled.image_id}
    assert lines_of(service, **gave_up, attempt=stalled.attempt) == []
    thaw(stalled.process)
    service.until(lambda: lines_of(service, **gave_up, attempt=stalled.attempt), what="its giving up")
    # It finishes what it has begun, its clean-up included.
    stop(stalled.process)


def stop(worker: subprocess.Popen[bytes]) -> None:
    worker.terminate()
    assert worker.wait(30) == 0


def settled(service: Deployed, image_id: str, status: str) -> bool:
    row = row_of(service, image_id)
    return row["status"] == status and is_at_rest(row)


def answers_about(service: Deployed, image_id: str) -> list[object]:
    """Return what the service tells of an image, and shows of it."""
    record = service.get(f"/images/{image_id}").json
    paths = ["/images?limit=1000", f"/images/{image_id}", f"/images/{image_id}.jpeg", *record.get("thumbnails", [])]
    return [comparable(service.get(path)) for path in paths]


@dataclass(frozen=True)
class Scene:
    """A service in which attempts have stalled, and everything else went on without them."""

    service: Deployed
    published: dict[Arm, Stalled]
    remade: dict[Arm, Stalled]
    deleted: dict[Arm, Stalled]
    forgotten: dict[Arm, Stalled]
    retried: Stalled
    #: An image, and what an attempt at it kept and could not remove, for it died.
    died_late: tuple[str, list[str]]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Attempts stall over images that others then publish, delete, or fail and publish when they are retried."""
    marks = tmp_path_factory.mktemp("marks")
    with ended(tmp_path_factory.mktemp("stalled")) as services:
        service = services.deploy()
        ready = [upload(service) for _ in range(2)]
        service.until(lambda: all(settled(service, image_id, "ready") for image_id in ready), what="ready images")
        stop(service.workers[0])
        for image_id in ready:
            (renditions_of(service, image_id) / "1" / "160x90.jpeg").unlink()
            assert service.get(f"/thumbnails/{image_id}/160x90.jpeg").status == 503

        def starting(image_ids: Iterable[str]) -> dict[Arm, Stalled]:
            places = zip((NOT_KEPT, KEPT), image_ids, strict=True)
            return {where: start_stalling(service, marks, image_id, where) for where, image_id in places}

        def stalled(stalling: dict[Arm, Stalled]) -> dict[Arm, Stalled]:
            return {where: stall(service, each) for where, each in stalling.items()}

        # All start before the first one goes on, and go on in the order of work, uploads first: then each takes its own
        # image, and has stopped before any of their sweeps could find that the first one's lease is over.
        remade, published, deleted, forgotten = (
            starting(image_ids) for image_ids in (ready, *([upload(service), upload(service)] for _ in range(3)))
        )
        dies_late = start_stalling(service, marks, upload(service), NOT_KEPT, DIES_WHEN_KEPT)
        retried = start_stalling(service, marks, upload(service, (640, 360)), KEPT)
        published, deleted, forgotten = map(stalled, (published, deleted, forgotten))
        dies_late, retried = stall(service, dies_late), stall(service, retried)
        remade = stalled(remade)
        for each in (*deleted.values(), *forgotten.values(), dies_late):
            assert service.request("DELETE", f"/images/{each.image_id}").status == 204
            assert files_of(service, each.image_id) == []
        thaw(dies_late.process)
        assert dies_late.process.wait(30) == -signal.SIGKILL
        kept_late = files_of(service, dies_late.image_id)

        strict = service.start_worker(**LIMIT)
        for each in (*published.values(), *remade.values()):
            service.until(functools.partial(settled, service, each.image_id, "ready"), 60, "what others publish")
        service.until(lambda: settled(service, retried.image_id, "failed"), 60, "a failure")
        stop(strict)
        service.start_worker()
        assert service.request("POST", f"/images/{retried.image_id}/retry").status == 202
        service.until(lambda: settled(service, retried.image_id, "ready"), what="the retry's end")
        yield Scene(service, published, remade, deleted, forgotten, retried, (dies_late.image_id, kept_late))


@BOTH
def test_it_cannot_publish_over_what_others_have_published(scene: Scene, where: Arm) -> None:
    service, stalled = scene.service, scene.published[where]
    before, row = answers_about(service, stalled.image_id), row_of(service, stalled.image_id)
    assert (stalled.attempt, row["published"]) == (1, 2)

    wake(service, stalled)

    assert answers_about(service, stalled.image_id) == before
    assert row_of(service, stalled.image_id) == row
    assert attempts_of(service, stalled.image_id) == ["2"]


@BOTH
def test_it_cannot_publish_thumbnails_that_others_have_made(scene: Scene, where: Arm) -> None:
    service, stalled = scene.service, scene.remade[where]
    before, row = answers_about(service, stalled.image_id), row_of(service, stalled.image_id)
    assert row["published"] > stalled.attempt > 1

    wake(service, stalled)

    assert answers_about(service, stalled.image_id) == before
    assert row_of(service, stalled.image_id) == row
    assert attempts_of(service, stalled.image_id) == [str(row["published"])]


def test_it_cannot_publish_over_a_retry(scene: Scene) -> None:
    service, stalled = scene.service, scene.retried
    before, row = answers_about(service, stalled.image_id), row_of(service, stalled.image_id)
    assert (stalled.attempt, row["published"]) == (1, 3)

    wake(service, stalled)

    assert answers_about(service, stalled.image_id) == before
    assert row_of(service, stalled.image_id) == row
    assert attempts_of(service, stalled.image_id) == ["3"]


@BOTH
def test_it_cannot_bring_back_what_was_deleted(scene: Scene, where: Arm) -> None:
    service, stalled = scene.service, scene.deleted[where]
    paths = [f"/images/{stalled.image_id}", f"/images/{stalled.image_id}.jpeg"]

    wake(service, stalled)

    assert [service.get(path).status for path in paths] == [404, 404]
    assert files_of(service, stalled.image_id) == []
    assert stalled.image_id not in {record["id"] for record in service.get("/images?limit=1000").json}
    row = rows_of(service).get(stalled.image_id)
    assert row is None or (row["status"], row["attempt"], row["published"]) == ("deleting", 1, None)


def test_what_it_keeps_of_a_deleted_image_and_cannot_remove_goes_with_the_row(scene: Scene) -> None:
    """That is what the second look is for, a minute after the DELETE."""
    service, (image_id, kept) = scene.service, scene.died_late
    assert [path.rpartition("/")[2] for path in kept] == ["160x90.jpeg", "image.jpeg"]

    service.until(lambda: image_id not in rows_of(service), seconds=90, what="the row's end")

    assert files_of(service, image_id) == []
    assert service.get(f"/images/{image_id}.jpeg").status == 404


@BOTH
def test_it_cannot_bring_back_what_has_no_row_any_more(scene: Scene, where: Arm) -> None:
    service, stalled = scene.service, scene.forgotten[where]
    service.until(lambda: stalled.image_id not in rows_of(service), seconds=90, what="the row's end")

    wake(service, stalled)

    assert stalled.image_id not in rows_of(service)
    assert files_of(service, stalled.image_id) == []
    assert service.get(f"/images/{stalled.image_id}.jpeg").status == 404


def test_it_cannot_publish_in_the_place_of_a_retry_that_is_at_work(services: Services, tmp_path: Path) -> None:
    """The row is processing, as it was: nothing but the attempt's number tells them apart."""
    service = services.deploy()
    stop(service.workers[0])
    image_id = upload(service, (640, 360))
    sleeper = stall(service, start_stalling(service, tmp_path, image_id, KEPT))
    strict = service.start_worker(**LIMIT)
    service.until(lambda: settled(service, image_id, "failed"), 60, "a failure")
    stop(strict)
    retrying = start_stalling(service, tmp_path, image_id, KEPT)
    assert service.request("POST", f"/images/{image_id}/retry").status == 202
    retrying = stall(service, retrying)
    row = row_of(service, image_id)
    assert (row["status"], row["attempt"]) == ("processing", 3)

    wake(service, sleeper)

    assert row_of(service, image_id)["published"] is None
    assert attempts_of(service, image_id) == ["3"]
    thaw(retrying.process)
    service.until(lambda: settled(service, image_id, "ready"), 60, "the retry's end")
    published = row_of(service, image_id)["published"]
    assert published >= 3
    assert attempts_of(service, image_id) == [str(published)]


def test_it_cannot_publish_in_the_place_of_thumbnails_being_made(services: Services, tmp_path: Path) -> None:
    service = services.deploy()
    image_id = upload(service)
    service.until(lambda: settled(service, image_id, "ready"), what="readiness")
    stop(service.workers[0])
    (renditions_of(service, image_id) / "1" / "160x90.jpeg").unlink()
    sleeper, other = (start_stalling(service, tmp_path, image_id, KEPT) for _ in range(2))
    assert service.get(f"/thumbnails/{image_id}/160x90.jpeg").status == 503
    sleeper = stall(service, sleeper)
    # The other one's sweep finds that its lease is over.
    other = stall(service, other)
    assert other.attempt > sleeper.attempt

    wake(service, sleeper)

    row = row_of(service, image_id)
    assert (row["published"], row["work"]) == (1, "renditions")
    assert attempts_of(service, image_id) == ["1", str(other.attempt)]
    thaw(other.process)
    service.until(lambda: settled(service, image_id, "ready"), 60, "the thumbnails")
    published = row_of(service, image_id)["published"]
    assert published >= other.attempt
    assert attempts_of(service, image_id) == [str(published)]
    assert service.get(f"/thumbnails/{image_id}/160x90.jpeg").status == 200
