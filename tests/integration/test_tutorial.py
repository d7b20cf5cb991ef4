"""What falcon's tutorial promised of its service, kept over HTTP; and that a second GET equals the first."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable

import pytest
from PIL import Image

from shared.redis.response_cache import MOST_BODY_BYTES
from tests.integration.evidence import comparable, status_of
from tests.integration.faults import frozen_worker, small_picture
from tests.integration.service import Deployed, Response
from tests.worker.pictures import encoded, photo

pytestmark = pytest.mark.processes

UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture(scope="module")
def image_id(service: Deployed) -> str:
    """An image of 640 x 360 that is ready."""
    return str(service.upload(small_picture(), wait=20).json["id"])


@pytest.fixture(scope="module")
def large_id(service: Deployed) -> str:
    """An image of 12 MP that is ready."""
    return str(service.upload(large_picture(), wait=20).json["id"])


@functools.cache
def large_picture() -> bytes:
    return encoded(photo((4000, 3000)), "JPEG", quality=90).getvalue()


def size_of(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        assert image.format == "JPEG"
        return image.size


def test_an_upload_that_waits_is_created_and_located_as_the_tutorial_has_it(service: Deployed) -> None:
    answer = service.upload(small_picture(), wait=10)

    record = answer.json
    assert answer.status == 201
    assert answer.headers["location"] == f"/images/{record['id']}.jpeg"
    assert {"id", "image", "modified", "size", "thumbnails"} <= record.keys()
    assert record["image"] == f"/images/{record['id']}.jpeg"
    assert record["size"] == [640, 360]
    assert record["thumbnails"] == [f"/thumbnails/{record['id']}/{size}.jpeg" for size in ("320x180", "160x90")]


def test_every_picture_has_exactly_the_size_in_its_record_and_path(service: Deployed, image_id: str) -> None:
    paths = [f"/images/{image_id}.jpeg", *(f"/thumbnails/{image_id}/{size}.jpeg" for size in ("320x180", "160x90"))]

    sizes = [size_of(service.get(path).body) for path in paths]

    assert sizes == [(640, 360), (320, 180), (160, 90)]


def twice(service: Deployed, path_of_something_new: Callable[[], str]) -> tuple[Response, Response]:
    """GET what nobody has asked for yet, and again once there is a copy of it, which no answer waits for."""
    path = path_of_something_new()
    first, later = service.get(path), [service.get(path)]

    def is_copied() -> bool:
        later.append(service.get(path))
        return later[-1].headers["x-asgilook-cache"] == "Hit"

    service.until(is_copied, what="a copy")
    return first, later[-1]


def assert_copied(first: Response, second: Response) -> None:
    assert (first.headers["x-asgilook-cache"], second.headers["x-asgilook-cache"]) == ("Miss", "Hit")
    assert first.status == second.status == 200
    assert first.body == second.body


def test_the_list_is_a_miss_then_a_hit(service: Deployed) -> None:
    def changed_list() -> str:
        service.upload(small_picture(), wait=20)
        return "/images"

    assert_copied(*twice(service, changed_list))


def test_a_thumbnail_is_a_miss_then_a_hit(service: Deployed) -> None:
    assert_copied(*twice(service, lambda: str(service.upload(small_picture(), wait=20).json["thumbnails"][0])))


def test_an_image_of_twelve_megapixels_is_a_miss_then_a_hit(service: Deployed) -> None:
    """The tutorial answers the second GET of an image with an empty 200; and its bytes take longer than most."""
    first, second = twice(service, lambda: str(service.upload(large_picture(), wait=20).json["image"]))

    assert_copied(first, second)
    assert size_of(first.body) == (4000, 3000)
    assert 1_000_000 < len(first.body) < MOST_BODY_BYTES


@pytest.mark.parametrize("path", [f"/images/{UNKNOWN}", f"/images/{UNKNOWN}.jpeg", f"/thumbnails/{UNKNOWN}/8x8.jpeg"])
def test_an_unknown_id_is_not_found(service: Deployed, path: str) -> None:
    assert service.get(path).status == 404


@pytest.mark.parametrize("size", ["321x180", "80x45", "640x360", "0320x180"])
def test_a_size_off_the_ladder_is_not_found(service: Deployed, image_id: str, size: str) -> None:
    assert service.get(f"/thumbnails/{image_id}/{size}.jpeg").status == 404


@pytest.mark.parametrize(
    "path",
    [
        "/images",
        "/images?limit=1&order=desc",
        "/images?status=failed",
        "/images?limit=0",
        "/images?after=abc",
        "/images/{id}",
        "/images/{id}.jpeg",
        "/images/{large}",
        "/images/{large}.jpeg",
        "/thumbnails/{id}/320x180.jpeg",
        "/thumbnails/{id}/321x180.jpeg",
        "/thumbnails/{large}/2000x1500.jpeg",
        f"/images/{UNKNOWN}",
        f"/images/{UNKNOWN}.jpeg",
        "/images/no-id",
        "/nothing",
        "/healthz",
        "/images/{id}/retry",
    ],
)
@pytest.mark.parametrize(
    "headers", [{}, {"Range": "bytes=5-9"}, {"Accept": "image/*"}], ids=["plain", "range", "accept"]
)
def test_the_second_get_equals_the_first(
    service: Deployed, image_id: str, large_id: str, path: str, headers: dict[str, str]
) -> None:
    path = path.format(id=image_id, large=large_id)

    first, second, third = (comparable(service.get(path, headers)) for _ in range(3))

    assert second == first
    assert third == first


def test_the_second_get_equals_the_first_of_what_is_not_ready(service: Deployed) -> None:
    with frozen_worker(service):
        image_id = service.upload(small_picture()).json["id"]
        paths = [
            f"/images/{image_id}",
            f"/images/{image_id}.jpeg",
            f"/thumbnails/{image_id}/320x180.jpeg",
            "/images?status=queued",
        ]

        answers = [[service.get(path) for _ in range(2)] for path in paths]

    for first, second in answers:
        assert comparable(first) == comparable(second)
        assert "x-asgilook-cache" not in second.headers
    assert [first.status for first, _ in answers] == [200, 404, 404, 200]
    assert answers[0][0].headers["cache-control"] == "no-store"
    # And nothing of it is remembered once the image is ready.
    service.until(lambda: status_of(service, image_id) == "ready")
    assert [service.get(path).status for path in paths] == [200] * 4


def test_the_second_get_equals_the_first_of_what_failed(service: Deployed) -> None:
    refused = service.upload(small_picture()[:5000], wait=20)
    paths = [refused.headers["location"], f"{refused.headers['location']}.jpeg"]

    answers = [[service.get(path) for _ in range(2)] for path in paths]

    assert refused.status == 422
    assert [first.status for first, _ in answers] == [200, 404]
    for first, second in answers:
        assert comparable(first) == comparable(second)
