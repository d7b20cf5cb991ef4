from __future__ import annotations

import json
import logging

import falcon
import falcon.asgi
import falcon.testing
import pytest

from api import problems
from api.problems import TITLES, Problem
from api.server.request_body import ClientDisconnected, UploadStalled
from shared.errors import (
    DigestMismatch,
    DiskAtFloor,
    EmptyUpload,
    LedgerUnavailable,
    StorageFull,
    StorageUnavailable,
    TooManyWaiting,
    TruncatedUpload,
    UnknownFormat,
    UploadRefused,
    UploadTooLarge,
)
from tests.api.arrange import PHOTO, UNKNOWN_ID, Redises, Service, problem_of
from tests.api.conftest import Start

ACCEPTS = ["*/*", "application/json", "image/*", "text/html", "application/xml", "nonsense"]


class Raising:
    """Sets up a success, then raises."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.set_header("ETag", '"of a success"')
        resp.set_header("Cache-Control", "public")
        resp.set_header("Location", "/elsewhere")
        resp.text = "a success"
        raise self._error


def answer_to(error: Exception, accept: str = "*/*") -> falcon.testing.Result:
    app = falcon.asgi.App()
    problems.add_handlers(app)
    app.add_route("/", Raising(error))
    return falcon.testing.TestClient(app).simulate_get("/", headers={"Accept": accept})


@pytest.mark.parametrize("accept", ACCEPTS)
@pytest.mark.parametrize("name", TITLES)
def test_every_problem_is_told_whatever_was_accepted(name: str, accept: str) -> None:
    """Falcon's own errors have no body where images are accepted, which is what a browser's <img> does."""
    response = answer_to(Problem(name), accept)

    assert problem_of(response) == name
    assert response.text != "a success"
    assert "Location" not in response.headers


@pytest.mark.parametrize("name", TITLES)
def test_every_problem_is_an_error_with_a_type_and_a_title_of_its_own(name: str) -> None:
    status, title = TITLES[name]

    assert 400 <= status < 600
    assert [other for other, (_, its_title) in TITLES.items() if its_title == title] == [name]


def test_a_problem_has_its_detail_its_headers_and_its_members() -> None:
    response = answer_to(Problem("not-failed", "It is ready.", headers={"X-More": "1"}, extra={"image": {"id": 1}}))

    assert response.headers["X-More"] == "1"
    assert response.json == {
        "type": "urn:asgilook:problem:not-failed",
        "title": "Only a failed image can be retried",
        "status": 409,
        "detail": "It is ready.",
        "image": {"id": 1},
    }


@pytest.mark.parametrize(
    ("error", "name", "headers"),
    [
        (ClientDisconnected("gone: secret"), "truncated-upload", {}),
        (TruncatedUpload("5 of 10 bytes came: secret"), "truncated-upload", {}),
        (EmptyUpload(), "empty-upload", {}),
        (UnknownFormat("Taken are JPEG and PNG."), "unsupported-format", {}),
        (UploadTooLarge(1000), "upload-too-large", {"Connection": "close"}),
        (DigestMismatch("Its sha-256 is another one."), "digest-mismatch", {}),
        (DiskAtFloor(), "storage-full", {"Retry-After": "60"}),
        (TooManyWaiting(), "too-many-waiting", {"Retry-After": "5"}),
        (UploadStalled("Nothing came for 10 seconds."), "upload-stalled", {"Connection": "close"}),
        (StorageFull("full: /secret"), "storage-full", {"Retry-After": "60"}),
        (StorageUnavailable("i/o error: /secret"), "unavailable", {"Retry-After": "5"}),
        (LedgerUnavailable("locked: /secret"), "unavailable", {"Retry-After": "5"}),
        (falcon.HTTPNotFound(), "not-found", {}),
        (falcon.HTTPMethodNotAllowed(["GET"]), "method-not-allowed", {"Allow": "GET"}),
        (falcon.HTTPInvalidHeader("It must be a number.", "Content-Length"), "bad-request", {}),
        (falcon.HTTPInternalServerError(title="secret"), "internal-error", {}),
        (RuntimeError("secret"), "internal-error", {}),
        (KeyError("secret"), "internal-error", {}),
    ],
)
def test_what_happened_becomes_a_problem_without_our_secrets(
    error: Exception, name: str, headers: dict[str, str]
) -> None:
    response = answer_to(error)

    assert problem_of(response) == name
    assert "secret" not in response.text
    for header, value in headers.items():
        assert response.headers[header] == value


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (UploadTooLarge(50_000_000), "At most 50,000,000 bytes are taken."),
        (UnknownFormat("Taken are JPEG and PNG."), "Taken are JPEG and PNG."),
        (DigestMismatch("Its sha-256 is another one."), "Its sha-256 is another one."),
        (UploadStalled("Nothing came for 10 seconds."), "Nothing came for 10 seconds."),
    ],
)
def test_a_refused_upload_is_told_what_is_wrong_with_it(error: Exception, detail: str) -> None:
    assert answer_to(error).json["detail"] == detail


@pytest.mark.parametrize("error", UploadRefused.__subclasses__())
def test_every_refusal_of_an_upload_has_a_problem_and_is_no_fault_of_ours(
    error: type[UploadRefused], caplog: pytest.LogCaptureFixture
) -> None:
    response = answer_to(error(1))

    assert problem_of(response) != "internal-error"
    assert caplog.records == []


@pytest.mark.parametrize(
    "error", [StorageFull("the reason"), StorageUnavailable("the reason"), LedgerUnavailable("the reason")]
)
def test_what_is_ours_to_mend_is_logged_with_its_reason(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    answer_to(error)

    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.name == "api.problems"
    assert vars(record)["reason"] == "the reason"


def test_what_nobody_foresaw_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    answer_to(RuntimeError("the reason"))

    (record,) = (record for record in caplog.records if record.levelno == logging.ERROR)
    assert record.exc_info is not None
    assert str(record.exc_info[1]) == "the reason"


@pytest.mark.parametrize(("status", "name"), [(404, "not-found"), (503, "shutting-down")])
def test_what_the_server_refuses_by_itself_looks_like_all_other_problems(status: int, name: str) -> None:
    raised = Problem(name, "So it is.", headers={"Retry-After": "1"})

    problem = json.loads(raised.body)
    assert dict(raised.raw_headers) == {
        b"content-type": b"application/problem+json",
        b"content-length": b"%d" % len(raised.body),
        b"cache-control": b"no-store",
        b"retry-after": b"1",
    }
    assert (problem["type"], problem["status"], problem["detail"]) == (
        f"urn:asgilook:problem:{name}",
        status,
        "So it is.",
    )


# --- Through the whole service -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("GET", "/nowhere", "not-found"),
        ("PUT", "/images", "method-not-allowed"),
        ("GET", "/images", "not-acceptable"),
        ("GET", f"/images/{UNKNOWN_ID}.jpeg", "no-such-image"),
        ("POST", "/images", "empty-upload"),
        ("DELETE", f"/images/{UNKNOWN_ID}", "no-such-image"),
        ("POST", f"/images/{UNKNOWN_ID}/retry", "no-such-image"),
    ],
)
async def test_errors_are_told_to_who_accepts_images_only(service: Service, method: str, path: str, name: str) -> None:
    response = await service.client.simulate_request(method, path, headers={"Accept": "image/*"})

    assert problem_of(response) == name


@pytest.mark.parametrize("path", ["/images/%2e%2e", "/images/caf\N{LATIN SMALL LETTER E WITH ACUTE}"])
async def test_a_path_with_other_characters_is_not_found(service: Service, path: str) -> None:
    response = await service.client.simulate_get(path)

    assert problem_of(response) == "not-found"


async def test_a_fault_of_ours_stores_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> str:
        raise RuntimeError("no more ids")

    service: Service = await start(injected={"uuid_generator": broken})

    response = await service.client.simulate_post("/images", body=PHOTO, headers={"Accept": "image/*"})

    assert response.status_code == 500
    assert problem_of(response) == "internal-error"
    assert "no more ids" not in response.text
    assert service.traces() == []
    assert "no more ids" in caplog.text


@pytest.mark.parametrize("path", ["/images", "/images/{id}", "/images/{id}.jpeg", "/images?status=queued"])
async def test_while_the_ledger_is_away_what_has_no_copy_is_unavailable(
    service: Service, redises: Redises, path: str
) -> None:
    image = await service.worker.ready()
    service.execute("ALTER TABLE images RENAME TO elsewhere")

    response = await service.client.simulate_get(path.format(id=image.id))

    assert response.status_code == 503
    assert problem_of(response) == "unavailable"
    assert response.headers["Retry-After"] == "5"
