from __future__ import annotations

import io
import json

import pytest

from shared.images import Status
from tests.api.arrange import PHOTO, UNKNOWN_ID, Service, problem_of
from tests.api.conftest import Start

TOKEN = "right-token-of-this-test"
OTHER = "wrong-token-of-this-test"

WRITES = [("POST", "/images"), ("DELETE", "/images/{id}"), ("POST", "/images/{id}/retry")]

MISSING = ["", "Basic cmlnaHQtdG9rZW4=", TOKEN, "Token " + TOKEN, "Bearertoken"]
WRONG = ["Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN.upper()}"]


@pytest.fixture
async def service(start: Start) -> Service:
    started: Service = await start(write_token=TOKEN)
    return started


@pytest.mark.parametrize(
    ("method", "path", "authorization", "problem"),
    [(*write, None, "missing-token") for write in WRITES]
    + [(*write, f"Bearer {OTHER}", "wrong-token") for write in WRITES]
    + [("DELETE", "/images/{id}", given, "missing-token") for given in MISSING]
    + [("DELETE", "/images/{id}", given, "wrong-token") for given in WRONG],
)
async def test_nothing_is_written_without_the_token(
    service: Service,
    output: io.StringIO,
    method: str,
    path: str,
    authorization: str | None,
    problem: str,
) -> None:
    image = await service.worker.failed()
    before = service.traces()
    headers = {} if authorization is None else {"Authorization": authorization}

    response = await service.client.simulate_request(method, path.format(id=image.id), body=PHOTO, headers=headers)

    assert response.status_code == 401
    assert problem_of(response) == problem
    challenge = "Bearer" if problem == "missing-token" else 'Bearer error="invalid_token"'
    assert response.headers["WWW-Authenticate"] == challenge
    assert service.traces() == before
    assert (await service.image(image.id)).status is Status.FAILED
    lines = output.getvalue()
    assert '"status": 401' in lines
    assert TOKEN not in lines
    assert OTHER not in lines


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "BEARER  "])
async def test_with_the_token_everything_is_written(service: Service, scheme: str) -> None:
    """RFC 9110, section 11.1: the name of a scheme has no case."""
    failed = await service.worker.failed()
    headers = {"Authorization": scheme + TOKEN}

    upload = await service.client.simulate_post("/images", body=PHOTO, headers=headers)
    retry = await service.client.simulate_post(f"/images/{failed.id}/retry", headers=headers)
    delete = await service.client.simulate_delete(f"/images/{failed.id}", headers=headers)

    assert [upload.status_code, retry.status_code, delete.status_code] == [202, 202, 204]


async def test_a_token_that_is_no_ascii_is_a_wrong_one(service: Service) -> None:
    headers = {"Authorization": "Bearer caf\N{LATIN SMALL LETTER E WITH ACUTE}"}

    answer = await service.send("DELETE", f"/images/{UNKNOWN_ID}", headers, [])

    assert answer[0]["status"] == 401
    assert json.loads(answer[1]["body"])["type"] == "urn:asgilook:problem:wrong-token"


async def test_the_token_is_asked_for_before_anything_else(service: Service) -> None:
    """Who may not write learns nothing about what may be written."""
    upload = await service.client.simulate_post("/images", body=b"", headers={"Content-Encoding": "gzip"})
    delete = await service.client.simulate_delete(f"/images/{UNKNOWN_ID}")

    assert [problem_of(upload), problem_of(delete)] == ["missing-token"] * 2


async def test_reading_needs_no_token(service: Service) -> None:
    image = await service.worker.ready()
    paths = ["/images", f"/images/{image.id}", f"/images/{image.id}.jpeg", "/healthz", "/readyz"]

    responses = [await service.client.simulate_get(path) for path in paths]

    assert [response.status_code for response in responses] == [200] * 5


async def test_where_no_token_is_set_none_is_asked_for(start: Start) -> None:
    service: Service = await start()

    response = await service.client.simulate_post("/images", body=PHOTO, headers={"Authorization": "Bearer any"})

    assert response.status_code == 202
