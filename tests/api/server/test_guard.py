from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import queue
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import falcon.asgi
import pytest

from api.server.asgi_types import Application, Event, Headers, Receive, Scope, Send
from api.server.guard import Guard
from api.server.headers import SAFETY_HEADERS
from api.server.request_body import LINGER_BYTES, ClientDisconnected, UploadStalled
from shared.settings import Settings
from shared.telemetry import logs
from tests.api.http_server import (
    GET,
    LAST_GET,
    PATIENCE,
    Lines,
    Serve,
    answer,
    echo,
    finish,
    post,
    post_chunked,
    read,
    reset,
    tracebacks,
    until,
    until_closed,
)

REFUSAL = b"this is more than we take"


# --- Applications behind the guard ---------------------------------------------------------------------------


async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await answer(send, 413, REFUSAL)


async def wait_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


async def time_out_politely(scope: Scope, receive: Receive, send: Send) -> None:
    try:
        body = await read(receive)
    except UploadStalled:
        await answer(send, 408, b"too slow")
    else:
        await answer(send, 200, body)


class Uploads:
    """A falcon application that reads bodies in falcon's ways and keeps what became of each."""

    def __init__(self) -> None:
        self.outcomes: queue.SimpleQueue[bytes | Exception] = queue.SimpleQueue()
        app = falcon.asgi.App()
        app.add_route("/images", self)
        app.add_error_handler(ClientDisconnected, self._nobody_listens)
        app.add_error_handler(UploadStalled, self._too_slow)
        self.app = app

    async def on_post(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        try:
            self.outcomes.put(await self._read(req))
        except (ClientDisconnected, UploadStalled) as exc:
            self.outcomes.put(exc)
            raise

    async def _read(self, req: falcon.asgi.Request) -> bytes:
        if not (req.content_type or "").startswith("multipart/form-data"):
            return b"".join([chunk async for chunk in req.stream])
        return b"".join([await part.stream.read() async for part in await req.get_media()])

    async def _nobody_listens(self, *_: object) -> None:
        """What falcon sends after this must reach neither the server nor the log."""

    async def _too_slow(self, req: object, resp: falcon.asgi.Response, *_: object) -> None:
        resp.status = falcon.HTTP_408


# --- Continue, or not ----------------------------------------------------------------------------------------


def test_a_client_refused_by_its_headers_is_not_told_to_continue(serve: Serve) -> None:
    """Falcon awaits its first event before any hook of ours runs: the server may not be asked for it by then."""

    class TakeNothing:
        async def process_request(self, req: object, resp: object) -> None:
            raise falcon.HTTPContentTooLarge

    app = Uploads().app
    app.add_middleware(TakeNothing())
    with serve(app).connect() as client:
        client.sendall(post(10**9, "Expect: 100-continue"))
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answered
    assert b"100 Continue" not in answered


def test_a_client_whose_body_is_wanted_is_told_to_continue(serve: Serve) -> None:
    with serve(echo).connect() as client:
        client.sendall(post(5, "Expect: 100-continue", "Connection: close"))
        assert until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 200 ")
    assert answered.endswith(b"\r\n\r\nhello")


# --- Bodies that end early -----------------------------------------------------------------------------------

MULTIPART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\nhalf a pict'
TRUNCATED = {
    "raw": post(100) + b"half",
    "raw without any of it": post(100),
    "chunked": post_chunked() + b"4\r\nhalf\r\n",
    "chunked in the middle of a chunk": post_chunked() + b"8\r\nhalf",
    "multipart": post(1000, "Content-Type: multipart/form-data; boundary=b") + MULTIPART,
    "multipart chunked": post_chunked("Content-Type: multipart/form-data; boundary=b")
    + b"%x\r\n%b\r\n" % (len(MULTIPART), MULTIPART),
}


@pytest.mark.parametrize("leave", [finish, reset])
@pytest.mark.parametrize("kind", TRUNCATED)
def test_a_truncated_upload_is_noticed_and_ends_quietly(
    serve: Serve,
    access: Lines,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    leave: Callable[[socket.socket], None],
) -> None:
    """Falcon ends its stream as if all was well: half a picture would be taken for a whole one."""
    uploads = Uploads()
    with serve(uploads.app).connect() as client:
        client.sendall(TRUNCATED[kind])
        leave(client)

        outcome = uploads.outcomes.get(timeout=PATIENCE)
        line = access.next()

    assert isinstance(outcome, ClientDisconnected)
    assert (line["status"], line["bytes"], line["message"]) == (None, 0, "client went away")
    assert tracebacks(caplog) == []


async def test_a_disconnect_that_nobody_catches_is_quiet() -> None:
    events = await call(echo, [chunk(b"half"), DISCONNECT], headers=[(b"content-length", b"100")])

    assert events == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(10) + b"0123456789",
        post_chunked() + b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n",
        post_chunked() + b"a;name=value\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n",
    ],
)
def test_a_whole_body_arrives_whole_however_it_is_cut(serve: Serve, request_bytes: bytes) -> None:
    uploads = Uploads()
    with serve(uploads.app).connect() as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(request_bytes)):
            client.sendall(request_bytes[i : i + 1])

        outcome = uploads.outcomes.get(timeout=PATIENCE)

    assert outcome == b"0123456789"


async def test_after_the_body_only_the_disconnect_follows() -> None:
    """The server sends an event for an empty body, too. It must not pass for the client leaving."""
    seen = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([await receive(), await receive()])
        await answer(send, 200, b"")

    await call(app, [chunk(b"", more=False), DISCONNECT], method="GET")

    assert seen == [chunk(b"", more=False), DISCONNECT]


@pytest.mark.parametrize(
    ("headers", "has_body"),
    [
        ([], False),
        ([(b"content-length", b"0")], False),
        ([(b"content-length", b"000")], False),
        ([(b"content-length", b"1")], True),
        ([(b"content-length", b"100")], True),
        ([(b"transfer-encoding", b"chunked")], True),
    ],
)
async def test_the_first_event_is_empty_and_says_whether_a_body_follows(headers: Headers, has_body: bool) -> None:
    first = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        first.append(await receive())
        await answer(send, 200, b"")

    await call(app, [DISCONNECT], headers=headers)

    assert first == [chunk(b"", more=has_body)]


# --- Bodies that come too slowly -----------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [post(100) + b"half", post(100), post_chunked() + b"4\r\nhalf\r\n"])
def test_a_body_that_stalls_is_given_up(serve: Serve, caplog: pytest.LogCaptureFixture, begun: bytes) -> None:
    with serve(time_out_politely, upload_stall_seconds=0.1).connect() as client:
        client.sendall(begun)
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answered
    assert answered.endswith(b"too slow")
    assert tracebacks(caplog) == []


def test_falcon_can_answer_a_stalled_multipart_upload(serve: Serve) -> None:
    with serve(Uploads().app, upload_stall_seconds=0.1).connect() as client:
        client.sendall(TRUNCATED["multipart"])
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_trickles_is_given_up_though_it_never_stalls(serve: Serve) -> None:
    with serve(time_out_politely, upload_stall_seconds=0.5, upload_least_rate=1000).connect() as client:
        client.sendall(post(10**6))
        client.settimeout(0.02)
        answered = b""
        while not answered:
            client.sendall(b"x")
            with contextlib.suppress(TimeoutError):
                answered = client.recv(65536)

    assert answered.startswith(b"HTTP/1.1 408 ")


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The event loop's time."""
    clock = Clock()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", clock)
    return clock


def arriving(clock: Clock, *, every: float, size: int, count: int) -> Receive:
    """Make a server's `receive` whose body comes as `count` chunks of `size` bytes, each after `every` seconds."""
    left = count

    async def receive() -> Event:
        nonlocal left
        clock.now += every
        left -= 1
        return chunk(b"x" * size, more=left > 0)

    return receive


@pytest.mark.parametrize(
    ("every", "size", "bearable"),
    [
        (1.0, 1000, True),
        (1.0, 999, False),
        (2.0, 2000, True),
        (2.0, 1999, False),
        (2**-10, 1, True),
        (2**-10, 0, False),
    ],
)
async def test_a_body_must_come_at_the_least_rate(clock: Clock, every: float, size: int, bearable: bool) -> None:
    settings = Settings(upload_stall_seconds=10, upload_least_rate=1000)
    guard = Guard(time_out_politely, settings)
    sent = Sent()

    await guard(scope(), arriving(clock, every=every, size=size, count=int(20 / every)), sent)

    assert sent.status == (200 if bearable else 408)


async def test_a_body_has_its_first_seconds_for_itself(clock: Clock) -> None:
    """A mean over a moment says nothing: a slow start is no trickle before the stall time is over."""
    settings = Settings(upload_stall_seconds=10, upload_least_rate=1000)
    guard = Guard(time_out_politely, settings)
    sent = Sent()

    await guard(scope(), arriving(clock, every=1.0, size=1, count=9), sent)

    assert sent.status == 200


async def test_a_quick_beginning_buys_no_slow_end(clock: Clock) -> None:
    """Else 40 MB sent at once would hold a draft and a connection for hours, a byte at a time."""
    settings = Settings(upload_stall_seconds=10, upload_least_rate=1000)
    guard = Guard(time_out_politely, settings)
    sizes = [40_000_000, *[1] * 30]

    async def receive() -> Event:
        clock.now += 1.0
        return chunk(b"x" * sizes.pop(0), more=bool(sizes))

    sent = Sent()
    await guard(scope(), receive, sent)

    assert sent.status == 408


async def test_a_body_that_is_there_at_last_is_taken(clock: Clock) -> None:
    settings = Settings(upload_stall_seconds=10, upload_least_rate=1000)
    guard = Guard(time_out_politely, settings)
    sent = Sent()

    await guard(scope(), arriving(clock, every=4.0, size=1, count=3), sent)

    assert (sent.status, sent.body) == (200, b"xxx")


async def test_a_slow_application_is_not_blamed_on_the_client(clock: Clock) -> None:

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        async def after_a_minute() -> Event:
            clock.now += 60
            return await receive()

        await time_out_politely(scope, after_a_minute, send)

    sent = Sent()
    guard = Guard(slow, Settings(upload_stall_seconds=10, upload_least_rate=1000))
    await guard(scope(), arriving(clock, every=0.0, size=1, count=100), sent)

    assert sent.status == 200


async def test_a_process_that_stood_still_does_not_blame_the_client() -> None:
    """It finds its timers expired before it has read what arrived meanwhile."""
    loop = asyncio.get_running_loop()
    calls = 0

    async def receive() -> Event:
        nonlocal calls
        calls += 1
        if calls == 1:
            loop.call_soon(time.sleep, 1)  # the process stands still
            for _ in range(10):
                await asyncio.sleep(0)
        return chunk(b"x", more=calls < 4)

    sent = Sent()
    await Guard(time_out_politely, Settings(upload_stall_seconds=0.5, upload_least_rate=1000))(scope(), receive, sent)

    assert sent.status == 200


# --- Answers given before the body was read ------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [post(200 * 1024), post(200 * 1024, "Expect: 100-continue"), post_chunked() + b"32000\r\n"],
    ids=["raw", "expecting, but not waiting", "chunked"],
)
def test_a_client_that_sends_all_before_it_reads_sees_its_refusal(serve: Serve, head: bytes) -> None:
    """Closing a socket with unread data resets the connection, and the answer with it."""
    server = serve(refuse)
    with server.connect() as client:
        client.sendall(head + b"x" * (200 * 1024))
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answered
    assert answered.endswith(REFUSAL)


def test_the_rest_of_a_refused_upload_is_not_read(serve: Serve, access: Lines) -> None:
    with serve(refuse).connect() as client:
        client.sendall(post(40_000_000))
        with pytest.raises(ConnectionError):
            client.sendall(b"x" * 40_000_000)
        line = access.next()

    assert line["status"] == 413


async def test_lingering_reads_little() -> None:
    given = 0

    async def receive() -> Event:
        nonlocal given
        given += 65536
        assert given <= LINGER_BYTES
        return chunk(b"x" * 65536)

    sent = Sent()
    await Guard(refuse, Settings())(scope(), receive, sent)

    assert given == LINGER_BYTES
    assert sent.bodies == [(REFUSAL, True), (b"", False)]


async def test_the_whole_answer_is_sent_before_the_lingering() -> None:
    sent = Sent()

    async def receive() -> Event:
        assert sent.bodies == [(REFUSAL, True)]
        return DISCONNECT

    await Guard(refuse, Settings())(scope(), receive, sent)

    assert sent.bodies == [(REFUSAL, True), (b"", False)]


async def test_a_client_that_sends_nothing_more_is_not_waited_for_long() -> None:
    sent = Sent()

    await Guard(refuse, Settings())(scope(), Script([]), sent)

    assert sent.bodies == [(REFUSAL, True), (b"", False)]


async def test_lingering_ends_with_the_body() -> None:
    events = await call(refuse, [chunk(b"a"), chunk(b"b", more=False)], headers=[(b"content-length", b"2")])

    assert [event.get("more_body") for event in events] == [None, True, False]


async def test_a_cancellation_ends_the_lingering_but_not_the_answer() -> None:
    lingers = asyncio.Event()

    async def receive() -> Event:
        lingers.set()
        return await asyncio.Future()

    sent = Sent()
    task = asyncio.create_task(_run(Guard(refuse, Settings()), receive, sent))
    async with asyncio.timeout(PATIENCE):
        await lingers.wait()
    task.cancel()
    await task

    assert sent.bodies == [(REFUSAL, True), (b"", False)]


async def test_an_answer_streamed_before_the_body_was_read_is_held_at_its_end_only() -> None:
    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b", "more_body": True})
        await send({"type": "http.response.body"})

    sent = Sent()
    await Guard(stream, Settings())(scope(), Script([DISCONNECT]), sent)

    assert sent.headers == [*SAFETY_HEADERS, (b"connection", b"close")]
    assert sent.bodies == [(b"a", True), (b"b", True), (b"", True), (b"", False)]


async def test_a_connection_header_of_the_application_stays_alone() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 408, b"", [(b"connection", b"close")])

    sent = Sent()
    await Guard(app, Settings())(scope(), Script([DISCONNECT]), sent)

    assert [value for name, value in sent.headers if name == b"connection"] == [b"close"]


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_lingers_as_well(serve: Serve, status: int) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body"})

    with serve(app).connect() as client:
        client.sendall(post(200 * 1024) + b"x" * (200 * 1024))
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 %d " % status)
    assert answered.endswith(b"connection: close\r\n\r\n")


def test_head_lingers_as_well(serve: Serve) -> None:
    with serve(refuse).connect() as client:
        client.sendall(post(200 * 1024).replace(b"POST", b"HEAD") + b"x" * (200 * 1024))
        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 413 ")
    assert b"content-length: %d\r\n" % len(REFUSAL) in answered
    assert answered.endswith(b"\r\n\r\n")


# --- Connections that go on ----------------------------------------------------------------------------------


def test_a_connection_is_kept_after_a_body_that_was_read(serve: Serve) -> None:
    connection = http.client.HTTPConnection(*serve(echo).address, timeout=PATIENCE)
    with contextlib.closing(connection):
        answers = []
        for body in (b"first", b"x" * 1_000_000, b""):
            connection.request("POST", "/images", body=body)
            sock = connection.sock
            response = connection.getresponse()
            answers.append(response.read())
            assert response.headers["connection"] is None
            assert connection.sock is sock

    assert answers == [b"first", b"x" * 1_000_000, b""]


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    with serve(echo).connect() as client:
        client.sendall(
            post(5) + b"first" + GET + post_chunked() + b"6\r\nsecond\r\n0\r\n\r\n" + post(5) + b"third" + LAST_GET
        )
        answered = until_closed(client)

    assert re.findall(rb"\r\n\r\n(\w*)(?:HTTP|$)", answered) == [b"first", b"", b"second", b"third", b""]


def test_a_pipelined_request_inherits_nothing_from_the_one_before(serve: Serve) -> None:
    """uvicorn starts it from within the other's last send, in that one's context."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen = f"{logs.image_id.get()}/{logs.request_id.get()}/".encode()
        logs.image_id.set("an image")
        await answer(send, 200, seen)

    with serve(app).connect() as client:
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nX-Request-ID: one\r\n\r\n") + LAST_GET)
        answered = until_closed(client)

    first, second = re.findall(rb"(\w+)/(\w+)/", answered)
    assert first == (b"None", b"one")
    assert second[0] == b"None"
    assert second[1] != b"one"


# --- Cancelled requests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [GET, post(100), post(100) + b"half"])
def test_a_request_that_outstays_the_grace_is_told_to_come_back(
    serve: Serve, access: Lines, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    entered = threading.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await wait_for_ever(scope, receive, send)

    server = serve(app)
    with server.connect() as client:
        client.sendall(sent)
        assert entered.wait(PATIENCE)
        server.begin_to_stop()
        answered = until_closed(client)

    head, _, body = answered.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ")
    assert head.count(b"connection: close") == 1
    assert b"retry-after: 1" in head
    assert b"content-type: application/problem+json" in head
    assert json.loads(body)["status"] == 503
    assert access.next()["status"] == 503
    assert tracebacks(caplog) == []


def test_a_cancelled_answer_just_ends(serve: Serve, access: Lines, caplog: pytest.LogCaptureFixture) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        await wait_for_ever(scope, receive, send)

    server = serve(app)
    with server.connect() as client:
        client.sendall(GET)
        until(client, b"half")
        server.begin_to_stop()
        rest = until_closed(client)

    assert rest == b""
    assert access.next()["status"] == 200
    assert tracebacks(caplog) == []


async def test_any_other_exception_is_the_servers_to_report(access: Lines) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await call(app, [], method="GET")

    assert access.next()["status"] == 500


# --- Paths ---------------------------------------------------------------------------------------------------


async def unreachable(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("the application was called")


@pytest.mark.parametrize(
    "path", [b"/images/%61", b"/images%2F", b"//images", b"///", b"/%", b"/im%C3%A4ges", "/imäges".encode(), b"/\xff"]
)
async def test_a_path_with_another_spelling_is_not_found(path: bytes) -> None:
    sent = Sent()

    await Guard(unreachable, Settings())(scope(method="GET", raw_path=path), Script([]), sent)

    assert sent.status == 404
    assert (b"content-type", b"application/problem+json") in sent.headers
    assert json.loads(sent.body)["status"] == 404
    assert (b"content-length", b"%d" % len(sent.body)) in sent.headers


def test_such_a_path_is_not_found_over_a_real_connection_which_is_kept(serve: Serve) -> None:
    with serve(unreachable).connect() as client:
        client.sendall(GET.replace(b"/images", b"/%69mages"))
        client.sendall(LAST_GET.replace(b"GET", b"HEAD").replace(b"/images", b"/%69mages"))
        answered = until_closed(client)

    assert answered.count(b"HTTP/1.1 404 ") == 2
    assert answered.count(b'"status": 404') == 1


async def test_a_refused_head_has_the_length_but_not_the_body() -> None:
    sent = Sent()
    asked = scope(method="HEAD", raw_path=b"/%", headers=[])

    await Guard(unreachable, Settings())(asked, Script([]), sent)

    assert dict(sent.headers)[b"content-length"] != b"0"
    assert sent.bodies == [(b"", False)]


async def test_a_query_may_hold_escapes() -> None:
    sent = Sent()
    asked = scope(method="GET", raw_path=b"/images", query_string=b"after=%C3%A4")

    await Guard(echo, Settings())(asked, Script([]), sent)

    assert sent.status == 200


# --- Logs ----------------------------------------------------------------------------------------------------


async def test_an_answer_is_one_line_in_the_log(access: Lines) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, b"12345", [(b"x-asgilook-cache", b"Hit")])

    clock = Clock()
    sent = Sent()
    asked = scope(method="GET", query_string=b"secret=1", headers=[(b"x-request-id", b"Abc-1._")])
    await Guard(app, Settings(), clock=clock)(asked, Script([]), sent)

    line = access.next()
    wanted = {"method": "GET", "path": "/images", "status": 200, "bytes": 5, "milliseconds": 0.0, "cache": "Hit"}
    assert line["level"] == "INFO"
    assert line["request"] == "Abc-1._"
    assert wanted.items() <= line.items()
    assert "secret" not in json.dumps(line)


async def test_what_a_client_makes_up_does_not_break_its_line(access: Lines) -> None:
    path, client = '/"quoted" é\n', '"odd" é\n'
    asked = scope(method="GET", path=path, headers=[], client=(client, 1), raw_path=b"/")

    await Guard(echo, Settings())(asked, Script([]), Sent())

    line = access.next()
    assert (line["path"], line["client"]) == (path, client)


async def test_a_long_path_is_cut_in_the_log(access: Lines) -> None:
    await Guard(echo, Settings())(scope(method="GET", path="/" + "x" * 5000), Script([]), Sent())

    assert access.next()["path"] == "/" + "x" * 199


async def test_without_a_copy_in_the_response_cache_the_log_names_none(access: Lines) -> None:
    await Guard(echo, Settings())(scope(method="GET"), Script([]), Sent())

    assert "cache" not in access.next()


@pytest.mark.parametrize("given", [b"a", b"x" * 128, b"0aZ.-_"])
async def test_a_request_keeps_the_id_it_came_with(access: Lines, given: bytes) -> None:
    await Guard(echo, Settings())(scope(method="GET", headers=[(b"x-request-id", given)]), Script([]), Sent())

    assert access.next()["request"] == given.decode()


@pytest.mark.parametrize("given", [None, b"", b"x" * 129, b"a b", b"a\n", b"a/b", b'"a"', "ä".encode()])
async def test_a_request_without_a_proper_id_is_given_one(access: Lines, given: bytes | None) -> None:
    headers = [] if given is None else [(b"x-request-id", given)]

    await Guard(echo, Settings())(scope(method="GET", headers=headers), Script([]), Sent())

    assert re.fullmatch(r"[0-9a-f]{32}", access.next()["request"])


async def test_the_id_is_not_sent_back() -> None:
    """A repeated GET is byte for byte the same."""
    asked = scope(method="GET", headers=[(b"x-request-id", b"mine")])
    sent = Sent()

    await Guard(echo, Settings())(asked, Script([]), sent)

    assert sent.headers == [(b"content-length", b"0"), *SAFETY_HEADERS]


# --- Other scopes --------------------------------------------------------------------------------------------


async def test_a_websocket_is_refused() -> None:
    sent = Sent()

    await Guard(unreachable, Settings())({"type": "websocket"}, Script([]), sent)

    assert sent.events == [{"type": "websocket.close", "code": 1000}]


async def test_lifespan_passes_through_untouched() -> None:
    seen: list[object] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.extend([scope, receive])
        await send({"type": "lifespan.startup.complete"})

    asked, receive, send = {"type": "lifespan"}, Script([]), Sent()
    await Guard(app, Settings())(asked, receive, send)

    assert seen == [asked, receive]
    assert send.events == [{"type": "lifespan.startup.complete"}]


# --- A server's side, in process -----------------------------------------------------------------------------

DISCONNECT: Event = {"type": "http.disconnect"}


def chunk(body: bytes, *, more: bool = True) -> Event:
    return {"type": "http.request", "body": body, "more_body": more}


def scope(**more: Any) -> Scope:
    given = {"type": "http", "method": "POST", "path": "/images", "headers": [(b"content-length", b"1000000000")]}
    if more.get("method", "POST") == "GET":
        given["headers"] = []
    return given | more


class Script:
    """A server's `receive` that gives these events, then nothing more."""

    def __init__(self, events: list[Event]) -> None:
        self._events = list(events)

    async def __call__(self) -> Event:
        if not self._events:
            async with asyncio.timeout(PATIENCE):
                await asyncio.Event().wait()
        return self._events.pop(0)


class Sent:
    """A server's `send` that keeps what it was given."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    async def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def status(self) -> int:
        status: int = self.events[0]["status"]
        return status

    @property
    def headers(self) -> Headers:
        headers: Headers = self.events[0]["headers"]
        return headers

    @property
    def bodies(self) -> list[tuple[bytes, bool]]:
        return [(event.get("body", b""), event.get("more_body", False)) for event in self.events[1:]]

    @property
    def body(self) -> bytes:
        return b"".join(body for body, _ in self.bodies)


async def call(app: Application, events: list[Event], **more: Any) -> list[Event]:
    sent = Sent()
    await Guard(app, Settings())(scope(**more), Script(events), sent)
    return sent.events


async def _run(guard: Guard, receive: Receive, send: Send) -> None:
    await guard(scope(), receive, send)


async def test_a_failed_start_is_told_in_one_line() -> None:
    """Falcon sends a whole traceback, of which the last line is enough."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        message = "Traceback (most recent call last):\n  File …\nshared.errors.LedgerNotMigrated: run the migrations\n"
        await send({"type": "lifespan.startup.failed", "message": message})

    sent: list[Event] = []

    async def receive() -> Event:
        return {"type": "lifespan.startup"}

    async def send(event: Event) -> None:
        sent.append(event)

    await Guard(app, Settings())({"type": "lifespan"}, receive, send)

    assert sent == [{"type": "lifespan.startup.failed", "message": "the web process cannot run: run the migrations"}]
