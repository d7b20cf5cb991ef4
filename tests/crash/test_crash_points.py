"""A process dies at every point there is, one after the other; what was acknowledged ends as it should, by itself.

All of it happens in one service, in the fixture `crashed`: a process that is armed with a point comes to it, and dies.
Only when all are dead do healthy workers start, and put all in order. Then the tests look: each point at its own image.
"""

from __future__ import annotations

import functools
import hashlib
import http.client
import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image
from redis import Redis

from launch.processes import HERE
from tests.crash import points
from tests.crash.arming import ONE_AT_A_TIME, Ambush, Arm, all_stopped, is_stopped
from tests.crash.points import WORK, Point
from tests.integration.evidence import (
    attempts_of,
    content_of,
    files_of,
    forget_ledger,
    is_at_rest,
    lines_of,
    named_by,
    original_of,
    query,
    renditions_of,
    row_of,
    rows_of,
)
from tests.integration.faults import thaw
from tests.integration.service import Deployed, Services, children_of, ended, host_of
from tests.worker.pictures import encoded, photo

pytestmark = pytest.mark.processes

T = TypeVar("T")

SIZE = (640, 360)
THUMBNAILS = [(320, 180), (160, 90)]
#: A thumbnail that is made in addition.
ADDED = (80, 45)
#: Processes that start together: more than a small machine has cores for gain nothing.
WAVE = 4
#: Far more than the leases and wake-ups take that have to run out, twice for thumbnails: 30 s.
RECOVERY_SECONDS = 120


@dataclass
class Death:
    """What there was when a process had died at a point, or elsewhere."""

    picture: bytes
    image_id: str = ""
    was_there: bool = False
    exit_code: int | None = None
    answer: int | None = None
    files: set[str] = field(default_factory=set)


#: What a web process, the one of that number, is asked, and the status of its answer where one came.
Question = tuple[Point, Death, Callable[[int], int | None]]


class Crashes:
    """One service, and the processes that die in it."""

    def __init__(self, service: Deployed, folder: Path) -> None:
        self.service = service
        self.deaths: dict[Point, Death] = {}
        self.drafts: set[str] = set()
        self._folder = folder
        self._pictures: list[bytes] = []
        self._urgent: Death | None = None

    # What goes in

    def upload(self, *, whole: bool = True) -> Death:
        """Have an image queued by the healthy web process; half of a file cannot be rendered."""
        death = self.unsent()
        if not whole:
            death.picture = death.picture[: len(death.picture) // 2]
        answer = self.service.upload(death.picture)
        assert answer.status == 202, answer
        death.image_id = answer.json["id"]
        return death

    def unsent(self) -> Death:
        """Return a picture that no other image has."""
        self._pictures.append(picture(len(self._pictures)))
        return Death(self._pictures[-1])

    def lose_a_thumbnail(self, death: Death) -> Death:
        """Lose a thumbnail's file."""
        (folder,) = renditions_of(self.service, death.image_id).iterdir()
        folder.joinpath("320x180.jpeg").unlink()
        return death

    def ask_for_it(self, death: Death) -> Death:
        """Ask the healthy web process for the thumbnail."""
        assert self.service.get(f"/thumbnails/{death.image_id}/320x180.jpeg").status == 503
        return death

    def want(self, file: str, death: Death) -> Death:
        """Have one file of an image made, in the ledger: no request does so. The sweep enqueues it."""
        self._change(death, f"work = 'renditions', wanted = '[\"{file}\"]', lane = 1, turn = {{now}}, due = {{now}}")
        return death

    def make_bulk(self, death: Death) -> Death:
        """Make an image's work less urgent than any upload's, in the ledger."""
        self._change(death, "lane = 3")
        return death

    def _change(self, death: Death, values: str) -> None:
        changed = f"UPDATE images SET {values.format(now=time.time())} WHERE id = '{death.image_id}'"  # noqa: S608 - of ours
        query(self.service, changed)

    def lose_jobs(self) -> None:
        """Lose the queue's key, and with it every job that nobody has taken."""
        with closing(Redis(port=self.service.valkey_port)) as redis:
            redis.delete("none", *redis.scan_iter("arq:queue2:*"))

    # Processes that die

    def kill_webs(self, deadly: Iterable[Question]) -> None:
        """Have web processes die: each at its point, over the question that it is asked."""
        for wave in waves(deadly):
            armed = []
            for point, death, ask in wave:
                ambush = Ambush(self._folder, deadly_arm(point, death.image_id))
                armed.append((point, death, ask, ambush, self.service.start_web(**ambush.env)))
            for point, death, ask, ambush, process in armed:
                web = self.service.webs.index(process)
                self.service.until(functools.partial(is_up, self.service, web), what="a web process")
                with self._dying(point, death, ambush, process):
                    death.answer = ask(web)

    def kill_workers(self, deadly: Iterable[tuple[Point, Death]]) -> None:
        """Have workers die over images that wait for them.

        They start together, and stop before they do anything; then one after another goes on and dies. Each has one
        slot, so that it dies over one attempt only.
        """
        for wave in waves(deadly):
            armed = []
            for point, death in wave:
                ambush = Ambush(self._folder, *worker_arms(point, death.image_id), deadly_arm(point, death.image_id))
                armed.append((point, death, ambush, self.start_worker(point, ambush)))
            processes = [process for *_, process in armed]
            self.service.until(functools.partial(all_stopped, processes), what="workers that stop")
            for point, death, ambush, process in armed:
                with self._dying(point, death, ambush, process):
                    self.service.until(functools.partial(is_due, self.service, point, death), what="its being due")
                    thaw(process)
                    if point.trouble:
                        self._make_trouble(point, process)
                if point.trouble == "preempted":
                    self._forget_urgent()

    def kill_without_redis(self) -> None:
        """Have workers die that take their work from the ledger: each the first image in order, which is its own."""
        armed = []
        for point in points.WITHOUT_REDIS:
            ambush = Ambush(self._folder, *worker_arms(point, ""), deadly_arm(point, ""))
            armed.append((point, ambush, self.start_worker(point, ambush)))
        self.service.until(lambda: all_stopped([process for *_, process in armed]), what="workers that stop")
        for valkey in self.service.valkeys:
            valkey.kill()
            valkey.wait()
        for point, ambush, process in armed:
            with self._dying(point, self.upload(), ambush, process):
                thaw(process)
        self.service.start_valkeys()
        self.service.until(lambda: self.service.get("/readyz").json["redis"] == "ok", what="trust in Redis")

    def start_worker(self, point: Point, ambush: Ambush) -> subprocess.Popen[bytes]:
        grace = "0" if point.trouble == "told to stop" else "7"
        return self.service.start_worker(ASGI_LOOK_RENDER_SLOTS="1", ASGI_LOOK_GRACE_SECONDS=grace, **ambush.env)

    def _make_trouble(self, point: Point, process: subprocess.Popen[bytes]) -> None:
        """Have happen to a worker, or to its child, what brings it to its point."""
        # It stops once more, over this image, when it has taken a child for it and has not asked it yet.
        self.service.until(lambda: is_stopped(process), what="a child that is taken")
        (child,) = children_of(process.pid)
        match point.trouble:
            case "frozen child":
                os.kill(child, signal.SIGSTOP)
            case "told to stop":
                os.kill(child, signal.SIGSTOP)
                process.terminate()
            case "killed child":
                os.kill(child, signal.SIGKILL)
            case "crashed child":
                os.kill(child, signal.SIGSEGV)
            case "preempted":
                os.kill(child, signal.SIGSTOP)
                self._urgent = self.upload()
        thaw(process)

    def _forget_urgent(self) -> None:
        """Forget the upload before which another image was put off: that has to stay nobody's."""
        if self._urgent is None:
            return  # no worker came so far: the tests of these points tell
        assert self.service.request("DELETE", f"/images/{self._urgent.image_id}").status == 204
        self.lose_jobs()

    @contextmanager
    def _dying(self, point: Point, death: Death, ambush: Ambush, process: subprocess.Popen[bytes]) -> Iterator[None]:
        """Note what the process leaves behind that dies in the block, or soon after it."""
        before = set(files_of(self.service))
        try:
            yield
            death.exit_code = process.wait(30)
        except (subprocess.TimeoutExpired, AssertionError, pytest.fail.Exception):
            # Its test will tell; the others go on.
            process.kill()
            process.wait()
        new = set(files_of(self.service)) - before
        death.was_there = ambush.reached()
        drafts = {path for path in new if path.startswith("drafts")}
        own = files_of(self.service, death.image_id) if death.image_id else new
        death.files = {path.partition("/")[0] for path in (*own, *drafts)}
        self.drafts |= drafts
        self.deaths[point] = death

    def settled(self) -> bool:
        """Tell whether nobody has to come back to any row, but for the last look at what was deleted."""
        return all(
            is_at_rest(row) and row["status"] in ("ready", "failed")
            for row in rows_of(self.service).values()
            if not is_gone(self.service, row)
        )


@functools.cache
def picture(number: int) -> bytes:
    """Return the file of a picture of which half has a colour of its own; it comes in several chunks."""
    image = photo(SIZE)
    image.paste(tuple(random.Random(number).randbytes(3)), (0, 0, SIZE[0] // 2, SIZE[1]))
    return encoded(image, "PNG", compress_level=0).getvalue()


def waves(items: Iterable[T]) -> Iterator[Sequence[T]]:
    left = list(items)
    while left:
        yield left[:WAVE]
        del left[:WAVE]


def deadly_arm(point: Point, image_id: str) -> Arm:
    about = point.about.format(image=image_id)
    return Arm(point.function, point.when, "kill", call=point.call, within=point.within, about=about)


def worker_arms(point: Point, image_id: str) -> list[Arm]:
    arms = [
        ONE_AT_A_TIME,
        Arm("worker.consumer:Consumer.run", "before", "stop"),
        Arm("worker.consumer:Consumer._consume", "before", "note" if point.consumes else "hold"),
    ]
    if point.trouble:
        arms.append(
            Arm("worker.renderer.session:RenderSession.read_header", "before", "stop", within=WORK, about=image_id)
        )
    return arms


def asked(service: Deployed, web: int, method: str, path: str, body: bytes | None = None) -> int | None:
    """Ask a web process that may die over it; return the status where its line came."""
    port = service.ports[web]
    with closing(http.client.HTTPConnection(host_of(port), port, timeout=40)) as connection:
        try:
            connection.request(method, path, body)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


def is_up(service: Deployed, web: int) -> bool:
    assert service.webs[web].poll() is None, service.output
    return asked(service, web, "GET", "/healthz") == 200


def is_due(service: Deployed, point: Point, death: Death) -> bool:
    """Tell whether the sweep would take the image, or a debt of it, where it is the sweep that dies over it."""
    if point.consumes:
        return True
    dues = "SELECT due FROM images WHERE id = '{0}' UNION ALL SELECT due FROM debts WHERE image_id = '{0}'"
    found = query(service, dues.format(death.image_id))
    return any(row["due"] is not None and row["due"] <= time.time() for row in found)


def is_gone(service: Deployed, row: dict[str, Any]) -> bool:
    """Tell whether of a deleted image nothing is left but a row that waits for the last look."""
    return row["status"] == "deleting" and row["debts"] == ["leftovers"] and files_of(service, row["id"]) == []


def fill_cache(service: Deployed, image_id: str) -> None:
    """Have copies made of all answers about an image: none of them may outlive it."""
    for path in paths_of(image_id):
        service.until(lambda path=path: service.get(path).headers["x-asgilook-cache"] == "Hit", what="a copy")  # type: ignore[misc] # a default is no argument


def paths_of(image_id: str) -> list[str]:
    return [f"/images/{image_id}", f"/images/{image_id}.jpeg", f"/thumbnails/{image_id}/320x180.jpeg"]


def stop_workers(service: Deployed) -> None:
    for worker in service.workers:
        if worker.poll() is None:
            worker.terminate()
            assert worker.wait(30) == 0


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashes]:
    """A service in which every point has had its death, and everything its time for recovery."""
    with ended(tmp_path_factory.mktemp("crashed")) as services:
        crashes = Crashes(services.deploy(), tmp_path_factory.mktemp("marks"))
        let_all_die(crashes)
        for _ in range(2):
            crashes.service.start_worker()
        deadline = time.monotonic() + RECOVERY_SECONDS
        while not crashes.settled() and time.monotonic() < deadline:
            time.sleep(0.1)  # between two looks; what has not come about is for the tests to tell
        yield crashes


def let_all_die(crashes: Crashes) -> None:
    service = crashes.service
    # What is to be ready, or failed, at the beginning. The limit that fails it is gone when it is tried again.
    swept = (points.SWEEPING_RENDITIONS, points.SWEEPING_LEFTOVERS)
    incomplete = (*swept, *points.ASKING_FOR_RENDITIONS, *points.MAKING_RENDITIONS)
    ready = {point: crashes.upload() for point in (*points.DELETING, *incomplete, *points.MERGING)}
    service.until(crashes.settled, what="ready images")
    stop_workers(service)
    failed = {point: crashes.upload() for point in points.RETRYING}
    service.start_worker(ASGI_LOOK_MAX_PIXELS="1000")
    service.until(crashes.settled, what="failed images")
    stop_workers(service)
    for point in incomplete:
        crashes.lose_a_thumbnail(ready[point])
    for point in points.DELETING:
        fill_cache(service, ready[point].image_id)

    # What the sweep pays within a second comes first, before another sweep does.
    for point in points.SWEEPING_DEBTS:
        owing = crashes.upload()
        crashes.kill_workers([(points.PUBLISHED, owing), (point, owing)])
    crashes.kill_without_redis()

    # What the sweep is to find must have lost its process, or its job, for some time: meanwhile the web dies.
    due = {points.SWEEPING_LEFTOVERS: crashes.ask_for_it(ready[points.SWEEPING_LEFTOVERS])}
    crashes.kill_workers([(points.LEFTOVERS_REMOVED, due[points.SWEEPING_LEFTOVERS])])
    due[points.SWEEPING_LOST] = crashes.upload()
    crashes.kill_workers([(points.CLAIMED, due[points.SWEEPING_LOST])])
    due[points.SWEEPING_QUEUED] = crashes.upload()
    due[points.SWEEPING_RENDITIONS] = crashes.ask_for_it(ready[points.SWEEPING_RENDITIONS])
    crashes.lose_jobs()
    sent = {point: crashes.unsent() for point in points.UPLOADING}
    deleted = {point: ready[point] for point in points.DELETING}
    wanted = {point: ready[point] for point in points.ASKING_FOR_RENDITIONS}
    crashes.kill_webs(
        [
            *asking(service, sent, "POST", "/images"),
            *asking(service, deleted, "DELETE", "/images/{id}"),
            *asking(service, failed, "POST", "/images/{id}/retry"),
            *asking(service, wanted, "GET", "/thumbnails/{id}/320x180.jpeg"),
        ]
    )
    crashes.kill_workers((point, due[point]) for point in points.SWEEPING)

    read = {point: crashes.upload() for point in points.READING}
    crashes.kill_workers((prior_of(point), death) for point, death in read.items())
    crashes.kill_webs(asking(service, read, "GET", "/images"))

    for wave in waves(points.CONVERTING):
        crashes.kill_workers([(point, upload_for(crashes, point)) for point in wave])
    for wave in waves(points.MAKING_RENDITIONS):
        crashes.kill_workers([(point, crashes.ask_for_it(ready[point])) for point in wave])
    for wave in waves(points.MERGING):
        crashes.kill_workers([(point, crashes.want(point.wanted, ready[point])) for point in wave])


def upload_for(crashes: Crashes, point: Point) -> Death:
    death = crashes.upload(whole=point.is_whole)
    return crashes.make_bulk(death) if point.trouble == "preempted" else death


def prior_of(point: Point) -> Point:
    assert point.prior is not None
    return point.prior


def asking(service: Deployed, deaths: dict[Point, Death], method: str, path: str) -> list[Question]:
    """Return the same question about each image; what has no id yet is sent with it."""

    def question(death: Death) -> Callable[[int], int | None]:
        body = None if death.image_id else death.picture
        return lambda web: asked(service, web, method, path.format(id=death.image_id), body)

    return [(point, death, question(death)) for point, death in deaths.items()]


@pytest.mark.parametrize("point", points.ALL, ids=str)
def test_what_was_acknowledged_ends_as_it_should(crashed: Crashes, point: Point) -> None:
    """And what was not is either no image at all, or one that ends as well; in both cases its client may try again."""
    service, death = crashed.service, crashed.deaths[point]
    assert (death.was_there, death.exit_code) == (True, -signal.SIGKILL)
    assert sorted(death.files) == sorted(point.files.split())
    assert death.answer == (202 if point.is_told else None)
    image_id = death.image_id or id_of(service, death.picture)
    if point in points.ASKING_FOR_RENDITIONS:
        # Its client was told nothing, and asks again.
        service.until(lambda: service.get(f"/thumbnails/{image_id}/320x180.jpeg").status == 200, what="a thumbnail")
        service.until(crashed.settled, what="settling")

    match point.ends:
        case "absent":
            assert image_id == ""
        case "ready":
            assert_ready(service, point, image_id, death.picture)
        case "failed":
            assert_failed(service, point, image_id)
        case "deleted":
            assert_deleted(service, image_id)

    if point in points.UPLOADING:
        assert service.upload(death.picture, wait=20).status == 201
    elif point in points.DELETING:
        assert service.request("DELETE", f"/images/{image_id}").status == (404 if point.ends == "deleted" else 204)
        assert_deleted(service, image_id)
    elif point in points.RETRYING:
        again = service.request("POST", f"/images/{image_id}/retry")
        assert again.status == (202 if point.ends == "failed" else 409)
        assert service.get(f"/images/{image_id}", {"Prefer": "wait=20"}).json["status"] == "ready"


def test_each_image_has_one_place_in_the_list(crashed: Crashes) -> None:
    service = crashed.service
    service.until(crashed.settled, what="settling")

    listed = service.get("/images?limit=1000").json

    ready = {image_id for image_id, row in rows_of(service).items() if row["status"] == "ready"}
    assert sorted(record["id"] for record in listed) == sorted(ready)
    places = [record["sequence"] for record in listed]
    assert places == sorted(set(places))


def test_storage_holds_what_the_ledger_names(crashed: Crashes) -> None:
    """Besides that: drafts that died, until they are an hour old, and originals whose rows were never committed.

    A thumbnail that is missing is made again for whoever asks for it: where a web process died over the first who did,
    for the next.
    """
    service = crashed.service
    for point in points.ASKING_FOR_RENDITIONS:
        path = f"/thumbnails/{crashed.deaths[point].image_id}/320x180.jpeg"
        service.until(lambda path=path: service.get(path).status == 200, what="a thumbnail")  # type: ignore[misc] # a default is no argument
    service.until(crashed.settled, what="settling")

    stored = set(files_of(service))

    named: set[str] = set()
    for image_id, row in rows_of(service).items():
        if row["status"] != "deleting":
            named.add(str(original_of(service, image_id).relative_to(service.data)))
            folder = renditions_of(service, image_id)
            named |= {str((folder / file).relative_to(service.data)) for file in named_by(row)}
    assert named <= stored
    orphans = {path for path in stored - named if path.startswith("originals")}
    uncommitted = {digest(crashed.deaths[point].picture) for point in points.UPLOADING if orphaned(point)}
    assert {digest(content_of(service, path)) for path in orphans} == uncommitted
    assert stored - named - orphans == crashed.drafts & stored
    assert list_attempts(service) <= {path.rpartition("/")[0] for path in named}


@pytest.mark.parametrize("point", points.MIGRATING, ids=str)
def test_a_release_that_dies_is_done_again(services: Services, tmp_path: Path, point: Point) -> None:
    service = services.deploy(webs=0, workers=0)
    forget_ledger(service)
    ambush = Ambush(tmp_path, deadly_arm(replace(point, about=""), ""))

    died = service.start(service.commands["release"], **ambush.env).wait(60)

    assert (died, ambush.reached()) == (-signal.SIGKILL, True)
    assert service.start(service.commands["release"]).wait(60) == 0
    service.start_worker()
    service.start_web()
    service.until(service.is_ready, what="readiness")
    assert service.upload(picture(0), wait=20).status == 201


@pytest.mark.parametrize("point", points.STARTING, ids=str)
def test_a_first_start_that_dies_is_done_again(services: Services, tmp_path: Path, point: Point) -> None:
    """A marker that no ledger names is a file of no meaning, and stays."""
    service = services.deploy(webs=0, workers=0)
    ambush = Ambush(tmp_path, deadly_arm(replace(point, about=""), ""))

    died = service.start_worker(**ambush.env).wait(60)

    assert (died, ambush.reached()) == (-signal.SIGKILL, True)
    service.start_worker()
    service.start_web()
    service.until(service.is_ready, what="readiness")
    assert service.upload(picture(0), wait=20).status == 201


def test_a_process_that_is_armed_with_what_does_not_exist_ends(tmp_path: Path) -> None:
    """Otherwise a point whose function was renamed would be passed in silence."""
    ambush = Ambush(tmp_path, Arm("shared.images:no_such_function", "before"))

    process = subprocess.run(
        [sys.executable, "-c", "import shared.images"], cwd=HERE, env=ambush.env, capture_output=True, check=False
    )

    assert (process.returncode, ambush.reached()) == (97, False)
    assert b"shared.images:no_such_function does not exist" in process.stderr


def id_of(service: Deployed, picture: bytes) -> str:
    """Return the id of the one image that was made of these bytes, or nothing where there is none."""
    found = [row["id"] for row in rows_of(service).values() if row["original_sha256"] == digest(picture)]
    assert len(found) <= 1
    return "".join(found)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def orphaned(point: Point) -> bool:
    return point.ends == "absent" and "originals" in point.files.split()


def list_attempts(service: Deployed) -> set[str]:
    """Return the folders of all attempts, with files in them or without."""
    folders = (path for path in (service.data / "renditions").glob("*/*/*/*") if path.is_dir())
    stored = (path.rpartition("/")[0] for path in files_of(service) if path.startswith("renditions"))
    return {*stored, *(str(path.relative_to(service.data)) for path in folders)}


def assert_leases_ran_out(service: Deployed, point: Point, image_id: str) -> None:
    """Assert that as many leases ran out on the way as should.

    Of one of them nothing may have been said: a pass of the sweep takes many rows, and the one that is killed at
    its own point, a lost attempt taken and not enqueued, may have taken this image's as well.
    """
    told = len(lines_of(service, message="a lease was over", image=image_id))
    assert point.leases - 1 <= told <= point.leases


def assert_ready(service: Deployed, point: Point, image_id: str, original: bytes) -> None:
    """Assert that an image is what its original makes it, by the attempt that it should be by."""
    record = service.get(f"/images/{image_id}").json
    assert record["status"] == "ready"
    assert [listed["id"] for listed in service.get("/images?limit=1000").json].count(image_id) == 1
    thumbnails = [*THUMBNAILS, *([ADDED] if point.wanted.startswith("{}x{}.".format(*ADDED)) else [])]
    assert record["thumbnails"] == [f"/thumbnails/{image_id}/{width}x{height}.jpeg" for width, height in thumbnails]
    for path, size in zip([record["image"], *record["thumbnails"]], [SIZE, *thumbnails], strict=True):
        answer = service.get(path)
        assert answer.status == 200
        assert_shows(answer.body, original, size)
    assert original_of(service, image_id).read_bytes() == original
    row = row_of(service, image_id)
    assert is_at_rest(row)
    assert (row["losses"], row["failures"], row["published"]) == (0, 0, point.attempt)
    # What a merge has not made is the first attempt's.
    attempts = [1, point.attempt] if point.wanted else [point.attempt]
    assert attempts_of(service, image_id) == list(map(str, attempts))
    assert_leases_ran_out(service, point, image_id)


def assert_shows(jpeg: bytes, original: bytes, size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(jpeg)) as shown, Image.open(io.BytesIO(original)) as meant:
        assert (shown.format, shown.size) == ("JPEG", size)
        expected = np.asarray(meant.resize(size, Image.Resampling.LANCZOS), np.int16)
        assert np.abs(np.asarray(shown, np.int16) - expected).mean() < 6


def assert_failed(service: Deployed, point: Point, image_id: str) -> None:
    record = service.get(f"/images/{image_id}").json
    assert record["status"] == "failed"
    row = row_of(service, image_id)
    assert (is_at_rest(row), row["attempt"]) == (True, point.attempt)
    assert attempts_of(service, image_id) == []
    assert_leases_ran_out(service, point, image_id)


def assert_deleted(service: Deployed, image_id: str) -> None:
    """Assert that an image is gone for everybody, and for the disk; its row may wait for the last look."""
    assert [service.get(path).status for path in paths_of(image_id)] == [404, 404, 404]
    assert image_id not in [record["id"] for record in service.get("/images?limit=1000").json]
    row = rows_of(service).get(image_id)
    assert row is None or is_gone(service, row)
