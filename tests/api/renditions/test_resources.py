from __future__ import annotations

import hashlib
from email.utils import formatdate
from pathlib import Path
from typing import Any

import falcon.asgi
import falcon.testing
import pytest

from api.problems import Problem
from api.renditions.memory import Memory
from api.renditions.resources import Renditions
from shared.images import Image, Lane, Status, Work
from shared.ledger import Ledger
from shared.ledger.engine import create_engine
from shared.redis.circuit_breaker import WEB_DEADLINE, CircuitBreaker
from shared.redis.queue import Queue
from shared.redis.response_cache import MOST_BODY_BYTES
from shared.renditions import FULL, Size, rendition_key
from shared.storage.files import PIECE_BYTES
from tests.api.arrange import UNKNOWN_ID, Service, picture, problem_of
from tests.api.conftest import Start

LARGE = bytes(range(256)) * (MOST_BODY_BYTES // 256) + b"and one byte more"


def paths_of(image: Image) -> dict[str, str]:
    """Return the paths of a 640x360 image's pictures, by the names of their renditions."""
    return {
        FULL: f"/images/{image.id}.jpeg",
        "320x180.jpeg": f"/thumbnails/{image.id}/320x180.jpeg",
        "160x90.jpeg": f"/thumbnails/{image.id}/160x90.jpeg",
    }


def file_of(service: Service, image: Image, name: str) -> Path:
    key = rendition_key(image.id, image.renditions[name])
    (path,) = (path for path in service.files("renditions") if path.match(f"*/{key.partition('/')[2]}"))
    return path


async def test_each_picture_is_served_as_it_was_published(service: Service) -> None:
    image = await service.worker.ready((640, 360))

    responses = {name: await service.client.simulate_get(path) for name, path in paths_of(image).items()}

    assert {name: response.content for name, response in responses.items()} == {
        name: picture(image, name) for name in paths_of(image)
    }


@pytest.mark.parametrize("name", [FULL, "320x180.jpeg"])
async def test_a_picture_may_be_kept_for_a_year(service: Service, name: str) -> None:
    image = await service.worker.ready((640, 360))

    response = await service.client.simulate_get(paths_of(image)[name])

    assert dict(response.headers) == {
        "content-type": "image/jpeg",
        "content-length": str(len(picture(image, name))),
        "etag": f'"{hashlib.sha256(picture(image, name)).hexdigest()}"',
        "last-modified": formatdate(image.modified, usegmt=True),
        "cache-control": "public, max-age=31536000, immutable",
        "accept-ranges": "bytes",
        "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox",
        "cross-origin-resource-policy": "cross-origin",
        "x-asgilook-cache": "Miss",
    }


SAFETY = ("x-content-type-options", "content-security-policy", "cross-origin-resource-policy")


@pytest.mark.parametrize("name", [FULL, "320x180.jpeg"])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9"}, {"If-None-Match": "*"}], ids=["200", "206", "304"])
async def test_a_picture_may_be_shown_anywhere_and_do_nothing_fresh_or_copied(
    service: Service, name: str, headers: dict[str, str]
) -> None:
    """A 304's headers replace those that its client has kept."""
    image = await service.worker.ready((640, 360))
    fresh = await service.client.simulate_head(paths_of(image)[name], headers=headers)
    await service.client.simulate_get(paths_of(image)[name])

    copied = await service.client.simulate_get(paths_of(image)[name], headers=headers)

    assert (fresh.headers["X-ASGILook-Cache"], copied.headers["X-ASGILook-Cache"]) == ("Miss", "Hit")
    for response in (fresh, copied):
        assert [response.headers[header] for header in SAFETY] == [
            "nosniff",
            "default-src 'none'; sandbox",
            "cross-origin",
        ]


@pytest.mark.parametrize("path", ["/images", "/healthz", "/images/{id}", "/nothing", "/images/%61", "/images?limit=0"])
async def test_everything_else_is_for_its_own_origin(service: Service, path: str) -> None:
    image = await service.worker.ready()

    responses = [await service.client.simulate_get(path.format(id=image.id)) for _ in range(2)]

    for response in responses:
        assert [response.headers[header] for header in SAFETY] == [
            "nosniff",
            "default-src 'none'; frame-ancestors 'none'",
            "same-origin",
        ]


async def test_how_long_a_picture_may_be_kept_is_a_setting(start: Start) -> None:
    service: Service = await start(picture_max_age=60)
    image = await service.worker.ready()

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg")

    assert response.headers["Cache-Control"] == "public, max-age=60, immutable"


async def test_pictures_ignore_what_is_accepted(service: Service) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg", headers={"Accept": "text/html"})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "image/jpeg"


@pytest.mark.parametrize("size", [None, "320x180"])
async def test_a_picture_that_is_not_there_says_why(service: Service, size: str | None) -> None:
    def path_of(image_id: str) -> str:
        return f"/images/{image_id}.jpeg" if size is None else f"/thumbnails/{image_id}/{size}.jpeg"

    deleted = await service.worker.ready()
    await service.client.simulate_delete(f"/images/{deleted.id}")
    ids = {
        "queued": (await service.worker.queued()).id,
        "processing": (await service.worker.processing()).id,
        "failed": (await service.worker.failed(detail="It ends in the middle.")).id,
        "deleted": deleted.id,
        "unknown": UNKNOWN_ID,
    }

    responses = {name: await service.client.simulate_get(path_of(image_id)) for name, image_id in ids.items()}

    assert {response.status_code for response in responses.values()} == {404}
    assert {name: problem_of(response) for name, response in responses.items()} == {
        "queued": "not-ready",
        "processing": "not-ready",
        "failed": "image-failed",
        "deleted": "no-such-image",
        "unknown": "no-such-image",
    }
    assert {name: response.headers.get("Retry-After") for name, response in responses.items()} == {
        "queued": "1",
        "processing": "1",
        "failed": None,
        "deleted": None,
        "unknown": None,
    }
    assert responses["failed"].json["detail"] == "It ends in the middle."


@pytest.mark.parametrize("size", ["640x360", "321x180", "80x45", "1x1", "65500x65500"])
async def test_a_size_that_is_not_on_the_ladder_is_not_found(service: Service, size: str) -> None:
    image = await service.worker.ready((640, 360))

    response = await service.client.simulate_get(f"/thumbnails/{image.id}/{size}.jpeg")

    assert response.status_code == 404
    assert problem_of(response) == "no-such-size"
    assert await service.jobs() == []


# --- Conditions and ranges -----------------------------------------------------------------------------------


@pytest.mark.parametrize("jpeg", [None, LARGE], ids=["small", "large"])
async def test_a_picture_that_its_client_holds_is_not_sent_again(service: Service, jpeg: bytes | None) -> None:
    image = await service.worker.ready(jpeg=jpeg)
    path = f"/images/{image.id}.jpeg"
    first = await service.client.simulate_get(path)

    by_tag = await service.client.simulate_get(path, headers={"If-None-Match": first.headers["ETag"]})
    by_date = await service.client.simulate_get(path, headers={"If-Modified-Since": first.headers["Last-Modified"]})
    both = await service.client.simulate_get(
        path, headers={"If-None-Match": '"x"', "If-Modified-Since": first.headers["Last-Modified"]}
    )

    for response in (by_tag, by_date):
        assert (response.status_code, response.content) == (304, b"")
        for name in ("ETag", "Last-Modified", "Cache-Control"):
            assert response.headers[name] == first.headers[name]
        assert response.headers["X-ASGILook-Cache"] == ("Miss" if jpeg else "Hit")
    assert both.status_code == 200


@pytest.mark.parametrize("jpeg", [None, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("asked_before", [False, True])
async def test_a_part_of_a_picture_is_served(service: Service, jpeg: bytes | None, asked_before: bool) -> None:
    image = await service.worker.ready(jpeg=jpeg)
    whole = jpeg or picture(image, FULL)
    path = f"/images/{image.id}.jpeg"
    if asked_before:
        await service.client.simulate_get(path)

    for asked, first, last in [("10-19", 10, 19), ("-5", len(whole) - 5, len(whole) - 1), ("9-", 9, len(whole) - 1)]:
        response = await service.client.simulate_get(path, headers={"Range": f"bytes={asked}"})

        assert response.status_code == 206
        assert response.content == whole[first : last + 1]
        assert response.headers["Content-Range"] == f"bytes {first}-{last}/{len(whole)}"
        assert response.headers["Content-Length"] == str(last - first + 1)
        assert response.headers["Content-Type"] == "image/jpeg"


async def test_several_ranges_get_the_whole(service: Service) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg", headers={"Range": "bytes=0-1,4-5"})

    assert response.status_code == 200
    assert response.content == picture(image, FULL)


@pytest.mark.parametrize("jpeg", [None, LARGE], ids=["small", "large"])
async def test_a_range_past_the_end_cannot_be_satisfied(service: Service, jpeg: bytes | None) -> None:
    image = await service.worker.ready(jpeg=jpeg)
    length = len(jpeg or picture(image, FULL))

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg", headers={"Range": f"bytes={length}-"})

    assert response.status_code == 416
    assert problem_of(response) == "range-not-satisfiable"
    assert response.headers["Content-Range"] == f"bytes */{length}"


@pytest.mark.parametrize("jpeg", [None, LARGE], ids=["small", "large"])
async def test_a_range_of_another_picture_gets_the_whole(service: Service, jpeg: bytes | None) -> None:
    image = await service.worker.ready(jpeg=jpeg)
    path = f"/images/{image.id}.jpeg"
    etag = (await service.client.simulate_get(path)).headers["ETag"]

    same = await service.client.simulate_get(path, headers={"Range": "bytes=0-3", "If-Range": etag})
    other = await service.client.simulate_get(path, headers={"Range": "bytes=0-3", "If-Range": '"another"'})

    assert (same.status_code, other.status_code) == (206, 200)
    assert other.content == (jpeg or picture(image, FULL))


async def test_what_a_client_holds_counts_before_its_range(service: Service) -> None:
    image = await service.worker.ready()
    path = f"/images/{image.id}.jpeg"
    etag = (await service.client.simulate_get(path)).headers["ETag"]

    response = await service.client.simulate_get(path, headers={"If-None-Match": etag, "Range": "bytes=999999-"})

    assert response.status_code == 304


# --- Large pictures ------------------------------------------------------------------------------------------


async def test_a_large_picture_is_streamed_and_never_copied(service: Service) -> None:
    image = await service.worker.ready(jpeg=LARGE)

    answers = [await service.send("GET", f"/images/{image.id}.jpeg", {}, []) for _ in range(2)]

    for start, *pieces in answers:
        assert start["status"] == 200
        assert (b"content-length", str(len(LARGE)).encode()) in start["headers"]
        assert (b"x-asgilook-cache", b"Miss") in start["headers"]
        assert b"".join(piece.get("body", b"") for piece in pieces) == LARGE
        assert max(len(piece.get("body", b"")) for piece in pieces) <= PIECE_BYTES
    assert await service.copies() == []


async def test_a_picture_of_exactly_the_most_that_is_copied_is_copied(service: Service) -> None:
    image = await service.worker.ready(jpeg=LARGE[:MOST_BODY_BYTES])
    path = f"/images/{image.id}.jpeg"

    first = await service.client.simulate_get(path)
    second = await service.client.simulate_get(path)

    assert (first.headers["X-ASGILook-Cache"], second.headers["X-ASGILook-Cache"]) == ("Miss", "Hit")
    assert first.content == second.content == LARGE[:MOST_BODY_BYTES]


# --- Renditions that are missing -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [FULL, "320x180.jpeg", "160x90.jpeg"])
async def test_a_missing_file_is_made_again_while_the_image_stays_ready(service: Service, name: str) -> None:
    image = await service.worker.ready((640, 360))
    file_of(service, image, name).unlink()

    response = await service.client.simulate_get(paths_of(image)[name])

    assert response.status_code == 503
    assert problem_of(response) == "rendition-missing"
    assert response.headers["Retry-After"] == "1"
    wanted = await service.image(image.id)
    assert (wanted.status, wanted.work, wanted.lane) == (Status.READY, Work.RENDITIONS, Lane.DEMAND)
    assert await service.jobs() == [f"work:{image.id}:{image.attempt}"]


async def test_a_missing_large_picture_is_made_again(service: Service) -> None:
    image = await service.worker.ready(jpeg=LARGE)
    file_of(service, image, FULL).unlink()

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg")

    assert response.status_code == 503
    assert problem_of(response) == "rendition-missing"


@pytest.mark.parametrize("jpeg", [None, LARGE], ids=["copied", "streamed"])
async def test_a_head_of_a_missing_file_has_nothing_made(service: Service, jpeg: bytes | None) -> None:
    image = await service.worker.ready(jpeg=jpeg)
    file_of(service, image, FULL).unlink()

    response = await service.client.simulate_head(f"/images/{image.id}.jpeg")

    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert (await service.image(image.id)).work is None
    assert await service.jobs() == []


async def test_a_missing_file_is_asked_for_once(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    for name in paths_of(image):
        file_of(service, image, name).unlink()

    responses = [await service.client.simulate_get(path) for path in [*paths_of(image).values()] * 2]

    assert {response.status_code for response in responses} == {503}
    assert len(await service.jobs()) == 1


async def test_a_size_that_only_todays_ladder_has_is_made(start: Start) -> None:
    """Somebody has lowered the smallest side since the image was made."""
    service: Service = await start()
    image = await service.worker.ready((640, 360))
    later: Service = await start(min_thumb_size=45)

    response = await later.client.simulate_get(f"/thumbnails/{image.id}/80x45.jpeg")

    assert response.status_code == 503
    assert problem_of(response) == "rendition-missing"
    assert (await service.image(image.id)).work is Work.RENDITIONS
    assert len(await service.jobs()) == 1


async def test_a_size_that_only_the_ladder_of_then_had_is_served(start: Start) -> None:
    service: Service = await start()
    image = await service.worker.ready((640, 360))
    later: Service = await start(min_thumb_size=300)

    response = await later.client.simulate_get(f"/thumbnails/{image.id}/160x90.jpeg")

    assert response.status_code == 200


async def test_what_is_missing_is_served_once_it_was_made_again(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    file_of(service, image, "320x180.jpeg").unlink()
    await service.client.simulate_get(paths_of(image)["320x180.jpeg"])
    published = await service.worker.publish(await service.worker.claim(image.id))

    response = await service.client.simulate_get(paths_of(image)["320x180.jpeg"])

    assert response.status_code == 200
    assert response.content == picture(published, "320x180.jpeg")
    assert published.sequence == image.sequence


async def test_without_redis_what_is_missing_is_left_to_the_sweep(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    file_of(service, image, FULL).unlink()
    service.redises.go_away()

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg")

    assert response.status_code == 503
    assert [wanted.id for wanted in await service.ledger.waiting(10)] == [image.id]


class LateLedger(Ledger):
    """Answers its first questions with rows as they were a moment ago."""

    def __init__(self, service: Service, *before: Image) -> None:
        super().__init__(create_engine(service.settings))
        self._before = list(before)

    async def get(self, image_id: str) -> Image | None:
        return self._before.pop(0) if self._before else await super().get(image_id)


async def served_late(service: Service, image: Image, name: str, size: Size | None, *before: Image) -> Any:
    """Return the response of a web process that has read these rows just before they changed."""
    ledger = LateLedger(service, *before)
    queue = Queue(service.redis, CircuitBreaker(service.redis, WEB_DEADLINE), lambda: service.ledger_name)
    renditions = Renditions(service.settings, ledger, service.storage, service.worker.settling, queue, Memory(0))
    response = falcon.asgi.Response()
    try:
        await renditions.on_get(falcon.testing.create_asgi_req(), response, image.id, size)
    finally:
        await ledger.close()
    return response


async def test_a_folder_superseded_between_row_and_file_is_no_missing_file(service: Service) -> None:
    """Between the read of the row and that of the file, the next attempt was published and the folder removed."""
    image = await service.worker.ready((640, 360))
    published = await service.worker.publish_again(image)
    assert not await service.storage.exists(rendition_key(image.id, image.renditions["320x180.jpeg"]))

    response = await served_late(service, image, "320x180.jpeg", (320, 180), image)

    assert response.data == picture(published, "320x180.jpeg")
    assert await service.jobs() == []


async def test_a_file_missing_in_the_next_folder_too_is_made_again(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    published = await service.worker.publish_again(image)
    file_of(service, published, "320x180.jpeg").unlink()

    with pytest.raises(Problem, match="rendition-missing"):
        await served_late(service, image, "320x180.jpeg", (320, 180), image)

    assert len(await service.jobs()) == 1


async def test_a_picture_deleted_between_row_and_file_is_not_found(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    await service.client.simulate_delete(f"/images/{image.id}")

    with pytest.raises(Problem, match="no-such-image"):
        await served_late(service, image, FULL, None, image)


async def test_on_a_disk_nobody_is_sent_elsewhere(start: Start) -> None:
    """There is no address of the disk's own; ASGI_LOOK_REDIRECT_BYTES is about object stores."""
    service = await start(redirect_bytes=0)
    image = await service.worker.ready((640, 360))

    for path in paths_of(image).values():
        assert (await service.client.simulate_get(path)).status_code == 200
