"""The wrapper in front of falcon, for what a framework sees too late: the pace of a body, how a connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from api.server import access_log, cors
from api.server.at_once import AtOnce
from api.server.cors import Headers
from shared.errors import AsgilookError
from shared.settings import Settings
from shared.telemetry import logs, tracing

Scope = dict[str, Any]
Event = dict[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
#: Makes the headers and the body of a problem from its status and its detail, a sentence for the client.
Problem = Callable[[int, str], tuple[Headers, bytes]]

#: How much of a refused body is read and dropped, and for how long, before the connection is closed.
LINGER_BYTES = 256 * 1024
LINGER_SECONDS = 1.0

#: Of every answer, where the application has none of its own: nothing we send is ever a document with a script.
SAFETY_HEADERS: Headers = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

#: The headers that the guard looks at; of several lines of one name, the first.
_HEARD = frozenset((b"origin", b"x-request-id", b"prefer", b"content-length", b"transfer-encoding"))

#: A request that has one of these brings something along, or asks for more than an answer that is ready.
_FOR_APPLICATION = frozenset(
    (b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"prefer", b"traceparent")
)


class ClientDisconnected(AsgilookError):
    """The client went away before the end of the body that it had announced."""


class UploadStalled(AsgilookError):
    """The body stopped coming, or comes more slowly than we wait for; the message is fit for its client."""


class Guard:
    """An ASGI application that hands HTTP requests to another one, and lets no client's conduct surprise it.

    - The application first receives an empty event, without the server being asked: what it refuses by the headers
      alone is refused before the server sends `100 Continue`.
    - A body that ends early raises ClientDisconnected where it is read, one that stalls or trickles UploadStalled.
    - An answer given before the body was read closes the connection, late enough for the client to see the answer.
    - A path that is not plain ASCII, holds an escape or begins with two slashes is none of ours: 404.
    - A request that the server cancels, at the end of its grace, is answered 503.
    - Each request has an id for the logs, and one line in them.
    - Each answer has the headers that keep a browser from taking it for more than it is, and those that tell it which
      other origins' scripts may read it. Their preflights are answered here.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        problem: Problem,
        *,
        at_once: AtOnce = lambda method, path, query, headers: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._at_once = at_once
        self._settings = settings
        self._problem = problem
        self._clock = clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with tracing.request(scope["method"], scope["headers"]):
                await self._serve(scope, receive, send)
        elif scope["type"] == "websocket":
            # Closed before it was accepted: the server answers the handshake with 403.
            await send({"type": "websocket.close", "code": 1000})
        else:
            await self._app(scope, receive, _in_one_line(send))

    def answer_at_once(
        self,
        method: str,
        target: bytes,
        headers: Headers,
        client_of: Callable[[list[bytes]], str | None],
        write: Callable[[int, bytes, bytes], None],
    ) -> bool:
        """Answer a request without a task, if its answer is ready; return whether it was answered.

        The client and the log see what the application would have answered. `write` takes a status, header lines and a
        body. `client_of` returns the client's address by the X-Forwarded-For headers.
        """
        started = self._clock()
        origin: bytes | None = None
        given_id: bytes | None = None
        forwarded: list[bytes] = []
        for name, value in headers:
            if name in _FOR_APPLICATION:
                return False
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == b"x-request-id" and given_id is None:
                given_id = value
            elif name == b"origin" and origin is None:
                origin = value
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("latin-1")
        answer = self._at_once(method, path, query.decode("latin-1"), headers)
        if answer is None:
            return False
        more = cors.headers_for(self._settings.cors_origins, origin)
        write(answer.status, answer.lines + _lines(more) + answer.safety, answer.body)
        logs.request_id.set(access_log.request_id_of(given_id))
        logs.image_id.set(None)
        seconds = self._clock() - started
        access_log.log(method, path, answer.status, len(answer.body), seconds, client_of(forwarded), answer.cache)
        access_log.count(method, answer.route, answer.status, seconds, asks_to_wait=False)
        # Later log lines of the connection are not about this request.
        logs.request_id.set(None)
        return True

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        heard: dict[bytes, bytes] = {}
        is_announced = asks_to_wait = False
        for name, value in headers:
            if name in _HEARD:
                heard.setdefault(name, value)
                # RFC 9112, section 6.3: a request without either has no body.
                is_announced |= name == b"transfer-encoding" or (name == b"content-length" and bool(value.strip(b" 0")))
                asks_to_wait |= name == b"prefer" and b"wait" in value.lower()
        logs.request_id.set(access_log.request_id_of(heard.get(b"x-request-id")))
        # A pipelined request starts in the context of the one before it.
        logs.image_id.set(None)
        body = _RequestBody(receive, self._settings, self._clock, announced=is_announced)
        more = cors.headers_for(self._settings.cors_origins, heard.get(b"origin"))
        response = _Response(send, body, more)
        preflight = None
        if scope["method"] == "OPTIONS":
            preflight = cors.preflight_headers(self._settings.cors_origins, scope["method"], headers)
        started = self._clock()
        try:
            if preflight is not None:
                await response.send({"type": "http.response.start", "status": 204, "headers": preflight})
                await response.send({"type": "http.response.body", "body": b""})
            elif _is_plain(scope):
                await self._app(scope, body.receive, response.send)
            else:
                await self._refuse(scope, response, 404, "No path of this service is spelled like this.")
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            # The server logs whatever leaves this function with a traceback, a cancellation of its own too.
            if response.status is None:
                more = [(b"connection", b"close"), (b"retry-after", b"1")]
                await self._refuse(scope, response, 503, "The server is shutting down.", more)
        except Exception:
            # Where nothing was sent yet, the server answers by itself.
            response.status = response.status or 500
            raise
        finally:
            seconds = self._clock() - started
            client = scope.get("client")
            access_log.log(
                scope["method"],
                scope["path"],
                response.status,
                response.bytes,
                seconds,
                client[0] if client else None,
                response.cache,
            )
            route = scope.get("asgilook.route") or "none"
            access_log.count(scope["method"], route, response.status, seconds, asks_to_wait=asks_to_wait)

    async def _refuse(
        self, scope: Scope, response: _Response, status: int, detail: str, more: Sequence[tuple[bytes, bytes]] = ()
    ) -> None:
        headers, body = self._problem(status, detail)
        headers = [*headers, *more, (b"content-length", b"%d" % len(body))]
        await response.send({"type": "http.response.start", "status": status, "headers": headers})
        await response.send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


def _in_one_line(send: Send) -> Send:
    """Have the server log why the application could not start as one line; falcon tells it by a traceback."""

    async def send_line(event: Event) -> None:
        if event["type"] == "lifespan.startup.failed":
            last = event.get("message", "").strip().rpartition("\n")[2]
            # What stands before the message is the exception's own name, with its module.
            event = event | {"message": f"the web process cannot run: {last.partition(': ')[2] or last}"}
        await send(event)

    return send_line


class _RequestBody:
    """The receiving side: knows how much of the body is still to come, and whether its pace is bearable."""

    def __init__(self, receive: Receive, settings: Settings, clock: Callable[[], float], *, announced: bool) -> None:
        self._receive = receive
        self._patience = settings.upload_stall_seconds
        self._least_rate = settings.upload_least_rate
        self._clock = clock
        self._opened = False
        self._received = 0
        self._waited = 0.0
        self.unread = announced
        self.client_gone = False

    async def receive(self) -> Event:
        if not self._opened:
            self._opened = True
            return {"type": "http.request", "body": b"", "more_body": self.unread}
        if self.unread:
            return await self._receive_in_time()
        # All that can follow is that the client leaves, and the server's own event for a body that never was.
        while (event := await self._receive())["type"] != "http.disconnect":
            pass
        return event

    async def drop_some(self) -> None:
        """Read and drop what still comes, up to the linger's limits; a cancellation only ends it sooner."""
        dropped = 0
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.unread and dropped < LINGER_BYTES:
                    event = await self._receive()
                    dropped += len(event.get("body", b""))
                    self.unread = event.get("more_body", False)

    async def _receive_in_time(self) -> Event:
        event = await self._next_event()
        if event["type"] == "http.disconnect":
            self.client_gone = True
            raise ClientDisconnected("the client went away in the middle of its upload")
        self._received += len(event.get("body", b""))
        self.unread = event.get("more_body", False)
        # Only the time spent waiting counts: a slow disk of ours makes no slow client.
        if self.unread and self._waited >= self._patience:
            if self._received < self._least_rate * self._waited:
                raise UploadStalled(f"Only {self._received} bytes came in {self._waited:.1f} seconds.")
            # Each stretch is judged by itself: a quick beginning buys no slow end.
            self._received, self._waited = 0, 0.0
        return event

    async def _next_event(self) -> Event:
        # Waited for in two halves: where it was this process that stood still, the first is over before the server
        # could read what had come meanwhile, and the second is not. No half counts for more than it is.
        half = self._patience / 2
        for _ in range(2):
            begun = self._clock()
            try:
                async with asyncio.timeout(half):
                    return await self._receive()
            except TimeoutError:
                pass
            finally:
                self._waited += min(self._clock() - begun, half)
        raise UploadStalled(f"Nothing came for {self._patience:g} seconds.")


class _Response:
    """The sending side: notes what is answered, and closes the connection with care where the body was not read."""

    def __init__(self, send: Send, body: _RequestBody, more: Headers) -> None:
        self._send = send
        self._body = body
        self._more = more
        self._lingers = False
        self.status: int | None = None
        self.bytes = 0
        self.cache: str | None = None

    async def send(self, event: Event) -> None:
        if self._body.client_gone:
            return
        if event["type"] == "http.response.start":
            event = self._start(event)
        elif event["type"] == "http.response.body":
            self.bytes += len(event.get("body", b""))
            if self._lingers and not event.get("more_body", False):
                await self._linger(event)
                return
        await self._send(event)

    def _start(self, event: Event) -> Event:
        headers: Headers = [*event.get("headers", []), *self._more]
        self.status = event["status"]
        present = dict(headers)
        cache = present.get(b"x-asgilook-cache")
        self.cache = None if cache is None else cache.decode("latin-1")
        headers += [header for header in SAFETY_HEADERS if header[0] not in present]
        self._lingers = self._body.unread
        if self._lingers and b"connection" not in present:
            headers.append((b"connection", b"close"))
        return {**event, "headers": headers}

    async def _linger(self, last: Event) -> None:
        # To close a socket with unread data is to reset the connection, and a reset can overtake the answer in the
        # client's own buffers (RFC 9112, section 9.6). The server closes at the last event: that one is held back.
        # After the start of a response the server sends no `100 Continue` any more, so that reading is no promise.
        await self._send({**last, "more_body": True})
        await self._body.drop_some()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _lines(headers: Headers) -> bytes:
    return b"".join([b"%b: %b\r\n" % header for header in headers]) if headers else b""


def _is_plain(scope: Scope) -> bool:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    # Falcon drops every slash that a path begins with.
    return path.isascii() and b"%" not in path and not path.startswith(b"//")
