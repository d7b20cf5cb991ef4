"""The bytes of Redis keys of each kind (copies, tokens, jobs, beats): `python -m bench.copies`.

Pictures of four sizes are uploaded to a service, and everything that is cached is asked for; then Redis returns the
size of each key. Jobs go to a second Redis, where no worker takes them.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from redis import Redis

from bench.isolation import photograph
from bench.service import run_service, until
from shared.images import Image, Lane, Status, Work
from shared.ledger.rows import image_of
from shared.ledger.schema import images
from shared.redis.circuit_breaker import CircuitBreaker
from shared.redis.clients import worker_client
from shared.redis.queue import Queue
from tests.valkey import Valkey

SIZES = ((640, 480), (1280, 960), (2400, 1600), (4000, 3000))
#: The most that the sweep enqueues.
JOBS = 300


def kind_of(key: str) -> str:
    """Return the kind of a key of the response cache."""
    if ":token:" in key:
        return "a token"
    if "/thumbnails/" in key:
        width, _, height = key.rpartition("/")[2].removesuffix(".jpeg").partition("x")
        return f"a thumbnail of {'less' if int(width) * int(height) < 100_000 else 'more'} than 100,000 pixels"
    if key.endswith(".jpeg"):
        return "a full-size JPEG"
    if "response:/images/" in key:
        return "a record"
    return "a list" if "response:/images" in key else "another key"


def copies(folder: Path) -> dict[str, list[int]]:
    """Return the bytes of each key, by its kind."""
    with (
        run_service(folder) as service,
        closing(HTTPConnection("127.0.0.1", service.web_port, timeout=60)) as web,
        closing(Redis(port=service.valkey_port, decode_responses=True)) as redis,
    ):

        def get(path: str) -> bytes:
            web.request("GET", path)
            return web.getresponse().read()

        ids = [service.upload(photograph(size)) for size in SIZES]
        until(lambda: all(json.loads(get(f"/images/{image_id}"))["status"] == "ready" for image_id in ids))
        time.sleep(2)  # debts are settled, and tokens change no more
        for image_id in ids:
            record = json.loads(get(f"/images/{image_id}"))
            for path in (record["image"], *record["thumbnails"]):
                get(path)
        get("/images")
        sizes = defaultdict(list)
        for key in redis.scan_iter("asgilook:*"):
            usage: Any = redis.memory_usage(key, samples=0)
            sizes[kind_of(key)].append(int(usage or 0))
        return sizes


async def jobs(folder: Path) -> tuple[float, float]:
    """Return the mean bytes of a job and of its place in a full queue."""
    server = Valkey(folder / "jobs", {})
    client = worker_client(server.url)
    queue = Queue(client, CircuitBreaker(client, 5.0), lambda: "0123456789abcdef")
    try:
        for number in range(JOBS):
            image_id = f"01900000-0000-7000-8000-{number:012x}"
            await queue.enqueue(_queued(image_id))
        keys = [key async for key in client.scan_iter("arq:job:*")]
        each = [int(await client.memory_usage(key, samples=0) or 0) for key in keys]
        whole = int(await client.memory_usage(queue.name, samples=0) or 0)
        return statistics.mean(each), whole / JOBS
    finally:
        await client.aclose()
        server.end()


def _queued(image_id: str) -> Image:
    row = dict.fromkeys(images.c.keys()) | {
        "id": image_id,
        "status": Status.QUEUED,
        "work": Work.CONVERT,
        "lane": Lane.UPLOAD,
        "turn": time.time(),
        "attempt": 0,
        "original_type": "image/jpeg",
        "renditions": "{}",
    }
    return image_of(SimpleNamespace(**row))


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        job, place = asyncio.run(jobs(Path(folder)))
        (Path(folder) / "service").mkdir()
        sizes = copies(Path(folder) / "service")
    print(f"{'a job':40} {job:10,.0f}\n{'its place in the queue':40} {place:10,.0f}")
    for kind, each in sorted(sizes.items()):
        print(f"{kind:40} {statistics.median(each):10,.0f}   {len(each)} of them, {min(each):,} to {max(each):,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
