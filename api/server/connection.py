"""One client's connection: uvicorn's protocol, with the limits of time, size and number that uvicorn lacks.

This module is longer than 250 lines, because uvicorn's protocol is one class and this class extends it. Code that needs
no connection is in request_head, slow_readers, transport and descriptors.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.problems import Problem
from api.server.descriptors import allow_connections
from api.server.guard import Guard
from api.server.headers import SAFETY_HEADERS, cors_headers, lines_of
from api.server.request_body import LINGER_BYTES, LINGER_SECONDS
from api.server.request_head import check_framing, check_head, check_partial_head
from api.server.slow_readers import Reader, UnreadAnswers
from api.server.transport import AnswerTransport
from shared.settings import Settings
from shared.stalls import Deadline

#: Requests that may wait on one connection while an earlier one is answered.
MOST_PIPELINED = 16
#: Bytes that the size and the line ends of one chunk may take.
_CHUNK_BYTES = 16

_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")

log = logging.getLogger(__name__)


@dataclass
class _Process:
    """The state that all connections of a process share."""

    settings: Settings
    guard: Guard | None
    most_connections: int
    unread: UnreadAnswers
    #: uvicorn's list of default headers, and its lines as they are sent.
    own_headers: tuple[object, bytes] = (None, b"")
    #: Connections without a request to answer, with the loop's time when they became idle. The longest idle is first.
    idle: dict[Connection, float] = field(default_factory=dict)


class Connection(HttpToolsProtocol):
    """What uvicorn creates for each connection (its option `--http`).

    - A head that is late, too long or ambiguous is refused with a problem, after the answers to the requests before it.
      Then the connection is closed.
    - Trailers are dropped: they must not be taken for headers.
    - An answer that is ready is sent before a task is created (Guard.answer_at_once).
    - The connection of a client that does not read its answer is reset (Reader).
    - If there are too many connections, the longest idle one is closed.
    """

    #: The state until `configure` is called. An application without a guard does not call it.
    process: ClassVar[_Process] = _Process(
        Settings(), None, Settings.max_connections, UnreadAnswers(Settings.max_unsent_bytes)
    )

    @classmethod
    def configure(cls, settings: Settings, guard: Guard) -> None:
        """Set the limits of all future connections, and the guard that answers at once."""
        most = allow_connections(settings.max_connections)
        if most < settings.max_connections:
            log.warning("fewer connections than are allowed", extra={"connections": most})
        cls.process = _Process(settings, guard, most, UnreadAnswers(settings.max_unsent_bytes))

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._settings = self.process.settings
        self.url = b""
        self.headers = []
        self._head_bytes = 0
        self._in_head = True
        #: Bytes of the body's framing so far: chunk sizes, extensions, trailers.
        self._framing_bytes = 0
        #: For a request that asks for an upgrade: its header lines that frame the body.
        self._framing = b""
        #: If set, nothing more is parsed.
        self._is_refused = False
        self._dropped = 0
        #: The refusal, until it is sent.
        self._problem: Problem | None = None
        #: The request that is being answered, or was answered last.
        self._answered: RequestResponseCycle | None = None
        #: Until then the client must send a head, or close a connection that was refused.
        self._deadline = Deadline()
        self._keep_alive = Deadline()

    # --- The connection's life ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._answers = AnswerTransport(transport, self.loop)
        self._reader = Reader(self._answers, self._settings, self.process.unread)
        super().connection_made(self._answers)  # type: ignore[arg-type] # it has all that a transport has
        if len(self.connections) > self.process.most_connections and not self._make_room():
            self._is_refused = True
            self._write(Problem("too-many-connections"))
            self.transport.close()  # without lingering: there may be a flood of these
            return
        self.process.idle[self] = self.loop.time()
        self._deadline.start(self._settings.header_seconds, self._end_wait)

    def connection_lost(self, exc: Exception | None) -> None:
        self.process.idle.pop(self, None)
        self._reader.stop()
        self._deadline.stop()
        self._keep_alive.stop()
        # uvicorn tells only the last request, which may still wait for its turn.
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def _make_room(self) -> bool:
        for oldest in self.process.idle:
            # A connection that still has something to send would stay open after `close`.
            if not oldest.transport.get_write_buffer_size():
                del self.process.idle[oldest]
                oldest.transport.close()
                return True
        return False

    @property
    def _is_answering(self) -> bool:
        # The cycle belongs to the last request. Requests before it are answered first.
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_inside_head(self) -> bool:
        return self._in_head and self._head_bytes > 0

    def _end_wait(self) -> None:
        if self._head_bytes:
            self._refuse(Problem("head-too-slow"))
        else:
            # Browsers connect in advance. A 408 would then be taken for the answer to their first request.
            self.transport.close()

    def _end_keep_alive(self) -> None:
        # Requests do not move this deadline: moving it would take a sixth of the time of a small answer.
        idle_since = self.process.idle.get(self)
        if idle_since is None or self._is_inside_head:
            return  # the deadline starts again after the answer
        left = idle_since + self._settings.keep_alive_seconds - self.loop.time()
        if left > 0.001:  # the loop counts in milliseconds
            self._keep_alive.start(left, self._end_keep_alive)
        else:
            self.transport.close()

    # --- What the client sends ---

    def data_received(self, data: bytes) -> None:
        # Replaces uvicorn's method, which may send its 400 in the middle of another answer.
        if self._is_refused:
            self._drop(data)
            return
        if self._in_head:
            if not self._head_bytes:
                self._deadline.stop()
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        try:
            self._parse(data)
            if self._in_head:
                check_partial_head(self._head_bytes, self.url, self.headers)
            else:
                check_framing(self._framing_bytes)
        except Problem as problem:
            self._refuse(problem)
        except httptools.HttpParserCallbackError as exc:
            self._refuse(_problem_of(exc.__context__))
        except httptools.HttpParserError as exc:
            self._refuse(Problem("malformed-request", f"{exc}."))
        else:
            # While another request is answered, a client may wait for that answer before it completes this head, and
            # this process may not be reading. So no deadline starts yet.
            if self._is_inside_head and not self._is_answering and not self._deadline.is_set:
                self._deadline.start(self._settings.header_seconds, self._end_wait)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The server upgrades nothing, so the request's body follows. Java's client asks for an upgrade with each
            # upload. This parser takes the body for another protocol (https://github.com/Kludex/uvicorn/issues/2722).
            # A second parser gets only the framing headers, and finds the body's end.
            body = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
            self.parser = httptools.HttpRequestParser(body)
            head = b"POST / HTTP/1.1\r\nConnection: close\r\n" + self._framing + b"\r\n"
            self.parser.feed_data(head + data[upgrade.args[0] :])

    # --- What the parser finds ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # If this head began in the same data as the request before it, those bytes are not counted.
        self._head_bytes = max(self._head_bytes, 1)

    def on_headers_complete(self) -> None:
        self._deadline.stop()
        self._in_head = False
        self._framing_bytes = 0
        check_head(self.parser.get_http_version(), self.url, self.headers)
        if len(self.pipeline) >= MOST_PIPELINED:
            raise Problem("malformed-request", f"More than {MOST_PIPELINED} requests wait for their answers.")
        self.process.idle.pop(self, None)
        is_next = not self._is_answering
        if is_next and self._is_answered_at_once():
            self.headers = []
            return
        super().on_headers_complete()
        if is_next:
            self._answered = self.cycle
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
            self._framing = lines_of([header for header in self.headers if header[0] in _FRAMING_HEADERS])
        # The application keeps the list of headers so far. Later ones are trailers (RFC 9110, section 6.5.1).
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body) + _CHUNK_BYTES
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the body follows
        self._in_head = True
        self._head_bytes = 0
        # There is no cycle before the first request that is not answered at once.
        if self.cycle is not None:
            super().on_message_complete()

    # --- Answers at once ---

    def _is_answered_at_once(self) -> bool:
        # If unread bytes wait, the application answers: it waits until there is room to write.
        guard = self.process.guard
        if guard is None or self.transport.get_write_buffer_size() or self.root_path:
            return False
        written = self._answers.bytes
        try:
            return guard.answer_at_once(
                self.parser.get_method().decode("ascii"), self.url, self.headers, self._client_of, self._write_at_once
            )
        except Exception:
            log.exception("a request could not be answered at once")
            return self._answers.bytes > written

    def _client_of(self, forwarded: list[bytes]) -> str | None:
        """Return the client's address: from X-Forwarded-For if the peer is a trusted proxy, else the peer's."""
        client = self.client[0] if self.client else None
        app = self.config.loaded_app
        if forwarded and isinstance(app, ProxyHeadersMiddleware) and client in app.trusted_hosts:
            return app.trusted_hosts.get_trusted_client_address(b", ".join(forwarded).decode("latin-1"))[0] or client
        return client

    def _write_at_once(self, status: int, lines: bytes, body: bytes) -> None:
        keeps_alive = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
        end = b"\r\n" if keeps_alive else b"connection: close\r\n\r\n"
        own = self.server_state.default_headers  # uvicorn replaces the list each second
        if self.process.own_headers[0] is not own:
            self.process.own_headers = own, lines_of(own)
        head = b"".join((STATUS_LINE[status], self.process.own_headers[1], lines, end))
        self._answers.writelines((head, body))
        if not keeps_alive:
            self.transport.close()
        self.on_response_complete()

    # --- Refusals ---

    def _refuse(self, problem: Problem) -> None:
        """Parse nothing more, and send a problem after the answers to earlier requests."""
        self._is_refused = True
        self._deadline.stop()
        self._problem = problem
        if not self._is_answering:
            self._send_refusal()
        elif self.cycle.more_body:
            self._refuse_body()

    def _refuse_body(self) -> None:
        """Refuse the last request in the middle of its body."""
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            # The application has not seen this request yet. The refusal follows the earlier answers.
            self.pipeline.popleft()
            return
        has_begun = self.cycle.response_started
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        if has_begun:
            self.transport.close()
        else:
            self._send_refusal()

    def _send_refusal(self) -> None:
        if self._problem is None or self.transport.is_closing():
            return
        self._write(self._problem)
        self._problem = None
        # Closing a socket with unread data would reset the connection. So read and drop some data first, as the guard
        # does.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.process.idle[self] = self.loop.time()
        self._deadline.start(LINGER_SECONDS, self.transport.close)

    def _write(self, problem: Problem) -> None:
        log.info("refused", extra={"problem": problem.name, "status": problem.status, "reason": problem.detail})
        headers = [
            *problem.raw_headers,
            (b"connection", b"close"),
            *SAFETY_HEADERS,
            *cors_headers(self._settings.cors_origins, dict(self.headers).get(b"origin")),
        ]
        self._answers.writelines((STATUS_LINE[problem.status], lines_of(headers), b"\r\n", problem.body))
        self._reader.watch()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES and self._deadline.is_set:
            self.transport.close()

    # --- What the client reads ---

    def on_response_complete(self) -> None:
        self._answers.flush()
        self._reader.watch()
        if self.pipeline:
            self._answered = self.pipeline[-1][0]
            super().on_response_complete()
            return
        # Replaces uvicorn's method: this class has its own deadline for the next request.
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self.process.idle[self] = self.loop.time()
        if self._is_inside_head:
            self._deadline.start(self._settings.header_seconds, self._end_wait)
        elif not self._keep_alive.is_set:
            self._keep_alive.start(self._settings.keep_alive_seconds, self._end_keep_alive)
        self._send_refusal()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._reader.pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._reader.resume()


def _problem_of(cause: BaseException | None) -> Problem:
    """Return the problem for an exception that a callback of the parser raised."""
    if isinstance(cause, Problem):
        return cause
    if not isinstance(cause, httptools.HttpParserInvalidURLError):
        log.error("a head could not be taken", extra={"reason": repr(cause)})
    return Problem("malformed-request", "The target is none of HTTP's.")
