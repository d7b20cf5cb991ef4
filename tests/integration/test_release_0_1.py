"""A data folder of release 0.1.0, with images in every status, is used by today's service as if it were its own.

The folder and what 0.1.0 answered about it are in `tests/releases`, beside the script that made them.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.integration.evidence import attempts_of, original_of, renditions_of
from tests.integration.service import Deployed, ended

pytestmark = [
    pytest.mark.processes,
    pytest.mark.one_machine("the folder of 0.1.0 is on one disk, its ledger too"),
]

RELEASES = Path(__file__).parents[1] / "releases"
#: The sizes of each image's JPEG and thumbnails.
SIZES = [(320, 256), (160, 128), (80, 64)]
#: What 0.1.0 left behind, by id.
IMAGES: dict[str, dict[str, Any]] = json.loads((RELEASES / "data-0.1.0.json").read_text())["images"]
#: The same ids by case.
IDS = {image["case"]: image_id for image_id, image in IMAGES.items()}
READY = [image_id for image_id, image in IMAGES.items() if image["status"] == "ready"]
#: Ready images of which no file is missing, so that nothing about them has to change.
COMPLETE = [image_id for image_id in READY if not IMAGES[image_id]["missing"]]
INCOMPLETE = [image_id for image_id in READY if IMAGES[image_id]["missing"]]
UNFINISHED = [IDS["queued"], IDS["processing"]]
FAILED = [image_id for image_id, image in IMAGES.items() if image["status"] == "failed"]
DELETING = [image_id for image_id, image in IMAGES.items() if image["status"] == "deleting"]


@pytest.fixture(scope="module")
def upgraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Today's service on the folder of 0.1.0."""
    folder = tmp_path_factory.mktemp("release-0.1")
    with tarfile.open(RELEASES / "data-0.1.0.tar.gz") as tar:
        tar.extractall(folder, filter="data")
    with ended(folder) as services:
        yield services.deploy(data=folder / "data")


def record_of(service: Deployed, image_id: str) -> dict[str, Any]:
    """Return an image's record, without what releases after 0.1.0 have added to it."""
    record = service.get(f"/images/{image_id}").json
    return {key: record[key] for key in IMAGES[image_id]["record"]}


def without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def digest_of(service: Deployed, path: str) -> str:
    answer = service.get(path)
    assert answer.status == 200, path
    return hashlib.sha256(answer.body).hexdigest()


def size_of(service: Deployed, path: str) -> tuple[int, int]:
    with Image.open(io.BytesIO(service.get(path).body)) as image:
        image.load()
        return image.size


def assert_not_found(service: Deployed, image_id: str) -> None:
    for path in (f"/images/{image_id}", f"/images/{image_id}.jpeg", f"/thumbnails/{image_id}/160x128.jpeg"):
        assert service.get(path).status == 404
    assert service.request("DELETE", f"/images/{image_id}").status == 404


# First of all: a reader who pays the tokens of a deleted image, as the list does, leaves its files to a pass of the
# sweep ten seconds later. Without one, the next pass removes them.


def test_a_deleted_image_is_not_found_while_it_has_files(upgraded: Deployed) -> None:
    assert_not_found(upgraded, IDS["deleting, owing leftovers"])


def test_the_files_of_deleted_images_go(upgraded: Deployed) -> None:
    for image_id in DELETING:
        for place in (original_of(upgraded, image_id), renditions_of(upgraded, image_id)):
            upgraded.until(lambda place=place: not place.exists(), what=f"the end of {place}")  # type: ignore[misc] # a default is no argument
        assert_not_found(upgraded, image_id)


@pytest.mark.parametrize("image_id", COMPLETE, ids=lambda image_id: IMAGES[image_id]["case"])
def test_a_ready_image_has_the_record_and_the_bytes_that_it_had(upgraded: Deployed, image_id: str) -> None:
    assert record_of(upgraded, image_id) == IMAGES[image_id]["record"]
    pictures = IMAGES[image_id]["pictures"]
    assert len(pictures) == 3
    assert {path: digest_of(upgraded, path) for path in pictures} == pictures


def test_ready_images_are_listed_in_their_order(upgraded: Deployed) -> None:
    listed = [record["id"] for record in upgraded.get("/images").json]

    # What was unfinished may have followed meanwhile.
    assert listed[: len(READY)] == sorted(READY, key=lambda image_id: IMAGES[image_id]["record"]["sequence"])


def test_a_superseded_attempt_is_removed(upgraded: Deployed) -> None:
    image_id = IDS["ready, owing leftovers"]

    upgraded.until(lambda: attempts_of(upgraded, image_id) == ["2"], what="the first attempt's end")

    assert original_of(upgraded, image_id).exists()


@pytest.mark.parametrize("image_id", INCOMPLETE, ids=lambda image_id: IMAGES[image_id]["case"])
def test_missing_thumbnails_are_made(upgraded: Deployed, image_id: str) -> None:
    before = IMAGES[image_id]["record"]
    (missing,) = IMAGES[image_id]["missing"]

    upgraded.until(lambda: upgraded.get(missing).status == 200, what="the missing thumbnail")

    # The JPEG is still 0.1.0's; thumbnails may be other bytes, made by another encoder.
    assert [size_of(upgraded, path) for path in (before["image"], *before["thumbnails"])] == SIZES
    assert digest_of(upgraded, before["image"]) == IMAGES[image_id]["pictures"][before["image"]]
    assert without(record_of(upgraded, image_id), "modified") == without(before, "modified")


@pytest.mark.parametrize("image_id", UNFINISHED, ids=lambda image_id: IMAGES[image_id]["case"])
def test_an_unfinished_image_becomes_ready(upgraded: Deployed, image_id: str) -> None:
    before = IMAGES[image_id]["record"]

    upgraded.until(lambda: record_of(upgraded, image_id)["status"] == "ready", what="readiness")

    after = record_of(upgraded, image_id)
    same = ("id", "created", "original")
    assert [after[key] for key in same] == [before[key] for key in same]
    assert [size_of(upgraded, path) for path in (after["image"], *after["thumbnails"])] == SIZES
    assert after["sequence"] > max(IMAGES[ready]["record"]["sequence"] for ready in READY)


def test_a_failed_image_tells_its_reason_and_can_be_retried(upgraded: Deployed) -> None:
    for image_id in FAILED:
        assert record_of(upgraded, image_id) == IMAGES[image_id]["record"]
        assert IMAGES[image_id]["record"]["error"]["detail"]

    image_id = IDS["failed"]
    assert upgraded.request("POST", f"/images/{image_id}/retry").status == 202

    upgraded.until(lambda: record_of(upgraded, image_id)["status"] == "failed", what="the second failure")
    assert record_of(upgraded, image_id)["error"] == IMAGES[image_id]["record"]["error"]
