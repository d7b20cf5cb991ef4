"""Redis copies of HTTP responses. A copy counts only while its token is the one in Redis.

To invalidate is to set a new random token after the commit: there is no delete, so no fill can come after it.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from shared.ledger import LedgerName
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway
from shared.redis.shared_connection import SharedConnection
from shared.telemetry import metrics

logger = logging.getLogger(__name__)

#: Seconds that copies of lists and records, and of pictures, live.
RECORD_SECONDS = 60
PICTURE_SECONDS = 600
#: Bytes of the largest body that is copied; larger ones are streamed from storage.
MOST_BODY_BYTES = 8 * 1024 * 1024
#: The topic of every list of ready images; a record's or picture's topic is its image's id.
LIST_TOPIC = "list"

#: A token outlives every copy made under it; one that is gone makes its copies worthless, never wrong.
_TOKEN_SECONDS = 3600
_MEMORY_SAMPLE_SECONDS = 5.0
#: What one byte of body may add to the deadline of a fill: a slow but honest 25 MB/s.
_SECONDS_PER_BYTE = 1 / 25_000_000
#: What a picture may add to the deadline of a read. A Redis that is away costs a request at most 100 ms: 80 of waiting,
#: and what it takes to do without.
_LARGE_COPY_SECONDS = 0.03


@dataclass(frozen=True)
class Slot:
    """Where a response has its copy: its canonical path (with query), its topic, and how long a copy lives."""

    path: str
    topic: str
    seconds: int
    #: Of megabytes, maybe: nobody should have to wait behind it.
    is_large: bool = False


#: As RFC 9110, section 5, has it: tokens, and values without control characters. Without what is for the server to say,
#: or for us, each time.
_HEADER_LINES = re.compile(
    rb"(?:(?!(?:connection|content-length|transfer-encoding|x-asgilook-cache|x-accel-redirect|x-sendfile):)"
    rb"[!#$%&'*+.^_`|~0-9a-z-]+: [^\x00-\x08\x0a-\x1f\x7f]*\r\n)*",
    re.IGNORECASE,
)
_MOST_HEADER_BYTES = 2048


@dataclass(slots=True)
class Copy:
    """A response as it was and will be sent: status, headers in order and as they are sent, body."""

    status: int
    lines: bytes
    body: bytes

    @classmethod
    def of(cls, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> Copy:
        return cls(status, "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1"), body)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The headers, names and values."""
        lines = self.lines.decode("latin-1").split("\r\n")[:-1]
        return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


@dataclass(frozen=True)
class Lookup:
    """What a read found: the copy where there is one, and the token under which a fill would count."""

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

    async def read(self, slot: Slot) -> Lookup:
        """Look for a copy.

        Call it before the source is read: the token it returns vouches for no later state.
        """
        try:
            token, entry = await self._look(slot)
        except RedisAway:
            metrics.RESPONSE_CACHE.add("away")
            raise
        copy = None if entry is None else _unpack(entry, token, slot.path)
        metrics.RESPONSE_CACHE.add("miss" if copy is None else "hit")
        return Lookup(copy, token)

    async def _look(self, slot: Slot) -> tuple[bytes, bytes | None]:
        """Return the token, a new one where there was none, and the entry; all within one deadline."""
        token_key, entry_key = self._token_key(slot.topic), self._entry_key(slot)
        extra = _extra_seconds(slot)
        connection = self._connection
        if connection is not None and connection.is_free and not slot.is_large and not self._breaker.is_open:
            began = time.monotonic()
            seconds = self._breaker.deadline + extra
            token, entry = await self._breaker.watch(_mget(connection, token_key, entry_key, seconds=seconds))
            if token is not None:
                return token, entry
            extra -= time.monotonic() - began
            return await self._breaker.call(lambda: self._set_token(token_key), extra_seconds=extra), None

        async def exchange() -> tuple[bytes, bytes | None]:
            token, entry = await self._client.mget(token_key, entry_key)
            return (await self._set_token(token_key), None) if token is None else (token, entry)

        return await self._breaker.call(exchange, extra_seconds=extra)

    async def _set_token(self, key: str) -> bytes:
        """Return a token that counts from now on, mine or somebody else's; an empty one where there is no room."""
        try:
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.set(key, _new_token(), nx=True, ex=_TOKEN_SECONDS)
                pipe.get(key)
                _, token = await pipe.execute()
        except OutOfMemoryError:
            return b""
        return token or b""

    async def fill(self, slot: Slot, token: bytes, copy: Copy) -> None:
        """Keep a copy under the token that `read` returned."""
        if len(copy.body) > MOST_BODY_BYTES or not token:
            return
        entry = msgpack.packb([token, slot.path, copy.status, copy.lines, copy.body])

        async def exchange() -> None:
            if not await self._has_room():
                return
            try:
                await self._client.set(self._entry_key(slot), entry, ex=slot.seconds)
                metrics.RESPONSE_CACHE.add("fill")
            except OutOfMemoryError:
                self._may_fill = False
                self._sampled_at = time.monotonic()

        # A fill that overstays says more about its size than about Redis, which a read would find away as well.
        await self._breaker.call(exchange, extra_seconds=len(entry) * _SECONDS_PER_BYTE, may_open=False)

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

    async def _has_room(self) -> bool:
        """Whether Redis is less than half full: on a shared one, a full cache makes enqueues fail."""
        if time.monotonic() - self._sampled_at >= _MEMORY_SAMPLE_SECONDS:
            self._sampled_at = time.monotonic()
            try:
                memory = await self._client.info("memory")
            except ResponseError:
                # A server that may not tell refuses what it has no room for.
                self._may_fill = True
            else:
                most = int(memory.get("maxmemory", 0))
                self._may_fill = most == 0 or int(memory["used_memory"]) < most / 2
        return self._may_fill

    def _token_key(self, topic: str) -> str:
        return f"asgilook:{self._ledger_name()}:token:{topic}"

    def _entry_key(self, slot: Slot) -> str:
        return f"asgilook:{self._ledger_name()}:response:{slot.path}"


async def _mget(connection: SharedConnection, *keys: str, seconds: float) -> list[bytes | None]:
    (values,) = await connection.execute(("MGET", *keys), seconds=seconds)
    if isinstance(values, ResponseError):
        raise values
    return list(values)


def _new_token() -> bytes:
    return secrets.token_bytes(12)


def _extra_seconds(slot: Slot) -> float:
    return _LARGE_COPY_SECONDS if slot.seconds == PICTURE_SECONDS else 0.0


def _unpack(entry: bytes, token: bytes, path: str) -> Copy | None:
    try:
        entry_token, entry_path, status, lines, body = msgpack.unpackb(entry, use_list=False)
        if entry_token != token or entry_path != path:
            return None
        if type(lines) is tuple:
            return None  # as it was written up to now
        if type(status) is not int or type(lines) is not bytes or type(body) is not bytes:
            raise TypeError("a status, headers or a body of another type")
        # Others may write to Redis.
        if status != 200 or len(lines) > _MOST_HEADER_BYTES or not _HEADER_LINES.fullmatch(lines):
            raise ValueError("what no answer of ours can be")
        return Copy(status, lines, body)
    except (ValueError, TypeError, msgpack.UnpackException):
        logger.warning("a cached response cannot be read", extra={"path": path})
        return None
