"""The circuit breaker: a slow Redis is waited for once, and what it missed is made good before it counts again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import fakeredis
import pytest
import uvloop
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.errors import LedgerUnavailable
from shared.redis.circuit_breaker import WEB_DEADLINE, WORKER_DEADLINE, CircuitBreaker, RedisAway
from shared.redis.clients import arq_client, listening_client, web_client, worker_client
from tests.valkey import Valkey
from tests.waiting import until


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask every hundredth of a second whether Redis is back."""
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 0.01)


@pytest.fixture
async def breaker(redis: Redis) -> AsyncIterator[CircuitBreaker]:
    breaker = CircuitBreaker(redis, WEB_DEADLINE)
    yield breaker
    await breaker.close()


async def test_an_exchange_that_succeeds_leaves_the_breaker_closed(redis: Redis, breaker: CircuitBreaker) -> None:
    assert await breaker.call(lambda: redis.set("key", "value"))
    assert await breaker.call(lambda: redis.get("key")) == b"value"
    assert not breaker.is_open


async def test_a_failed_exchange_opens_it_and_nobody_asks_again(
    redis: Redis, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 3600)
    redis_server.connected = False
    with pytest.raises(RedisAway, match="ConnectionError"):
        await breaker.call(redis.ping)
    redis_server.connected = True
    asked = []

    async def ask() -> None:
        asked.append(1)

    with pytest.raises(RedisAway, match="left alone"):
        await breaker.call(ask)

    assert breaker.is_open
    assert asked == []


async def test_an_exchange_that_overstays_is_cancelled_and_opens_it(breaker: CircuitBreaker) -> None:
    ended: list[str] = []

    async def overstay() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cancelled")

    with pytest.raises(RedisAway, match="TimeoutError"):
        await breaker.call(overstay)

    assert breaker.is_open
    assert ended == ["cancelled"]


async def test_an_exchange_may_have_a_deadline_of_its_own(redis: Redis) -> None:
    breaker = CircuitBreaker(redis, 3600.0)

    with pytest.raises(RedisAway, match="TimeoutError"):
        await breaker.call(asyncio.get_running_loop().create_future, deadline=0.01)

    assert breaker.is_open
    await breaker.close()


async def test_a_refusal_opens_it_too(breaker: CircuitBreaker) -> None:
    async def refuse() -> None:
        raise ResponseError("LOADING Redis is loading the dataset in memory")

    with pytest.raises(RedisAway, match="LOADING"):
        await breaker.call(refuse)

    assert breaker.is_open


async def test_an_error_of_our_own_passes_through_and_opens_nothing(breaker: CircuitBreaker) -> None:
    async def fail() -> None:
        raise LedgerUnavailable("locked")

    with pytest.raises(LedgerUnavailable):
        await breaker.call(fail)

    assert not breaker.is_open


async def test_an_exchange_that_must_know_asks_though_it_is_open(
    redis: Redis, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 3600)
    redis_server.connected = False
    with pytest.raises(RedisAway):
        await breaker.call(redis.ping)
    redis_server.connected = True

    assert await breaker.call(redis.ping, even_if_open=True)
    assert breaker.is_open


async def test_it_closes_by_itself_once_redis_is_back(
    redis: Redis, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer
) -> None:
    redis_server.connected = False
    with pytest.raises(RedisAway):
        await breaker.call(redis.ping)
    redis_server.connected = True

    await until(lambda: not breaker.is_open)

    assert await breaker.call(redis.ping)


async def test_it_asks_soon_at_first_and_ever_more_rarely(
    redis: Redis, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most replies are late by chance, and what is committed meanwhile cannot be told to other processes' copies."""
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 3600)
    monkeypatch.setattr("shared.redis.circuit_breaker._FIRST_PAUSE", 0.01 / 3600)
    asked: list[float] = []
    ping = redis.ping

    async def noted_ping() -> object:
        asked.append(time.monotonic())
        return await ping()

    monkeypatch.setattr(redis, "ping", noted_ping)
    redis_server.connected = False
    with pytest.raises(RedisAway):
        await breaker.call(ping)
    await until(lambda: len(asked) == 5)
    redis_server.connected = True

    await until(lambda: not breaker.is_open)

    # After 10 ms, and then 20, 40, 80 and 160 between two of them; a busy machine makes it more.
    assert asked[4] - asked[0] >= 0.29


async def test_what_was_missed_is_made_good_before_it_closes(redis: Redis, redis_server: fakeredis.FakeServer) -> None:
    """Promise 7: a cache that was away while images changed must not answer before it was told of them."""
    seen: list[bool] = []
    troubles = [RedisAway("away again"), LedgerUnavailable("locked")]

    async def catch_up() -> None:
        seen.append(guard.is_open)
        if troubles:
            raise troubles.pop()

    guard = CircuitBreaker(redis, WEB_DEADLINE, before_closing=catch_up)
    redis_server.connected = False
    with pytest.raises(RedisAway):
        await guard.call(redis.ping)
    redis_server.connected = True

    await until(lambda: not guard.is_open)

    assert seen == [True, True, True]


async def test_closing_it_for_good_ends_its_asking(
    redis: Redis, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer
) -> None:
    redis_server.connected = False
    with pytest.raises(RedisAway):
        await breaker.call(redis.ping)

    await breaker.close()

    assert len(asyncio.all_tasks()) == 1


async def test_a_client_of_the_web_gives_up_where_nobody_listens() -> None:
    client = web_client("redis://127.0.0.1:1/0")
    breaker = CircuitBreaker(client, WEB_DEADLINE)

    with pytest.raises(RedisAway):
        await breaker.call(client.ping)

    await breaker.close()
    await client.aclose()


@pytest.mark.parametrize("make", [web_client, worker_client])
async def test_a_frozen_redis_costs_one_deadline_and_no_more(valkey: Valkey, make: Callable[[str], Redis]) -> None:
    """A real server: it takes connections and commands while it is stopped, and answers them all later."""
    client = make(valkey.url)
    breaker = CircuitBreaker(client, WEB_DEADLINE)
    await breaker.call(lambda: client.mset({"one": "1", "two": "2"}), extra_seconds=WORKER_DEADLINE)
    waits = []
    valkey.freeze()

    async def ask() -> None:
        start = time.monotonic()
        with pytest.raises(RedisAway):
            await breaker.call(lambda: client.get("one"))
        waits.append(time.monotonic() - start)

    await ask()
    for _ in range(20):
        await ask()
    valkey.thaw()
    await until(lambda: not breaker.is_open)

    assert waits[0] >= WEB_DEADLINE * 0.9
    # Twenty that waited as well would have taken twenty times as long.
    assert sum(waits[1:]) < waits[0] * 10
    # What was given up comes late, over a connection that nobody reads from any more.
    assert [
        await breaker.call(lambda: client.get(key), extra_seconds=WORKER_DEADLINE)  # noqa: B023
        for key in ("two", "one")
    ] == [b"2", b"1"]
    await breaker.close()
    await client.aclose()


#: The loop of the tests and of the worker, and that of the web process, which has an order of its own in each turn.
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_standstill_of_our_own_is_no_absence_of_redis(
    valkey: Valkey, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """A breaker that opens for it keeps a DELETE from telling Redis, and other web processes serve copies for a second.

    On a busy machine a process stands still for longer than the deadline now and then; the reply is there meanwhile.
    """

    async def ask() -> None:
        client = web_client(valkey.url)
        breaker = CircuitBreaker(client, WEB_DEADLINE)
        await breaker.call(client.ping)

        async def stand_still_before_each_reply() -> list[object]:
            connection = await client.connection_pool.get_connection()
            replies = []
            for words in (("SET", "key", "value"), ("GET", "key")):
                await connection.send_command(*words)
                time.sleep(3 * WEB_DEADLINE)  # noqa: ASYNC251 - the loop is to stand still
                replies.append(await connection.read_response())
            await client.connection_pool.release(connection)
            return replies

        assert await breaker.call(stand_still_before_each_reply) == [b"OK", b"value"]
        assert not breaker.is_open
        await client.aclose()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(ask())


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_frozen_redis_is_waited_for_until_the_deadline(
    valkey: Valkey, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def ask() -> None:
        client = web_client(valkey.url)
        breaker = CircuitBreaker(client, WEB_DEADLINE)
        await breaker.call(client.ping)
        valkey.freeze()
        begun = time.monotonic()

        with pytest.raises(RedisAway, match="TimeoutError"):
            await breaker.call(client.ping)

        assert breaker.is_open
        # A loop counts in whole milliseconds.
        assert time.monotonic() - begun >= WEB_DEADLINE - 0.002
        await breaker.close()
        await client.aclose()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(ask())


async def test_a_worker_survives_a_connection_that_was_closed_behind_its_back(valkey: Valkey) -> None:
    client = worker_client(valkey.url)
    await client.set("key", "value")

    valkey.cut_connections()

    assert await client.get("key") == b"value"
    await client.aclose()


async def test_clients_without_a_breaker_have_time_limits_of_their_own() -> None:
    """arq's own pool has none. A web client's exchanges are all within its breaker's deadline."""
    worker, listening = (make("redis://127.0.0.1:1/0") for make in (worker_client, listening_client))

    options = [client.connection_pool.connection_kwargs for client in (worker, listening)]

    assert [(option["socket_connect_timeout"], option.get("socket_timeout")) for option in options] == [
        (5.0, 5.0),
        (5.0, None),
    ]
    assert options[1]["health_check_interval"] == 10
    assert arq_client(worker).connection_pool is worker.connection_pool


async def test_an_address_keeps_what_stands_behind_its_question_mark() -> None:
    client = web_client("redis://127.0.0.1:1/0?client_name=asgilook")

    assert client.connection_pool.connection_kwargs["client_name"] == "asgilook"
