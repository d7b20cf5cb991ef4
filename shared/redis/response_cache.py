"""Copies of HTTP responses in Redis. A copy is valid only while its token equals the token in Redis.

A commit invalidates copies by setting a new random token. A late fill has the old token, so its copy is invalid too.

This module is longer than 250 lines: the format, the place and the validity of a copy are one protocol.
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

#: Seconds that copies live: of lists and records, and of renditions.
RECORD_SECONDS = 60
RENDITION_SECONDS = 600
#: Bytes of the largest body that is copied; larger ones are streamed from storage.
MOST_BODY_BYTES = 8 * 1024 * 1024
#: The topic of every list of ready images. The topic of a record or a rendition is its image's id.
LIST_TOPIC = "list"

#: The name of the background tasks that store copies.
BACKGROUND = "response-cache"

#: A token lives longer than every copy made under it. If a token is lost, its copies are invalid, never wrong.
_TOKEN_SECONDS = 3600
_MEMORY_SAMPLE_SECONDS = 5.0
#: The most fills at once. Further ones are skipped, because each may hold megabytes.
_MOST_FILLS = 64
#: Seconds that each byte of body adds to the deadline of a fill: 25 MB/s, which is slow but healthy.
_SECONDS_PER_BYTE = 1 / 25_000_000
#: Seconds that a rendition adds to the deadline of a read. A Redis that is away costs a request at most 100 ms: 80 ms
#: of waiting, and the time to answer without Redis.
_RENDITION_EXTRA_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Slot:
    """The place of a response's copy: its canonical path (with query), its topic, and the seconds that a copy lives."""

    path: str
    topic: str
    seconds: int
    #: Whether the copy may take megabytes. Such a copy does not use the shared connection.
    is_large: bool = False
    #: Whether Redis holds the copy. False if the proxy in front sends the file, so that our answer has no body.
    is_in_redis: bool = True

    @property
    def is_rendition(self) -> bool:
        return self.seconds == RENDITION_SECONDS


#: Header lines (RFC 9110, section 5): names are tokens, values have no control characters. Headers that the server or
#: the middleware sets for each answer are not allowed in a copy.
_HEADER_LINES = re.compile(
    rb"(?:(?!(?:connection|content-length|transfer-encoding|x-asgilook-cache|x-accel-redirect|x-sendfile):)"
    rb"[!#$%&'*+.^_`|~0-9a-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*",
    re.IGNORECASE,
)
_MOST_HEADER_BYTES = 2048


@dataclass(slots=True)
class Copy:
    """A response: status, header lines in their order, body."""

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
    """The result of a read: the copy, if there is a valid one, and the token for a fill."""

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
        #: The running fills. No request waits for them.
        self._fills: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Cancel the running fills."""
        await cancel(*self._fills)

    async def read(self, slot: Slot) -> Lookup:
        """Return the copy in this slot, and the present token, in one exchange. Makes a token if there is none.

        Call this before the source is read: a fill under this token is valid only if its source is no older. The token
        is empty if Redis is too full to store one.
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
        """Start to store a copy under the token that `read` returned. This runs in the background and may fail."""
        if not token or len(copy.body) > MOST_BODY_BYTES or len(self._fills) >= _MOST_FILLS:
            return
        task = asyncio.create_task(self._fill(slot, token, copy), name=BACKGROUND)
        self._fills.add(task)
        task.add_done_callback(self._fills.discard)

    async def _fill(self, slot: Slot, token: bytes, copy: Copy) -> None:
        entry = msgpack.packb([token, slot.path, copy.status, copy.lines, copy.body])
        command = ("SET", self._entry_key(slot), entry, "EX", slot.seconds)
        # A late fill does not open the breaker: its size is the likely reason. If Redis is away, a read will notice.
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
        """Return whether Redis is less than half full. If the queue is in this Redis, a full one refuses enqueues."""
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
        """Invalidate the copies that these images' last commits made stale: of the images, and of all lists."""
        keys = [self._token_key(topic) for topic in (*image_ids, LIST_TOPIC)]

        async def exchange() -> None:
            try:
                async with self._client.pipeline(transaction=True) as pipe:
                    for key in keys:
                        pipe.set(key, _new_token(), ex=_TOKEN_SECONDS)
                    await pipe.execute()
            except OutOfMemoryError:
                # A full Redis stores no new token. Without any token the copies are invalid, too.
                await self._client.delete(*keys)

        await self._breaker.call(exchange, even_if_open=even_if_open, opens_if_busy=True)

    async def _exchange(
        self, commands: Sequence[Command], is_large: bool, extra_seconds: float, *, may_open: bool = True
    ) -> list[Any]:
        """Return the replies. The refusal of a full Redis is a reply; any other refusal raises RedisAway.

        Small exchanges use the shared connection if it is free, which takes a quarter of the client's CPU time.
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
                    # After a failover this server is a replica. The address now leads to another server.
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
    """Return the replies. Raises the first refusal, except for lack of memory: reads work without it."""
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
        # Anybody with access to Redis may have written this entry.
        if status != 200 or len(lines) > _MOST_HEADER_BYTES or not _HEADER_LINES.fullmatch(lines):
            raise ValueError("what no answer of ours can be")
        return Copy(status, lines, body)
    except (ValueError, TypeError, msgpack.UnpackException):
        logger.warning("a cached response cannot be read", extra={"path": path})
        return None
