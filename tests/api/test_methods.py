from __future__ import annotations

import pytest

from shared.redis.response_cache import MOST_BODY_BYTES
from tests.api.arrange import PHOTO, UNKNOWN_ID, Service, headers_of, problem_of

PATHS = {
    "/images": "GET, HEAD, POST",
    f"/images/{UNKNOWN_ID}": "DELETE, GET, HEAD",
    f"/images/{UNKNOWN_ID}/retry": "POST",
    f"/images/{UNKNOWN_ID}.jpeg": "GET, HEAD",
    f"/thumbnails/{UNKNOWN_ID}/320x180.jpeg": "GET, HEAD",
    "/healthz": "GET, HEAD",
    "/readyz": "GET, HEAD",
}
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"]
REFUSED = [(path, method) for path, allowed in PATHS.items() for method in METHODS if method not in allowed.split(", ")]


@pytest.mark.parametrize(
    "path",
    [
        "/images",
        "/images?limit=1",
        "/images?status=queued",
        "/images?limit=0",
        "/images/{ready}",
        "/images/{queued}",
        "/images/{failed}",
        f"/images/{UNKNOWN_ID}",
        "/images/{ready}.jpeg",
        "/images/{large}.jpeg",
        "/images/{queued}.jpeg",
        "/thumbnails/{ready}/320x180.jpeg",
        "/thumbnails/{ready}/1x1.jpeg",
        "/nowhere",
        "/healthz",
        "/readyz",
    ],
)
async def test_head_answers_as_get_does_without_the_body(service: Service, path: str) -> None:
    large = await service.worker.ready(jpeg=bytes(MOST_BODY_BYTES + 1)) if "{large}" in path else None
    path = path.format(
        ready=(await service.worker.ready()).id,
        queued=(await service.worker.queued()).id,
        failed=(await service.worker.failed()).id,
        large=large.id if large else "",
    )

    head = await service.client.simulate_head(path)
    get = await service.client.simulate_get(path)

    assert head.content == b""
    assert head.status == get.status
    assert headers_of(head) == headers_of(get)
    assert head.headers["Content-Length"] == str(len(get.content))


@pytest.mark.parametrize("headers", [{"If-None-Match": "*"}, {"Range": "bytes=0-1"}])
async def test_head_takes_conditions_but_no_range(service: Service, headers: dict[str, str]) -> None:
    """RFC 9110, section 14.2: a Range is defined for GET only."""
    image = await service.worker.ready()

    response = await service.client.simulate_head(f"/images/{image.id}.jpeg", headers=headers)

    assert response.status_code == (304 if "If-None-Match" in headers else 200)


@pytest.mark.parametrize(("path", "method"), REFUSED)
async def test_a_method_that_a_path_does_not_have_is_refused(service: Service, path: str, method: str) -> None:
    response = await service.client.simulate_request(method, path, body=PHOTO)

    assert response.status_code == 405
    assert sorted(response.headers["Allow"].split(", ")) == sorted([*PATHS[path].split(", "), "OPTIONS"])
    if method != "HEAD":
        assert problem_of(response) == "method-not-allowed"
    assert service.traces() == []


@pytest.mark.parametrize("method", ["BREW", "images", "TRACE"])
async def test_a_method_that_no_path_has_is_refused(service: Service, method: str) -> None:
    answer = await service.send(method, "/images", {"Content-Length": str(len(PHOTO))}, [PHOTO])

    assert answer[0]["status"] in (400, 405)
    assert b"urn:asgilook:problem:" in answer[1]["body"]
    assert service.traces() == []


@pytest.mark.parametrize("path", PATHS)
async def test_options_tells_the_methods_and_does_nothing(service: Service, path: str) -> None:
    response = await service.client.simulate_options(path)

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["Allow"] == PATHS[path]
    assert await service.copies() == []


async def test_options_poisons_no_list(service: Service) -> None:
    """In the tutorial it did: its empty answer was kept, and served to the next who asked for the list."""
    image = await service.worker.ready()
    await service.client.simulate_options("/images")

    responses = [await service.client.simulate_get("/images") for _ in range(2)]
    again = await service.client.simulate_options("/images")

    assert [[record["id"] for record in response.json] for response in responses] == [[image.id]] * 2
    assert again.content == b""
    assert "X-ASGILook-Cache" not in again.headers
