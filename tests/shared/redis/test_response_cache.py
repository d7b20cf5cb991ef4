"""A copy counts only under the token that is in Redis now; what cannot be trusted or kept is no copy."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import fakeredis
import msgpack
import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as ConnectionLost

from shared.cancellation import cancel
from shared.redis.circuit_breaker import WEB_DEADLINE, WORKER_DEADLINE, CircuitBreaker, RedisAway
from shared.redis.clients import web_client, worker_client
from shared.redis.response_cache import LIST_TOPIC, MOST_BODY_BYTES, Copy, Lookup, ResponseCache, Slot
from shared.redis.shared_connection import SharedConnection, connection_beside
from tests.fills import fills_landed
from tests.services import LEDGER_NAME, ledger_name
from tests.valkey import StartValkey, Valkey
from tests.waiting import until

SLOT = Slot("/images/image-1", "image-1", 60)
LIST = Slot("/images?limit=100", LIST_TOPIC, 60)
COPY = Copy.of(200, (("content-type", "application/json"), ("etag", '"1b"')), b'{"id": "image-1"}')


async def fill(cache: ResponseCache, slot: Slot = SLOT, copy: Copy = COPY) -> None:
    cache.fill(slot, (await cache.read(slot)).token, copy)
    await fills_landed()


async def test_the_first_read_finds_no_copy_and_sets_a_token(cache: ResponseCache) -> None:
    first = await cache.read(SLOT)
    second = await cache.read(SLOT)

    assert (first.copy, second.copy) == (None, None)
    assert len(first.token) >= 12
    assert first.token == second.token


async def test_what_was_filled_is_read_as_it_was(cache: ResponseCache) -> None:
    copy = Copy.of(200, (("b", "2"), ("a", "1"), ("set", "é")), bytes(range(256)))

    await fill(cache, copy=copy)

    assert (await cache.read(SLOT)).copy == copy


async def test_a_change_for_which_all_connections_were_taken_leaves_redis_alone_until_it_was_made(
    redis_server: fakeredis.FakeServer,
) -> None:
    """That we were busy is no reason to trust a copy which nobody could make worthless."""
    client = fakeredis.FakeAsyncRedis(server=redis_server, max_connections=1)
    breaker = CircuitBreaker(
        client, WEB_DEADLINE, before_closing=lambda: cache.change_tokens("image-1", even_if_open=True)
    )
    cache = ResponseCache(client, breaker, ledger_name)
    await fill(cache)
    taken, may_go_on = asyncio.Event(), asyncio.Event()

    async def take_long() -> None:
        taken.set()
        await may_go_on.wait()

    other = asyncio.create_task(breaker.call(take_long, extra_seconds=WORKER_DEADLINE))
    await taken.wait()
    with pytest.raises(RedisAway):
        await cache.change_tokens("image-1")
    may_go_on.set()
    await other

    with pytest.raises(RedisAway):
        await cache.read(SLOT)
    await until(lambda: not breaker.is_open)
    assert (await cache.read(SLOT)).copy is None
    await breaker.close()
    await client.aclose()


async def test_a_changed_token_makes_the_copies_of_an_image_and_of_every_list_worthless(cache: ResponseCache) -> None:
    other = Slot("/images/image-2", "image-2", 60)
    for slot in (SLOT, LIST, other):
        await fill(cache, slot)

    await cache.change_tokens("image-1")

    assert [(await cache.read(slot)).copy for slot in (SLOT, LIST, other)] == [None, None, COPY]


async def test_a_fill_under_an_earlier_token_never_counts(cache: ResponseCache) -> None:
    """No delete, no race: what was read from the source before a commit may be filled long after it."""
    before = await cache.read(SLOT)

    await cache.change_tokens("image-1")
    cache.fill(SLOT, before.token, COPY)
    await fills_landed()

    assert (await cache.read(SLOT)).copy is None


async def test_a_token_that_is_gone_makes_copies_worthless(cache: ResponseCache, redis: Redis) -> None:
    await fill(cache)

    await redis.delete(f"asgilook:{LEDGER_NAME}:token:image-1")

    assert (await cache.read(SLOT)).copy is None


async def test_no_two_tokens_are_alike(cache: ResponseCache) -> None:
    tokens = set()
    for _ in range(50):
        await cache.change_tokens("image-1")
        tokens.add((await cache.read(SLOT)).token)

    assert len(tokens) == 50


async def test_readers_at_once_agree_on_the_token(cache: ResponseCache, redis: Redis) -> None:
    """The second reader's NX finds the first one's, and both fill what the other can read."""
    await redis.set(f"asgilook:{LEDGER_NAME}:token:image-1", b"set between the look and the NX")

    assert (await cache.read(SLOT)).token == b"set between the look and the NX"


async def test_copies_and_tokens_end_by_themselves(cache: ResponseCache, redis: Redis) -> None:
    """A token outlives every copy under it."""
    await fill(cache, Slot("/images/image-1.jpeg", "image-1", 600))

    keys = {key: await redis.ttl(key) for key in await redis.keys()}

    assert keys == {
        f"asgilook:{LEDGER_NAME}:token:image-1".encode(): pytest.approx(3600, abs=5),
        f"asgilook:{LEDGER_NAME}:response:/images/image-1.jpeg".encode(): pytest.approx(600, abs=5),
    }


async def test_another_ledgers_copies_are_not_seen(cache: ResponseCache, redis: Redis, breaker: CircuitBreaker) -> None:
    await fill(cache)

    assert (await ResponseCache(redis, breaker, lambda: "another").read(SLOT)).copy is None


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\xc1",
        b"\x80\x04}q\x00.",
        msgpack.packb(None),
        msgpack.packb(7),
        msgpack.packb([]),
        msgpack.packb([b"TOKEN"]),
        msgpack.packb([b"TOKEN", SLOT.path, "two hundred", b"", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, 5, b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, [["etag", "1"]], b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, "etag: 1\r\n", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, {"on": 1}, b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"etag: 1", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"etag: 1\n", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"etag : 1\r\n", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"etag: \0\r\n", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"etag: 1\r\n\r\n", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b" etag: 1\r\n", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"", "text"]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"", None]),
        msgpack.packb([b"TOKEN", "/images/image-2", 200, b"", b""]),
        msgpack.packb([b"ANOTHER", SLOT.path, 200, b"", b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, b"", b""])[:-1],
        b"\x91" * 2000,
    ],
)
async def test_an_entry_that_is_not_ours_is_no_copy(cache: ResponseCache, redis: Redis, entry: bytes) -> None:
    await redis.set(f"asgilook:{LEDGER_NAME}:token:image-1", b"TOKEN")
    await redis.set(f"asgilook:{LEDGER_NAME}:response:{SLOT.path}", entry)

    assert await cache.read(SLOT) == Lookup(None, b"TOKEN")


async def test_a_large_body_is_not_copied(cache: ResponseCache, redis: Redis) -> None:
    largest = Copy.of(200, (), bytes(MOST_BODY_BYTES))
    larger = Copy.of(200, (), bytes(MOST_BODY_BYTES + 1))

    await fill(cache, copy=larger)
    refused = (await cache.read(SLOT)).copy
    await fill(cache, copy=largest)

    assert refused is None
    assert (await cache.read(SLOT)).copy == largest


async def test_nothing_is_filled_without_a_token(cache: ResponseCache, redis: Redis) -> None:
    cache.fill(SLOT, b"", COPY)
    await fills_landed()

    assert await redis.keys() == []


async def test_a_redis_that_is_away_is_told(cache: ResponseCache, redis_server: fakeredis.FakeServer) -> None:
    redis_server.connected = False

    with pytest.raises(RedisAway):
        await cache.read(SLOT)
    with pytest.raises(RedisAway):
        await cache.change_tokens("image-1", even_if_open=True)


# With a real server, whose memory ends


async def test_fills_stop_at_half_of_the_memory(start_valkey: StartValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared, small Redis a full cache makes enqueues fail, and with eviction on it loses queued jobs."""
    monkeypatch.setattr("shared.redis.response_cache._MEMORY_SAMPLE_SECONDS", 0.0)
    client = worker_client(start_valkey(maxmemory="16mb").url)
    breaker = CircuitBreaker(client, WORKER_DEADLINE)
    cache = ResponseCache(client, breaker, ledger_name)
    slots = [Slot(f"/images/{i}.jpeg", "image-1", 600) for i in range(20)]

    for slot in slots:
        await fill(cache, slot, Copy.of(200, (), bytes(1024 * 1024)))

    kept = [(await cache.read(slot)).copy is not None for slot in slots]
    used = (await client.info("memory"))["used_memory"]
    # Not just the first ones: what the server still holds of a request counts as used until it lets go of it.
    assert 4 <= sum(kept) <= 8
    assert used < 12 * 1024 * 1024
    await breaker.close()
    await client.aclose()


async def test_a_server_without_room_is_not_filled_and_not_left_alone(
    start_valkey: StartValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OOM is an answer, and a quick one: reads still go well, and the queue may share the breaker."""
    client = worker_client(start_valkey().url)
    breaker = CircuitBreaker(client, WORKER_DEADLINE)
    cache = ResponseCache(client, breaker, ledger_name)
    await fill(cache)
    token = (await cache.read(SLOT)).token
    await client.config_set("maxmemory", "1")

    cache.fill(LIST, token, COPY)
    await fills_landed()
    lookup = await cache.read(SLOT)

    assert lookup.copy == COPY
    assert not cache._may_fill
    assert not breaker.is_open
    await breaker.close()
    await client.aclose()


async def test_a_server_without_room_still_forgets_what_is_stale(start_valkey: StartValkey) -> None:
    """It takes no new token, so the old ones go: without a token no copy counts."""
    client = worker_client(start_valkey().url)
    breaker = CircuitBreaker(client, WORKER_DEADLINE)
    cache = ResponseCache(client, breaker, ledger_name)
    await fill(cache)
    await client.config_set("maxmemory", "1")

    await cache.change_tokens(SLOT.topic)
    lookup = await cache.read(SLOT)

    assert lookup == Lookup(None, b"")
    assert not breaker.is_open
    await breaker.close()
    await client.aclose()


async def test_a_server_that_does_not_tell_its_memory_is_filled(start_valkey: StartValkey) -> None:
    client = worker_client(start_valkey().url)
    await client.acl_setuser("default", commands=["-info"])
    breaker = CircuitBreaker(client, WORKER_DEADLINE)
    cache = ResponseCache(client, breaker, ledger_name)

    await fill(cache)

    assert (await cache.read(SLOT)).copy == COPY
    assert not breaker.is_open
    await breaker.close()
    await client.aclose()


# With a reader beside the client, as in a web process


class Web:
    """A response cache with a reader, and what it is made of; what goes over its client is counted."""

    def __init__(self, valkey: Valkey, deadline: float) -> None:
        self.client = web_client(valkey.url)
        reader = connection_beside(self.client)
        assert reader is not None
        self.reader: SharedConnection = reader
        self.breaker = CircuitBreaker(self.client, deadline, on_opening=reader.drop)
        self.cache = ResponseCache(self.client, self.breaker, ledger_name, reader)
        self.by_client = 0
        pipeline = self.client.pipeline

        def counted_pipeline(*arguments: Any, **options: Any) -> Any:
            self.by_client += 1
            return pipeline(*arguments, **options)

        self.client.pipeline = counted_pipeline  # type: ignore[method-assign] # it is the same, but for the count


@asynccontextmanager
async def web(valkey: Valkey, deadline: float = WORKER_DEADLINE) -> AsyncIterator[Web]:
    web = Web(valkey, deadline)
    running = asyncio.create_task(web.reader.run())
    try:
        await until(lambda: web.reader.is_free)
        yield web
    finally:
        await cancel(running)
        await web.breaker.close()
        await web.client.aclose()


async def test_a_crowd_reads_over_the_readers_connection(valkey: Valkey) -> None:
    async with web(valkey) as here:
        slots = [Slot(f"/images/{i}", f"image-{i}", 60) for i in range(100)]
        copies = [Copy.of(200, (("n", str(i)),), b"x" * i) for i in range(100)]
        for slot, copy in zip(slots, copies, strict=True):
            await fill(here.cache, slot, copy)

        lookups = await asyncio.gather(*(here.cache.read(slot) for slot in slots))

        assert [lookup.copy for lookup in lookups] == copies
        assert here.by_client == 0


async def test_where_there_is_no_token_one_is_set(valkey: Valkey) -> None:
    async with web(valkey) as here:
        first = await here.cache.read(SLOT)
        second = await here.cache.read(SLOT)

        assert first == second == Lookup(None, first.token)
        assert len(first.token) == 12


async def test_a_changed_token_counts_for_the_reader_too(valkey: Valkey) -> None:
    async with web(valkey) as here:
        await fill(here.cache)
        hit = await here.cache.read(SLOT)

        await here.cache.change_tokens("image-1")

        assert (hit.copy, (await here.cache.read(SLOT)).copy) == (COPY, None)


async def test_what_may_be_large_is_read_apart(valkey: Valkey) -> None:
    """Who asks for a record need not wait until a photograph of megabytes has come."""
    async with web(valkey) as here:
        await fill(here.cache, Slot("/images/image-1.jpeg", "image-1", 600, is_large=True))

        assert here.by_client == 2  # read and filled


async def test_without_its_connection_the_client_reads(valkey: Valkey) -> None:
    async with web(valkey) as here:
        await fill(here.cache)
        here.reader.drop()

        assert (await here.cache.read(SLOT)).copy == COPY
        assert here.by_client == 1
        await until(lambda: here.reader.is_free)
        assert (await here.cache.read(SLOT)).copy == COPY
        assert here.by_client == 1


async def test_a_frozen_server_costs_one_deadline_and_is_left_alone(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 0.1)
    monkeypatch.setattr("shared.redis.response_cache._RENDITION_EXTRA_SECONDS", 0.1)
    async with web(valkey) as patient:
        await fill(patient.cache)
    async with web(valkey, WEB_DEADLINE) as here:
        valkey.freeze()
        begun = time.monotonic()

        # The picture could wait for longer, but the connection ends with the first reply that is overdue.
        slots = [Slot("/thumbnails/image-1/64x64.jpeg", "image-1", 600), *[SLOT] * 20]
        outcomes = await asyncio.gather(*(here.cache.read(slot) for slot in slots), return_exceptions=True)

        assert {type(outcome) for outcome in outcomes} == {RedisAway}
        assert time.monotonic() - begun >= WEB_DEADLINE - 0.002
        assert here.breaker.is_open
        with pytest.raises(RedisAway, match="left alone"):
            await here.cache.read(SLOT)
        valkey.thaw()

        async def is_read_again() -> bool:
            try:
                return (await here.cache.read(SLOT)).copy == COPY
            except RedisAway:
                return False

        await until(is_read_again)


async def test_where_the_client_finds_redis_away_nobody_waits_for_the_reader(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 3600)
    async with web(valkey, WEB_DEADLINE) as here:
        valkey.freeze()
        reading = asyncio.ensure_future(here.reader.execute(("GET", "key"), seconds=30.0))

        with pytest.raises(RedisAway):
            await here.breaker.call(here.client.ping)

        with pytest.raises(ConnectionLost):
            reading.result()
        valkey.thaw()


async def test_a_refused_read_is_a_redis_that_is_away(valkey: Valkey) -> None:
    async with web(valkey) as here:
        await fill(here.cache)
        await here.client.acl_setuser("default", enabled=True, nopass=True, commands=["-mget"])

        with pytest.raises(RedisAway, match="NoPermissionError"):
            await here.cache.read(SLOT)

        assert here.breaker.is_open


async def test_a_reader_that_goes_away_takes_no_reply_with_it(valkey: Valkey) -> None:
    async with web(valkey) as here:
        slots = [Slot(f"/images/{i}", f"image-{i}", 60) for i in range(20)]
        for slot in slots:
            await fill(here.cache, slot, Copy.of(200, (), slot.path.encode()))
        valkey.freeze()
        reads = [asyncio.create_task(here.cache.read(slot)) for slot in slots]
        await asyncio.sleep(0)
        await cancel(*reads[::2])
        valkey.thaw()

        lookups = await asyncio.gather(*reads[1::2])

        assert [lookup.copy for lookup in lookups] == [Copy.of(200, (), slot.path.encode()) for slot in slots[1::2]]
        assert not here.breaker.is_open
