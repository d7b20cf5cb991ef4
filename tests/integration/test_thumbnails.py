"""Thumbnails that are missing are made when somebody asks for them, and nothing else changes."""

from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image

from tests.integration.evidence import attempts_of, comparable, is_at_rest, original_of, renditions_of, row_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Response, Service, Services

pytestmark = pytest.mark.processes


def settled(service: Service, image_id: str) -> bool:
    return is_at_rest(row_of(service, image_id))


def upload(service: Service) -> dict[str, Any]:
    """Return the record of an image of 640 x 360 that is ready and owes nothing."""
    record: dict[str, Any] = service.upload(small_picture(), wait=20).json
    service.until(lambda: settled(service, record["id"]), what="settling")
    return record


def asked_for(service: Service, path: str) -> Response:
    """Ask for a thumbnail that is not there: it is refused for now, then it comes."""
    refusal = service.get(path)
    assert (refusal.status, refusal.headers["retry-after"]) == (503, "1")
    assert refusal.headers["content-type"] == "application/problem+json"
    assert "x-asgilook-cache" not in refusal.headers
    service.until(lambda: service.get(path).status == 200, what="the thumbnail")
    return service.get(path)


def assert_size(picture: bytes, size: tuple[int, int]) -> None:
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        assert (image.format, image.size) == ("JPEG", size)


def test_a_thumbnail_whose_file_is_gone_is_made_again(service: Deployed) -> None:
    record = upload(service)
    before = service.get(record["image"])
    (folder := renditions_of(service, record["id"]) / "1").joinpath("320x180.jpeg").unlink()

    made = asked_for(service, record["thumbnails"][0])

    assert_size(made.body, (320, 180))
    after = service.get(record["image"])
    assert (after.body, after.headers["etag"]) == (before.body, before.headers["etag"])
    latest = service.get(f"/images/{record['id']}").json
    unchanged = ("id", "status", "image", "size", "thumbnails", "created", "sequence", "original")
    assert [latest[key] for key in unchanged] == [record[key] for key in unchanged]
    service.until(lambda: attempts_of(service, record["id"]) == ["2"], what="the end of what was superseded")
    assert not folder.exists()


def test_a_size_that_only_todays_ladder_has_is_made_when_asked_for(services: Services) -> None:
    first = services.deploy()
    record = upload(first)
    assert first.get(f"/thumbnails/{record['id']}/40x22.jpeg").status == 404
    before = [comparable(first.get(path)) for path in (record["image"], *record["thumbnails"])]
    first.stop()
    service = services.deploy(data=first.data, ASGI_LOOK_MIN_THUMB_SIZE="20")

    made = asked_for(service, f"/thumbnails/{record['id']}/40x22.jpeg")

    assert_size(made.body, (40, 22))
    assert service.get(f"/thumbnails/{record['id']}/20x11.jpeg").status == 404
    sizes = ("320x180", "160x90", "80x45", "40x22")
    latest = service.get(f"/images/{record['id']}").json
    assert latest["thumbnails"] == [f"/thumbnails/{record['id']}/{size}.jpeg" for size in sizes]
    after = [comparable(service.get(path)) for path in (record["image"], *record["thumbnails"])]
    assert [body for _, _, body in after] == [body for _, _, body in before]
    assert [headers["etag"] for _, headers, _ in after] == [headers["etag"] for _, headers, _ in before]


def test_without_originals_thumbnails_are_made_from_the_jpeg(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_KEEP_ORIGINALS="0")
    record = upload(service)
    assert not original_of(service, record["id"]).exists()
    before = service.get(record["image"])
    (renditions_of(service, record["id"]) / "1" / "160x90.jpeg").unlink()

    made = asked_for(service, record["thumbnails"][1])

    assert_size(made.body, (160, 90))
    after = service.get(record["image"])
    assert (after.body, after.headers["etag"]) == (before.body, before.headers["etag"])
    # Made once more from the JPEG, it is another thumbnail, yet of the same picture.
    with Image.open(io.BytesIO(made.body)) as thumbnail, Image.open(io.BytesIO(before.body)) as full:
        small = full.resize((160, 90), Image.Resampling.LANCZOS)
        pairs = zip(thumbnail.tobytes(), small.tobytes(), strict=True)
        assert sum(abs(a - b) for a, b in pairs) / (160 * 90 * 3) < 6
