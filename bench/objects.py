"""What a copy on the web process's disk is worth: `python -m bench.objects`, beside an object store of its own.

Thumbnails are read from the store and from their copies, in one run and one process: as the store here answers, which
is on the same machine, and as one does that is `LATENCY` away, which is little. Then the same over HTTP, Redis' copies
forgotten before each request. Last, ten thousand pictures pass through a small cache, and what it takes up is watched.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import uuid_utils
from PIL import Image
from redis import Redis

from bench.service import run_service
from shared.storage.cached import CachedObjectStorage
from shared.storage.objects import ObjectStorage
from tests.objects import ObjectServer, environment, new_prefix

THUMBNAILS = 300
THUMBNAIL_BYTES = 12_000
#: Seconds between asking a store for something and its first byte, of one in the same region.
LATENCY = 0.015
PICTURES = 10_000
BOUND = 16 * 1024 * 1024


class Distant(asyncio.Protocol):
    """One end of a pipe through which what is sent arrives later."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._other: asyncio.Transport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._connecting = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        near = self._transport

        class Answers(asyncio.Protocol):
            def data_received(self, data: bytes) -> None:
                near.write(data)  # type: ignore[attr-defined] # a stream's transport

            def connection_lost(self, exc: Exception | None) -> None:
                near.close()

        self._other, _ = await loop.create_connection(Answers, "127.0.0.1", self._port)
        for data in self._early:
            self._other.write(data)

    def data_received(self, data: bytes) -> None:
        asyncio.get_running_loop().call_later(LATENCY, self._pass_on, data)

    def _pass_on(self, data: bytes) -> None:
        if self._other is None:
            self._early.append(data)
        else:
            self._other.write(data)


async def milliseconds(read: Callable[[str], Awaitable[bytes]], keys: list[str]) -> list[float]:
    """Return how long each read took."""
    took = []
    for key in keys:
        began = time.perf_counter()
        content = await read(key)
        took.append((time.perf_counter() - began) * 1000)
        assert len(content) == THUMBNAIL_BYTES  # noqa: S101 - what is measured is what is meant
    return took


async def fill(storage: ObjectStorage, count: int, length: int) -> list[str]:
    """Keep so many renditions; return their keys."""

    async def keep(key: str) -> None:
        draft = await storage.draft()
        await draft.write(os.urandom(length))
        await storage.keep({key: draft})
        await draft.discard()

    keys = [f"renditions/{uuid_utils.uuid7()}/1/320x180.jpeg" for _ in range(count)]
    for start in range(0, count, 16):
        await asyncio.gather(*(keep(key) for key in keys[start : start + 16]))
    return keys


async def compare(name: str, address: str, folder: Path) -> None:
    """Print what a thumbnail costs from the store and from its copy."""
    os.environ.update(environment(address))
    storage = CachedObjectStorage(new_prefix(), folder, 1024**3)
    await storage.prepare()
    keys = await fill(storage, THUMBNAILS, THUMBNAIL_BYTES)
    direct = super(CachedObjectStorage, storage).read
    await milliseconds(direct, keys[:20])
    from_store = await milliseconds(direct, keys)
    await milliseconds(storage.read, keys)
    from_copy = await milliseconds(storage.read, keys)
    store, copy = statistics.median(from_store), statistics.median(from_copy)
    print(f"{name:34}  store {store:7.2f} ms   copy {copy:6.3f} ms   {store / copy:5.0f} times")
    await storage.close()


async def overflow(address: str, folder: Path) -> None:
    """Print what a small cache takes up at the most while many pictures pass through."""
    os.environ.update(environment(address))
    storage = CachedObjectStorage(new_prefix(), folder, BOUND)
    await storage.prepare()
    most = 0
    for _ in range(PICTURES // 500):
        keys = await fill(storage, 500, THUMBNAIL_BYTES)
        for start in range(0, len(keys), 20):
            await asyncio.gather(*(storage.read(key) for key in keys[start : start + 20]))
        used = sum(path.stat().st_blocks * 512 for path in (folder / "cache").rglob("*.jpeg"))
        most = max(most, used)
    print(f"{PICTURES:,} pictures through a cache of {BOUND:,} bytes: at most {most:,} on the disk")
    await storage.close()


def over_http(name: str, address: str, folder: Path) -> None:
    """Print what a GET of a thumbnail costs, the store asked or not."""
    folder.mkdir()
    settings: dict[str, Any] = {"ASGI_LOOK_STORAGE": new_prefix(), **environment(address)}
    pixels = np.random.default_rng(1).integers(0, 255, (45, 80, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((640, 360)).save(buffer, "PNG")
    with run_service(folder, **settings) as service, closing(HTTPConnection("127.0.0.1", service.web_port)) as web:
        redis = Redis(port=service.valkey_port)

        def request(method: str, path: str, body: bytes | None = None) -> bytes:
            web.request(method, path, body, {"Prefer": "wait=20", "Content-Type": "image/png"} if body else {})
            answer = web.getresponse()
            content = answer.read()
            if answer.status >= 300:
                raise SystemExit(f"{method} {path}: {answer.status} {content!r}")
            return content

        paths = [json.loads(request("POST", "/images", buffer.getvalue()))["thumbnails"][0] for _ in range(60)]
        time.sleep(1)  # the notices of their publication have been heard
        took: list[list[float]] = []
        for _ in range(2):
            took.append([])
            for path in paths:
                redis.flushall()
                began = time.perf_counter()
                request("GET", path)
                took[-1].append((time.perf_counter() - began) * 1000)
        redis.close()
    store, copy = (statistics.median(times) for times in took)
    print(f"{name:34}  store {store:7.2f} ms   copy {copy:6.3f} ms   {store / copy:5.1f} times")


async def distant(port: int) -> asyncio.Server:
    """Return a server that is the same one, further away."""
    return await asyncio.get_running_loop().create_server(lambda: Distant(port), "127.0.0.1", 0)


async def measure(folder: Path) -> None:
    server = ObjectServer(folder / "server")
    try:
        far = await distant(server.port)
        far_address = f"http://127.0.0.1:{far.sockets[0].getsockname()[1]}"
        await compare("a store on this machine", server.address, folder / "near")
        await compare(f"a store {LATENCY * 1000:.0f} ms away", far_address, folder / "far")
        await asyncio.to_thread(over_http, "over HTTP, on this machine", server.address, folder / "http-near")
        await asyncio.to_thread(over_http, f"over HTTP, {LATENCY * 1000:.0f} ms away", far_address, folder / "http-far")
        await overflow(server.address, folder / "small")
        far.close()
    finally:
        server.end()


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(measure(Path(folder)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
