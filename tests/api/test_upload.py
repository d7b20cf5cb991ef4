from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import sqlite3
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from shared.images import Status
from shared.redis.queue import unpack
from shared.renditions import original_key
from tests.api.arrange import PHOTO, Service, form, until
from tests.api.conftest import Start
from tests.api.http_server import Lines

FIRST_ID = "01890a5d-ac96-774b-bcce-b302099a8057"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)


def digest(algorithm: str, content: bytes) -> str:
    value = hashlib.new(algorithm.replace("-", ""), content).digest()
    return f"{algorithm}=:{base64.b64encode(value).decode()}:"


async def test_an_upload_is_acknowledged_with_where_to_look_and_when(service: Service) -> None:
    response = await service.client.simulate_post("/images", body=PHOTO)

    record = response.json
    assert response.status_code == 202
    assert response.headers["Location"] == f"/images/{record['id']}"
    assert response.headers["Content-Location"] == f"/images/{record['id']}"
    assert response.headers["Retry-After"] == "1"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Content-Type"] == "application/json"
    assert "Preference-Applied" not in response.headers


async def test_the_acknowledgement_is_the_record_of_a_queued_image(service: Service) -> None:
    before = datetime.now(UTC).timestamp()

    response = await service.client.simulate_post("/images", body=PHOTO)

    record = response.json
    created = datetime.fromisoformat(record.pop("created")).timestamp()
    modified = parsedate_to_datetime(record.pop("modified")).timestamp()
    # SQLite's clock has milliseconds, an HTTP date has seconds.
    assert before - 0.002 <= created <= datetime.now(UTC).timestamp()
    assert int(before) <= modified <= created
    assert record == {
        "id": record["id"],
        "status": "queued",
        "image": None,
        "size": None,
        "thumbnails": [],
        "sequence": None,
        "original": {"type": "image/jpeg", "bytes": len(PHOTO), "sha256": hashlib.sha256(PHOTO).hexdigest()},
        "error": None,
    }


async def test_what_is_acknowledged_is_in_storage_and_in_the_ledger(service: Service) -> None:
    """Promise 1: whatever happens to this process after its answer, another finds both."""
    response = await service.client.simulate_post("/images", body=PHOTO)

    image_id = response.json["id"]
    assert await service.storage.read(original_key(image_id)) == PHOTO
    assert service.rows() == [image_id]
    assert service.files("drafts") == []


async def test_an_id_is_a_uuid_of_version_7(service: Service) -> None:
    response = await service.client.simulate_post("/images", body=PHOTO)

    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", response.json["id"])


async def test_the_generator_of_ids_is_injected(start: Start) -> None:
    service: Service = await start(injected={"uuid_generator": lambda: FIRST_ID})

    response = await service.client.simulate_post("/images", body=PHOTO)

    assert response.headers["Location"] == f"/images/{FIRST_ID}"
    assert response.json["id"] == FIRST_ID


@pytest.mark.parametrize("declared", ["image/jpeg", "application/octet-stream", "text/plain", "x", ""])
async def test_whatever_media_type_was_declared_the_first_bytes_count(service: Service, declared: str) -> None:
    headers = {"Content-Type": declared}

    response = await service.client.simulate_post("/images", body=PNG, headers=headers)

    assert response.status_code == 202
    assert response.json["original"]["type"] == "image/png"


async def test_a_form_gives_the_bytes_of_its_file_alone(service: Service) -> None:
    content_type, body = form(("holiday.jpeg", PHOTO), fields={"title": "Holiday", "empty": ""})

    response = await service.client.simulate_post("/images", body=body, headers={"Content-Type": content_type})

    assert response.status_code == 202
    assert response.json["original"]["bytes"] == len(PHOTO)
    assert await service.storage.read(original_key(response.json["id"])) == PHOTO


async def test_a_file_field_left_empty_by_a_browser_is_no_second_file(service: Service) -> None:
    """A browser sends every file field of a form: one that nobody filled has an empty name and no content."""
    content_type, body = form(("", b""), ("holiday.jpeg", PHOTO), ("", b""))

    response = await service.client.simulate_post("/images", body=body, headers={"Content-Type": content_type})

    assert response.status_code == 202
    assert response.json["original"]["bytes"] == len(PHOTO)


@pytest.mark.parametrize(("as_form", "size"), [(False, 63), *((True, size) for size in (1, 3, 63, 64, 65, 4096))])
async def test_a_body_of_unknown_length_is_put_together_from_its_chunks(
    service: Service, as_form: bool, size: int
) -> None:
    content = PHOTO[:700]
    content_type, body = form(("holiday.jpeg", content)) if as_form else ("image/jpeg", content)
    chunks = [body[i : i + size] for i in range(0, len(body), size)]

    headers = {"Transfer-Encoding": "chunked", "Content-Type": content_type}
    answer = await service.send("POST", "/images", headers, chunks)

    assert answer[0]["status"] == 202
    (image_id,) = service.rows()
    assert await service.storage.read(original_key(image_id)) == content


async def test_an_upload_of_exactly_the_limit_is_taken(start: Start) -> None:
    service: Service = await start(max_upload_bytes=len(PHOTO))

    raw = await service.client.simulate_post("/images", body=PHOTO)
    content_type, body = form(("holiday.jpeg", PHOTO))
    as_form = await service.client.simulate_post("/images", body=body, headers={"Content-Type": content_type})

    assert (raw.status_code, as_form.status_code) == (202, 202)


@pytest.mark.parametrize(
    "header",
    [
        digest("sha-256", PHOTO),
        digest("sha-512", PHOTO),
        f"{digest('sha-256', PHOTO)}, {digest('sha-512', PHOTO)}",
        f"md5=:AAAA:, {digest('sha-256', PHOTO)}",
        f"{digest('sha-256', PHOTO)};note=1",
        "unixsum=:AAAA:",
    ],
)
async def test_content_that_matches_its_digests_is_taken(service: Service, header: str) -> None:
    """RFC 9530, section 2: a digest of an algorithm that one does not know is ignored."""
    response = await service.client.simulate_post("/images", body=PHOTO, headers={"Content-Digest": header})

    assert response.status_code == 202


async def test_the_digest_of_a_form_is_of_the_whole_form(service: Service) -> None:
    """RFC 9530: Content-Digest is of the content as sent, which here is the form and not the file in it."""
    content_type, body = form(("holiday.jpeg", PHOTO))
    body += b"an epilogue, which belongs to it as well"

    response = await service.client.simulate_post(
        "/images", body=body, headers={"Content-Type": content_type, "Content-Digest": digest("sha-256", body)}
    )

    assert response.status_code == 202


async def test_identity_is_no_encoding(service: Service) -> None:
    response = await service.client.simulate_post("/images", body=PHOTO, headers={"Content-Encoding": "identity"})

    assert response.status_code == 202


async def test_a_worker_is_woken_with_the_id_and_never_the_bytes(service: Service) -> None:
    """Promise 5."""
    response = await service.client.simulate_post("/images", body=PHOTO)

    image_id, name = response.json["id"], service.ledger_name
    packed = await service.redis.get(f"arq:job:work:{name}:{image_id}:0")
    job: dict[str, Any] = unpack(packed)
    assert await service.jobs() == [f"work:{image_id}:0"]
    assert (job["f"], job["a"], job["k"]) == ("work", [image_id], {})
    assert len(packed) < 200


async def test_jobs_are_queued_in_the_order_of_their_turns(service: Service) -> None:
    first = (await service.client.simulate_post("/images", body=PHOTO)).json["id"]
    second = (await service.client.simulate_post("/images", body=PHOTO)).json["id"]

    assert await service.jobs() == [f"work:{first}:0", f"work:{second}:0"]


async def test_without_redis_an_upload_is_taken_and_left_to_the_sweep(service: Service) -> None:
    """Promise 2: Redis holds wake-ups, the ledger holds what is to be done."""
    service.redises.go_away()

    response = await service.client.simulate_post("/images", body=PHOTO)

    assert response.status_code == 202
    assert response.headers["Retry-After"] == "5"
    image = await service.image(response.json["id"])
    assert image.status is Status.QUEUED
    assert image.due is not None
    assert image.due <= image.created


async def test_an_upload_waits_for_a_redis_that_hangs_only_once(service: Service) -> None:
    service.redises.freeze()

    headers = {"Content-Length": str(len(PHOTO)), "Prefer": "wait=0"}
    answer = await service.send("POST", "/images", headers, [PHOTO])

    assert answer[0]["status"] == 202
    assert len(service.redises.begun_here()) == 1


async def test_the_request_that_brought_an_image_is_kept_with_it(service: Service) -> None:
    """The worker's and the child's log lines carry it on."""
    response = await service.client.simulate_post("/images", body=PHOTO, headers={"X-Request-Id": "request-17"})

    assert (await service.image(response.json["id"])).request == "request-17"


async def test_the_access_line_of_an_upload_names_its_request_and_its_image(service: Service, access: Lines) -> None:
    await service.client.simulate_post("/images", body=PHOTO, headers={"X-Request-Id": "request-17"})

    line = access.next()
    assert (line["status"], line["request"]) == (202, "request-17")
    assert [line["image"]] == service.rows()


@pytest.mark.parametrize("prefer", [{}, {"Prefer": "wait=20"}], ids=["no wait", "wait"])
async def test_an_upload_that_is_cancelled_while_it_is_committed_is_acknowledged(
    service: Service, prefer: dict[str, str]
) -> None:
    """The grace of a shutdown ends. After an error the client would send the file again."""
    with sqlite3.connect(service.settings.storage_path / "ledger.sqlite3", isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        headers = {"Content-Length": str(len(PHOTO)), **prefer}
        request = asyncio.create_task(service.send("POST", "/images", headers, [PHOTO]))

        async def is_stored() -> bool:
            return service.files("originals") != []

        await until(is_stored)
        request.cancel()
        other.execute("ROLLBACK")
    other.close()
    answer = await request

    assert answer[0]["status"] == 202
    assert [json.loads(answer[1]["body"])["id"]] == service.rows()
    assert len(service.files("originals")) == 1


async def test_a_filename_in_an_encoding_of_its_own_does_no_harm(service: Service) -> None:
    """Nobody reads it: that there is one tells a file from a field."""
    content_type, body = form(("CAFE.jpg", PHOTO))

    response = await service.client.simulate_post(
        "/images", body=body.replace(b"CAFE", b"caf\xe9"), headers={"Content-Type": content_type}
    )

    assert response.status_code == 202
