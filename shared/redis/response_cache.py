"""Redis copies of HTTP responses. A copy counts only while its token is the one in Redis.

To invalidate is to set a new random token after the commit: there is no delete, so no fill can come after it.

Longer than 250 lines: what a copy is, where it lies and when it counts are one protocol.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgpack
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from shared.cancellation import cancel
from shared.ledger import LedgerName
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway
from shared.redis.clients import memory_of
from shared.redis.shared_connection import Command, SharedConnection
from shared.telemetry import metrics

logger = logging.getLogger(__name__)

#: Seconds that copies of lists and records, and of renditions, live.
RECORD_SECONDS = 60
RENDITION_SECONDS = 600
#: Bytes of the largest body that is copied; larger ones are streamed from storage.
MOST_BODY_BYTES = 8 * 1024 * 1024
#: The topic of every list of ready images. The topic of a record or a rendition is its image's id.
LIST_TOPIC = "list"

#: The name of the tasks that fill.
BACKGROUND = "response-cache"

#: A token outlives every copy made under it; one that is gone makes its copies worthless, never wrong.
_TOKEN_SECONDS = 3600
_MEMORY_SAMPLE_SECONDS = 5.0
#: Fills that may be under way at once. The next ones are skipped: each may hold megabytes.
_MOST_FILLS = 64
#: What one byte of body may add to the deadline of a fill: a slow but honest 25 MB/s.
_SECONDS_PER_BYTE = 1 / 25_000_000
#: What a rendition adds to the deadline of a read. A Redis that is away costs a request at most 100 ms: 80 of waiting,
#: and what it takes to answer without it.
_RENDITION_EXTRA_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a response has its copy: its canonical path (with query), its topic, and how long a copy lives."""

    path: str
    topic: str
    seconds: int
    #: The copy may be of megabytes: it is not sent over the connection that everybody shares.
    is_large: bool = False
    #: Whether Redis holds the copy: not where a proxy in front sends the file, so that our answer has no body.
    is_in_redis: bool = True

    @property
    def is_rendition(self) -> bool:
        return self.seconds == RENDITION_SECONDS


#: Header lines (RFC 9110, section 5): names that are tokens, values without control characters. Headers that the server
#: or the middleware sets at each answer are not allowed in a copy.
_HEADER_LINES = re.compile(
    rb"(?:(?!(?:connection|content-length|transfer-encoding|x-asgilook-cache|x-accel-redirect|x-sendfile):)"
    rb"[!#$%&'*+.^_`|~0-9a-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*",
    re.IGNORECASE,
)
_MOST_HEADER_BYTES = 2048


@dataclass(slots=True)
class Copy:
    """A response as it is sent: status, header lines in their order, body."""

    status: int
    lines: bytes
    body: bytes

    @classmethod
    def of(cls, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Copy:
        return cls(status, "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1"), body)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers as pairs of name and value."""
        lines = self.lines.decode("latin-1").split("\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


@dataclass(frozen=True)
class Lookup:
    """What a read found: the copy, if there is one, and the token under which a fill would count."""

    copy: Copy | None
    token: bytes


class ResponseCache:
    """The copies and tokens of one ledger. Methods raise RedisAway."""

    def __init__(
        self,
        client: Redis,
        breaker: CircuitBreaker,
        ledger_name: LedgerName,
        connection: SharedConnection | None = None,
    ) -> None:
        self._client = client
        self._breaker = breaker
        self._ledger_name = ledger_name
        self._connection = connection
        self._may_fill = True
        self._sampled_at = -_MEMORY_SAMPLE_SECONDS
        #: Fills under way, which nobody waits for.
        self._fills: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel the fills that are under way."""
        await cancel(*self._fills)

    async def read(self, slot: Slot) -> Lookup:
        """Return the copy in this slot, and the token that counts now, made if there was none: one exchange.

        Call it before the source is read: the token vouches for no later state. It is empty where Redis is too full
        to take one.
        """
        token_key = self._token_key(slot.topic)
        commands = (
            ("SET", token_key, _new_token(), "NX", "EX", _TOKEN_SECONDS),
            ("MGET", token_key, self._entry_key(slot)),
        )
        try:
            _, (token, entry) = await self._exchange(commands, slot.is_large, _extra_seconds(slot))
        except RedisAway:
            metrics.RESPONSE_CACHE.add("away")
            raise
        copy = None if token is None or entry is None else _unpack(entry, token, slot.path)
        metrics.RESPONSE_CACHE.add("miss" if copy is None else "hit")
        return Lookup(copy, token or b"")

    def fill(self, slot: Slot, token: bytes, copy: Copy) -> None:
        """Begin to keep a copy under the token that `read` returned. It may fail: nobody waits for it."""
        if not token or len(copy.body) > MOST_BODY_BYTES or len(self._fills) >= _MOST_FILLS:
            return
        task = asyncio.create_task(self._fill(slot, token, copy), name=BACKGROUND)
        self._fills.add(task)
        task.add_done_callback(self._fills.discard)

    async def _fill(self, slot: Slot, token: bytes, copy: Copy) -> None:
        entry = msgpack.packb([token, slot.path, copy.status, copy.lines, copy.body])
        command = ("SET", self._entry_key(slot), entry, "EX", slot.seconds)
        # A fill that overstays says more about its size than about Redis: a read would find Redis away as well.
        extra = len(entry) * _SECONDS_PER_BYTE
        with contextlib.suppress(RedisAway):
            if not await self._has_room():
                return
            (reply,) = await self._exchange((command,), slot.is_large, extra, may_open=False)
            if isinstance(reply, OutOfMemoryError):
                self._may_fill, self._sampled_at = False, time.monotonic()
            else:
                metrics.RESPONSE_CACHE.add("fill")

    async def _has_room(self) -> bool:
        """Return whether Redis is less than half full: on a shared one, a full cache makes enqueues fail."""
        if time.monotonic() - self._sampled_at >= _MEMORY_SAMPLE_SECONDS:
            self._sampled_at = time.monotonic()
            try:
                memory = await self._breaker.call(lambda: memory_of(self._client), may_open=False)
            except RedisAway:
                return False
            most = int(memory.get("maxmemory", 0))
            self._may_fill = most == 0 or int(memory["used_memory"]) < most / 2
        return self._may_fill

    async def change_tokens(self, *image_ids: str, even_if_open: bool = False) -> None:
        """Make every copy worthless that these images' last commits made stale: their own, and the lists'."""
        keys = [self._token_key(topic) for topic in (*image_ids, LIST_TOPIC)]

        async def exchange() -> None:
            try:
                async with self._client.pipeline(transaction=True) as pipe:
                    for key in keys:
                        pipe.set(key, _new_token(), ex=_TOKEN_SECONDS)
                    await pipe.execute()
            except OutOfMemoryError:
                # A full Redis takes no new token, but without one no copy counts either.
                await self._client.delete(*keys)

        await self._breaker.call(exchange, even_if_open=even_if_open, opens_if_busy=True)

    async def _exchange(
        self, commands: Sequence[Command], is_large: bool, extra_seconds: float, *, may_open: bool = True
    ) -> list[Any]:
        """Return the replies. Of refusals only that of a full Redis is among them; others raise RedisAway.

        They go over the connection that everybody shares if it is free: it costs a quarter of the client's CPU time.
        """
        connection = self._connection
        if connection is not None and connection.is_free and not is_large and not self._breaker.is_open:
            seconds = self._breaker.deadline + extra_seconds
            return await self._breaker.watch(_accepted(connection.execute(*commands, seconds=seconds)))

        async def exchange() -> list[Any]:
            async with self._client.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                try:
                    return await _accepted(pipe.execute(raise_on_error=False))
                except ReadOnlyError:
                    # A failover made a replica of it: the address leads to another server by now.
                    await self._client.connection_pool.disconnect()
                    raise

        return await self._breaker.call(exchange, extra_seconds=extra_seconds, may_open=may_open)

    def _token_key(self, topic: str) -> str:
        return f"asgilook:{self._ledger_name()}:token:{topic}"

    def _entry_key(self, slot: Slot) -> str:
        return f"asgilook:{self._ledger_name()}:response:{slot.path}"


def _new_token() -> bytes:
    return secrets.token_bytes(12)


async def _accepted(replies: Awaitable[list[Any]]) -> list[Any]:
    """Return the replies; raise the first refusal, but for want of memory, which reads do not need."""
    accepted = await replies
    for reply in accepted:
        if isinstance(reply, RedisError) and not isinstance(reply, OutOfMemoryError):
            raise reply
    return accepted


def _extra_seconds(slot: Slot) -> float:
    return _RENDITION_EXTRA_SECONDS if slot.is_rendition else 0.0


def _unpack(entry: bytes, token: bytes, path: str) -> Copy | None:
    try:
        entry_token, entry_path, status, lines, body = msgpack.unpackb(entry, use_list=False)
        if entry_token != token or entry_path != path:
            return None
        if type(status) is not int or type(lines) is not bytes or type(body) is not bytes:
            raise TypeError("a status, headers or a body of another type")
        # Anybody with access to Redis may have written it.
        if status != 200 or len(lines) > _MOST_HEADER_BYTES or not _HEADER_LINES.fullmatch(lines):
            raise ValueError("what no answer of ours can be")
        return Copy(status, lines, body)
    except (ValueError, TypeError, msgpack.UnpackException):
        logger.warning("a cached response cannot be read", extra={"path": path})
        return None
