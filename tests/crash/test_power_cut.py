"""The machine loses its power in the midst of uploads: what was acknowledged is on its disk, whole, and is finished.

Each test copies the file behind a mounted file system while the whole service stands still, again and again. With
each copy it does what a machine does with its disk when the power is back: repair it, mount it, start the service.
"""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from shared.renditions import Size, ladder
from shared.storage.disk import DiskStorage
from shared.storage.resumable import ResumableDraft
from tests.crash.disks import EXT2, EXT4, Disk, FileSystem, standstill
from tests.integration.evidence import files_of, is_at_rest, original_of, renditions_of, rows_of
from tests.integration.service import Service, ended
from tests.worker.pictures import encoded, photo

pytestmark = [
    pytest.mark.processes,
    pytest.mark.usefixtures("mounting"),
    pytest.mark.one_machine("what a power cut leaves on a machine's disk"),
]

SEED = 20240229
_DRAFT_NAME = "01890a5d-ac96-774b-bcce-b302099a8057"
CLIENTS = 4
#: How many uploads are acknowledged when the power is cut: the first cut finds folders that have just been made.
MOMENTS = (2, *sorted(random.Random(SEED).sample(range(8, 40), 2)))
FULL = "image.jpeg"
SMALLEST_SIDE = 64


@dataclass(frozen=True)
class Picture:
    """A file to upload, and the size of the picture in it."""

    size: Size
    data: bytes

    @cached_property
    def sha256(self) -> str:
        return sha256(self.data)


def make_pictures() -> list[Picture]:
    """Return pictures of some 20 to 300 KB: most arrive in several pieces."""
    chance = random.Random(SEED)
    sizes = [(chance.randint(80, 600), chance.randint(80, 400)) for _ in range(6)]
    return [Picture(size, encoded(photo(size), "PNG").getvalue()) for size in sizes]


PICTURES = make_pictures()


class Clients:
    """Upload one picture after another, several clients at once."""

    def __init__(self, service: Service) -> None:
        self.acknowledged: dict[str, Picture] = {}
        self._unforeseen: list[object] = []
        self._service = service
        self._enough = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Upload for the block; the test fails where anything but a 202 was answered."""
        threads = [threading.Thread(target=self._upload, args=(number,)) for number in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._enough.set()
            for thread in threads:
                thread.join()
        assert self._unforeseen == []

    def until_acknowledged(self, uploads: int) -> None:
        """Return once so many uploads were acknowledged."""
        self._service.until(lambda: len(self.acknowledged) >= uploads or self._unforeseen, what="so many uploads")

    def _upload(self, number: int) -> None:
        chance = random.Random(SEED + number)
        while not self._enough.is_set() and not self._unforeseen:
            picture = chance.choice(PICTURES)
            try:
                answer = self._service.upload(picture.data)
                assert answer.status == 202, answer
                self.acknowledged[answer.json["id"]] = picture
            except BaseException as exc:
                self._unforeseen.append(exc)


@dataclass(frozen=True)
class Cut:
    """A disk as a power cut has left it, and what had been acknowledged by then."""

    disk: Disk
    acknowledged: Mapping[str, Picture]

    @contextmanager
    def repaired(self) -> Iterator[Path]:
        """Have the disk checked and mounted for the block; yield the service's data folder on it."""
        self.disk.repair()
        with self.disk.mounted(self.disk.file.with_suffix(".mounted")) as folder:
            yield folder / "data"


@pytest.mark.parametrize(
    ("kind", "keep_originals"), [(EXT4, True), (EXT2, False)], ids=["ext4", "ext2-without-originals"]
)
def test_what_was_acknowledged_before_a_power_cut_is_there_and_gets_ready(
    tmp_path: Path, kind: FileSystem, keep_originals: bool
) -> None:
    kept = str(int(keep_originals))
    disk = Disk.make(tmp_path / "disk", kind)
    cuts: list[Cut] = []
    with disk.mounted(tmp_path / "mounted") as folder, ended(tmp_path) as services:
        service = services.deploy(data=folder / "data", ASGI_LOOK_KEEP_ORIGINALS=kept)
        clients = Clients(service)

        def cut_power() -> None:
            with standstill(services):
                after = disk.copy(tmp_path / f"cut-{len(cuts)}")
                # Whatever a client reads until they go on was sent before they stopped.
                cuts.append(Cut(after, dict(clients.acknowledged)))

        with clients.at_work():
            for moment in MOMENTS:
                clients.until_acknowledged(moment)
                cut_power()
        service.until(lambda: all(map(is_at_rest, rows_of(service).values())), 60, "the service's leisure")
        cut_power()

    (tmp_path / "afterwards").mkdir()
    with ExitStack() as mounts, ended(tmp_path / "afterwards") as services:
        # All of them at once: leases of the time before have to run out on each.
        for cut in cuts:
            data = mounts.enter_context(cut.repaired())
            look_at_disk(data, cut.acknowledged, keep_originals)
            services.launch(data=data, ASGI_LOOK_KEEP_ORIGINALS=kept)
        for cut, again in zip(cuts, services.made, strict=True):
            look_at_service(again, cut.acknowledged)


@pytest.mark.parametrize("kind", [EXT4, EXT2], ids=lambda kind: kind.name)
def test_a_power_cut_right_after_an_acknowledgement_finds_the_upload_on_the_disk(
    tmp_path: Path, kind: FileSystem
) -> None:
    """No later upload's fsync can have written what this one had left in memory."""
    disk = Disk.make(tmp_path / "disk", kind)
    cuts: list[Cut] = []
    acknowledged: dict[str, Picture] = {}
    with disk.mounted(tmp_path / "mounted") as folder, ended(tmp_path) as services:
        service = services.deploy(data=folder / "data")
        for picture in PICTURES:
            answer = service.upload(picture.data)
            with standstill(services):
                after = disk.copy(tmp_path / f"cut-{len(cuts)}")
            assert answer.status == 202
            acknowledged[answer.json["id"]] = picture
            cuts.append(Cut(after, dict(acknowledged)))

    for cut in cuts:
        with cut.repaired() as data:
            look_at_disk(data, cut.acknowledged, keep_originals=True)


@pytest.mark.parametrize("kind", [EXT4, EXT2], ids=lambda kind: kind.name)
async def test_a_power_cut_finds_all_that_was_appended_to_a_resumable_draft(tmp_path: Path, kind: FileSystem) -> None:
    disk = Disk.make(tmp_path / "disk", kind)
    content = random.Random(SEED).randbytes(400_000)
    cuts: dict[int, Disk] = {}
    with disk.mounted(tmp_path / "mounted") as folder:
        storage = DiskStorage(folder / "data")
        await storage.prepare()
        draft = ResumableDraft(storage, _DRAFT_NAME)
        for start in range(0, len(content), 100_000):
            end = await draft.append(start, sent(content[start : start + 100_000]))
            cuts[end] = disk.copy(tmp_path / f"cut-{end}")

    for end, cut in cuts.items():
        cut.repair()
        with cut.mounted(tmp_path / f"mounted-{end}") as folder:
            storage = DiskStorage(folder / "data")
            draft = ResumableDraft(storage, _DRAFT_NAME)
            assert await draft.length() == end
            await draft.append(end, sent(content[end:]))
            joined = await draft.join()
            assert await joined.digest() == (len(content), sha256(content))
            await joined.discard()


async def sent(content: bytes) -> AsyncIterator[bytes]:
    yield content


def look_at_disk(data: Path, acknowledged: Mapping[str, Picture], keep_originals: bool) -> None:
    """Check what a power cut has left, before anybody works on it: the ledger, and all that has its final name."""
    disk = Service(data, data.parent / "output", {})
    rows = rows_of_copy(data)
    assert acknowledged.keys() <= rows.keys()
    for image_id, row in rows.items():
        for name, (_, _, length, digest, attempt, _) in json.loads(row["renditions"]).items():
            rendition = renditions_of(disk, image_id) / str(attempt) / name
            assert (rendition.stat().st_size, sha256(rendition.read_bytes())) == (length, digest)
        original = original_of(disk, image_id)
        if keep_originals or row["status"] != "ready":
            assert sha256(original.read_bytes()) == row["original_sha256"]
        elif not row["debts"]:
            # Nobody would remove it any more.
            assert not original.exists()
    for image_id, picture in acknowledged.items():
        assert rows[image_id]["original_sha256"] == picture.sha256
    # Whatever has its final name is whole, though its row was never committed.
    sent = {picture.sha256 for picture in PICTURES}
    for path in files_of(disk):
        content = (data / path).read_bytes()
        if path.startswith("originals"):
            assert sha256(content) in sent, path
        elif path.startswith("renditions"):
            assert content.endswith(b"\xff\xd9"), path
            decode(content)


def look_at_service(service: Service, acknowledged: Mapping[str, Picture]) -> None:
    """Check that a service on what the power cut left finishes every image, and serves it whole."""
    service.until(lambda: all(row["status"] == "ready" for row in rows_of(service).values()), 60, "every image's end")
    listed = [record["id"] for record in service.get("/images?limit=1000").json]
    assert sorted(listed) == sorted(rows_of(service))
    assert acknowledged.keys() <= set(listed)
    for image_id, row in rows_of(service).items():
        renditions = json.loads(row["renditions"])
        for name, (width, height, _, digest, *_) in renditions.items():
            path = f"/images/{image_id}.jpeg" if name == FULL else f"/thumbnails/{image_id}/{name}"
            answer = service.get(path)
            assert (answer.status, sha256(answer.body)) == (200, digest), path
            assert decode(answer.body) == (width, height), path
        assert (row["failures"], row["error_type"]) == (0, None)
    for image_id, picture in acknowledged.items():
        record = service.get(f"/images/{image_id}").json
        sizes = ladder(picture.size, SMALLEST_SIDE)
        assert record["size"] == list(picture.size)
        assert record["thumbnails"] == [f"/thumbnails/{image_id}/{width}x{height}.jpeg" for width, height in sizes]


def rows_of_copy(data: Path) -> dict[str, dict[str, Any]]:
    """Return the ledger's rows, read from a copy: whoever opens SQLite's files after a crash changes them."""
    copy = data.parent / "ledger"
    copy.mkdir()
    for file in data.glob("ledger.sqlite3*"):
        shutil.copy(file, copy)
    with closing(sqlite3.connect(copy / "ledger.sqlite3")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    return rows_of(Service(copy, copy / "output", {}))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def decode(content: bytes) -> Size:
    """Decode a picture to its last pixel, or fail; return its size."""
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        return picture.size
