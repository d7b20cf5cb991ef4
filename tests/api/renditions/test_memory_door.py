"""Renditions in this process's memory, answered before there is a task."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from api.problems import Problem
from api.renditions.memory import Memory
from api.renditions.memory_door import MemoryDoor
from api.server.asgi_types import Headers
from api.server.guard import Answer
from shared.redis.response_cache import Copy
from tests.api.arrange import Service
from tests.api.conftest import Start

PATH, THUMBNAIL = "/images/an-id.jpeg", "/thumbnails/an-id/320x180.jpeg"
MODIFIED = 1_700_000_000
COPY = Copy.of(200, [("etag", '"1"'), ("last-modified", formatdate(MODIFIED, usegmt=True))], b"a rendition")


class Refusing:
    """Refuses, and keeps what it was asked."""

    def __init__(self, *, refuses: bool) -> None:
        self.asked: list[tuple[str, str | None, str, Headers]] = []
        self._refuses = refuses

    def __call__(self, route: str, image_id: str | None, query: str, headers: Headers) -> None:
        self.asked.append((route, image_id, query, headers))
        if self._refuses:
            raise Problem("missing-token")


def door(authorize: Refusing | None = None) -> MemoryDoor:
    memory = Memory(1_000_000, lambda: 0.0)
    for path in (PATH, THUMBNAIL):
        memory.keep_entry(path, "an-id", COPY, memory.now())
    return MemoryDoor(memory, authorize or Refusing(refuses=False))


def ask(method: str = "GET", path: str = PATH, **headers: str) -> Answer | None:
    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return door().answer(method, path, "", named)


def status_of(answer: Answer | None) -> int | None:
    return None if answer is None else answer.status


def test_a_rendition_that_is_held_is_answered() -> None:
    answer = ask()

    assert answer is not None
    assert (answer.status, answer.route, answer.cache) == (200, "/images/{image_id}.jpeg", "Hit")
    assert answer.body == b"a rendition"
    assert answer.lines.endswith(b"\r\nx-asgilook-cache: Hit\r\ncontent-length: 11\r\n")


def test_a_head_is_answered_without_the_body() -> None:
    get, head = ask(), ask("HEAD")

    assert get is not None
    assert head == get._replace(body=b"")


@pytest.mark.parametrize(("method", "path"), [("GET", "/images/other.jpeg"), ("POST", PATH), ("OPTIONS", PATH)])
def test_anything_else_is_the_applications(method: str, path: str) -> None:
    assert ask(method, path) is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"if_none_match": '"1"'}, 304),
        ({"if_none_match": 'W/"1", "2"'}, 304),
        ({"if_none_match": "*"}, 304),
        ({"if_none_match": '"2"'}, 200),
        ({"if_none_match": '"1"', "range": "bytes=0-1"}, 304),
        ({"if_modified_since": formatdate(MODIFIED, usegmt=True)}, 304),
        ({"if_modified_since": formatdate(MODIFIED - 1, usegmt=True)}, 200),
        ({"if_match": '"1"'}, 200),
        ({"if_unmodified_since": formatdate(MODIFIED, usegmt=True)}, 200),
        # What is neither is for the application to tell.
        ({"if_match": '"2"'}, None),
        ({"if_unmodified_since": formatdate(MODIFIED - 1, usegmt=True)}, None),
        ({"range": "bytes=0-1"}, None),
        ({"range": "bytes=100-"}, None),
        ({"range": "bytes=0-1", "if_range": '"2"'}, 200),
        ({"range": "nonsense"}, 200),
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions_are_judged(method: str, headers: dict[str, str], status: int | None) -> None:
    if method == "HEAD" and status is None and "range" in headers:
        status = 200  # RFC 9110, section 14.2: a Range counts for GET only.

    answer = ask(method, **headers)

    assert status_of(answer) == status
    if answer is not None and status == 304:
        assert (answer.body, b"content-length" in answer.lines) == (b"", False)


def test_a_condition_in_several_lines_is_the_applications() -> None:
    headers = [(b"if-none-match", b'"1"'), (b"if-none-match", b'"2"')]

    assert door().answer("GET", PATH, "", headers) is None


@pytest.mark.parametrize(
    ("path", "route"),
    [(PATH, "/images/{image_id}.jpeg"), (THUMBNAIL, "/thumbnails/{image_id}/{size}.jpeg")],
)
def test_nothing_is_answered_that_is_not_permitted(path: str, route: str) -> None:
    refusing, permitting = Refusing(refuses=True), Refusing(refuses=False)
    headers = [(b"authorization", b"Bearer x")]

    answers = [door(authorize).answer("GET", path, "sig=1", headers) for authorize in (refusing, permitting)]

    assert [status_of(answer) for answer in answers] == [None, 200]
    assert refusing.asked == permitting.asked == [(f"GET {route}", "an-id", "sig=1", headers)]


# --- The same answer as by the way of all requests -----------------------------------------------------------


REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "GET": ("GET", {}),
    "HEAD": ("HEAD", {}),
    "held": ("GET", {"If-None-Match": "ETAG"}),
    "held among others": ("GET", {"If-None-Match": '"other", ETAG'}),
    "any": ("GET", {"If-None-Match": "*"}),
    "not held": ("GET", {"If-None-Match": '"other"'}),
    "HEAD held": ("HEAD", {"If-None-Match": "ETAG"}),
    "unmodified": ("GET", {"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}),
    "modified": ("GET", {"If-Modified-Since": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    "meant": ("GET", {"If-Match": "ETAG"}),
    "part of another": ("GET", {"Range": "bytes=3-9", "If-Range": '"other"'}),
    "HEAD of a part": ("HEAD", {"Range": "bytes=3-9"}),
    "another origin": ("GET", {"Origin": "https://www.example.com"}),
    "another origin, held": ("GET", {"Origin": "https://www.example.com", "If-None-Match": "ETAG"}),
}


@pytest.mark.parametrize("accel", [None, ("x-accel-redirect", "/protected/")], ids=["", "x-accel"])
@pytest.mark.parametrize("origins", [(), ("https://www.example.com",)], ids=["", "CORS"])
@pytest.mark.parametrize("name", ["image.jpeg", "320x180.jpeg"])
async def test_each_answer_is_the_one_of_all_requests(
    start: Start, origins: tuple[str, ...], accel: tuple[str, str] | None, name: str
) -> None:
    """Status, every header, and the body."""
    service: Service = await start(cors_origins=origins, accel=accel)
    image = await service.worker.ready((640, 360))
    path = f"/images/{image.id}.jpeg" if name == "image.jpeg" else f"/thumbnails/{image.id}/{name}"
    etag = (await service.client.simulate_get(path)).headers["ETag"]
    for what, (method, headers) in REQUESTS.items():
        asked = {header: value.replace("ETAG", etag) for header, value in headers.items()}
        start_event, body_event = await service.send(method, path, asked, [])

        status, lines, body = answered_at_once(service, method, path, asked)

        assert status == start_event["status"], what
        wanted = [b"%b: %b" % header for header in start_event["headers"]]
        assert lines.split(b"\r\n")[:-1] == wanted, what
        assert body == body_event.get("body", b""), what


def answered_at_once(service: Service, method: str, path: str, headers: dict[str, str]) -> tuple[int, bytes, bytes]:
    written: list[tuple[int, bytes, bytes]] = []
    named = [(header.lower().encode(), value.encode()) for header, value in headers.items()]

    assert service.guard.answer_at_once(
        method, path.encode(), named, lambda forwarded: None, lambda *answer: written.append(answer)
    )

    return written[0]
