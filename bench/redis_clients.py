"""The CPU of a read of the response cache, by the client of Redis: `python -m bench.redis_clients [rounds]`.

A read is one `MGET` of a token and of an entry of 13 KB, with 1, 10 and 50 readers at once. Measured are each client
alone, and the whole response cache by the shared connection and by redis-py's client. Clients that are not installed
(coredis, valkey-glide) are skipped with a notice.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import uvloop
from redis.asyncio import Redis

from bench.figures import ROUNDS, Figure, in_turns, ratio, rounds_asked_for, show
from bench.service import end, until
from launch.processes import Part, free_port
from launch.valkey import is_valkey_up, valkey_command
from shared.cancellation import cancel
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import web_client
from shared.redis.response_cache import RENDITION_SECONDS, Copy, ResponseCache, Slot
from shared.redis.shared_connection import SharedConnection, connection_beside

#: Readers at once, and reads of each side in a round.
CONCURRENCIES = (1, 10, 50)
READS = 3_000

ID = "0192f0c1-7c1e-7b1e-8b1e-0192f0c17c1e"
SLOT = Slot(f"/thumbnails/{ID}/320x180.jpeg", ID, RENDITION_SECONDS)
KEYS = (f"asgilook:5ca1ab1e:token:{ID}", f"asgilook:5ca1ab1e:response:{SLOT.path}")
HEADERS = (
    ("etag", '"2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae"'),
    ("last-modified", "Wed, 25 Nov 2026 20:00:00 GMT"),
    ("cache-control", "public, max-age=31536000, immutable"),
    ("accept-ranges", "bytes"),
    ("x-content-type-options", "nosniff"),
    ("content-type", "image/jpeg"),
)
#: Random bytes of the size of a thumbnail.
BODY = os.urandom(13_000)

Read = Callable[[], Awaitable[Any]]

WHOLE, WHOLE_BEFORE = "response cache", "response cache by redis-py"
SHARED, CLIENT = "shared connection", "redis-py"


class JoinedPipelines:
    """redis-py's pipeline, one for each turn of the event loop."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._asked: list[asyncio.Future[Any]] = []
        self._task: asyncio.Task[None] | None = None

    def mget(self) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._begin)
        self._asked.append(loop.create_future())
        return self._asked[-1]

    def _begin(self) -> None:
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        asked, self._asked = self._asked, []
        pipe = self._client.pipeline(transaction=False)
        for _ in asked:
            pipe.mget(*KEYS)
        for future, reply in zip(asked, await pipe.execute(), strict=True):
            future.set_result(reply)


@contextmanager
def running_valkey() -> Iterator[int]:
    """Run a Valkey for the block; yield its port."""
    with tempfile.TemporaryDirectory() as folder:
        port = free_port()
        valkey = Part("Valkey", valkey_command(Path(folder), port), dict(os.environ)).start()
        try:
            until(
                lambda: valkey.process is not None and is_valkey_up(port, valkey.process.pid), "Valkey does not start"
            )
            yield port
        finally:
            end([valkey])


@asynccontextmanager
async def clients(port: int) -> AsyncIterator[dict[str, Read]]:
    """Yield every client's read."""
    url = f"redis://127.0.0.1:{port}/0"
    async with AsyncExitStack() as opened:
        client = web_client(url)
        opened.push_async_callback(client.aclose)
        breaker = CircuitBreaker(client, WORKER_DEADLINE)  # long enough for a busy machine
        opened.push_async_callback(breaker.close)
        shared = connection_beside(client)
        if shared is None:
            raise SystemExit("a fake Redis is not measured")
        opened.push_async_callback(cancel, await running(shared))
        cache, before = (ResponseCache(client, breaker, lambda: "5ca1ab1e", each) for each in (shared, None))
        cache.fill(SLOT, (await cache.read(SLOT)).token, Copy.of(200, HEADERS, BODY))
        ways: dict[str, Read] = {
            WHOLE: lambda: cache.read(SLOT),
            WHOLE_BEFORE: lambda: before.read(SLOT),
            SHARED: lambda: shared.execute(("MGET", *KEYS), seconds=5.0),
            CLIENT: lambda: client.mget(*KEYS),
            "a redis-py pipeline a turn": JoinedPipelines(client).mget,
        }
        for name, open_foreign in (("coredis", coredis_client), ("valkey-glide", glide_client)):
            try:
                ways[name] = await open_foreign(opened, port)
            except ImportError:
                print(f"{name} is not installed, and skipped", file=sys.stderr)
        yield ways


async def keep_clients(port: int, opened: asyncio.Future[dict[str, Read]], is_over: asyncio.Event) -> None:
    """Open and close every client in one task, as coredis requires."""
    try:
        async with clients(port) as ways:
            opened.set_result(ways)
            await is_over.wait()
    except BaseException as exc:
        if opened.done():
            raise
        opened.set_exception(exc)


async def running(shared: SharedConnection) -> asyncio.Task[None]:
    """Return the task of a shared connection that is connected."""
    task = asyncio.create_task(shared.run())
    while not shared.is_free:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.001)
    return task


async def coredis_client(opened: AsyncExitStack, port: int) -> Read:
    client = await opened.enter_async_context(import_module("coredis").Redis(host="127.0.0.1", port=port))
    return lambda: client.mget(KEYS)


async def glide_client(opened: AsyncExitStack, port: int) -> Read:
    glide = import_module("glide")
    address = glide.NodeAddress("127.0.0.1", port)
    client = await glide.GlideClient.create(glide.GlideClientConfiguration([address]))
    opened.push_async_callback(client.close)
    return lambda: client.mget(list(KEYS))


async def microseconds(read: Read, concurrency: int) -> float:
    """Return the CPU microseconds of this process for one read, with so many readers at once."""
    each = READS // concurrency

    async def go_on_reading() -> None:
        for _ in range(each):
            if not await read():
                raise SystemExit("nothing was found")

    begun = time.process_time()
    async with asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(go_on_reading())
    return (time.process_time() - begun) / (each * concurrency) * 1e6


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    """Yield the gain of the shared connection, alone and as a part of the response cache."""
    with running_valkey() as port, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        opened: asyncio.Future[dict[str, Read]] = runner.get_loop().create_future()
        is_over = asyncio.Event()
        keeping = runner.get_loop().create_task(keep_clients(port, opened, is_over))
        ways = runner.get_loop().run_until_complete(opened)
        for concurrency in CONCURRENCIES:
            sides = {name: partial(side, runner, read, concurrency) for name, read in ways.items()}
            runs = in_turns(sides, rounds, f"{concurrency} at once")
            for what, before, after, others in (
                ("a read of the response cache", WHOLE_BEFORE, WHOLE, ()),
                ("the MGET alone", CLIENT, SHARED, set(ways) - {WHOLE, WHOLE_BEFORE}),
            ):
                yield Figure(
                    "serving",
                    f"CPU of {what}, {concurrency} at once: redis-py / the shared connection",
                    ratio(runs, before, after),
                    runs={name: values for name, values in runs.items() if name in {before, after, *others}},
                    runs_unit="µs",
                )
        is_over.set()
        runner.get_loop().run_until_complete(keeping)


def side(runner: asyncio.Runner, read: Read, concurrency: int) -> float:
    return runner.run(microseconds(read, concurrency))


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
