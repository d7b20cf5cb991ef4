"""The ASGI application in front of falcon. It acts before falcon sees a request, and on every answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from api.problems import Problem
from api.server import access_log
from api.server.asgi_types import Application, Event, Headers, Receive, Scope, Send
from api.server.headers import SAFETY_HEADERS, cors_headers, lines_of, preflight_headers
from api.server.request_body import ClientDisconnected, RequestBody
from shared.settings import Settings
from shared.telemetry import logs, tracing

#: The request headers that the guard reads. If a name occurs several times, the first line counts.
_READ_HEADERS = frozenset((b"origin", b"x-request-id", b"prefer", b"content-length", b"transfer-encoding"))

#: A request with one of these headers is left to the application.
_NOT_AT_ONCE = frozenset((b"content-length", b"transfer-encoding", b"expect", b"upgrade", b"prefer", b"traceparent"))
_READ_AT_ONCE = _NOT_AT_ONCE | {b"origin", b"x-request-id", b"x-forwarded-for"}


class Answer(NamedTuple):
    """A complete answer, with its header lines in one piece."""

    status: int
    #: The template of the route, for metrics.
    route: str
    #: The value of X-ASGILook-Cache, for the log.
    cache: str
    #: The header lines, with content-length. The guard adds CORS headers and `safety`.
    lines: bytes
    #: The lines of SAFETY_HEADERS that `lines` lacks.
    safety: bytes
    #: Empty for a HEAD.
    body: bytes


#: Returns the answer to a method, a path, a query and headers, or None if the application must answer. Never waits.
AtOnce = Callable[[str, str, str, Headers], Answer | None]


class Guard:
    """An ASGI application around another one.

    - The pace of a request's body is watched (RequestBody).
    - An answer that is given before the body was read closes the connection, late enough for the client to see it.
    - A path that is not plain ASCII, has an escape or begins with two slashes gets 404.
    - A request that the server cancels at the end of its grace gets 503, unless the application answers it.
    - Each request has an id for the logs, and one line in the access log.
    - Each answer has the safety headers and the CORS headers. CORS preflights are answered here.
    """

    def __init__(
        self,
        app: Application,
        settings: Settings,
        *,
        at_once: AtOnce = lambda method, path, query, headers: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._settings = settings
        self._at_once = at_once
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
        """Answer a request without a task if its answer is ready. Returns whether it was answered.

        Client and log get the same answer as from the application. `write` takes a status, header lines and a body.
        `client_of` takes the X-Forwarded-For headers and returns the client's address.
        """
        started = self._clock()
        origin: bytes | None = None
        given_id: bytes | None = None
        forwarded: list[bytes] = []
        for name, value in headers:
            if name not in _READ_AT_ONCE:
                continue
            if name in _NOT_AT_ONCE:
                return False
            if name == b"x-forwarded-for":
                forwarded.append(value)
            elif name == b"x-request-id":
                given_id = value if given_id is None else given_id
            elif origin is None:
                origin = value
        raw_path, _, query = target.partition(b"?")
        path = raw_path.decode("latin-1")
        answer = self._at_once(method, path, query.decode("latin-1"), headers)
        if answer is None:
            return False
        more = cors_headers(self._settings.cors_origins, origin)
        write(answer.status, answer.lines + lines_of(more) + answer.safety, answer.body)
        logs.request_id.set(access_log.request_id_of(given_id))
        logs.image_id.set(None)
        seconds = self._clock() - started
        access_log.log(method, path, answer.status, len(answer.body), seconds, client_of(forwarded), answer.cache)
        access_log.count(method, answer.route, answer.status, seconds, asks_to_wait=False)
        # Later log lines of this connection do not belong to this request.
        logs.request_id.set(None)
        return True

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        read: dict[bytes, bytes] = {}
        is_announced = asks_to_wait = False
        for name, value in headers:
            if name in _READ_HEADERS:
                read.setdefault(name, value)
                # RFC 9112, section 6.3: a request with neither of these headers has no body.
                is_announced |= name == b"transfer-encoding" or (name == b"content-length" and bool(value.strip(b" 0")))
                asks_to_wait |= name == b"prefer" and b"wait" in value.lower()
        logs.request_id.set(access_log.request_id_of(read.get(b"x-request-id")))
        # A pipelined request starts in the context of the one before it.
        logs.image_id.set(None)
        body = RequestBody(receive, self._settings, announced=is_announced)
        response = _Response(send, body, cors_headers(self._settings.cors_origins, read.get(b"origin")))
        preflight = preflight_headers(self._settings.cors_origins, scope["method"], headers)
        started = self._clock()
        try:
            if preflight is not None:
                await response.send({"type": "http.response.start", "status": 204, "headers": preflight})
                await response.send({"type": "http.response.body", "body": b""})
            elif _is_plain(scope):
                await self._app(scope, body.receive, response.send)
            else:
                await _refuse(scope, response, Problem("not-found", "No path of this service is spelled like this."))
        except ClientDisconnected:
            pass
        except asyncio.CancelledError:
            # Not raised again: uvicorn logs a traceback for every exception from here, also for its own cancellation.
            if response.status is None:
                await _refuse(scope, response, _SHUTTING_DOWN)
        except Exception:
            # uvicorn answers 500 if nothing was sent yet.
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


_SHUTTING_DOWN = Problem(
    "shutting-down", "The server is shutting down.", headers={"Connection": "close", "Retry-After": "1"}
)


async def _refuse(scope: Scope, response: _Response, problem: Problem) -> None:
    await response.send({"type": "http.response.start", "status": problem.status, "headers": problem.raw_headers})
    await response.send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else problem.body})


class _Response:
    """The sending side of a request. It counts what is sent, and lingers if the body was not read."""

    def __init__(self, send: Send, body: RequestBody, more: Headers) -> None:
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
        # Closing a socket with unread data resets the connection, and the client may lose the answer (RFC 9112,
        # section 9.6). uvicorn closes at the last event, so that event is held back. Reading the body here does not
        # invite more of it: uvicorn sends no `100 Continue` once the answer has begun.
        await self._send({**last, "more_body": True})
        await self._body.drop_some()
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def _in_one_line(send: Send) -> Send:
    """Make uvicorn log a failed start as one line. Falcon sends a whole traceback."""

    async def send_line(event: Event) -> None:
        if event["type"] == "lifespan.startup.failed":
            last = event.get("message", "").strip().rpartition("\n")[2]
            # The exception's qualified name precedes the message.
            event = event | {"message": f"the web process cannot run: {last.partition(': ')[2] or last}"}
        await send(event)

    return send_line


def _is_plain(scope: Scope) -> bool:
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    # Falcon drops all leading slashes of a path.
    return path.isascii() and b"%" not in path and not path.startswith(b"//")
