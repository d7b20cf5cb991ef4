from __future__ import annotations

import hashlib
import json
from email.utils import formatdate

import pytest

from shared.errors import UnreadableImage
from shared.images import Lane
from tests.api.arrange import PHOTO, UNKNOWN_ID, Service, problem_of


async def test_the_record_of_a_ready_image_says_all_there_is(service: Service) -> None:
    image = await service.worker.ready((640, 360))

    response = await service.client.simulate_get(f"/images/{image.id}")

    record = response.json
    created = record.pop("created")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert created.endswith("Z")
    assert record == {
        "id": image.id,
        "status": "ready",
        "image": f"/images/{image.id}.jpeg",
        "modified": formatdate(image.modified, usegmt=True),
        "size": [640, 360],
        "thumbnails": [f"/thumbnails/{image.id}/320x180.jpeg", f"/thumbnails/{image.id}/160x90.jpeg"],
        "sequence": 1,
        "original": {"type": "image/jpeg", "bytes": len(PHOTO), "sha256": hashlib.sha256(PHOTO).hexdigest()},
        "error": None,
    }


async def test_a_ready_record_may_be_kept_by_its_client_and_must_be_asked_about(service: Service) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_get(f"/images/{image.id}")

    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["ETag"].startswith('"')
    assert response.headers["X-ASGILook-Cache"] == "Miss"
    assert "Retry-After" not in response.headers


@pytest.mark.parametrize("status", ["queued", "processing"])
async def test_an_unfinished_record_says_when_to_ask_again_and_is_not_kept(service: Service, status: str) -> None:
    image = await (service.worker.queued() if status == "queued" else service.worker.processing())

    response = await service.client.simulate_get(f"/images/{image.id}")

    assert response.status_code == 200
    assert response.json["status"] == status
    assert response.json["image"] is None
    assert response.json["size"] is None
    assert response.json["sequence"] is None
    assert response.json["thumbnails"] == []
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers
    assert "X-ASGILook-Cache" not in response.headers


async def test_a_failed_record_has_its_reason_and_is_not_kept(service: Service) -> None:
    """Promise 3. It may be retried any moment, so that no copy of it is worth anything."""
    image = await service.worker.failed(UnreadableImage.type, "The file ends in the middle of a line.")

    response = await service.client.simulate_get(f"/images/{image.id}")

    assert response.status_code == 200
    assert response.json["status"] == "failed"
    assert response.json["error"] == {
        "type": "urn:asgilook:problem:unreadable-image",
        "detail": "The file ends in the middle of a line.",
    }
    assert response.headers["Cache-Control"] == "no-store"
    assert "Retry-After" not in response.headers
    assert "ETag" not in response.headers


async def test_an_image_that_nobody_uploaded_is_not_found(service: Service) -> None:
    response = await service.client.simulate_get(f"/images/{UNKNOWN_ID}")

    assert response.status_code == 404
    assert problem_of(response) == "no-such-image"


async def test_a_ready_record_that_its_client_holds_is_not_sent_again(service: Service) -> None:
    image = await service.worker.ready()
    path = f"/images/{image.id}"
    held = (await service.client.simulate_get(path)).headers["ETag"]

    again = await service.client.simulate_get(path, headers={"If-None-Match": held})
    other = await service.client.simulate_get(path, headers={"If-None-Match": '"another"'})

    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["ETag"] == held
    assert again.headers["Cache-Control"] == "no-cache"
    assert other.status_code == 200


async def test_a_record_changes_its_etag_when_it_changes(service: Service) -> None:
    image = await service.worker.ready()
    before = (await service.client.simulate_get(f"/images/{image.id}")).headers["ETag"]
    await service.ledger.request_renditions(image, Lane.DEMAND)
    await service.worker.publish(await service.worker.claim(image.id), (128, 128))

    after = await service.client.simulate_get(f"/images/{image.id}", headers={"If-None-Match": before})

    assert after.status_code == 200
    assert after.json["size"] == [128, 128]


async def test_a_record_is_served_whole_whatever_range_was_asked_for(service: Service) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_get(f"/images/{image.id}", headers={"Range": "bytes=0-3"})

    assert response.status_code == 200
    assert "Accept-Ranges" not in response.headers
    assert json.loads(response.content)["id"] == image.id


@pytest.mark.parametrize(
    ("path", "accept"),
    [(path, "image/*") for path in ("/images", "/images?status=queued", f"/images/{UNKNOWN_ID}")]
    + [("/images/{ready}", a) for a in ("image/*", "text/html", "application/json;q=0", "application/xml, text/*")],
)
async def test_an_accept_without_room_for_json_is_refused(service: Service, path: str, accept: str) -> None:
    """Decided before the response cache is asked: a Hit must not answer what a Miss refuses."""
    image = await service.worker.ready()
    path = path.format(ready=image.id)
    await service.client.simulate_get(path)

    response = await service.client.simulate_get(path, headers={"Accept": accept})

    assert response.status_code == 406
    assert problem_of(response) == "not-acceptable"


@pytest.mark.parametrize("accept", ["*/*", "application/*", "application/json", "text/html, */*;q=0.1"])
async def test_an_accept_with_room_for_json_gets_it(service: Service, accept: str) -> None:
    image = await service.worker.ready()

    response = await service.client.simulate_get(f"/images/{image.id}", headers={"Accept": accept})

    assert response.status_code == 200
    assert response.json["id"] == image.id


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/image",
        "/images/",
        "/images/one",
        f"/images/{UNKNOWN_ID.upper()}",
        f"/images/{UNKNOWN_ID.replace('-', '')}",
        f"/images/{UNKNOWN_ID}.png",
        f"/thumbnails/{UNKNOWN_ID}",
        f"/thumbnails/{UNKNOWN_ID}/0320x180.jpeg",
        f"/thumbnails/{UNKNOWN_ID}/+320x180.jpeg",
        f"/thumbnails/{UNKNOWN_ID.upper()}/320x180.jpeg",
    ],
)
async def test_a_path_that_is_none_of_ours_is_not_found(service: Service, path: str) -> None:
    response = await service.client.simulate_get(path)

    assert response.status_code == 404
    assert problem_of(response) == "not-found"
