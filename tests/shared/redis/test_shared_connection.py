"""The shared connection: each caller gets its own replies, whatever happens to the server or to other callers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import fakeredis
import hiredis
import pytest
import uvloop
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as ConnectionLost
from redis.exceptions import NoPermissionError, OutOfMemoryError, ResponseError

from shared.cancellation import cancel
from shared.redis.circuit_breaker import WEB_DEADLINE
from shared.redis.clients import web_client
from shared.redis.shared_connection import SharedConnection, connection_beside
from shared.settings import Settings
from tests.doors import Doors
from tests.valkey import StartValkey, Valkey
from tests.waiting import until

#: Seconds that nothing here takes.
LONG = 30.0


@pytest.fixture(autouse=True)
def short_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the next connection every hundredth of a second."""
    monkeypatch.setattr("shared.redis.shared_connection._FIRST_PAUSE", 0.01)
    monkeypatch.setattr("shared.redis.shared_connection._LONGEST_PAUSE", 0.01)


@asynccontextmanager
async def running(url: str, settings: Settings | None = None) -> AsyncIterator[SharedConnection]:
    """Run a shared connection to the server at `url` during the block."""
    client = web_client(url, settings=settings or Settings())
    shared = connection_beside(client)
    assert shared is not None
    task = asyncio.create_task(shared.run())
    try:
        yield shared
    finally:
        await cancel(task)
        await client.aclose()


@asynccontextmanager
async def connected(url: str, settings: Settings | None = None) -> AsyncIterator[SharedConnection]:
    """Run one that is connected."""
    async with running(url, settings) as shared:
        await until(lambda: shared.is_free)
        yield shared


async def store(valkey: Valkey, count: int) -> None:
    """Keep a value of its own under each of so many keys."""
    client = Redis.from_url(valkey.url)
    await client.mset({f"key {i}": f"value {i}" for i in range(count)})
    await client.aclose()


def value(i: int) -> list[bytes | None]:
    return [f"value {i}".encode(), None]


async def read(shared: SharedConnection, i: int, seconds: float = LONG) -> Any:
    (values,) = await shared.execute(("MGET", f"key {i}", "nothing"), seconds=seconds)
    return values


async def outcome_of(reply: Awaitable[Any]) -> type[BaseException]:
    """Return the type of the error that awaiting the reply raises."""
    try:
        await reply
    except Exception as exc:
        return type(exc)
    raise AssertionError("there was a reply")


# --- With a real server --------------------------------------------------------------------------------------


async def test_many_at_once_have_each_their_own_reply_over_one_connection(valkey: Valkey) -> None:
    await store(valkey, 500)
    async with connected(valkey.url) as shared:
        replies = await asyncio.gather(*(read(shared, i) for i in range(500)))

        assert replies == [value(i) for i in range(500)]
        client = Redis.from_url(valkey.url)
        assert len(await client.client_list()) == 2
        await client.aclose()


async def test_replies_larger_than_any_buffer_come_in_their_order(valkey: Valkey) -> None:
    client = Redis.from_url(valkey.url)
    bodies = {f"key {i}": bytes([i]) * (200_000 * i) for i in range(8)}
    await client.mset(bodies)
    await client.aclose()
    async with connected(valkey.url) as shared:
        replies = await asyncio.gather(*(read(shared, i) for i in range(8)))

        assert replies == [[body, None] for body in bodies.values()]


async def test_a_cancelled_caller_does_not_shift_the_replies_of_the_others(valkey: Valkey) -> None:
    await store(valkey, 40)
    async with connected(valkey.url) as shared:
        valkey.freeze()
        tasks = [asyncio.create_task(read(shared, i)) for i in range(20)]
        await asyncio.sleep(0)
        await cancel(*tasks[::3])
        tasks += [asyncio.create_task(read(shared, i)) for i in range(20, 40)]
        await asyncio.sleep(0)
        valkey.thaw()

        outcomes = await asyncio.gather(*tasks, return_exceptions=True)

        for i, outcome in enumerate(outcomes):
            if i < 20 and i % 3 == 0:
                assert isinstance(outcome, asyncio.CancelledError)
            else:
                assert outcome == value(i)
        assert await read(shared, 7) == value(7)


async def test_a_frozen_server_ends_every_exchange_and_the_connection(valkey: Valkey) -> None:
    """Or what is asked meanwhile would gather in memory, and what comes late be taken for somebody else's."""
    await store(valkey, 40)
    async with connected(valkey.url) as shared:
        valkey.freeze()
        begun = time.monotonic()
        first = [outcome_of(read(shared, i, WEB_DEADLINE)) for i in range(20)]
        later = [outcome_of(read(shared, i)) for i in range(20, 40)]

        outcomes = await asyncio.gather(*first, *later)

        assert set(outcomes) == {TimeoutError}
        # A loop counts in whole milliseconds.
        assert time.monotonic() - begun >= WEB_DEADLINE - 0.002
        assert not shared.is_free
        valkey.thaw()
        await until(lambda: shared.is_free)
        assert await asyncio.gather(*(read(shared, i) for i in range(40))) == [value(i) for i in range(40)]


async def test_a_long_deadline_does_not_hide_a_short_one(valkey: Valkey) -> None:
    async with connected(valkey.url) as shared:
        valkey.freeze()

        outcomes = await asyncio.gather(
            *(outcome_of(read(shared, 1, seconds)) for seconds in (LONG, WEB_DEADLINE, LONG))
        )

        assert outcomes == [TimeoutError] * 3
        valkey.thaw()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_standstill_of_our_own_is_no_overdue_reply(
    valkey: Valkey, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    """On a busy machine a process stands still for longer than the deadline now and then; the reply is there then."""

    async def ask() -> None:
        await store(valkey, 1)
        async with connected(valkey.url) as shared:
            for _ in range(3):
                reply = asyncio.ensure_future(read(shared, 0, WEB_DEADLINE))
                await asyncio.sleep(0)
                time.sleep(3 * WEB_DEADLINE)  # noqa: ASYNC251 - the loop is to stand still
                assert await reply == value(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(ask())


async def test_a_connection_that_is_cut_is_followed_by_another(valkey: Valkey) -> None:
    await store(valkey, 1)
    async with connected(valkey.url) as shared:
        for _ in range(3):
            valkey.cut_connections()
            await until(lambda: not shared.is_free)
            await until(lambda: shared.is_free)

            assert await read(shared, 0) == value(0)


async def test_a_server_that_starts_again_is_found_again(valkey: Valkey) -> None:
    async with connected(valkey.url) as shared:
        valkey.end()
        await until(lambda: not shared.is_free)
        valkey.start_again()
        await until(lambda: shared.is_free)

        assert await read(shared, 0) == [None, None]


async def test_the_commands_of_an_exchange_are_answered_together_a_refusal_among_the_answers(valkey: Valkey) -> None:
    async with connected(valkey.url) as shared:
        first, second = (
            shared.execute(
                ("SET", "token", token, "NX", "EX", 60), ("LPUSH", "token", 1), ("MGET", "token", "no"), seconds=LONG
            )
            for token in (b"one", b"two")
        )

        replies = [await first, await second]

        assert [[type(reply) for reply in each] for each in replies] == [
            [bytes, ResponseError, list],
            [type(None), ResponseError, list],
        ]
        assert [each[2] for each in replies] == [[b"one", None]] * 2


async def test_a_full_server_refuses_the_write_and_answers_the_read(valkey: Valkey) -> None:
    await store(valkey, 1)
    client = Redis.from_url(valkey.url)
    await client.config_set("maxmemory", "1")
    await client.aclose()
    async with connected(valkey.url) as shared:
        refusal, values = await shared.execute(("SET", "a", "b"), ("MGET", "key 0", "nothing"), seconds=LONG)

        assert (type(refusal), values) == (OutOfMemoryError, value(0))


async def test_a_refusal_is_its_callers_alone(valkey: Valkey) -> None:
    await store(valkey, 2)
    client = Redis.from_url(valkey.url)
    await client.acl_setuser("default", enabled=True, nopass=True, reset_keys=True, keys=["key?1", "nothing"])
    async with connected(valkey.url) as shared:
        outcomes = await asyncio.gather(*(read(shared, i) for i in (0, 1, 0, 1)))

        assert [type(outcome) for outcome in outcomes[::2]] == [NoPermissionError] * 2
        assert outcomes[1::2] == [value(1)] * 2
        assert shared.is_free
    await client.aclose()


async def test_what_ends_leaves_no_task_and_no_connection(valkey: Valkey) -> None:
    async with connected(valkey.url) as shared:
        valkey.freeze()
        waiting = asyncio.ensure_future(outcome_of(read(shared, 1)))
        await asyncio.sleep(0)
    valkey.thaw()

    assert await waiting is ConnectionLost
    assert not shared.is_free
    assert asyncio.all_tasks() == {asyncio.current_task()}
    client = Redis.from_url(valkey.url)

    async def is_alone() -> bool:
        return len(await client.client_list()) == 1

    await until(is_alone)
    await client.aclose()


async def test_ending_while_it_connects_leaves_no_task(valkey: Valkey) -> None:
    valkey.freeze()
    async with running(valkey.url) as shared:
        await asyncio.sleep(0.01)  # somewhere in the middle of it

        assert not shared.is_free
    valkey.thaw()

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_server_that_may_only_be_read_is_left_for_another(start_valkey: StartValkey, doors: Doors) -> None:
    """A failover makes a replica of the old one, which keeps its connections; reads alone would never find out.

    Over them no changed token would be seen, and what is deleted be served for as long as copies live.
    """
    old, new = start_valkey(), start_valkey()
    await store(new, 1)
    door = doors.open(old.port)
    async with connected(f"rediss://127.0.0.1:{door.port}/0", Settings(redis_cert_reqs="none")) as shared:
        assert await read(shared, 0) == [None, None]
        admin = Redis.from_url(old.url)
        await admin.replicaof("127.0.0.1", 1)
        await admin.aclose()
        door.lead_newcomers_to(new.port)

        look = shared.execute(("SET", "token", "1", "NX"), ("MGET", "token", "key 0"), seconds=LONG)

        assert await outcome_of(look) is ConnectionLost
        await until(lambda: shared.is_free)
        assert await read(shared, 0) == value(0)


# --- Certificates, names and passwords -------------------------------------------------------------------------


async def test_a_trusted_certificate_a_name_and_a_database_are_no_hindrance(valkey: Valkey, doors: Doors) -> None:
    client = Redis.from_url(f"redis://127.0.0.1:{valkey.port}/3")
    await client.set("key 0", "value 0")
    await client.acl_setuser("we@b", enabled=True, passwords=["+p@ss:/w"], keys=["*"], commands=["+@all"])
    await client.acl_setuser("default", enabled=False)
    await client.aclose()
    url = f"rediss://we%40b:p%40ss%3A%2Fw@127.0.0.1:{doors.open(valkey.port).port}/3"

    async with connected(url, Settings(redis_ca_certs=doors.issuer.file)) as shared:
        assert await asyncio.gather(*(read(shared, 0) for _ in range(50))) == [value(0)] * 50


@pytest.mark.parametrize("name", ["127.0.0.1", "redis.example"])
async def test_a_certificate_that_is_not_trusted_is_never_read_from(
    valkey: Valkey, doors: Doors, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Of an unknown issuer, or of another name."""
    caplog.set_level(logging.DEBUG, "shared.redis.shared_connection")
    settings = Settings() if name == "127.0.0.1" else Settings(redis_ca_certs=doors.issuer.file)
    async with running(f"rediss://127.0.0.1:{doors.open(valkey.port, name).port}/0", settings) as shared:
        await until(lambda: len(caplog.records) == 3)

        assert not shared.is_free
    assert "certificate verify failed" in str(caplog.records[0].__dict__["reason"])


@pytest.mark.parametrize("credentials", [":secret@", "nobody:secret@"])
async def test_a_refused_connection_is_tried_again_and_logs_no_password(
    valkey: Valkey, caplog: pytest.LogCaptureFixture, credentials: str
) -> None:
    caplog.set_level(logging.DEBUG)
    client = Redis.from_url(valkey.url)
    await client.config_set("requirepass", "another")
    await client.aclose()
    async with running(f"redis://{credentials}127.0.0.1:{valkey.port}/0") as shared:
        await until(lambda: sum(record.name == "shared.redis.shared_connection" for record in caplog.records) == 3)

        assert not shared.is_free
    assert "AuthenticationError" in caplog.records[-1].__dict__["reason"]
    assert "secret" not in caplog.text + str([record.__dict__ for record in caplog.records])


# --- With a server that says what a test has it say ----------------------------------------------------------


class Script:
    """A server that accepts every connection, notes the commands, and says nothing by itself."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[list[bytes]] = []
        self.writers: list[asyncio.StreamWriter] = []
        #: Hangs up on every connection.
        self.is_closed = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        parser = hiredis.Reader()
        with suppress(ConnectionError):
            while (data := await reader.read(65536)) and not self.is_closed:
                parser.feed(data)
                while command := parser.gets():
                    if command[0] == b"CLIENT":
                        writer.write(b"+OK\r\n")
                    else:
                        self.asked.append(command)
        writer.transport.abort()

    async def say(self, words: bytes) -> None:
        """Say it over the latest connection."""
        self.writers[-1].write(words)
        await self.writers[-1].drain()


@pytest.fixture
async def script() -> AsyncIterator[Script]:
    script = Script()
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    script.url = f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    yield script
    server.close()
    for writer in script.writers:
        writer.transport.abort()
    await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


FIRST, SECOND = b"*2\r\n$7\r\nvalue 0\r\n$-1\r\n", b"*2\r\n$7\r\nvalue 1\r\n$-1\r\n"


async def ask(shared: SharedConnection, script: Script, count: int) -> list[asyncio.Future[list[Any]]]:
    """Return so many exchanges, each of one command, once the server has received them."""
    so_far = len(script.asked)
    replies = [shared.execute(("MGET", f"key {i}", "nothing"), seconds=LONG) for i in range(count)]
    await until(lambda: len(script.asked) == so_far + count)
    return replies


async def test_replies_may_come_in_any_pieces(script: Script) -> None:
    said = FIRST + b"-ERR no\r\n" + SECOND
    async with connected(script.url) as shared:
        for at in range(1, len(said)):
            replies = await ask(shared, script, 3)
            await script.say(said[:at])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            await script.say(said[at:])

            ((first,), (refusal,), (last,)) = await asyncio.gather(*replies)

            assert (first, str(refusal), last) == (value(0), "no", value(1))


async def test_replies_may_come_byte_by_byte(script: Script) -> None:
    async with connected(script.url) as shared:
        replies = await ask(shared, script, 2)
        for byte in FIRST + SECOND:
            await script.say(bytes([byte]))
            await asyncio.sleep(0.001)  # so that they do come apart

        assert await asyncio.gather(*replies) == [[value(0)], [value(1)]]


async def test_commands_are_sent_in_the_order_of_their_callers(script: Script) -> None:
    async with connected(script.url) as shared:
        replies = await ask(shared, script, 30)

        assert [command[1] for command in script.asked] == [f"key {i}".encode() for i in range(30)]
        await script.say(FIRST * 30)
        assert await asyncio.gather(*replies) == [[value(0)]] * 30


@pytest.mark.parametrize(
    "refusal",
    [
        b"-ERR unknown command",
        b"-NOPERM this user has no permissions",
        b"-MOVED 3999 127.0.0.1:6381",
        b"-MASTERDOWN Link with MASTER is down",
        b"-OOM command not allowed when used memory > 'maxmemory'.",
    ],
)
async def test_a_refusal_is_the_reply_to_its_own_command(script: Script, refusal: bytes) -> None:
    async with connected(script.url) as shared:
        replies = await ask(shared, script, 3)
        await script.say(FIRST + refusal + b"\r\n" + SECOND)

        ((first,), (middle,), (last,)) = await asyncio.gather(*replies)

        assert (first, last) == (value(0), value(1))
        assert isinstance(middle, ResponseError)


@pytest.mark.parametrize(
    "ending",
    [
        b"*99999999999999999999\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x46",
        b"-READONLY You can't write against a read only replica.\r\n",
        b"-LOADING Redis is loading the dataset in memory\r\n",
        b"-NOAUTH Authentication required.\r\n",
        b"-ERR max number of clients reached\r\n",
    ],
)
async def test_a_reply_that_makes_the_connection_useless_ends_it_and_belongs_to_no_command(
    script: Script, ending: bytes
) -> None:
    """It is no Redis, none that takes writes, or none that lets us in."""
    async with connected(script.url) as shared:
        replies = await ask(shared, script, 3)
        await script.say(FIRST + ending + SECOND + SECOND)

        outcomes = await asyncio.gather(*replies, return_exceptions=True)

        assert outcomes[0] == [value(0)]
        assert [type(outcome) for outcome in outcomes[1:]] == [ConnectionLost] * 2
        await until(lambda: len(script.writers) == 2 and shared.is_free)
        replies = await ask(shared, script, 1)
        await script.say(SECOND)
        assert await replies[0] == [value(1)]


@pytest.mark.parametrize("words", [FIRST, b"-ERR out of nowhere\r\n", b"nonsense\r\n"])
async def test_a_reply_that_no_command_asked_for_ends_the_connection(script: Script, words: bytes) -> None:
    """The next one's reply would come after it, and be the one's behind."""
    async with connected(script.url) as shared:
        await script.say(words)
        await until(lambda: len(script.writers) == 2 and shared.is_free)

        replies = await ask(shared, script, 1)
        await script.say(SECOND)

        assert await replies[0] == [value(1)]


async def test_a_late_reply_belongs_to_no_command(script: Script) -> None:
    async with connected(script.url) as shared:
        assert await outcome_of(read(shared, 0, WEB_DEADLINE)) is TimeoutError
        with suppress(ConnectionError):
            await script.say(FIRST)
        await until(lambda: len(script.writers) == 2 and shared.is_free)

        replies = await ask(shared, script, 1)
        with suppress(ConnectionError):
            script.writers[0].write(FIRST)
        await script.say(SECOND)

        assert await replies[0] == [value(1)]


async def test_the_reply_to_a_cancelled_caller_is_waited_for_all_the_same(script: Script) -> None:
    """A frozen server would never be noticed if its callers were all cancelled."""
    async with connected(script.url) as shared:
        gone = asyncio.create_task(read(shared, 0, WEB_DEADLINE))
        await asyncio.sleep(0)
        await cancel(gone)

        await until(lambda: len(script.writers) == 2)


@pytest.mark.parametrize("said", [b"", FIRST[:9], FIRST, FIRST + SECOND[:-1]])
async def test_a_server_that_hangs_up_in_the_middle_ends_each_exchange_that_has_no_reply(
    script: Script, said: bytes
) -> None:
    async with connected(script.url) as shared:
        replies = await ask(shared, script, 2)
        await script.say(said)
        script.writers[-1].close()

        outcomes = await asyncio.gather(*replies, return_exceptions=True)

        if said.startswith(FIRST):
            assert outcomes.pop(0) == [value(0)]
        assert {type(outcome) for outcome in outcomes} == {ConnectionLost}
        await until(lambda: len(script.writers) == 2 and shared.is_free)


async def test_a_server_that_hangs_up_at_once_is_asked_ever_more_rarely(
    script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shared.redis.shared_connection._LONGEST_PAUSE", 0.04)
    script.is_closed = True
    begun = time.monotonic()
    async with running(script.url):
        await until(lambda: len(script.writers) == 6)

    # After 10 ms, 20 and then 40 each; a busy machine makes it more.
    assert time.monotonic() - begun >= 0.14


async def test_an_unforeseen_failure_is_logged_and_followed_by_another_attempt(
    valkey: Valkey, caplog: pytest.LogCaptureFixture
) -> None:
    class Odd:
        async def connect(self) -> None:
            raise ValueError("odd")

        async def disconnect(self, nowait: bool) -> None:
            """There is nothing to end."""

    client = web_client(valkey.url)
    make_connection: Callable[[], AbstractConnection] = client.connection_pool.make_connection
    odd: list[Any] = [Odd()]
    shared = SharedConnection(lambda: odd.pop() if odd else make_connection())
    task = asyncio.create_task(shared.run())

    await until(lambda: shared.is_free)

    assert "ValueError: odd" in caplog.text
    await cancel(task)
    await client.aclose()


async def test_no_more_is_on_its_way_than_is_good(script: Script) -> None:
    """What a server has answered and nobody has read is in its memory, and the last exchange waits for all of it."""
    async with connected(script.url) as shared:
        free = []
        replies = await ask(shared, script, 127)
        free.append(shared.is_free)
        replies += await ask(shared, script, 1)
        free.append(shared.is_free)
        await script.say(FIRST)
        await replies[0]
        free.append(shared.is_free)

        assert free == [True, False, True]


async def test_dropping_it_ends_every_exchange_and_makes_another(script: Script) -> None:
    async with connected(script.url) as shared:
        replies = await ask(shared, script, 3)

        shared.drop()

        assert not shared.is_free
        assert [await outcome_of(reply) for reply in replies] == [ConnectionLost] * 3
        await until(lambda: len(script.writers) == 2 and shared.is_free)


async def test_without_a_connection_nothing_is_waited_for(script: Script) -> None:
    async with running(script.url) as shared:
        shared.drop()

        with pytest.raises(ConnectionLost):
            shared.execute(("GET", "key 0"), seconds=LONG)


async def test_there_is_none_beside_a_fake(redis: fakeredis.FakeAsyncRedis) -> None:
    assert connection_beside(redis) is None
