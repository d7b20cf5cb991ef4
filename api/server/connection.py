"""One client's connection: uvicorn's protocol, with the limits of time, size and number that it lacks.

Every request's head is judged here, before an application is asked; what has begun to be answered is the guard's.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import re
import resource
import socket
import struct
import sys
import termios
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import httptools
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from api.problems import MEDIA_TYPE, Problem
from api.server import cors
from api.server.guard import LINGER_BYTES, LINGER_SECONDS, SAFETY_HEADERS, Guard
from shared.settings import Settings

#: Of a request's head, and of what a chunked body has besides its content: extensions and trailers. What has arrived
#: with the byte that was too much is held as well, for a moment.
MOST_HEAD_BYTES = 32 * 1024
MOST_TARGET_BYTES = 8 * 1024
MOST_HEADERS = 100
#: What a chunk's own size and line ends may take.
_CHUNK_BYTES = 16
#: Requests that were sent before the answers to those ahead of them.
MOST_PIPELINED = 16
#: Each connection takes one, and a file while it is served or stored.
_DESCRIPTORS_PER_CONNECTION = 2
#: Ledger, Redis, standard streams and the like.
_OTHER_DESCRIPTORS = 64

#: RFC 3986, section 3.2, without user information.
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")

#: What the system takes of an answer beyond what is under way: else several megabytes, for each slow client.
_UNSENT_IN_SYSTEM = 256 * 1024

#: TCP brings so much at a time where both sides are on one machine, a proxy's for example.
_LUMP = 64 * 1024

_FRAMING_HEADERS = (b"content-length", b"transfer-encoding")

_RESET = struct.pack("ii", 1, 0)
#: How the one answer begins that another one follows.
_CONTINUE = b"HTTP/1.1 100 "

log = logging.getLogger(__name__)


class Refused(Exception):
    """Ends the parsing of a request whose problem is noted."""


class Connection(HttpToolsProtocol):
    """What uvicorn makes for each connection (its `--http`).

    - A head that is not complete in time, too long or ambiguous is refused with a problem, and the connection closed.
      Answers that are due before it are given first.
    - Trailers are dropped: nothing that comes after a body may pass for one of its request's headers.
    - A client that does not read its answer is hung up on.
    - Where there are too many connections, the one that has been idle for longest makes room.
    """

    settings: ClassVar[Settings] = Settings()
    most_connections: ClassVar[int] = settings.max_connections
    #: Connections that have no request to answer, the longest so first.
    _idle: ClassVar[dict[Connection, None]] = {}
    #: Bytes that a client was too slow for, those who have been so for longest first.
    _unsent: ClassVar[dict[Connection, int]] = {}

    #: Who answers what is at hand, before there is a task.
    _guard: ClassVar[Guard | None] = None
    #: The server's own headers, which change every second, as they were and in one piece.
    _own_headers: ClassVar[tuple[object, bytes]] = (None, b"")

    @classmethod
    def configure(cls, settings: Settings, guard: Guard | None = None) -> None:
        """Set the limits of all connections to come, and who answers what can be answered at once."""
        cls.settings = settings
        cls._guard = guard
        cls.most_connections = allow_connections(settings.max_connections)
        if cls.most_connections < settings.max_connections:
            log.warning("fewer connections than are allowed", extra={"connections": cls.most_connections})

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.settings.keep_alive_seconds  # type: ignore[assignment] # it is only waited for
        self.url = b""
        self.headers = []
        self._version = ""
        #: The Host of the request before: the empty one is good, too.
        self._host = b""
        self._head_bytes = 0
        self._in_head = True
        #: What a body has had besides its content.
        self._framing_bytes = 0
        #: The headers that say where the body ends, of a request that asks for an upgrade.
        self._framing = b""
        #: Nothing that comes is heard any more.
        self._is_deaf = False
        self._dropped = 0
        self._problem: Problem | None = None
        #: Whose turn it is, or was last.
        self._answered: RequestResponseCycle | None = None
        #: When the last answer was complete.
        self._rested_at = 0.0
        self._deadline = Deadline(self.loop)
        self._sending = Deadline(self.loop)
        #: As the client was last looked at: bytes that it had read, and bytes that waited for it.
        self._read = 0
        self._waiting = 0

    # --- The connection's life ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        self._written = Written(transport)
        with contextlib.suppress(OSError):  # of a socket that is not TCP's
            sock = transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_SYSTEM)
        super().connection_made(self._written)  # type: ignore[arg-type] # it has all that a transport has
        if len(self.connections) > self.most_connections and not self._make_room():
            self._is_deaf = True
            self._write(Problem("too-many-connections"))
            self.transport.close()  # at once: a flood must not linger
            return
        self._idle[self] = None
        self._deadline.start(self.settings.header_seconds, self._end_head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._idle.pop(self, None)
        self._unsent.pop(self, None)
        self._deadline.stop()
        self._sending.stop()
        # uvicorn leaves it to run after a reset, and all that the connection has held is kept for so long.
        self._unset_keepalive_if_required()
        # It tells the last request only, which may still wait for its turn.
        if self._answered is not None:
            self._answered.disconnected = True
            self._answered.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        self._written.expect_head()
        super()._start_asgi_task(cycle, app)

    def _make_room(self) -> bool:
        for oldest in self._idle:
            # One that still has to be sent something would not end here, but go on beside those that came after it.
            if not oldest.transport.get_write_buffer_size():
                del self._idle[oldest]
                oldest.transport.close()
                return True
        return False

    @property
    def _is_answering(self) -> bool:
        # The cycle is the last request's; those ahead of it are answered before.
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_in_midst_of_head(self) -> bool:
        return self._in_head and self._head_bytes > 0

    # --- What the client sends ---

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            self._drop(data)
            return
        # In place of uvicorn's: its 400 could come in the middle of another answer.
        if self._in_head:
            if not self._head_bytes:
                # However long the connection has waited for it.
                self._deadline.stop()
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserCallbackError as exc:
            if self._problem is None and not isinstance(exc.__context__, httptools.HttpParserInvalidURLError):
                log.error("a head could not be taken", extra={"reason": repr(exc.__context__)})
            self._refuse(self._problem or Problem("malformed-request", "The target is none of HTTP's."))
        except httptools.HttpParserError as exc:
            self._refuse(Problem("malformed-request", f"{exc}."))
        else:
            self._judge_what_is_incomplete()

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # Nothing is upgraded, so that what follows is the request's body: Java's client asks with each upload. This
            # parser takes it for another protocol's (https://github.com/Kludex/uvicorn/issues/2722); one that is asked
            # for no more than a body's end, finds it.
            body = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
            self.parser = httptools.HttpRequestParser(body)
            head = b"POST / HTTP/1.1\r\nConnection: close\r\n" + self._framing + b"\r\n"
            self.parser.feed_data(head + data[upgrade.args[0] :])

    def _judge_what_is_incomplete(self) -> None:
        if self._in_head and (self._head_bytes > MOST_HEAD_BYTES or len(self.headers) > MOST_HEADERS):
            self._refuse(Problem("target-too-long" if len(self.url) > MOST_TARGET_BYTES else "head-too-large"))
        elif not self._in_head and self._framing_bytes > MOST_HEAD_BYTES:
            self._refuse(Problem("malformed-request", "The body has more framing than content."))
        elif self._is_in_midst_of_head and not self._deadline.is_set:
            self._deadline.start(self.settings.header_seconds, self._end_head)

    def _end_head(self) -> None:
        if self._is_answering:
            return  # It begins again after that: the client may wait for it, and we may have stopped reading.
        if self._head_bytes:
            self._refuse(Problem("head-too-slow"))
        else:
            # Browsers connect ahead of need: a 408 would pass for the answer to what they ask at last.
            self.transport.close()

    # --- What the parser finds ---

    def on_message_begin(self) -> None:
        super().on_message_begin()
        # Of a pipelined request, what has come with the one before is not counted.
        self._head_bytes = max(self._head_bytes, 1)

    def on_headers_complete(self) -> None:
        self._deadline.stop()
        self._in_head = False
        self._framing_bytes = 0
        self._judge_head()
        self._idle.pop(self, None)
        if self._is_answered_at_once():
            self.headers = []
            return
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = False
            self._framing = b"".join(b"%s: %s\r\n" % header for header in self.headers if header[0] in _FRAMING_HEADERS)
        # The application's are those so far. What comes later are trailers, and no headers: RFC 9110, section 6.5.1.
        self.headers = []

    def on_body(self, body: bytes) -> None:
        self._framing_bytes -= len(body) + _CHUNK_BYTES
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # as the parser has it
        self._in_head = True
        self._head_bytes = 0
        # The cycle is the one before, or there was none, where this request was answered at once.
        if self.cycle is not None:
            super().on_message_complete()

    def _is_answered_at_once(self) -> bool:
        """Answer a request that nothing has to be waited for, unless others are still to be answered before it."""
        # A client that sends many and reads none is left to what waits for its turn.
        if self._guard is None or self._is_answering or self.transport.get_write_buffer_size() or self.root_path:
            return False
        written = self._written.bytes
        try:
            method = self.parser.get_method().decode("ascii")
            return self._guard.answer_at_once(method, self.url, self.headers, self._client_behind, self._write_at_once)
        except Exception:
            log.exception("a request could not be answered at once")
            return self._written.bytes > written

    def _client_behind(self, forwarded: list[bytes]) -> str | None:
        """Return the address that is to be logged, as uvicorn has it: of its client, or whom a trusted proxy names."""
        client = self.client[0] if self.client else None
        app = self.config.loaded_app
        if forwarded and isinstance(app, ProxyHeadersMiddleware) and client in app.trusted_hosts:
            return app.trusted_hosts.get_trusted_client_address(b", ".join(forwarded).decode("latin-1"))[0] or client
        return client

    def _write_at_once(self, status: int, lines: bytes, body: bytes) -> None:
        keeps_alive = self._version == "1.1" and self.parser.should_keep_alive()
        own = self.server_state.default_headers
        if self._own_headers[0] is not own:
            Connection._own_headers = own, b"".join(b"%b: %b\r\n" % header for header in own)
        end = b"\r\n" if keeps_alive else b"connection: close\r\n\r\n"
        self._written.write_both(b"".join((STATUS_LINE[status], self._own_headers[1], lines, end)), body)
        if not keeps_alive:
            self.transport.close()
        self.on_response_complete()

    def _judge_head(self) -> None:
        version = self._version = self.parser.get_http_version()
        if len(self.url) > MOST_TARGET_BYTES:
            self._object(Problem("target-too-long"))
        if len(self.headers) > MOST_HEADERS:
            self._object(Problem("head-too-large", f"At most {MOST_HEADERS} headers are taken."))
        if version not in ("1.1", "1.0"):
            self._object(Problem("unsupported-version"))
        if not self.url.startswith(b"/") and httptools.parse_url(self.url).path is None:
            # uvicorn takes for granted that there is one.
            self._object(Problem("malformed-request", "The target has no path."))
        if b"#" in self.url:
            self._object(Problem("malformed-request", "The target has a fragment."))
        if len(self.pipeline) >= MOST_PIPELINED:
            self._object(Problem("malformed-request", f"More than {MOST_PIPELINED} requests wait for their answers."))
        size = len(self.url)
        hosts, host, codings, coding, has_length = 0, b"", 0, None, False
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts, host = hosts + 1, value
            elif name == b"transfer-encoding":
                codings, coding = codings + 1, value
            elif name == b"content-length":
                has_length = True
        if size > MOST_HEAD_BYTES:
            self._object(Problem("head-too-large"))
        # RFC 9112, section 3.2
        if hosts > 1 or (not hosts and version == "1.1") or not self._is_host(host):
            self._object(Problem("malformed-request", "There must be one Host."))
        if coding is not None:
            # RFC 9112, section 6.1: what an older hop may have framed otherwise. (With a length: the parser refuses.)
            if version == "1.0" or has_length:
                self._object(Problem("malformed-request", "Its body could be framed in two ways."))
            if coding.strip(b" \t").lower() != b"chunked" or codings > 1:
                self._object(Problem("unsupported-coding"))

    def _is_host(self, host: bytes) -> bool:
        # A client names the same one again and again.
        if host != self._host:
            if not _HOST.fullmatch(host.strip(b" \t")):
                return False
            self._host = host
        return True

    def _object(self, problem: Problem) -> None:
        self._problem = problem
        raise Refused(problem.name)

    # --- What is refused ---

    def _refuse(self, problem: Problem) -> None:
        """Answer with a problem, in its turn, and hear nothing more."""
        self._is_deaf = True
        self._deadline.stop()
        self._problem = problem
        if not self._is_answering:
            self._say_why()
        elif self.cycle.more_body:
            self._give_up_request()
        # Else it is told after the answers that come before it.

    def _give_up_request(self) -> None:
        """Refuse the last request in the middle of its body."""
        if self.pipeline and self.pipeline[0][0] is self.cycle:
            self.pipeline.popleft()
            return
        has_begun = self.cycle.response_started
        self.cycle.disconnected = True
        self.cycle.message_event.set()
        if has_begun:
            self.transport.close()
        else:
            self._say_why()

    def _say_why(self) -> None:
        if self._problem is None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._write(self._problem)
        self._problem = None
        # To close a socket with unread data is to reset the connection: as in the guard, some is read and dropped.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._idle[self] = None
        self._deadline.start(LINGER_SECONDS, self.transport.close)

    def _write(self, problem: Problem) -> None:
        log.info("refused", extra={"problem": problem.name, "status": problem.status, "reason": problem.detail})
        body = problem.body
        headers = [
            (b"content-type", MEDIA_TYPE.encode()),
            (b"content-length", b"%d" % len(body)),
            (b"cache-control", b"no-store"),
            (b"connection", b"close"),
            *SAFETY_HEADERS,
            *cors.headers_for(self.settings.cors_origins, dict(self.headers).get(b"origin")),
        ]
        lines = [b"%s: %s\r\n" % header for header in headers]
        self._written.flush()
        self.transport.write(b"".join([STATUS_LINE[problem.status], *lines, b"\r\n", body]))
        self._watch_sending()

    def _drop(self, data: bytes) -> None:
        self._dropped += len(data)
        if self._dropped > LINGER_BYTES and self._deadline.is_set:
            self.transport.close()

    # --- What the client reads ---

    def on_response_complete(self) -> None:
        was_last = not self.pipeline
        self._written.flush()
        if was_last:
            self._rest()
        else:
            super().on_response_complete()
        self._watch_sending()
        if was_last and not self.transport.is_closing():
            self._idle[self] = None
            if self._is_in_midst_of_head:
                self._deadline.start(self.settings.header_seconds, self._end_head)
            self._say_why()

    def _rest(self) -> None:
        """Wait for another request, as uvicorn has it, but by a timer that is left to run, and looks again by itself.

        To stop and start one for each request takes as long as a tenth of all that a small answer takes.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._rested_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._rest_on(self.timeout_keep_alive)

    def _rest_on(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        self.timeout_keep_alive_task = None
        if self._is_answering or self._is_in_midst_of_head:
            return  # It begins again after that.
        left = self._rested_at + self.timeout_keep_alive - self.loop.time()
        # A loop counts in whole milliseconds.
        if left > 0.001:
            self._rest_on(left)
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_sending()
        # However little of a body is left, all of it is held.
        self._unsent[self] = max(self.transport.get_write_buffer_size(), self._written.last)
        while len(self._unsent) > 1 and sum(self._unsent.values()) > self.settings.max_unsent_bytes:
            slowest = next(iter(self._unsent))
            slowest._hang_up("others need the memory")

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unsent.pop(self, None)

    def _watch_sending(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        if waiting and not self._sending.is_set:
            self._look_again(waiting)

    def _look_again(self, waiting: int) -> None:
        self._read, self._waiting = self._count_read(waiting), waiting
        self._sending.start(self.settings.download_stall_seconds, self._judge_reader)

    def _judge_reader(self) -> None:
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            return
        least = self.settings.download_least_rate * self.settings.download_stall_seconds - _LUMP
        if self._count_read(waiting) - self._read < max(1, min(self._waiting, least)):
            self._hang_up("the client does not read")
        else:
            self._look_again(waiting)

    def _count_read(self, waiting: int) -> int:
        # The system takes from us when it has sent 128 KiB, for which a slow client may need longer than it has.
        in_system = bytes(4)
        with contextlib.suppress(OSError):  # of a system that does not tell
            in_system = fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_system)
        return self._written.bytes - waiting - int.from_bytes(in_system, sys.byteorder)

    def _hang_up(self, reason: str) -> None:
        log.info("hung up", extra={"reason": reason, "bytes": self.transport.get_write_buffer_size()})
        self._unsent.pop(self, None)
        # Reset: or the system would go on trying to send what it has of the answer.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self.transport.abort()


class Written:
    """A transport, and how much was written to it, also at last.

    An answer's head is held until there is something of its body: sent by itself, it would be a packet, and its client
    would wake up for it, and then again.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_head_next = False
        self._head = b""
        self.bytes = 0
        self.last = 0
        # Those that each request needs, without a detour.
        self._write = transport.write
        self._writelines = transport.writelines
        self.is_closing = transport.is_closing
        self.get_write_buffer_size = transport.get_write_buffer_size

    def expect_head(self) -> None:
        """Take the next write for an answer's head."""
        self._is_head_next = True

    def write(self, data: bytes) -> None:
        if self._is_head_next and not data.startswith(_CONTINUE):
            self._is_head_next = False
            self._head = data
        elif self._head:
            head, self._head = self._head, b""
            self.write_both(head, data)
        else:
            self.last = len(data)
            self.bytes += self.last
            self._write(data)

    def write_both(self, head: bytes, body: bytes) -> None:
        """Write an answer in one go."""
        self._is_head_next = False
        self.last = len(head) + len(body)
        self.bytes += self.last
        self._writelines((head, body))

    def flush(self) -> None:
        """Write what is held, for nothing follows."""
        self._is_head_next = False
        if self._head:
            head, self._head = self._head, b""
            self.write(head)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Deadline:
    """Calls back when so many seconds are over, and not when it was this process that stood still for them.

    They pass in two halves: a process that wakes up finds the first half over, and hears what has come meanwhile
    before the second is.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handle: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._handle is not None

    def start(self, seconds: float, over: Callable[[], object]) -> None:
        """Begin, or begin again."""
        self.stop()
        self._handle = self._loop.call_later(seconds / 2, self._pass, seconds / 2, over)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _pass(self, half: float, over: Callable[[], object]) -> None:
        self._handle = self._loop.call_later(half, self._end, over)

    def _end(self, over: Callable[[], object]) -> None:
        self._handle = None
        over()


def allow_connections(wanted: int) -> int:
    """Raise this process's limit of open files as far as it takes; return for how many connections there is room."""
    needed = wanted * _DESCRIPTORS_PER_CONNECTION + _OTHER_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        with contextlib.suppress(ValueError, OSError):
            most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (soft - _OTHER_DESCRIPTORS) // _DESCRIPTORS_PER_CONNECTION))
