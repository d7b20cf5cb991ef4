"""The gain and the size of local copies of an object store: `python -m bench.objects`, some minutes.

A thumbnail is read from the object store and from its local copy, in turns, five rounds each. First this process asks
storage; then two web processes answer over HTTP, of which one makes no copies. Neither memory nor Redis has the answer.
The store is moto's server on this machine (or SeaweedFS: see tests/objects.py), directly and behind a proxy that adds
the delay of rented stores.

Last, ten thousand pictures are read through a web process with a small cache, whose size is watched.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uuid_utils
from PIL import Image
from redis import Redis

from bench.service import Service, commands_of, end, run_service, until
from launch.processes import HERE, Part, free_port
from shared.storage.cached import CachedStorage
from shared.storage.objects import PUTS_AT_A_TIME, ObjectStorage
from tests.doors import Door
from tests.objects import ObjectServer, environment, new_prefix

T = TypeVar("T")

ROUNDS = 5
THUMBNAILS = 100
THUMBNAIL_BYTES = 12_000
#: Requests over HTTP in each round.
REQUESTS = 30
#: Seconds there and back: this machine's own; near; what Amazon says of small objects (0.1 to 0.2 to the first byte).
AWAY = (0.0, 0.03, 0.1)
PICTURES = 10_000
CLIENTS = 8
BOUND = 16 * 1024 * 1024


@contextlib.contextmanager
def store_away(server: ObjectServer, seconds: float) -> Iterator[str]:
    """Yield an address of the store with so much delay."""
    if not seconds:
        yield server.address
        return
    door = Door(server.port, None, seconds / 2)
    try:
        yield f"http://127.0.0.1:{door.port}"
    finally:
        door.close()


def turned(number: int, pair: tuple[T, T]) -> tuple[T, T]:
    """Return the pair, in every other round the other way around."""
    return pair if number % 2 else (pair[1], pair[0])


def tell(what: str, seconds: float, rounds: list[list[tuple[float, float]]]) -> None:
    """Print the median of the rounds' medians, each round's ratio, and the ratio of the fastest tenths.

    A busy machine changes the last one least.
    """
    medians = [[statistics.median(times) for times in zip(*taken, strict=True)] for taken in rounds]
    store, copy = (statistics.median(times) for times in zip(*medians, strict=True))
    everything = zip(*(both for taken in rounds for both in taken), strict=True)
    fast_store, fast_copy = (statistics.quantiles(times, n=10)[0] for times in everything)
    ratios = [far / near for far, near in medians]
    print(
        f"{what:9} {seconds * 1000:4.0f} ms away   store {store:7.2f} ms   copy {copy:6.3f} ms   "
        f"{statistics.median(ratios):6.1f} times   (rounds: {', '.join(f'{ratio:.1f}' for ratio in ratios)}; "
        f"fastest tenth: {fast_store:.2f} and {fast_copy:.3f} ms, {fast_store / fast_copy:.1f} times)",
        flush=True,
    )


async def compare(address: str, seconds: float, folder: Path) -> None:
    """Print the time of a thumbnail from the store and from its copy, by storage itself."""
    os.environ.update(environment(address))
    store = ObjectStorage(new_prefix(), folder)
    storage = CachedStorage(store, folder / "cache", 1024**3, floor=0)
    await storage.prepare()
    keys = await fill(store, THUMBNAILS)
    direct = store.read
    for key in keys:
        await storage.read(key)
    reads, rounds = (direct, storage.read), []
    for number in range(ROUNDS):
        pairs = [[await milliseconds(read, key) for read in turned(number, reads)] for key in keys]
        rounds.append([turned(number, (first, second)) for first, second in pairs])
    await storage.close()
    tell("storage", seconds, rounds)


async def fill(storage: ObjectStorage, count: int) -> list[str]:
    """Store so many renditions; return their keys."""

    async def keep(key: str) -> None:
        draft = await storage.draft()
        await draft.write(os.urandom(THUMBNAIL_BYTES))
        await storage.keep({key: draft})
        await draft.discard()

    keys = [f"renditions/{uuid_utils.uuid7()}/1/320x180.jpeg" for _ in range(count)]
    for start in range(0, count, PUTS_AT_A_TIME):
        await asyncio.gather(*(keep(key) for key in keys[start : start + PUTS_AT_A_TIME]))
    return keys


async def milliseconds(read: Callable[[str], Awaitable[bytes]], key: str) -> float:
    began = time.perf_counter()
    content = await read(key)
    took = (time.perf_counter() - began) * 1000
    assert len(content) == THUMBNAIL_BYTES  # noqa: S101 - what is measured is what is meant
    return took


def picture() -> bytes:
    """Return an upload with a thumbnail of about 12 kB."""
    pixels = np.random.default_rng(1).integers(0, 255, (45, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 360)).save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def client_of(port: int) -> Iterator[Callable[..., bytes]]:
    """Yield a function that makes requests over one connection and raises SystemExit on an error."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as web:

        def request(method: str, path: str, body: bytes | None = None) -> bytes:
            web.request(method, path, body, {"Prefer": "wait=20"} if body else {})
            answer = web.getresponse()
            content = answer.read()
            if answer.status >= 300 or answer.headers["X-ASGILook-Cache"] == "Hit":
                raise SystemExit(f"{method} {path}: {answer.status}, {answer.headers['X-ASGILook-Cache']}")
            return content

        yield request


@contextlib.contextmanager
def another_web(service: Service, folder: Path, **settings: str) -> Iterator[tuple[int, int]]:
    """Run a second web process of the service; yield its port and its process's id."""
    port = free_port()
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "REDIS_URL": f"redis://127.0.0.1:{service.valkey_port}/0",
        "ASGI_LOOK_STORAGE_PATH": str(folder),
        "ASGI_LOOK_LOG_LEVEL": "WARNING",
        **settings,
    }
    part = Part("web", commands_of(HERE)["web"], env).start()
    try:
        assert part.process is not None  # noqa: S101 - it was started
        until(lambda: Service(0, port, part, [], folder).is_ready())
        yield port, part.process.pid
    finally:
        end([part])


def over_http(address: str, seconds: float, folder: Path) -> None:
    """Print the time of a GET of a thumbnail, from a web process without copies and from one with them."""
    folder.mkdir()
    store: dict[str, Any] = {
        "ASGI_LOOK_STORAGE": new_prefix(),
        "ASGI_LOOK_MEMORY_CACHE_BYTES": "0",
        **environment(address),
    }
    with (
        run_service(folder, **store) as service,
        another_web(service, folder, **store, ASGI_LOOK_LOCAL_CACHE_BYTES="0") as (port, _),
        client_of(service.web_port) as with_copies,
        client_of(port) as without,
        closing(Redis(port=service.valkey_port)) as redis,
    ):
        upload = picture()
        paths = [json.loads(with_copies("POST", "/images", upload))["thumbnails"][0] for _ in range(REQUESTS)]

        def milliseconds_of(request: Callable[..., bytes], path: str) -> float:
            began = time.perf_counter()
            request("GET", path)
            milliseconds = (time.perf_counter() - began) * 1000
            # The answer's copy gets into Redis after the answer.
            until(lambda: redis.delete(*redis.scan_iter(f"*{path}"), "none") == 1, "no copy in Redis", every=0.001)
            return milliseconds

        def all_are_copied() -> bool:
            # Again if the late notice of an image's publication has removed its copies.
            for path in paths:
                milliseconds_of(with_copies, path)
            return sum(1 for _ in (folder / "cache").rglob("*.jpeg")) == REQUESTS

        until(all_are_copied, "not all are copied")
        clients, rounds = (without, with_copies), []
        for number in range(ROUNDS):
            pairs = [[milliseconds_of(client, path) for client in turned(number, clients)] for path in paths]
            rounds.append([turned(number, (first, second)) for first, second in pairs])
    tell("over HTTP", seconds, rounds)


def overflow(address: str, folder: Path) -> None:
    """Print the size of a small cache while several clients read many pictures."""
    folder.mkdir()
    os.environ.update(environment(address))
    url = new_prefix()
    store: dict[str, Any] = {"ASGI_LOOK_STORAGE": url}
    with run_service(folder, **store) as service, client_of(service.web_port) as request:
        record = json.loads(request("POST", "/images", picture()))
        paths = asyncio.run(multiplied(service, record, url, folder / "copier"))
        # Its own folder, and so its own cache.
        store |= {"ASGI_LOOK_LOCAL_CACHE_BYTES": str(BOUND), "DATABASE_URL": f"sqlite:///{service.ledger_file}"}
        (own := folder / "own").mkdir()
        with another_web(service, own, **store) as (port, process):
            print(f"{'pictures':>10} {'du, bytes':>12} {'at the most':>12}   of {BOUND:,}")
            with (
                Watch(own / "cache", process) as watch,
                ThreadPoolExecutor(CLIENTS) as clients,
                closing(Redis(port=service.valkey_port)) as redis,
            ):
                for start in range(0, PICTURES, PICTURES // 10):
                    part = paths[start : start + PICTURES // 10]
                    shares = [(port, part[number::CLIENTS]) for number in range(CLIENTS)]
                    list(clients.map(get_all, *zip(*shares, strict=True)))
                    print(f"{start + len(part):10,} {on_disk(own / 'cache'):12,} {watch.most:12,}", flush=True)
                    redis.flushall()
            print(f"looked {watch.looks:,} times meanwhile: {'within' if watch.most <= BOUND else 'PAST'} the bound")


def get_all(port: int, paths: list[str]) -> None:
    with client_of(port) as request:
        for path in paths:
            request("GET", path)


async def multiplied(service: Service, record: dict[str, Any], url: str, folder: Path) -> list[str]:
    """Add ten thousand images with a thumbnail each, as if they had been uploaded; return the paths."""
    name = str(record["thumbnails"][0]).rpartition("/")[2]
    storage = ObjectStorage(url, folder)
    await storage.prepare()
    thumbnail = await storage.read(f"renditions/{record['id']}/1/{name}")
    ids = [str(uuid_utils.uuid7()) for _ in range(PICTURES)]

    async def keep(image_id: str) -> None:
        draft = await storage.draft()
        # The size in the ledger.
        await draft.write(thumbnail[:-36] + image_id.encode())
        await storage.keep({f"renditions/{image_id}/1/{name}": draft})
        await draft.discard()

    for start in range(0, PICTURES, PUTS_AT_A_TIME):
        await asyncio.gather(*(keep(image_id) for image_id in ids[start : start + PUTS_AT_A_TIME]))
    with closing(sqlite3.connect(service.ledger_file, timeout=30)) as ledger, ledger:
        columns = [row[1] for row in ledger.execute("PRAGMA table_info(images)")]
        values = ", ".join({"id": "?", "sequence": "? + 1000"}.get(column, column) for column in columns)
        ledger.executemany(
            f"INSERT INTO images SELECT {values} FROM images WHERE id = ?",  # noqa: S608 - names of columns
            [(image_id, number, record["id"]) for number, image_id in enumerate(ids)],
        )
    return [f"/thumbnails/{image_id}/{name}" for image_id in ids]


class Watch(threading.Thread):
    """Watches the size of a folder for the block. The process is stopped for each look.

    Otherwise a copy that is deleted during a look and its successor would both be counted.
    """

    def __init__(self, folder: Path, process: int) -> None:
        super().__init__(daemon=True)
        self._folder = folder
        self._process = process
        self._ended = threading.Event()
        self.most = self.looks = 0

    def __enter__(self) -> Watch:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.02):
            os.kill(self._process, signal.SIGSTOP)
            os.waitpid(self._process, os.WUNTRACED)
            self.most = max(self.most, on_disk(self._folder))
            self.looks += 1
            os.kill(self._process, signal.SIGCONT)


def on_disk(folder: Path) -> int:
    """Return the size of a folder as `du` counts it: files, unfinished ones too, and folders."""
    used = folder.stat().st_blocks * 512
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(FileNotFoundError):  # deleted since it was listed
                used += on_disk(Path(entry.path)) if entry.is_dir() else entry.stat().st_blocks * 512
    return used


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = ObjectServer(folder / "server")
        try:
            for seconds in AWAY:
                with store_away(server, seconds) as address:
                    asyncio.run(compare(address, seconds, folder / f"storage-{seconds}"))
            for seconds in AWAY:
                with store_away(server, seconds) as address:
                    over_http(address, seconds, folder / f"http-{seconds}")
            overflow(server.address, folder / "small")
        finally:
            server.end()
    return 0


if __name__ == "__main__":
    sys.exit(main())
