"""What the connection adds to uvicorn's protocol, with applications that show it; tests/integration/test_door.py has
the shapes of requests."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import http.client
import inspect
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator

import pytest
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from api.server import connection, descriptors
from api.server.asgi_types import Receive, Scope, Send
from api.server.connection import MOST_PIPELINED, Connection
from api.server.headers import SAFETY_HEADERS
from api.server.request_head import MOST_HEADERS
from api.server.transport import AnswerTransport
from tests.api.http_server import (
    GET,
    LAST_GET,
    PATIENCE,
    RunningServer,
    Serve,
    answer,
    echo,
    post,
    post_chunked,
    read,
    reset,
    tracebacks,
    until,
    until_closed,
)

#: More than the buffers of two sockets hold.
LARGE = 32_000_000


async def show_headers(scope: Scope, receive: Receive, send: Send) -> None:
    await read(receive)
    await answer(send, 200, b" ".join(name for name, _ in scope["headers"]))


async def send_much(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, bytes(LARGE))


async def stream_much(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    for _ in range(LARGE // 64_000):
        await send({"type": "http.response.body", "body": bytes(64_000), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


class Held:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.released = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.entered.release()
        await asyncio.to_thread(self.released.wait, PATIENCE)
        await answer(send, 200, b"at last")


@contextlib.contextmanager
def narrow(server: RunningServer) -> Iterator[socket.socket]:
    """Connect with a small buffer: a client that does not read is soon a slow reader."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(PATIENCE)
        client.connect(server.address)
        yield client


def statuses_in(received: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1\.1 (\d+) ", received)


def is_hung_up(client: socket.socket) -> bool:
    """Wait for the connection's end without reading what it brings."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            # To send on a connection that was reset raises an error.
            client.send(b"\r\n")
        except ConnectionError:
            return True
        time.sleep(0.02)  # between two looks
    return False


# --- What uvicorn must go on to have ---


async def test_uvicorn_has_what_the_connection_stands_on() -> None:
    """Fails where a new release of uvicorn needs another look."""
    config = Config(echo, http=Connection, ws="none", log_config=None)
    config.load()
    protocol = Connection(config=config, server_state=ServerState(), app_state={})

    ours = {name for name, value in vars(Connection).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert ours <= {name for name in dir(HttpToolsProtocol) if callable(getattr(HttpToolsProtocol, name))}
    assert {
        *("client", "config", "connections", "cycle", "flow", "headers", "loop", "parser", "pipeline"),
        *("root_path", "server_state", "transport", "url"),
    } <= vars(protocol).keys()
    in_a_cycle = inspect.getsource(RequestResponseCycle.__init__) + inspect.getsource(RequestResponseCycle.send)
    for name in ("disconnected", "message_event", "more_body", "response_started", "response_complete", "keep_alive"):
        assert f"self.{name}" in in_a_cycle
    # What is written in another way than by `write` is not counted, and would pass for not being read.
    assert "writelines" not in in_a_cycle


# --- Heads ---


def test_trailers_are_no_headers(serve: Serve) -> None:
    """RFC 9110, section 6.5.1. uvicorn adds them to the request's headers while the application reads those."""
    with serve(show_headers).connect() as client:
        client.sendall(post_chunked("Connection: close") + b"3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
        answered = until_closed(client)

    assert answered.endswith(b"\r\n\r\nhost transfer-encoding connection")


def test_headers_that_come_in_pieces_are_taken(serve: Serve) -> None:
    with serve(echo).connect() as client:
        for at in range(len(LAST_GET)):
            client.sendall(LAST_GET[at : at + 1])
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200"]


def test_headers_are_counted_for_each_request(serve: Serve) -> None:
    request = GET.replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * (MOST_HEADERS - 1) + b"\r\n")
    with serve(echo).connect() as client:
        client.sendall(request * 2 + LAST_GET)
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200"] * 3


def test_an_idle_connection_that_was_used_waits_for_longer_than_headers_may_take(serve: Serve) -> None:
    with serve(echo, header_seconds=0.2).connect() as client:
        client.sendall(GET)
        until(client, b"\r\n\r\n")
        client.settimeout(1)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE)
        client.sendall(LAST_GET)

        assert statuses_in(until_closed(client)) == [b"200"]


def test_an_empty_line_on_an_idle_connection_begins_the_next_headers(serve: Serve) -> None:
    with serve(echo, header_seconds=0.2).connect() as client:
        client.sendall(GET)
        until(client, b"\r\n\r\n")
        client.sendall(b"\r\n")

        assert statuses_in(until_closed(client)) == [b"408"]


def test_headers_half_sent_may_wait_for_the_answer_before_them(serve: Serve) -> None:
    """They have all their time after it."""
    held = Held()
    with serve(held, header_seconds=1).connect() as client:
        client.sendall(GET + LAST_GET[:20])
        assert held.entered.acquire(timeout=PATIENCE)
        client.settimeout(1.7)  # most of a second time
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE)
        held.released.set()
        received = until(client, b"at last")
        time.sleep(0.6)  # a part of their time
        client.sendall(LAST_GET[20:])
        received += until_closed(client)

    assert statuses_in(received) == [b"200", b"200"]


def test_headers_have_their_time_from_their_first_byte(serve: Serve) -> None:
    """Browsers connect ahead of need."""
    with serve(echo, header_seconds=1).connect() as client:
        for piece in (LAST_GET[:20], LAST_GET[20:]):
            time.sleep(0.7)  # more than half of it
            client.sendall(piece)

        assert statuses_in(until_closed(client)) == [b"200"]


# --- Refusals, in their turn ---


@pytest.mark.parametrize("nonsense", [b"nonsense\r\n\r\n", b"GET /images HTTP/1.1\r\n\r\n"])
def test_a_refusal_comes_after_the_answers_that_are_due(serve: Serve, nonsense: bytes) -> None:
    """uvicorn's came first, or in the middle of an answer, which its client could only take for a part of it."""
    held = Held()
    with serve(held).connect() as client:
        client.sendall(GET * 3 + nonsense + GET)
        held.released.set()
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200"] * 3 + [b"400"]
    assert answered.count(b"at last") == 3


def test_a_body_that_turns_out_malformed_is_refused_at_once(serve: Serve) -> None:
    with serve(echo).connect() as client:
        client.sendall(post_chunked() + b"3\r\nabc\r\n")
        client.sendall(b"nonsense\r\n")
        answered = until_closed(client)

    assert statuses_in(answered) == [b"400"]


def test_a_malformed_body_that_waits_for_its_turn_is_refused_in_it(serve: Serve) -> None:
    held = Held()
    with serve(held).connect() as client:
        client.sendall(GET + post_chunked() + b"nonsense\r\n")
        assert held.entered.acquire(timeout=PATIENCE)
        held.released.set()
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200", b"400"]
    assert not held.entered.acquire(blocking=False)


def test_nothing_is_written_into_an_answer_that_has_begun(serve: Serve) -> None:
    async def begin_at_once(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await read(receive)

    with serve(begin_at_once).connect() as client:
        client.sendall(post_chunked())
        received = until(client, b"begun\r\n")
        client.sendall(b"nonsense\r\n")
        received += until_closed(client)

    assert statuses_in(received) == [b"200"]
    assert received.endswith(b"begun\r\n")


def test_as_many_requests_as_may_wait_are_answered(serve: Serve) -> None:
    held = Held()
    with serve(held).connect() as client:
        client.sendall(GET * MOST_PIPELINED + LAST_GET)
        held.released.set()
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200"] * (MOST_PIPELINED + 1)


def test_after_an_upgrade_that_was_not_done_nothing_is_heard(serve: Serve) -> None:
    with serve(echo).connect() as client:
        client.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n") + GET)
        with contextlib.suppress(ConnectionError):
            client.sendall(GET)
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200"]


@pytest.mark.parametrize("pause", [0, 0.01])
@pytest.mark.parametrize(
    ("framing", "body"),
    [("Content-Length: 6", b"GET / "), ("Transfer-Encoding: chunked", b"3\r\nGET\r\n3\r\n / \r\n0\r\nX: y\r\n\r\n")],
)
def test_an_upgrade_that_was_not_done_leaves_the_body(serve: Serve, framing: str, body: bytes, pause: float) -> None:
    """RFC 9110, section 7.8: an Upgrade may be ignored. Java's client sends one with each upload over plain HTTP."""
    head = post(0, "Connection: Upgrade", "Upgrade: h2c").replace(b"Content-Length: 0", framing.encode())
    sends = head + body
    with serve(echo).connect() as client:
        for piece in [sends[at : at + 1] for at in range(len(sends))] if pause else [sends + GET]:
            client.sendall(piece)
            time.sleep(pause)  # or the pieces would arrive as one
        answered = until_closed(client)

    assert statuses_in(answered) == [b"200"]
    assert answered.endswith(b"\r\n\r\nGET / ")


# --- Clients that go away ---


def test_who_goes_away_is_missed_though_more_requests_wait(serve: Serve) -> None:
    """uvicorn tells the last of them only."""
    entered, told = threading.Semaphore(0), threading.Semaphore(0)

    async def wait_for_the_end(scope: Scope, receive: Receive, send: Send) -> None:
        entered.release()
        while (await receive())["type"] != "http.disconnect":
            pass
        told.release()

    with serve(wait_for_the_end).connect() as client:
        client.sendall(GET * 2)
        assert entered.acquire(timeout=PATIENCE)
        reset(client)

    assert told.acquire(timeout=PATIENCE)


@pytest.mark.parametrize(
    ("target", "told"), [(b"/", ["a head could not be taken"]), (b"http://[", [])], ids=["a fault", "no target"]
)
def test_a_fault_of_ours_in_a_head_is_told_apart_from_its_clients(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, target: bytes, told: list[str]
) -> None:
    """The parser makes one error of both: where uvicorn has changed, everything would be refused in silence."""

    def fail(*_: object) -> None:
        raise KeyError("something that uvicorn had")

    server = serve(echo)
    if told:
        monkeypatch.setattr(connection, "check_head", fail)

    with socket.create_connection(server.address, PATIENCE) as client:
        client.sendall(b"GET %s HTTP/1.1\r\nhost: door\r\n\r\n" % target)
        received = b"".join(iter(lambda: client.recv(65536), b""))

    assert statuses_in(received) == [b"400"]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == told


def test_who_goes_away_in_an_answer_leaves_no_traceback(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Semaphore(0)

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await stream_much(scope, receive, send)
        finally:
            ended.release()

    server = serve(stream)
    with narrow(server) as client:
        client.sendall(GET * 2)
        client.recv(1)
        reset(client)

    assert ended.acquire(timeout=PATIENCE)
    server.stop()
    assert tracebacks(caplog) == []


# --- Answers ---


@pytest.mark.parametrize("head", [GET, GET.replace(b"GET", b"HEAD"), post(4, "Expect: 100-continue") + b"body"])
@pytest.mark.parametrize("status", [200, 204, 304])
def test_a_head_is_sent_before_its_body_is_begun(serve: Serve, head: bytes, status: int) -> None:
    """As an event stream's is: its first event may come much later."""
    begin_body = threading.Event()

    async def wait_after_the_head(scope: Scope, receive: Receive, send: Send) -> None:
        await read(receive)
        length = [(b"content-length", b"5")] if status == 200 else []
        await send({"type": "http.response.start", "status": status, "headers": [(b"connection", b"close"), *length]})
        await asyncio.to_thread(begin_body.wait, PATIENCE)
        has_body = status == 200 and scope["method"] != "HEAD"
        await send({"type": "http.response.body", "body": b"begun" if has_body else b""})

    with serve(wait_after_the_head).connect() as client:
        client.sendall(head)
        received = until(client, b"%b: %b\r\n\r\n" % SAFETY_HEADERS[-1])
        begin_body.set()
        received += until_closed(client)

    assert statuses_in(received)[-1] == b"%d" % status
    assert (b"begun" in received) == (status == 200 and not head.startswith(b"HEAD"))


async def test_a_head_and_its_body_are_sent_in_one_piece() -> None:
    """Two would take two system calls and two packets."""
    writes: list[bytes] = []

    class Transport(asyncio.Transport):
        def writelines(self, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
            writes.append(b"".join(pieces))

        def is_closing(self) -> bool:
            return False

    transport = AnswerTransport(Transport(), asyncio.get_running_loop())
    transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
    transport.write(b"body")
    transport.write(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert writes == [b"HTTP/1.1 200 OK\r\n\r\nbody"]
    await asyncio.sleep(0)

    assert writes[1:] == [b"HTTP/1.1 204 No Content\r\n\r\n"]
    assert transport.bytes == sum(map(len, writes))


# --- Readers ---


@pytest.mark.parametrize("app", [send_much, stream_much])
@pytest.mark.parametrize("request_bytes", [GET, LAST_GET], ids=["kept", "closing"])
def test_a_client_that_does_not_read_is_hung_up_on(serve: Serve, app: object, request_bytes: bytes) -> None:
    with narrow(serve(app, download_stall_seconds=0.3)) as client:  # type: ignore[arg-type] # an application
        client.sendall(request_bytes)

        assert is_hung_up(client)


def test_a_client_that_reads_next_to_nothing_is_hung_up_on(serve: Serve) -> None:
    with narrow(serve(send_much, download_stall_seconds=0.3, download_least_rate=10**9)) as client:
        client.sendall(GET)
        received = 0
        with contextlib.suppress(ConnectionResetError):
            while piece := client.recv(1000):
                received += len(piece)
                time.sleep(0.01)  # the reader's pace

    assert received < LARGE


@pytest.mark.parametrize("app", [send_much, stream_much])
def test_a_client_that_reads_slowly_gets_it_all(serve: Serve, app: object) -> None:
    server = serve(app, download_stall_seconds=0.3, download_least_rate=1000)  # type: ignore[arg-type] # an application
    with server.connect() as client:
        client.sendall(LAST_GET)
        response = http.client.HTTPResponse(client)
        response.begin()
        received = 0
        while piece := response.read(LARGE // 20):
            received += len(piece)
            time.sleep(0.05)  # the reader's pace

    assert received == LARGE


def test_a_client_is_judged_by_what_it_reads_not_by_what_the_system_takes(serve: Serve) -> None:
    """The system takes 128 KiB at a time, which at this pace is enough for three seconds."""
    with narrow(serve(send_much, download_stall_seconds=1, download_least_rate=4096)) as client:
        client.sendall(GET)
        for _ in range(80):
            assert client.recv(2000)
            time.sleep(0.05)  # the reader's pace


def test_who_is_slowest_gives_way_where_unread_answers_take_too_much(serve: Serve) -> None:
    """What is held is the whole body, however little of it is left to be sent."""
    server = serve(send_much, max_unsent_bytes=LARGE * 3 // 2)
    with narrow(server) as first, narrow(server) as second:
        first.sendall(GET)
        first.recv(1)
        second.sendall(LAST_GET)

        assert is_hung_up(first)
        assert len(until_closed(second)) > LARGE


# --- Numbers ---


def test_idle_connections_make_room_the_longest_idle_first(serve: Serve) -> None:
    server = serve(echo, max_connections=3)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(3)]
        for client in idle:
            client.sendall(GET)
            until(client, b"\r\n\r\n")
        with server.connect() as late:
            late.sendall(LAST_GET)

            assert statuses_in(until_closed(late)) == [b"200"]
        assert until_closed(idle[0]) == b""
        for client in idle[1:]:
            client.sendall(LAST_GET)
            assert statuses_in(until_closed(client)) == [b"200"]


def test_where_all_connections_are_busy_another_is_refused(serve: Serve) -> None:
    held = Held()
    server = serve(held, max_connections=2)
    with server.connect() as first, server.connect() as second:
        for client in (first, second):
            client.sendall(LAST_GET)
            assert held.entered.acquire(timeout=PATIENCE)
        with server.connect() as late:
            refused = until_closed(late)
        held.released.set()

        assert statuses_in(refused) == [b"503"]
        assert [statuses_in(until_closed(client)) for client in (first, second)] == [[b"200"]] * 2


def test_connections_whose_answers_are_not_read_yet_make_no_room(serve: Serve) -> None:
    """They do not end when they are told to: each would leave its place to one more of its kind."""
    server = serve(send_much, max_connections=2)
    with narrow(server) as first, narrow(server) as second:
        for client in (first, second):
            client.sendall(GET)
            client.recv(1)
        with server.connect() as late:
            refused = until_closed(late)

        assert statuses_in(refused) == [b"503"]


def test_connections_that_have_gone_take_no_room(serve: Serve) -> None:
    server = serve(echo, max_connections=1)
    for _ in range(5):
        with server.connect() as client:
            client.sendall(post(3, "Connection: close") + b"abc")
            assert statuses_in(until_closed(client)) == [b"200"]


def test_connections_that_were_reset_are_not_kept(serve: Serve) -> None:
    """uvicorn keeps them for as long as it waits for a next request: with ours, 75 s of whatever they sent."""
    server = serve(echo)
    for _ in range(10):
        with server.connect() as client:
            client.sendall(GET)
            until(client, b"\r\n\r\n")
            reset(client)

    deadline = time.monotonic() + PATIENCE
    while (kept := connections_of(server)) and time.monotonic() < deadline:
        time.sleep(0.02)  # between two looks
    assert kept == 0


def connections_of(server: RunningServer) -> int:
    gc.collect()
    return sum(isinstance(thing, server.protocol) for thing in gc.get_objects())


def test_there_are_no_more_connections_than_descriptors() -> None:
    """In a process of its own, whose limit may be changed."""
    program = (
        "import resource; from api.server.descriptors import allow_connections; "
        "resource.setrlimit(7, (200, 300)); print(allow_connections({}))"
    )

    allowed = [
        int(subprocess.run([sys.executable, "-c", program.format(wanted)], capture_output=True, check=True).stdout)
        for wanted in (10, 100, 1000)
    ]

    assert resource.RLIMIT_NOFILE == 7
    assert allowed == [10, 100, 118]
    assert descriptors.allow_connections(1) == 1
