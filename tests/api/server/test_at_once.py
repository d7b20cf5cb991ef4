"""Answers that the connection gives before there is a task, over real sockets."""

from __future__ import annotations

import re

import pytest

from api.server.asgi_types import Headers, Receive, Scope, Send
from api.server.guard import Answer
from api.server.headers import SAFETY_HEADERS
from tests.api.http_server import GET, LAST_GET, Lines, Serve, answer, post, read, tracebacks, until, until_closed

LINES = b'etag: "1"\r\nx-asgilook-cache: Hit\r\ncontent-length: 9\r\n'
SAFETY = b"".join(b"%b: %b\r\n" % header for header in SAFETY_HEADERS)
ORIGIN = "https://www.example.com"


class Ready:
    """Has an answer ready for every GET and HEAD, and keeps what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str]] = []

    def __call__(self, method: str, path: str, query: str, headers: Headers) -> Answer | None:
        self.asked.append((method, path, query))
        if method not in ("GET", "HEAD"):
            return None
        return Answer(200, "/ready", "Hit", LINES, SAFETY, b"some body" if method == "GET" else b"")


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    await answer(send, 200, b"the application")


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the application was called")


async def same_as_ready(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"etag", b'"1"'), (b"x-asgilook-cache", b"Hit"), (b"content-length", b"9")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"some body" if scope["method"] == "GET" else b""})


def with_header(request: bytes, line: bytes) -> bytes:
    return request.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % line)


def test_what_is_ready_is_answered_and_logged(serve: Serve, access: Lines) -> None:
    ready = Ready()
    with serve(application, ready).connect() as client:
        client.sendall(
            with_header(GET.replace(b"/images", b"/images?a=b"), b"X-Request-ID: mine\r\nX-Request-ID: yours")
        )
        answered = until(client, b"some body")
        line = access.next()

    assert answered.startswith(b"HTTP/1.1 200 ")
    assert ready.asked == [("GET", "/images", "a=b")]
    assert (line["method"], line["path"], line["status"], line["bytes"]) == ("GET", "/images", 200, 9)
    assert (line["cache"], line["client"], line["request"]) == ("Hit", "127.0.0.1", "mine")


@pytest.mark.parametrize("origins", [(), (ORIGIN,), ("*",)], ids=["", "CORS", "CORS for all"])
@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_every_byte_is_the_one_that_the_application_would_send(
    serve: Serve, origins: tuple[str, ...], method: bytes
) -> None:
    asks = with_header(GET, b"Origin: " + ORIGIN.encode()) + GET + LAST_GET
    asks = asks.replace(b"GET", method)
    ready = Ready()
    answers = []

    for server in (serve(unreachable, ready, cors_origins=origins), serve(same_as_ready, cors_origins=origins)):
        with server.connect() as client:
            client.sendall(asks)
            answers.append(re.sub(rb"date: [^\r]*", b"date: now", until_closed(client)))

    assert answers[0] == answers[1]


def test_the_connection_is_closed_after_the_answer_where_the_client_asks_so(serve: Serve) -> None:
    with serve(application, Ready()).connect() as client:
        client.sendall(LAST_GET)
        answered = until_closed(client)

    assert b"\r\nconnection: close\r\n" in answered
    assert answered.endswith(b"some body")


@pytest.mark.parametrize(
    "line",
    [
        b"Content-Length: 0",
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Connection: Upgrade\r\nUpgrade: h2c",
        b"Prefer: wait=1",
        b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    ],
)
def test_a_request_that_brings_more_is_the_applications(serve: Serve, line: bytes) -> None:
    ready = Ready()
    with serve(application, ready).connect() as client:
        client.sendall(with_header(GET, line) + (b"0\r\n\r\n" if b"chunked" in line else b""))

        assert until(client, b"the application").startswith(b"HTTP/1.1 200 ")

    assert ready.asked == []


def test_what_is_not_ready_is_the_applications(serve: Serve) -> None:
    with serve(application).connect() as client:
        client.sendall(LAST_GET)

        assert until_closed(client).endswith(b"the application")


def test_a_pipelined_request_waits_for_those_before_it(serve: Serve) -> None:
    with serve(application, Ready()).connect() as client:
        client.sendall(GET + post(5) + b"first" + GET + LAST_GET)
        answered = until_closed(client)

    assert re.findall(rb"some body|the application", answered)[:2] == [b"some body", b"the application"]
    assert answered.count(b"HTTP/1.1 200 ") == 4


def test_a_fault_in_what_is_ready_leaves_the_request_to_the_application(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(method: str, path: str, query: str, headers: Headers) -> Answer | None:
        raise ZeroDivisionError

    with serve(application, fail).connect() as client:
        client.sendall(LAST_GET)

        assert until_closed(client).endswith(b"the application")

    assert tracebacks(caplog) == ["a request could not be answered at once"]
