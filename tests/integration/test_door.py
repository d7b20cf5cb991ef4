"""The HTTP door, tried over raw sockets against the Procfile's own web process; docs/http-requests.md has the table."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.processes import HERE
from tests.fuzzing import examples
from tests.integration.door import HOST, LAST, THEMES, UNKNOWN, Shape, answers_in, chunked, get, post, table
from tests.integration.evidence import holdings_of, lines_of
from tests.integration.faults import RawClient
from tests.integration.service import Deployed, Response, ended

pytestmark = pytest.mark.processes

TOKEN = "a-token-of-this-test"
#: What the service holds: no test here has anything accepted.
NOTHING: tuple[list[str], list[str]] = ([], [])
GIGABYTE = 1_000_000_000
#: What the buffers of two sockets may hold, and what is read before a refusal and while it lingers.
MOST_TAKEN = 16_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Three web processes: one as it comes, one of little patience, one that wants a token and small uploads."""
    with ended(tmp_path_factory.mktemp("door")) as services:
        service = services.deploy()
        service.start_web(
            ASGI_LOOK_HEADER_SECONDS="1", ASGI_LOOK_UPLOAD_STALL_SECONDS="1", ASGI_LOOK_DOWNLOAD_STALL_SECONDS="1"
        )
        service.start_web(ASGI_LOOK_WRITE_TOKEN=TOKEN, ASGI_LOOK_MAX_UPLOAD_BYTES="1000000")
        for web in (1, 2):
            service.until(lambda web=web: service.is_ready(web), seconds=60, what=f"web {web}")  # type: ignore[misc] # a default is no argument
        yield service
        # Over all that was sent: nothing of it went unhandled, and nothing of it has broken a line.
        assert "Traceback" not in service.output
        started = [line for line in service.output.splitlines() if line.startswith('{"time"')]
        assert [line for line in started if json.loads(line)["level"] not in ("INFO", "WARNING")] == []
        assert [line for line in lines_of(service, logger="api.server.access_log") if line["status"] == 500] == []


@contextmanager
def connected(service: Deployed, web: int = 0) -> Iterator[RawClient]:
    client = RawClient(service.ports[web])
    with closing(client.socket):
        yield client


def conversation(service: Deployed, sends: bytes, web: int = 0) -> list[Response]:
    """Send it; return all answers, when the server has closed the connection."""
    with connected(service, web) as client:
        # What is refused midway is not read to its end.
        with suppress(ConnectionError):
            client.send(sends)
        received = b""
        with suppress(ConnectionResetError):
            while piece := client.socket.recv(65536):
                received += piece
    return list(answers_in(received))


def at_once(service: Deployed, conversations: list[bytes]) -> list[list[Response]]:
    """Have them all at once with the impatient web process."""
    with ThreadPoolExecutor(len(conversations)) as pool:
        return list(pool.map(lambda sends: conversation(service, sends, web=1), conversations))


@pytest.mark.parametrize("shape", [pytest.param(shape, id=shape.name) for theme in THEMES for shape in theme.shapes])
def test_what_is_said_at_the_door_ends_as_the_table_says(service: Deployed, shape: Shape) -> None:
    # That the connection goes on shows in the answer to one request more.
    answers = conversation(service, shape.sends + (LAST if shape.stays_open else b""))

    statuses = [answer.status for answer in answers]
    assert statuses == [*shape.statuses, *([200] if shape.stays_open else [])]
    for answer in answers:
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "x-injected" not in answer.headers
        if answer.status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.headers["cache-control"] == "no-store"
            assert answer.json["status"] == answer.status
    service.until(lambda: holdings_of(service) == NOTHING, what="the end of its draft")


def test_the_table_in_the_docs_is_this_one() -> None:
    page = (HERE / "docs" / "http-requests.md").read_text()

    assert table() in page, "python -m tests.integration.door prints it"


# --- Time ------------------------------------------------------------------------------------------------------


def test_a_connection_on_which_nothing_is_sent_is_closed_without_a_word(service: Deployed) -> None:
    """A browser connects ahead of need: a 408 would pass for the answer to what it asks at last."""
    assert conversation(service, b"", web=1) == []


HEADS = [b"G", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: door\r\nX: y"]


def test_headers_that_stall_are_given_up(service: Deployed) -> None:
    begun = [b"\r\n", *HEADS, *(get() + head for head in HEADS)]

    ended = at_once(service, begun)

    assert [[answer.status for answer in answers] for answers in ended] == [[408]] * 4 + [[200, 408]] * 3


def test_headers_that_trickle_are_given_up(service: Deployed) -> None:
    with connected(service, 1) as client:
        client.send(b"GET /healthz HTTP/1.1\r\nHost: door\r\n")
        client.socket.settimeout(0.05)  # the pace of the trickle

        def is_refused() -> bool:
            with suppress(TimeoutError, ConnectionResetError):
                return client.socket.recv(65536).startswith(b"HTTP/1.1 408 ")
            client.send(b"X: y\r\n")
            return False

        service.until(is_refused, what="the refusal")


def test_bodies_that_stall_are_given_up(service: Deployed) -> None:
    form = b"Content-Type: multipart/form-data; boundary=edge\r\n"
    begun = [
        post(b"Content-Length: 1000\r\n", b"\x89PNG"),
        chunked(b"4\r\n\x89PNG\r\n3"),
        chunked(b"4\r\n\x89PNG\r\n0\r\nTrailer: begun"),
        post(form + b"Content-Length: 1000\r\n", b"--edge\r\nContent-Disp"),
        post(form + b"Transfer-Encoding: chunked\r\n", b"8\r\n--edge\r\n\r\n"),
    ]

    ended = at_once(service, begun)

    assert [[answer.status for answer in answers] for answers in ended] == [[408]] * 5
    assert {answers[0].json["type"] for answers in ended} == {"urn:asgilook:problem:upload-stalled"}
    service.until(lambda: holdings_of(service) == NOTHING, what="the end of their drafts")


def test_a_chunk_extension_that_never_ends_is_given_up(service: Deployed) -> None:
    """It brings no content, so that the upload stalls, however much is sent; and it is bounded by itself."""
    with connected(service, 1) as client:
        client.send(chunked(b"4;"))
        client.socket.settimeout(0.05)

        def is_refused() -> bool:
            with suppress(TimeoutError, ConnectionResetError):
                return client.socket.recv(65536).startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 400 "))
            client.send(b"x" * 100)
            return False

        service.until(is_refused, what="the refusal")


# --- Amount ----------------------------------------------------------------------------------------------------

ENDLESS = {
    "401, without a token": (2, 401, post(b"Content-Length: %d\r\n" % GIGABYTE)),
    "401, chunked": (2, 401, chunked(b"")),
    "404, no such path": (0, 404, post(b"Content-Length: %d\r\n" % GIGABYTE).replace(b"/images", b"/nothing")),
    "405, no such method": (0, 405, post(b"Content-Length: %d\r\n" % GIGABYTE).replace(b"/images", UNKNOWN)),
    "413, by its length": (0, 413, post(b"Content-Length: %d\r\n" % GIGABYTE)),
    "413, as it grows": (
        2,
        413,
        chunked(b"").replace(HOST, HOST + b"Authorization: Bearer " + TOKEN.encode() + b"\r\n"),
    ),
    "415, by its type": (0, 415, post(b"Content-Type: application/json\r\nContent-Length: %d\r\n" % GIGABYTE)),
    "415, by its content": (0, 415, chunked(b"")),
    "415, by its content, under the limit": (0, 415, post(b"Content-Length: 49999999\r\n")),
    "431, headers": (0, 431, b"GET / HTTP/1.1\r\nX: "),
    "200, a body that nobody wanted": (0, 200, get(headers=HOST + b"Content-Length: %d\r\n" % GIGABYTE)),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_the_rest_of_what_is_refused_is_not_read(service: Deployed, name: str) -> None:
    web, status, head = ENDLESS[name]
    # An endless run of chunks that each begin as a JPEG does, or of zeros where there are no chunks.
    piece = b"10000\r\n" + b"\xff\xd8\xff\xe0".ljust(65536, b"\0") + b"\r\n" if b"chunked" in head else b"0" * 65536
    if status == 415:
        piece = piece.replace(b"\xff\xd8", b"xx")
    with connected(service, web) as client:
        client.send(head)
        client.socket.setblocking(False)
        taken, received, is_over = 0, b"", False

        def has_ended() -> bool:
            nonlocal taken, received, is_over
            try:
                if taken < GIGABYTE:
                    taken += client.socket.send(piece)
            except BlockingIOError:
                pass
            except ConnectionError:
                is_over = True
            with suppress(BlockingIOError, ConnectionError):
                got = client.socket.recv(65536)
                received += got
                is_over = is_over or not got
            return is_over

        service.until(has_ended, what="the end of the connection")

    print(f"{name}: {taken:,} of {GIGABYTE:,} bytes were taken")
    assert next(answers_in(received)).status == status
    assert taken < MOST_TAKEN
    service.until(lambda: holdings_of(service) == NOTHING, what="the end of its draft")


# --- Chance ----------------------------------------------------------------------------------------------------

#: Without what is nearly a picture: nothing may be accepted here.
SHAPES = [
    shape.sends
    for theme in THEMES
    for shape in theme.shapes
    if len(shape.sends) < 2000 and b"\xff\xd8" not in shape.sends
]
FRAGMENTS = [
    b"\r\n",
    b"\r",
    b"\n",
    b"\0",
    b" ",
    b":",
    b";",
    b"%",
    b"\xff",
    b"chunked",
    b"0",
    b"Host: a\r\n",
    get(),
    b"/",
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """One or two of the shapes, with some of their bytes changed, taken out or put in."""
    sent = bytearray(b"".join(draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(sent)))
        sent[at : at + draw(st.integers(0, 4))] = draw(st.sampled_from(FRAGMENTS) | st.binary(max_size=4))
    return bytes(sent)


@examples(200)
@given(sends=damaged() | st.binary(max_size=200), cut=st.none() | st.integers(0, 200))
def test_whatever_is_said_at_the_door_is_answered_properly(service: Deployed, sends: bytes, cut: int | None) -> None:
    with connected(service) as client, suppress(ConnectionError):
        for piece in (sends,) if cut is None else (sends[:cut], sends[cut:]):
            client.send(piece)
        received = b""
        # What does not come soon, to a half or wholly swallowed request, is not waited for.
        client.socket.settimeout(0.02)
        with suppress(TimeoutError):
            while more := client.socket.recv(65536):
                received += more

    for answer in whole_answers_in(received):
        assert answer.status < 500 or answer.status in (501, 505)
        assert answer.status < 400 or answer.json["status"] == answer.status


def whole_answers_in(received: bytes) -> Iterator[Response]:
    # The answer to a HEAD has a length and no body; nothing else that is sent here is cut.
    with suppress(http.client.HTTPException):
        yield from answers_in(received)


def test_each_refusal_is_one_line_in_the_log(service: Deployed) -> None:
    conversation(service, get(headers=HOST * 2 + b"X-Request-ID: a\x22b\r\n"))

    (line,) = lines_of(service, logger="api.server.connection", reason="There must be one Host.")[-1:]
    assert (line["problem"], line["status"]) == ("malformed-request", 400)
