"""uvicorn as in production around any application, and clients that say exactly what they are told to."""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import socket
import struct
import threading
from collections.abc import Iterator
from typing import Any, Protocol

import pytest
import uvicorn

from api.server.asgi_types import Application, Headers, Receive, Scope, Send
from api.server.connection import Connection
from api.server.guard import AtOnce, Guard
from shared.settings import Settings
from shared.telemetry import logs

#: Far more than any of these tests needs; only a failure ever waits for it.
PATIENCE = 20


async def answer(send: Send, status: int, body: bytes, headers: Headers | None = None) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [length, *(headers or [])]})
    await send({"type": "http.response.body", "body": body})


async def read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        body += event["body"]
        if not event["more_body"]:
            return bytes(body)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, 200, await read(receive))


def nothing_at_once(method: str, path: str, query: str, headers: Headers) -> None:
    return None


class RunningServer:
    """uvicorn as in production, on a free port, in a thread of its own."""

    def __init__(self, app: Application, settings: Settings, at_once: AtOnce) -> None:
        class Limited(Connection):
            """Shares nothing with another server's connections."""

        guard = Guard(app, settings, at_once=at_once)
        Limited.configure(settings, guard)
        self.protocol = Limited
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        self._server = uvicorn.Server(
            uvicorn.Config(
                guard,
                http=Limited,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=0,
            )
        )
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})
        self._thread.start()

    def begin_to_stop(self) -> None:
        self._server.should_exit = True

    def stop(self) -> None:
        self.begin_to_stop()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    @contextlib.contextmanager
    def connect(self) -> Iterator[socket.socket]:
        with socket.create_connection(self.address, timeout=PATIENCE) as client:
            yield client


class Serve(Protocol):
    def __call__(self, app: Application, at_once: AtOnce = nothing_at_once, **settings: Any) -> RunningServer: ...


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as servers:

        def start(app: Application, at_once: AtOnce = nothing_at_once, **settings: Any) -> RunningServer:
            server = RunningServer(app, Settings(**settings), at_once)
            servers.callback(server.stop)
            return server

        yield start


class Lines:
    """A stream that keeps the lines of the access log, to be waited for."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def write(self, text: str) -> None:
        line = json.loads(text)
        if line["logger"] == "api.server.access_log":
            self._lines.put(line)

    def flush(self) -> None:
        """It has no buffer."""

    def next(self) -> dict[str, Any]:
        return self._lines.get(timeout=PATIENCE)


@pytest.fixture
def access() -> Iterator[Lines]:
    lines, logger = Lines(), logging.getLogger("api.server.access_log")
    handler, level = logs.JsonHandler(lines), logger.level
    logging.getLogger().addHandler(handler)
    logger.setLevel(logging.INFO)
    yield lines
    logger.setLevel(level)
    logging.getLogger().removeHandler(handler)


def until_closed(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


def until(client: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        chunk = client.recv(65536)
        assert chunk, received
        received += chunk
    return received


def post(length: int, *headers: str) -> bytes:
    lines = ["POST /images HTTP/1.1", "Host: test", f"Content-Length: {length}", *headers, "", ""]
    return "\r\n".join(lines).encode()


def post_chunked(*headers: str) -> bytes:
    lines = ["POST /images HTTP/1.1", "Host: test", "Transfer-Encoding: chunked", *headers, "", ""]
    return "\r\n".join(lines).encode()


GET = b"GET /images HTTP/1.1\r\nHost: test\r\n\r\n"
LAST_GET = b"GET /images HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"


def reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def finish(client: socket.socket) -> None:
    client.shutdown(socket.SHUT_WR)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info]
