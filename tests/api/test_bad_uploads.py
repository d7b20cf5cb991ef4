"""What is refused gets a 4xx with a problem type of its own, leaves nothing behind, and shows up in no log."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

import pytest

from tests.api.arrange import PHOTO, Service, form, problem_of
from tests.api.conftest import Start

TOKEN = "right-token-of-this-test"
#: Stands in every body of these tests, so that a log that holds a part of one is found out.
SECRET = b"the-content-of-this-upload"
JPEG = b"\xff\xd8\xff\xe0" + SECRET * 50
LIMIT = 8 * 1024
DIGEST_OF_OTHER = base64.b64encode(hashlib.sha256(b"other").digest()).decode()


@pytest.fixture
async def service(start: Start) -> Service:
    started: Service = await start(max_upload_bytes=LIMIT, write_token=TOKEN)
    return started


def as_form(*files: tuple[str, bytes], fields: dict[str, str] | None = None) -> dict[str, Any]:
    content_type, body = form(*files, fields=fields)
    return {"body": body, "headers": {"Content-Type": content_type}}


def raw(body: bytes, **headers: str) -> dict[str, Any]:
    return {"body": body, "headers": {name.replace("_", "-"): value for name, value in headers.items()}}


BAD = {
    "nothing": (raw(b""), 400, "empty-upload"),
    "nothing in a form's file": (as_form(("a.jpeg", b"")), 400, "empty-upload"),
    "more than the limit": (raw(JPEG + bytes(LIMIT)), 413, "upload-too-large"),
    "one byte more than the limit": (raw(JPEG + bytes(LIMIT + 1 - len(JPEG))), 413, "upload-too-large"),
    "more than the limit in a form": (as_form(("a.jpeg", JPEG + bytes(LIMIT))), 413, "upload-too-large"),
    "more than any form in a form": (as_form(("a.jpeg", JPEG + bytes(LIMIT + 70_000))), 413, "upload-too-large"),
    "no known format": (raw(b"\x00\x01\x02" + SECRET), 415, "unsupported-format"),
    "a text called .jpg": (as_form(("a.jpg", b"Dear all, " + SECRET * 9)), 415, "unsupported-format"),
    "a text declared as JPEG": (raw(SECRET * 9, Content_Type="image/jpeg"), 415, "unsupported-format"),
    "an SVG": (raw(b"<svg xmlns='http://www.w3.org/2000/svg'/>" + SECRET), 415, "unsupported-format"),
    "half a signature": (raw(b"\xff\xd8"), 415, "unsupported-format"),
    "a form without a file": (as_form(fields={"image": SECRET.decode()}), 400, "no-file"),
    "a form without anything": (as_form(), 400, "no-file"),
    "a form with two files": (as_form(("a.jpeg", JPEG), ("b.jpeg", JPEG)), 400, "several-files"),
    "a form that never ends": (
        {**as_form(("a.jpeg", JPEG)), "body": as_form(("a.jpeg", JPEG))["body"][:-20]},
        400,
        "malformed-multipart",
    ),
    "a form cut in its file": (
        {**as_form(("a.jpeg", JPEG)), "body": as_form(("a.jpeg", JPEG))["body"][:-200]},
        400,
        "malformed-multipart",
    ),
    "a form that is none": (raw(JPEG, Content_Type="multipart/form-data; boundary=x"), 400, "malformed-multipart"),
    "a form without a boundary": (raw(JPEG, Content_Type="multipart/form-data"), 400, "malformed-multipart"),
    "a form of 65 fields": (
        as_form(("a.jpeg", JPEG), fields={f"field-{i}": "" for i in range(65)}),
        400,
        "malformed-multipart",
    ),
    "another kind of multipart": (raw(JPEG, Content_Type="multipart/mixed; boundary=x"), 415, "unsupported-media-type"),
    "JSON": (raw(b'{"url": "x"}', Content_Type="application/json"), 415, "unsupported-media-type"),
    "JSON in capitals": (raw(JPEG, Content_Type="Application/JSON; charset=utf-8"), 415, "unsupported-media-type"),
    "a compressed body": (raw(JPEG, Content_Encoding="gzip"), 415, "unsupported-encoding"),
    "a wrong digest": (raw(JPEG, Content_Digest=f"sha-256=:{DIGEST_OF_OTHER}:"), 400, "digest-mismatch"),
    "a digest without colons": (raw(JPEG, Content_Digest=f"sha-256={DIGEST_OF_OTHER}"), 400, "malformed-digest"),
    "a digest that is no base64": (raw(JPEG, Content_Digest="sha-256=:A=:"), 400, "malformed-digest"),
    "a digest too short": (raw(JPEG, Content_Digest="sha-256=:AAAA:"), 400, "malformed-digest"),
    "a digest without a value": (raw(JPEG, Content_Digest="sha-256"), 400, "malformed-digest"),
    "an empty digest": (raw(JPEG, Content_Digest=" "), 400, "malformed-digest"),
}


@pytest.mark.parametrize(("request_", "status", "problem"), BAD.values(), ids=BAD)
async def test_a_bad_upload_is_refused_without_a_trace(
    service: Service, output: io.StringIO, request_: dict[str, Any], status: int, problem: str
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}", **request_["headers"]}

    response = await service.client.simulate_post("/images", body=request_["body"], headers=headers)

    assert response.status_code == status
    assert problem_of(response) == problem
    assert service.traces() == []
    assert await service.jobs() == []
    lines = output.getvalue()
    assert SECRET.decode() not in lines
    assert TOKEN not in lines
    assert '"level": "ERROR"' not in lines
    assert f'"status": {status}' in lines


@pytest.mark.parametrize("as_form", [False, True], ids=["raw", "form"])
async def test_an_upload_past_the_limit_is_refused_where_its_length_was_not_told(
    service: Service, as_form: bool
) -> None:
    content_type, body = form(("a.jpeg", JPEG + bytes(LIMIT))) if as_form else ("image/jpeg", JPEG + bytes(LIMIT))
    chunks = [body[i : i + 1024] for i in range(0, len(body), 1024)]
    headers = {"Transfer-Encoding": "chunked", "Content-Type": content_type, "Authorization": f"Bearer {TOKEN}"}

    answer = await service.send("POST", "/images", headers, chunks)

    assert answer[0]["status"] == 413
    assert (b"connection", b"close") in answer[0]["headers"]
    assert service.traces() == []


async def test_an_upload_past_the_limit_is_told_that_its_connection_closes(service: Service) -> None:
    """Or the server would swallow the rest of the body before it took the next request."""
    response = await service.client.simulate_post(
        "/images", body=bytes(LIMIT + 1), headers={"Authorization": f"Bearer {TOKEN}"}
    )

    assert response.headers["Connection"] == "close"


async def test_a_length_that_is_no_number_is_refused(service: Service) -> None:
    headers = {"Content-Length": "many", "Authorization": f"Bearer {TOKEN}"}

    answer = await service.send("POST", "/images", headers, [JPEG])

    assert answer[0]["status"] == 400
    assert b"urn:asgilook:problem:bad-request" in answer[1]["body"]
    assert service.traces() == []


FORM_TYPE, FORM = form(("a.jpeg", JPEG))


@pytest.mark.parametrize(
    ("headers", "chunks"),
    [
        ({"Content-Length": str(len(JPEG))}, []),
        ({"Content-Length": str(len(JPEG))}, [JPEG[:10]]),
        ({"Content-Length": str(len(JPEG))}, [JPEG[:500], JPEG[500:-1]]),
        ({"Transfer-Encoding": "chunked"}, [JPEG[:500]]),
        ({"Transfer-Encoding": "chunked"}, [JPEG]),
        ({"Content-Length": str(len(FORM)), "Content-Type": FORM_TYPE}, [FORM[:500]]),
        ({"Content-Length": str(len(FORM)), "Content-Type": FORM_TYPE}, [FORM[:-1]]),
        ({"Transfer-Encoding": "chunked", "Content-Type": FORM_TYPE}, [FORM[:500]]),
        ({"Transfer-Encoding": "chunked", "Content-Type": FORM_TYPE}, [FORM]),
    ],
)
async def test_an_upload_whose_client_went_away_leaves_nothing(
    service: Service, output: io.StringIO, headers: dict[str, str], chunks: list[bytes]
) -> None:
    """Falcon ends its stream without an error when the client leaves, so that half a picture looks whole.

    Even where all the bytes of a picture have come, a chunked body is not complete without its last chunk.
    """
    headers = {**headers, "Authorization": f"Bearer {TOKEN}"}

    answer = await service.send("POST", "/images", headers, chunks, goes_away=True)

    assert answer == []
    assert service.traces() == []
    assert await service.jobs() == []
    assert SECRET.decode() not in output.getvalue()
    assert '"level": "ERROR"' not in output.getvalue()


async def test_an_upload_that_stalls_is_refused(start: Start) -> None:
    service: Service = await start(upload_stall_seconds=0.05)

    answer = await service.send("POST", "/images", {"Content-Length": "5000"}, [JPEG[:500]], stays_silent=True)

    assert answer[0]["status"] == 408
    assert b"upload-stalled" in answer[1]["body"]
    assert (b"cache-control", b"no-store") in answer[0]["headers"]
    assert service.traces() == []


async def test_an_upload_that_no_disk_has_room_for_is_refused(start: Start) -> None:
    service: Service = await start(free_disk_floor=10**18)

    response = await service.client.simulate_post("/images", body=PHOTO)

    assert response.status_code == 507
    assert problem_of(response) == "storage-full"
    assert response.headers["Retry-After"] == "60"
    assert service.traces() == []


async def test_past_the_queues_limit_uploads_are_refused(start: Start) -> None:
    service: Service = await start(max_waiting=2)
    taken = [await service.client.simulate_post("/images", body=PHOTO) for _ in range(2)]

    refused = await service.client.simulate_post("/images", body=PHOTO)

    assert [response.status_code for response in taken] == [202, 202]
    assert refused.status_code == 503
    assert problem_of(refused) == "too-many-waiting"
    assert refused.headers["Retry-After"] == "5"
    assert len(service.files("originals")) == 2


async def test_while_the_ledger_fails_an_upload_is_refused_before_it_is_read(service: Service) -> None:
    service.execute("ALTER TABLE images RENAME TO elsewhere")

    response = await service.client.simulate_post("/images", body=JPEG, headers={"Authorization": f"Bearer {TOKEN}"})

    service.execute("ALTER TABLE elsewhere RENAME TO images")
    assert response.status_code == 503
    assert problem_of(response) == "unavailable"
    assert response.headers["Retry-After"] == "5"
    assert service.traces() == []


async def test_an_upload_that_cannot_be_committed_leaves_no_original(service: Service) -> None:
    service.execute("CREATE TRIGGER refuse BEFORE INSERT ON images BEGIN SELECT RAISE(ABORT, 'no'); END")

    response = await service.client.simulate_post("/images", body=JPEG, headers={"Authorization": f"Bearer {TOKEN}"})

    assert response.status_code == 503
    assert problem_of(response) == "unavailable"
    assert service.traces() == []
