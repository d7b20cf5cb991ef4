"""Redis as it is sold: over TLS with a certificate that no system knows, with a user, with few connections."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from shared.errors import RedisRefuses, SettingsError
from shared.redis.circuit_breaker import WEB_DEADLINE, CircuitBreaker, RedisAway
from shared.redis.clients import check_access, listening_client, redis_from_url, web_client, worker_client
from shared.settings import Settings
from tests.doors import Doors
from tests.valkey import StartValkey, Valkey
from tests.waiting import until

ANY_CERTIFICATE = Settings(redis_cert_reqs="none")
#: A name and a password that have to be escaped, and how they are written in an address.
USER, PASSWORD, ESCAPED = "we@b", "p@ss:/wörd?#", "we%40b:p%40ss%3A%2Fw%C3%B6rd%3F%23"
MAKERS = [web_client, worker_client, listening_client]


@asynccontextmanager
async def breaker_of(client: Redis, deadline: float = 5.0) -> AsyncIterator[CircuitBreaker]:
    breaker = CircuitBreaker(client, deadline)
    try:
        yield breaker
    finally:
        await breaker.close()
        await client.aclose()


async def refusal_of(client: Redis) -> str:
    """Return in which words a client is refused."""
    async with breaker_of(client) as breaker:
        with pytest.raises(RedisRefuses) as refused:
            await check_access(client, breaker, "REDIS_URL")
    return str(refused.value)


@pytest.mark.parametrize("make", MAKERS)
async def test_a_certificate_is_trusted_by_its_issuers(
    valkey: Valkey, doors: Doors, make: Callable[..., Redis]
) -> None:
    settings = Settings(redis_ca_certs=doors.issuer.file)
    client = make(f"rediss://127.0.0.1:{doors.open(valkey.port).port}/0", settings=settings)

    assert await client.set("key", "value")

    await client.aclose()


@pytest.mark.parametrize("make", MAKERS)
async def test_any_certificate_is_taken_where_it_is_said_so(
    valkey: Valkey, doors: Doors, make: Callable[..., Redis]
) -> None:
    door = doors.open(valkey.port, name="redis.example")
    client = make(f"rediss://127.0.0.1:{door.port}/0", settings=ANY_CERTIFICATE)

    assert await client.set("key", "value")

    await client.aclose()


async def test_that_any_certificate_is_taken_is_said(
    valkey: Valkey, doors: Doors, caplog: pytest.LogCaptureFixture
) -> None:
    client = web_client(f"rediss://127.0.0.1:{doors.open(valkey.port).port}/0", settings=ANY_CERTIFICATE)

    async with breaker_of(client) as breaker:
        await check_access(client, breaker, "REDIS_URL")

    assert [record.message for record in caplog.records if record.levelno == logging.WARNING] == [
        "the certificate of redis is not checked: any is taken"
    ]


async def test_a_certificate_of_an_unknown_issuer_is_refused(valkey: Valkey, doors: Doors) -> None:
    client = web_client(f"rediss://:secret@127.0.0.1:{doors.open(valkey.port).port}/0")

    refusal = await refusal_of(client)

    assert refusal.startswith("REDIS_URL: the certificate of Redis cannot be trusted: ")
    assert "ASGI_LOOK_REDIS_CA_CERTS" in refusal
    assert "secret" not in refusal


async def test_a_certificate_of_another_name_is_refused(valkey: Valkey, doors: Doors) -> None:
    """Otherwise any certificate of the same issuer could pass for our Redis."""
    door = doors.open(valkey.port, name="redis.example")
    client = worker_client(f"rediss://127.0.0.1:{door.port}/0", settings=Settings(redis_ca_certs=doors.issuer.file))

    assert "IP address mismatch" in await refusal_of(client)


async def test_an_address_has_the_last_word_on_its_own_certificate(valkey: Valkey, doors: Doors) -> None:
    """REDIS_URL and CACHE_REDIS_URL may lead to two kinds of servers."""
    door = doors.open(valkey.port, name="redis.example")
    lenient = web_client(f"rediss://127.0.0.1:{door.port}/0?ssl_cert_reqs=none")
    strict = web_client(f"rediss://127.0.0.1:{door.port}/0?ssl_cert_reqs=required", settings=ANY_CERTIFICATE)

    async with breaker_of(lenient) as breaker:
        await check_access(lenient, breaker, "REDIS_URL")

    assert "cannot be trusted" in await refusal_of(strict)


async def test_an_address_that_wants_its_certificate_checked_has_the_name_in_it_checked(
    valkey: Valkey, doors: Doors
) -> None:
    """Where none is checked by default, as on Heroku, it asks for more than an issuer's word."""
    door = doors.open(valkey.port, name="redis.example")
    options = f"ssl_cert_reqs=required&ssl_ca_certs={doors.issuer.file}"
    client = web_client(f"rediss://127.0.0.1:{door.port}/0?{options}", settings=ANY_CERTIFICATE)

    assert "IP address mismatch" in await refusal_of(client)


@pytest.mark.parametrize(
    "options", ["ssl_cert_reqs=perhaps", "ssl_colour=red", "colour=red", "ssl_ca_certs=/nowhere", "max_connections=-1"]
)
async def test_an_option_that_makes_no_sense_is_found_before_anything_is_connected(options: str) -> None:
    with pytest.raises(SettingsError, match=r"^REDIS_URL, CACHE_REDIS_URL") as refused:
        web_client(f"rediss://:secret@127.0.0.1:1/0?{options}")

    assert "secret" not in str(refused.value)


async def test_the_connections_of_a_pool_share_their_context(valkey: Valkey, doors: Doors) -> None:
    """To make one takes most of a web request's deadline, and the event loop stands still meanwhile."""
    client = web_client(f"rediss://127.0.0.1:{doors.open(valkey.port).port}/0", settings=ANY_CERTIFICATE)
    pool = client.connection_pool

    connections = [await pool.get_connection() for _ in range(3)]

    assert len({id(connection.ssl_context.get()) for connection in connections}) == 1
    for connection in connections:
        await pool.release(connection)
    await client.aclose()


async def with_user(valkey: Valkey) -> None:
    """Have the server let nobody in but one user."""
    client = redis_from_url(valkey.url)
    await client.acl_setuser(USER, enabled=True, passwords=[f"+{PASSWORD}"], keys=["*"], commands=["+@all"])
    await client.acl_setuser("default", enabled=False)
    await client.aclose()


@pytest.mark.parametrize("make", MAKERS)
async def test_a_user_and_a_password_are_read_from_the_address(valkey: Valkey, make: Callable[..., Redis]) -> None:
    await with_user(valkey)
    client = make(f"redis://{ESCAPED}@127.0.0.1:{valkey.port}/0")

    assert await client.acl_whoami() == USER

    await client.aclose()


@pytest.mark.parametrize("credentials", ["we%40b:secret@", ":secret@", "", "secret:secret@"])
async def test_a_refusal_is_told_without_the_password(
    valkey: Valkey, credentials: str, caplog: pytest.LogCaptureFixture
) -> None:
    await with_user(valkey)
    caplog.set_level(logging.DEBUG)
    client = worker_client(f"redis://{credentials}127.0.0.1:{valkey.port}/0")

    refusal = await refusal_of(client)

    assert refusal.startswith("REDIS_URL: Redis does not take the user and password in it: ")
    assert "secret" not in refusal + caplog.text + repr(client)


async def test_a_redis_that_is_away_refuses_nobody() -> None:
    client = web_client("redis://127.0.0.1:1/0")

    async with breaker_of(client) as breaker:
        await check_access(client, breaker, "REDIS_URL")

        assert not breaker.is_open


def test_settings_do_not_show_their_secrets() -> None:
    settings = Settings(
        redis_url="redis://:secret@host/0", cache_redis_url="redis://:secret@host/1", write_token="secret"
    )

    assert "secret" not in repr(settings)


async def hold_connection(client: Redis) -> None:
    """Keep a connection for a second, which is longer than a web request waits."""
    await client.blpop(["nothing"], timeout=1)  # type: ignore[misc] # redis-py's types are those of both its clients


async def connected_clients(valkey: Valkey) -> int:
    """Return how many connections the server has, but for the one that asks."""
    client = redis_from_url(valkey.url)
    connected = len(await client.client_list())
    await client.aclose()
    return connected - 1


@pytest.mark.parametrize("make", [web_client, worker_client])
async def test_no_more_connections_are_opened_than_are_allowed(valkey: Valkey, make: Callable[..., Redis]) -> None:
    client = make(valkey.url, settings=Settings(redis_max_connections=3))
    async with breaker_of(client) as breaker:
        replies = await asyncio.gather(*(breaker.call(lambda: client.incr("counter")) for _ in range(200)))

        assert sorted(replies) == list(range(1, 201))
        assert await connected_clients(valkey) == (2 if make is web_client else 3)


async def test_a_request_that_gets_no_connection_in_time_does_without_and_opens_no_breaker(valkey: Valkey) -> None:
    """This process is busy: a breaker that opened for it would send all requests to the disk."""
    client = web_client(valkey.url, settings=Settings(redis_max_connections=2))
    async with breaker_of(client, WEB_DEADLINE) as breaker:
        await client.ping()
        busy = asyncio.create_task(breaker.call(lambda: hold_connection(client), extra_seconds=5.0))
        await asyncio.sleep(0)

        with pytest.raises(RedisAway, match="TimeoutError"):
            await breaker.call(client.ping)

        assert not breaker.is_open
        await busy
        assert await breaker.call(client.ping)


async def test_all_requests_that_wait_for_a_connection_to_a_frozen_redis_do_without_it(valkey: Valkey) -> None:
    client = web_client(valkey.url, settings=Settings(redis_max_connections=2))
    async with breaker_of(client, WEB_DEADLINE) as breaker:
        await client.ping()
        valkey.freeze()

        outcomes = await asyncio.gather(*(breaker.call(client.ping) for _ in range(20)), return_exceptions=True)

        valkey.thaw()
        assert {type(outcome) for outcome in outcomes} == {RedisAway}
        assert breaker.is_open


async def test_a_connection_that_takes_longer_than_a_request_waits_comes_about_all_the_same(
    valkey: Valkey, doors: Doors
) -> None:
    """Password and database are two exchanges before the first command, which alone would be in time.

    The process would never have a connection if each were cancelled with the request that asked for it.
    """
    await with_user(valkey)
    door = doors.open(valkey.port, seconds=WEB_DEADLINE / 3)
    client = web_client(f"rediss://{ESCAPED}@127.0.0.1:{door.port}/1", settings=ANY_CERTIFICATE)
    async with breaker_of(client, WEB_DEADLINE) as breaker:
        with pytest.raises(RedisAway, match="TimeoutError"):
            await breaker.call(client.ping)

        async def is_answered() -> bool:
            try:
                return bool(await breaker.call(client.ping))
            except RedisAway:
                return False

        await until(is_answered)


@pytest.mark.parametrize("make", [web_client, worker_client])
@pytest.mark.parametrize("in_transaction", [True, False])
async def test_a_connection_to_a_redis_that_has_become_a_replica_is_replaced(
    start_valkey: StartValkey, doors: Doors, make: Callable[..., Redis], in_transaction: bool
) -> None:
    """A failover makes a replica of the old master, which keeps the connections that it has."""
    old, new = start_valkey(), start_valkey()
    door = doors.open(old.port)
    client = make(f"rediss://127.0.0.1:{door.port}/0", settings=ANY_CERTIFICATE)

    async def write() -> None:
        async with client.pipeline(transaction=in_transaction) as pipe:
            pipe.set("key", "value")
            await pipe.execute()

    async with breaker_of(client) as breaker:
        await asyncio.gather(*(breaker.call(write) for _ in range(20)))
        admin = redis_from_url(old.url)
        await admin.replicaof("127.0.0.1", new.port)
        await admin.aclose()
        door.lead_newcomers_to(new.port)

        async def is_written() -> bool:
            try:
                await breaker.call(write)
            except RedisAway:
                return False
            return True

        await until(is_written)


async def test_closing_a_client_while_it_connects_leaves_no_task(valkey: Valkey) -> None:
    client = web_client(valkey.url)
    valkey.freeze()
    async with breaker_of(client, WEB_DEADLINE) as breaker:
        with pytest.raises(RedisAway):
            await breaker.call(client.ping)
    valkey.thaw()

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_connection_that_was_given_up_is_not_lost_to_the_pool(valkey: Valkey) -> None:
    client = web_client(valkey.url, settings=Settings(redis_max_connections=2))
    async with breaker_of(client, WEB_DEADLINE) as breaker:
        for _ in range(5):
            with pytest.raises(RedisAway):
                await breaker.call(lambda: hold_connection(client), may_open=False)

        assert await breaker.call(client.ping)


def test_the_issuers_file_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="ASGI_LOOK_REDIS_CA_CERTS: no such file"):
        Settings.from_env({"ASGI_LOOK_REDIS_CA_CERTS": str(tmp_path / "nothing.pem")})


@pytest.mark.parametrize(
    ("env", "cert_reqs"),
    [
        ({}, "required"),
        ({"DYNO": "web.1"}, "none"),
        ({"DYNO": "web.1", "ASGI_LOOK_REDIS_CERT_REQS": "required"}, "required"),
        ({"DYNO": "web.1", "ASGI_LOOK_REDIS_CA_CERTS": __file__}, "required"),
    ],
)
def test_on_heroku_any_certificate_is_taken_unless_it_can_be_checked(env: dict[str, str], cert_reqs: str) -> None:
    assert Settings.from_env(env | {"ASGI_LOOK_ALLOW_LOCAL": "1"}).redis_cert_reqs == cert_reqs
