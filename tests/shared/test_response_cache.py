"""A copy counts only under the token that is in Redis now; what cannot be trusted or kept is no copy."""

from __future__ import annotations

import fakeredis
import msgpack
import pytest
from redis.asyncio import Redis

from shared.connections import WORKER_DEADLINE, CircuitBreaker, RedisAway, worker_client
from shared.response_cache import LIST_TOPIC, MOST_BODY_BYTES, Copy, Lookup, ResponseCache, Slot
from tests.services import LEDGER_NAME, ledger_name
from tests.valkey import StartValkey

SLOT = Slot("/images/image-1", "image-1", 60)
LIST = Slot("/images?limit=100", LIST_TOPIC, 60)
COPY = Copy(200, (("content-type", "application/json"), ("etag", '"1b"')), b'{"id": "image-1"}')


async def fill(cache: ResponseCache, slot: Slot = SLOT, copy: Copy = COPY) -> None:
    await cache.fill(slot, (await cache.read(slot)).token, copy)


async def test_the_first_read_finds_no_copy_and_sets_a_token(cache: ResponseCache) -> None:
    first = await cache.read(SLOT)
    second = await cache.read(SLOT)

    assert (first.copy, second.copy) == (None, None)
    assert len(first.token) >= 12
    assert first.token == second.token


async def test_what_was_filled_is_read_as_it_was(cache: ResponseCache) -> None:
    copy = Copy(200, (("b", "2"), ("a", "1"), ("set", "é")), bytes(range(256)))

    await fill(cache, copy=copy)

    assert (await cache.read(SLOT)).copy == copy


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
    await cache.fill(SLOT, before.token, COPY)

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
        msgpack.packb([b"TOKEN", SLOT.path, "two hundred", [], b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, 5, b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, [["one"]], b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, [], "text"]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, [], None]),
        msgpack.packb([b"TOKEN", "/images/image-2", 200, [], b""]),
        msgpack.packb([b"ANOTHER", SLOT.path, 200, [], b""]),
        msgpack.packb([b"TOKEN", SLOT.path, 200, [], b""])[:-1],
        b"\x91" * 2000,
    ],
)
async def test_an_entry_that_is_not_ours_is_no_copy(cache: ResponseCache, redis: Redis, entry: bytes) -> None:
    await redis.set(f"asgilook:{LEDGER_NAME}:token:image-1", b"TOKEN")
    await redis.set(f"asgilook:{LEDGER_NAME}:response:{SLOT.path}", entry)

    assert await cache.read(SLOT) == Lookup(None, b"TOKEN")


async def test_a_large_body_is_not_copied(cache: ResponseCache, redis: Redis) -> None:
    largest = Copy(200, (), bytes(MOST_BODY_BYTES))
    larger = Copy(200, (), bytes(MOST_BODY_BYTES + 1))

    await fill(cache, copy=larger)
    refused = (await cache.read(SLOT)).copy
    await fill(cache, copy=largest)

    assert refused is None
    assert (await cache.read(SLOT)).copy == largest


async def test_nothing_is_filled_without_a_token(cache: ResponseCache, redis: Redis) -> None:
    await cache.fill(SLOT, b"", COPY)

    assert await redis.keys() == []


async def test_a_redis_that_is_away_is_told(cache: ResponseCache, redis_server: fakeredis.FakeServer) -> None:
    token = (await cache.read(SLOT)).token
    redis_server.connected = False

    with pytest.raises(RedisAway):
        await cache.read(SLOT)
    with pytest.raises(RedisAway):
        await cache.fill(SLOT, token, COPY)
    with pytest.raises(RedisAway):
        await cache.change_tokens("image-1", even_if_open=True)


# With a real server, whose memory ends


async def test_fills_stop_at_half_of_the_memory(start_valkey: StartValkey, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a shared, small Redis a full cache makes enqueues fail, and with eviction on it loses queued jobs."""
    monkeypatch.setattr("shared.response_cache._MEMORY_SAMPLE_SECONDS", 0.0)
    client = worker_client(start_valkey(maxmemory="16mb").url)
    breaker = CircuitBreaker(client, WORKER_DEADLINE)
    cache = ResponseCache(client, breaker, ledger_name)
    slots = [Slot(f"/images/{i}.jpeg", "image-1", 600) for i in range(20)]

    for slot in slots:
        await fill(cache, slot, Copy(200, (), bytes(1024 * 1024)))

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

    await cache.fill(LIST, token, COPY)
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
