"""One connection to Redis for all requests of a process. Commands of one turn of the event loop are sent together.

A client of redis-py occupies a connection from each command to its reply, and takes four times as much CPU time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import hiredis
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError, ResponseError

from shared.cancellation import cancel
from shared.redis.circuit_breaker import WORKER_DEADLINE
from shared.redis.clients import Pool
from shared.stalls import Deadline

logger = logging.getLogger(__name__)

#: The most exchanges at once. Redis holds unread replies in memory, and the last exchange waits for all replies before
#: its own. Large copies do not use this connection.
_MOST_EXCHANGES = 128
#: Seconds between the end of a connection and the next attempt. The pause doubles after each attempt that fails.
_FIRST_PAUSE, _LONGEST_PAUSE = 1 / 8, 1.0

Command = tuple[bytes | str | int, ...]


def connection_beside(client: Redis) -> SharedConnection | None:
    """Return a connection to the client's server in addition to the client's own, or None for a fake client."""
    pool = client.connection_pool
    return SharedConnection(pool.make_connection) if isinstance(pool, Pool) else None


@dataclass(frozen=True, slots=True)
class _Exchange:
    replies: asyncio.Future[list[Any]]
    commands: int
    deadline: Deadline


class SharedConnection:
    """Keeps a connection while `run` runs.

    Only their order assigns replies to commands. So an overdue reply, or a reply without a command, ends the connection
    and every exchange on it. An exchange whose caller is cancelled keeps its place.
    """

    def __init__(self, make_connection: Callable[[], AbstractConnection]) -> None:
        self._make_connection = make_connection
        #: Done when the connection is lost. None without a connection.
        self._lost: asyncio.Future[None] | None = None
        self._exchanges: deque[_Exchange] = deque()
        self._unsent: list[bytes] = []
        self._has_unsent = asyncio.Event()

    @property
    def is_free(self) -> bool:
        """Whether there is a connection with room for another exchange."""
        return self._lost is not None and len(self._exchanges) < _MOST_EXCHANGES

    def execute(self, *commands: Command, seconds: float) -> asyncio.Future[list[Any]]:
        """Send commands and return a future of their replies, in order. A refusal is a reply, too: a ResponseError.

        If the replies take longer than `seconds`, the connection is dropped. If the connection is lost, awaiting the
        future raises TimeoutError or RedisError. Call this only if the connection `is_free`.
        """
        if self._lost is None:
            raise ConnectionLost("there is no connection")
        packed = b"".join([hiredis.pack_command(command) for command in commands])  # type: ignore[arg-type] # typed as if it took one word
        exchange = _Exchange(self._lost.get_loop().create_future(), len(commands), Deadline())
        exchange.deadline.start(seconds, partial(self.drop, TimeoutError, "a reply is overdue"))
        self._exchanges.append(exchange)
        self._unsent.append(packed)
        self._has_unsent.set()
        return exchange.replies

    def drop(self, kind: type[Exception] = ConnectionLost, why: str = "Redis is left alone") -> None:
        """End the connection, and every exchange with an error of this kind. `run` then makes a new connection."""
        if self._lost is None:
            return
        self._lost.set_result(None)
        self._lost = None
        self._unsent.clear()
        while self._exchanges:
            exchange = self._exchanges.popleft()
            exchange.deadline.stop()
            if not exchange.replies.done():
                exchange.replies.set_exception(kind(why))
                exchange.replies.exception()  # retrieved, or asyncio would log it if the caller is cancelled

    async def run(self) -> None:
        """Keep a connection until cancelled."""
        pause = _FIRST_PAUSE
        while True:
            reason = "the process ends"
            connection = self._make_connection()
            # No time-out for reads: nothing arrives between two exchanges, and each exchange has its own deadline.
            connection.socket_timeout = None
            try:
                async with asyncio.timeout(WORKER_DEADLINE):
                    await connection.connect()  # type: ignore[no-untyped-call] # redis-py
                pause = _FIRST_PAUSE
                await self._use(connection)
            except (RedisError, OSError, TimeoutError) as exc:
                reason = f"{type(exc).__name__}: {exc}"
                logger.debug("the shared connection to redis is lost", extra={"reason": reason})
            except Exception:
                logger.exception("the shared connection to redis failed")
            finally:
                self.drop(ConnectionLost, reason)
                await connection.disconnect(nowait=True)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _use(self, connection: AbstractConnection) -> None:
        """Use the connection until it is lost. Then return, or raise the reason."""
        self._lost = asyncio.get_running_loop().create_future()
        tasks = [asyncio.create_task(each) for each in (self._read(connection), self._write(connection))]
        try:
            ended, _ = await asyncio.wait([self._lost, *tasks], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel(*tasks)
        for each in ended:
            each.result()

    async def _write(self, connection: AbstractConnection) -> None:
        while await self._has_unsent.wait():
            self._has_unsent.clear()
            packed = b"".join(self._unsent)
            self._unsent.clear()
            await connection.send_packed_command(packed, check_health=False)

    async def _read(self, connection: AbstractConnection) -> None:
        replies: list[Any] = []
        while True:
            replies.append(await _reply_from(connection))
            if not self._exchanges:
                raise InvalidResponse("a reply that no command asked for")
            if len(replies) < self._exchanges[0].commands:
                continue
            exchange = self._exchanges.popleft()
            exchange.deadline.stop()
            if not exchange.replies.done():  # its caller may have been cancelled
                exchange.replies.set_result(replies)
            replies = []


async def _reply_from(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ReadOnlyError:
        # After a failover this server is a replica that keeps its connections, but tokens are changed at the new
        # master. Every read begins with a write, so the first read notices. The address leads to the new master.
        raise
    except ResponseError as refusal:
        return refusal
