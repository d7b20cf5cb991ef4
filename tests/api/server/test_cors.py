"""Other origins' scripts: none may read an answer unless its origin is allowed, and then every answer, errors too."""

from __future__ import annotations

import threading

import pytest
from falcon.testing import Result

from api.server.asgi_types import Receive, Scope, Send
from tests.api.arrange import PHOTO, UNKNOWN_ID, Service
from tests.api.conftest import Start
from tests.api.http_server import GET, PATIENCE, Serve, echo, until_closed
from tests.api.server.test_guard import wait_for_ever

OURS, OTHER, STRANGER = "https://www.example.com", "http://localhost:3000", "https://evil.example"
ALLOW, EXPOSE = "Access-Control-Allow-Origin", "Access-Control-Expose-Headers"


@pytest.fixture
async def service(start: Start) -> Service:
    started: Service = await start(cors_origins=(OURS, OTHER), write_token="t0ken", max_upload_bytes=100_000)
    return started


def cors_of(response: Result) -> dict[str, str]:
    """Return the headers by which a browser decides."""
    return {
        name.lower(): value
        for name, value in response.headers.items()
        if name.lower().startswith("access-control-") or name.lower() == "vary"
    }


async def answers(service: Service, origin: str | None) -> list[Result]:
    """Return answers of every kind: successes, copies, conditionals, refusals by falcon, by the hooks, by the guard."""
    image, queued = await service.worker.ready(), await service.worker.queued()
    headers = {} if origin is None else {"Origin": origin}
    bearer = headers | {"Authorization": "Bearer t0ken"}

    async def ask(method: str, path: str, body: bytes | None = None, **more: str) -> Result:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        return await service.client.simulate_request(method, path, body=body, headers=(bearer | named))

    picture = await ask("GET", f"/images/{image.id}.jpeg")
    etag = picture.headers["ETag"]
    found = [
        picture,
        await ask("GET", f"/images/{image.id}.jpeg"),
        await ask("GET", f"/images/{image.id}.jpeg", If_None_Match=etag),
        await ask("GET", f"/images/{image.id}.jpeg", Range="bytes=0-3"),
        await ask("HEAD", f"/images/{image.id}.jpeg"),
        await ask("GET", f"/images/{image.id}.jpeg", Range="bytes=1000000-"),
        await ask("GET", "/images"),
        await ask("GET", f"/images/{queued.id}"),
        await ask("OPTIONS", "/images"),
        await ask("GET", f"/images/{UNKNOWN_ID}"),
        await ask("GET", "/%69mages"),
        await ask("GET", "/images", Accept="text/html"),
        await ask("PUT", "/images"),
        await ask("GET", "/images?limit=no"),
        await ask("POST", "/images", b"no picture", Authorization="Bearer wrong"),
        await ask("POST", "/images", PHOTO + b"x" * 100_000),
        await ask("POST", "/images", b"{}", Content_Type="application/json"),
        await ask("POST", "/images", PHOTO),
        await ask("POST", f"/images/{queued.id}/retry"),
    ]
    (service.settings.storage_path / "drafts").rename(service.settings.storage_path / "away")
    found.append(await ask("POST", "/images", PHOTO))
    (service.settings.storage_path / "away").rename(service.settings.storage_path / "drafts")
    return found


STATUSES = [200, 200, 304, 206, 200, 416, 200, 200, 200, 404, 404, 406, 405, 400, 401, 413, 415, 202, 409, 503]


async def test_every_answer_says_that_an_allowed_origin_may_read_it(service: Service) -> None:
    found = await answers(service, OURS)

    assert [answer.status_code for answer in found] == STATUSES
    assert {answer.headers.get(ALLOW) for answer in found} == {OURS}
    assert {answer.headers.get("Vary") for answer in found} == {"Origin"}
    assert [answer.headers["X-ASGILook-Cache"] for answer in found[:2]] == ["Miss", "Hit"]
    for name in ("Location", "ETag", "X-ASGILook-Cache", "Preference-Applied", "Retry-After", "Link", "Content-Range"):
        assert all(name in answer.headers[EXPOSE].split(", ") for answer in found)


@pytest.mark.parametrize("origin", [None, STRANGER, "null", OURS.upper(), f"{OURS}:443", f"{OURS}.evil.example"])
async def test_no_other_origin_may_read_anything(service: Service, origin: str | None) -> None:
    found = await answers(service, origin)

    assert [answer.status_code for answer in found] == STATUSES
    # And no cache on the way is to give them what it has for another.
    assert [cors_of(answer) for answer in found] == [{"vary": "Origin"}] * len(STATUSES)


async def test_a_copy_in_the_response_cache_tells_each_origin_its_own(service: Service) -> None:
    image = await service.worker.ready()

    found = [
        await service.client.simulate_get(f"/images/{image.id}", headers={} if origin is None else {"Origin": origin})
        for origin in (OURS, OTHER, STRANGER, None)
    ]

    assert [answer.headers["X-ASGILook-Cache"] for answer in found] == ["Miss", "Hit", "Hit", "Hit"]
    assert [answer.headers.get(ALLOW) for answer in found] == [OURS, OTHER, None, None]


async def test_with_an_asterisk_everybody_may_read_everything(start: Start) -> None:
    service = await start(cors_origins=("*",), write_token="t0ken", max_upload_bytes=100_000)

    found = [answer for origin in (STRANGER, None) for answer in await answers(service, origin)]

    assert [answer.status_code for answer in found] == STATUSES * 2
    assert {answer.headers.get(ALLOW) for answer in found} == {"*"}
    assert {answer.headers.get("Vary") for answer in found} == {None}
    assert {answer.headers.get("Access-Control-Allow-Credentials") for answer in found} == {None}


async def test_by_default_nothing_is_said_of_origins(start: Start) -> None:
    service = await start(write_token="t0ken", max_upload_bytes=100_000)

    found = await answers(service, OURS)

    assert [cors_of(answer) for answer in found] == [{}] * len(STATUSES)


def preflight(origin: str, method: str = "POST", headers: str = "authorization,prefer") -> dict[str, str]:
    return {"Origin": origin, "Access-Control-Request-Method": method, "Access-Control-Request-Headers": headers}


@pytest.mark.parametrize("path", ["/images", f"/images/{UNKNOWN_ID}", "/nothing/here"])
async def test_a_preflight_of_an_allowed_origin_needs_no_token_and_is_told_what_may_be_sent(
    service: Service, path: str
) -> None:
    response = await service.client.simulate_options(path, headers=preflight(OURS))

    assert (response.status_code, response.text) == (204, "")
    assert response.headers[ALLOW] == OURS
    assert response.headers["Vary"] == "Origin"
    assert {"POST", "DELETE"} <= set(response.headers["Access-Control-Allow-Methods"].split(", "))
    allowed = response.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "prefer", "content-digest", "content-type", "range"} <= set(allowed)
    assert int(response.headers["Access-Control-Max-Age"]) > 0


async def test_a_preflight_of_another_origin_is_told_nothing_that_would_let_it_go_on(service: Service) -> None:
    response = await service.client.simulate_options("/images", headers=preflight(STRANGER))

    assert ALLOW not in response.headers
    assert response.headers["Vary"] == "Origin"


async def test_a_preflight_leaves_no_copy_behind(service: Service) -> None:
    image = await service.worker.ready()
    path = f"/images/{image.id}"
    await service.client.simulate_options(path, headers=preflight(OURS, "GET"))

    response = await service.client.simulate_get(path, headers={"Origin": OURS})

    assert (response.status_code, response.headers["X-ASGILook-Cache"]) == (200, "Miss")
    assert response.json["id"] == image.id


def test_who_is_cut_off_at_the_end_of_the_grace_may_read_why(serve: Serve) -> None:
    entered = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await wait_for_ever(scope, receive, send)

    server = serve(app, cors_origins=(OURS,))
    with server.connect() as client:
        client.sendall(GET.replace(b"\r\n\r\n", f"\r\nOrigin: {OURS}\r\n\r\n".encode()))
        assert entered.wait(PATIENCE)
        server.begin_to_stop()
        head = until_closed(client).partition(b"\r\n\r\n")[0]

    assert head.startswith(b"HTTP/1.1 503 ")
    assert f"access-control-allow-origin: {OURS}".encode() in head


def test_whose_headers_are_too_large_may_read_why(serve: Serve) -> None:
    with serve(echo, cors_origins=(OURS,)).connect() as client:
        client.sendall(GET.replace(b"\r\n\r\n", f"\r\nOrigin: {OURS}\r\nA: {'a' * 40_000}\r\n\r\n".encode()))
        head = until_closed(client).partition(b"\r\n\r\n")[0]

    assert head.startswith(b"HTTP/1.1 431 ")
    assert f"access-control-allow-origin: {OURS}".encode() in head
