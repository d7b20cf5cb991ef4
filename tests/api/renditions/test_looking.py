"""Requests that wait for a look without a task: what may happen to them meanwhile."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Callable

import pytest

from api.renditions.memory import Entry
from api.server.guard import Picture, Scope
from shared.redis.response_cache import Copy
from tests import waiting
from tests.api.http_server import GET, LAST_GET, PATIENCE, Lines, Serve, echo, post, tracebacks, until, until_closed

PICTURE = Entry("image", Copy.of(200, [("etag", '"1"')], b"a picture"), 0.0, is_hit=True)
LARGE = Entry("image", Copy.of(200, [], bytes(32_000_000)), 0.0, is_hit=True)
ROUTE = "/images/{image_id}.jpeg"

Tell = Callable[[Picture | None, str], None]


def eventually(condition: Callable[[], object]) -> None:
    asyncio.run(waiting.until(condition, PATIENCE))


class Looking:
    """Looks for every request, and finds what a test says."""

    def __init__(self) -> None:
        self._asked: queue.Queue[tuple[asyncio.AbstractEventLoop, Tell]] = queue.Queue()

    def __call__(self, scope: Scope, found: Tell) -> bool:
        self._asked.put((asyncio.get_running_loop(), found))
        return True

    @property
    def is_asked(self) -> bool:
        return not self._asked.empty()

    def find(self, picture: Picture | None) -> None:
        """Wait until somebody has asked; tell."""
        loop, found = self._asked.get(timeout=PATIENCE)
        loop.call_soon_threadsafe(found, picture, ROUTE)


@pytest.fixture
def looking() -> Looking:
    return Looking()


def test_what_is_found_is_the_answer(serve: Serve, looking: Looking, access: Lines) -> None:
    with serve(echo, looking).connect() as client:
        client.sendall(GET)
        looking.find(PICTURE)
        answered = until(client, b"a picture")
        line = access.next()

        client.sendall(LAST_GET)
        looking.find(PICTURE)
        last = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 200 ")
    assert b'\r\netag: "1"\r\nx-asgilook-cache: Hit\r\ncontent-length: 9\r\n' in answered
    assert (line.status, line.bytes, line.cache, line.client) == (200, 9, "Hit", "127.0.0.1")
    assert b"connection: close\r\n" in last
    assert last.endswith(b"a picture")


def test_what_is_not_found_is_left_to_the_application(serve: Serve, looking: Looking) -> None:
    with serve(echo, looking).connect() as client:
        client.sendall(LAST_GET)
        looking.find(None)

        answered = until_closed(client)

    assert answered.startswith(b"HTTP/1.1 200 ")
    assert answered.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        post(0),
        GET.replace(b"GET", b"HEAD"),
        *(
            GET.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % line)
            for line in (b"Range: bytes=0-1", b"If-None-Match: *", b"Content-Length: 0", b"Prefer: wait=1")
        ),
    ],
)
def test_who_asks_for_more_or_less_is_not_looked_for(serve: Serve, looking: Looking, request_: bytes) -> None:
    with serve(echo, looking).connect() as client:
        client.sendall(request_)

        assert until(client, b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")

    assert not looking.is_asked


def test_who_comes_behind_one_that_is_looked_for_waits_for_its_turn(serve: Serve, looking: Looking) -> None:
    with serve(echo, looking).connect() as client:
        client.sendall(GET + post(5) + b"first")
        client.sendall(
            GET + LAST_GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 4\r\n\r\nlast")
        )
        looking.find(PICTURE)
        looking.find(None)

        answered = until_closed(client)

    assert answered.count(b"HTTP/1.1 200 ") == 4
    assert answered.index(b"a picture") < answered.index(b"first") < answered.index(b"last")


def test_a_client_that_goes_away_meanwhile_harms_nobody(
    serve: Serve, looking: Looking, access: Lines, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve(echo, looking)
    with server.connect() as client:
        client.sendall(GET)
        loop, found = looking._asked.get(timeout=PATIENCE)
    eventually(lambda: not server.cycles)
    loop.call_soon_threadsafe(found, PICTURE, ROUTE)

    access.next()
    with server.connect() as client:
        client.sendall(LAST_GET)
        looking.find(PICTURE)
        assert until_closed(client).endswith(b"a picture")
    assert tracebacks(caplog) == []


def test_one_that_is_looked_for_is_answered_while_the_server_stops(serve: Serve, looking: Looking) -> None:
    server = serve(echo, looking)
    with server.connect() as client:
        client.sendall(GET)
        loop, found = looking._asked.get(timeout=PATIENCE)
        server.begin_to_stop()
        eventually(lambda: [cycle.keep_alive for cycle in server.cycles] == [False])
        loop.call_soon_threadsafe(found, PICTURE, ROUTE)

        answered = until_closed(client)

    assert answered.endswith(b"a picture")
    assert b"connection: close\r\n" in answered


def test_what_cannot_be_written_yet_is_left_to_the_application(serve: Serve, looking: Looking) -> None:
    with serve(echo, looking).connect() as client:
        client.sendall(GET + LAST_GET)
        looking.find(LARGE)
        looking.find(LARGE)

        answered = until_closed(client)

    assert len(LARGE.body) < len(answered) < 2 * len(LARGE.body)
    assert answered.count(b"HTTP/1.1 200 ") == 2
