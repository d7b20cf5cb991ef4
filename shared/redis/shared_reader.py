"""Reads over one connection to Redis that everybody shares: those of one turn of the event loop go out together.

A client of redis-py holds a connection from each command to its reply, and takes four times as long for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError, ResponseError

from shared.redis.circuit_breaker import WEB_DEADLINE, WORKER_DEADLINE
from shared.redis.clients import maker_of_connections

logger = logging.getLogger(__name__)

#: Commands, and bytes of replies by what has come lately, that may be on their way. Redis holds in memory what it has
#: answered and we have not read, and whoever asks last waits for all of it.
_MOST_COMMANDS = 1_000
_MOST_BYTES = 2 * 1024 * 1024
#: What a reply is taken for before any has come.
_USUAL_BYTES = 16 * 1024
#: Seconds between two turns of the clock below, and how many count of each at the most, since a timer is late by some
#: of a millisecond: a process may stand still in all of a deadline's turns but one.
_TURN_SECONDS = WEB_DEADLINE / 5
_MOST_OF_A_TURN = 1.2 * _TURN_SECONDS
#: A loop counts in whole milliseconds.
_LEAST_SECONDS = 0.001
#: Seconds between a connection's end and the next one's beginning; twice as many each time that it comes to nothing.
_FIRST_PAUSE, _LONGEST_PAUSE = 1 / 8, 1.0
#: Seconds between two times that Redis is asked whether it may still be written.
_CHECK_SECONDS = 1.0
#: A key that there never is: whoever may only be read refuses even to delete that.
_NO_KEY = "asgilook:nothing"

_INCOMPLETE = object()
_VALUES = frozenset({bytes, type(None)})

Values = list[bytes | None]


def reader_beside(client: Redis) -> PipelinedReader | None:
    """Return a reader of the same server, by a connection that is none of the client's; None beside a fake."""
    make_connection = maker_of_connections(client)
    return None if make_connection is None else PipelinedReader(make_connection)


class PipelinedReader:
    """Keeps one connection, while `run` runs, and reads over it where it is free; who finds it taken asks elsewhere."""

    def __init__(self, make_connection: Callable[[], AbstractConnection]) -> None:
        self._make_connection = make_connection
        self._pipeline: _Pipeline | None = None

    @property
    def is_free(self) -> bool:
        """Whether there is a connection, with room for another read."""
        return self._pipeline is not None and self._pipeline.is_free

    def mget(self, *keys: str, seconds: float) -> asyncio.Future[Values]:
        """Return the values at these keys, to be awaited: for so long at most. Only where it `is_free`.

        Whoever waits may go away. Awaiting raises TimeoutError or RedisError; the connection is then lost, unless it
        was but a refusal.
        """
        if self._pipeline is None:
            raise ConnectionLost("there is no connection")
        return self._pipeline.send(("MGET", *keys), len(keys), seconds)

    def drop(self) -> None:
        """End the connection, and whoever waits; the next one leads to where the address leads now."""
        if self._pipeline is not None:
            self._pipeline.drop(ConnectionLost, "Redis is being left alone")

    async def run(self) -> None:
        """Keep a connection, until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            connection = self._make_connection()
            try:
                # redis-py knows TLS, names and passwords, and all that an address may say.
                async with asyncio.timeout(WORKER_DEADLINE):
                    await connection.connect()  # type: ignore[no-untyped-call] # redis-py
                self._pipeline = _Pipeline(connection)
                await self._pipeline.run()
            except (RedisError, OSError, TimeoutError) as exc:
                logger.debug("reads have no connection of their own", extra={"reason": f"{type(exc).__name__}: {exc}"})
            except Exception:
                logger.exception("reading over a connection of its own failed")
            finally:
                if self._pipeline is not None:
                    self._pipeline.drop(ConnectionLost, "the reader ends")
                    pause = _FIRST_PAUSE if self._pipeline.was_answered else pause
                    self._pipeline = None
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


class _Pipeline(asyncio.Protocol):
    """One connection from when redis-py has made it: replies are those to the commands, in their order.

    A reply that is overdue, or out of place, ends it, and everybody's wait: what comes later could be anybody's. Who
    goes away keeps the place, so that the reply is nobody else's.
    """

    def __init__(self, connection: AbstractConnection) -> None:
        reader, writer = connection._reader, connection._writer
        if reader is None or writer is None or reader.at_eof():
            raise ConnectionLost("Redis has closed the connection")
        self.was_answered = False
        self._loop = asyncio.get_running_loop()
        self._replies = hiredis.Reader(
            protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=_INCOMPLETE
        )
        #: Who waits: for how many values (None: for any reply), and until when by the clock below.
        self._waiting: deque[tuple[asyncio.Future[Values], int | None, float]] = deque()
        self._unsent: list[bytes] = []
        self._usual_bytes = float(_USUAL_BYTES)
        self._unparsed_bytes = 0
        #: A clock that counts no more than a turn each time, however long this process stood still: a reply may have
        #: been there all the time. It goes while anybody waits; one timer is enough for all of them.
        self._clock = 0.0
        self._looked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._lost: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport = writer.transport  # type: ignore[assignment] # that of a socket
        self._transport.set_protocol(self)

    @property
    def is_free(self) -> bool:
        waiting = len(self._waiting)
        return (
            waiting * self._usual_bytes < _MOST_BYTES and waiting < _MOST_COMMANDS and not self._transport.is_closing()
        )

    def send(self, command: tuple[str, ...], values: int | None, seconds: float) -> asyncio.Future[Values]:
        """Send a command, with those that follow in this turn of the loop unless nobody waits: then at once."""
        future: asyncio.Future[Values] = self._loop.create_future()
        packed = hiredis.pack_command(command)  # type: ignore[arg-type] # typed as if it took one word
        if self._timer is None:
            self._looked_at = self._loop.time()
            self._timer = self._loop.call_later(_TURN_SECONDS, self._look_at_clock)
        if not self._waiting:
            self._transport.write(packed)
        else:
            if not self._unsent:
                self._loop.call_soon(self._send_rest)
            self._unsent.append(packed)
        self._waiting.append((future, values, self._now() + seconds))
        return future

    def drop(self, kind: type[Exception], why: str) -> None:
        """End the connection, and everybody's wait by an error of this kind."""
        if self._lost.done():
            return
        self._lost.set_result(None)
        self._transport.abort()
        if self._timer is not None:
            self._timer.cancel()
        for future, _, _ in self._waiting:
            if not future.done():
                _refuse(future, kind(why))
        self._waiting.clear()
        self._unsent.clear()

    async def run(self) -> None:
        """Return when the connection is lost.

        A failover makes a replica of a server that keeps its connections: over one that only reads nothing would
        tell, and no token be changed any more. So it is asked for a change, now and then.
        """
        while not self._lost.done():
            await asyncio.wait([self._lost], timeout=_CHECK_SECONDS)
            if self.is_free:
                self.send(("DEL", _NO_KEY), None, WORKER_DEADLINE).add_done_callback(self._checked)

    def data_received(self, data: bytes) -> None:
        if self._lost.done():
            return
        self._replies.feed(data)
        self._unparsed_bytes += len(data)
        replies = 0
        try:
            while (reply := self._replies.gets()) is not _INCOMPLETE:
                self._hand_over(reply)
                replies += 1
        except InvalidResponse as exc:
            self.drop(InvalidResponse, str(exc))
            return
        if replies:
            self.was_answered = True
            # Soon more, slowly less: a large one among many small ones is what counts.
            mean = self._unparsed_bytes / replies
            self._usual_bytes = max(mean, 0.9 * self._usual_bytes + 0.1 * mean)
            self._unparsed_bytes = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop(ConnectionLost, "Redis has closed the connection" if exc is None else f"the connection: {exc}")

    def _hand_over(self, reply: Any) -> None:
        if len(self._waiting) == len(self._unsent):  # nobody, or those only whose commands have not gone out
            raise InvalidResponse("a reply to nothing")
        future, values, _ = self._waiting[0]
        is_refusal = isinstance(reply, ResponseError)
        if not (is_refusal or values is None or _are_values(reply, values)):
            raise InvalidResponse("a reply to something else")
        self._waiting.popleft()
        if future.done():  # whoever waited has gone away
            return
        if is_refusal:
            _refuse(future, reply)
        else:
            future.set_result(reply)

    def _send_rest(self) -> None:
        if self._unsent:
            self._transport.write(b"".join(self._unsent))
            self._unsent.clear()

    def _now(self) -> float:
        return self._clock + min(self._loop.time() - self._looked_at, _MOST_OF_A_TURN)

    def _look_at_clock(self) -> None:
        self._clock = self._now()
        self._looked_at = self._loop.time()
        self._timer = None
        if not self._waiting:
            return
        left = min(until for _, _, until in self._waiting) - self._clock
        if left <= 0:
            self.drop(TimeoutError, "a reply is overdue")
        else:
            self._timer = self._loop.call_later(min(max(left, _LEAST_SECONDS), _TURN_SECONDS), self._look_at_clock)

    def _checked(self, check: asyncio.Future[Values]) -> None:
        error = check.exception()
        if isinstance(error, ResponseError) and str(error).startswith("READONLY"):
            self.drop(ReadOnlyError, str(error))


def _refuse(future: asyncio.Future[Values], error: Exception) -> None:
    future.set_exception(error)
    future.exception()  # seen: whoever is cancelled just now does not ask any more


def _are_values(reply: Any, values: int) -> bool:
    return type(reply) is list and len(reply) == values and _VALUES.issuperset(map(type, reply))
