"""What a view costs web, in CPU: `python -m bench.views [rounds]`, by where its answer comes from.

A service has hundreds of images, and of each one thumbnail is viewed: the next ones of an image whose row is known
come from the disk and leave no copy. All are asked for once: from the ledger and the disk, with a copy left in Redis.
Once no copy in the process is fresh any more, all again: from Redis. Then a few of them at once, again and again: from
the process, where copies are kept for two seconds. What web and Valkey computed meanwhile is divided by the requests;
how long a busy client had to wait does not count, so that the client's own work does not either. Uploads are in
`bench.pace`.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from redis import Redis

from bench.clients import Client
from bench.figures import ROUNDS, Figure, progress, rounds_asked_for, show
from bench.isolation import photograph
from bench.processes import valkey_of, web_of
from bench.service import Service, run_service, until

IMAGES = 200
#: Longer than any copy in a web process lives.
STALE_SECONDS = 2.5

#: Thumbnails that are viewed again while their copies in the process are fresh.
FRESH = 20

Ask = Callable[[Client], object]


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, run_service(Path(folder), ASGI_LOOK_LOG_LEVEL="ERROR") as service:
        picture = photograph((1200, 800))
        ids = [service.upload(picture) for _ in range(IMAGES)]
        with closing(Client(service.web_port)) as client, closing(Redis(port=service.valkey_port)) as redis:
            records = [_ready_record(client, image_id) for image_id in ids]
            sizes = len(records[0]["thumbnails"])
            thumbnails = [record["thumbnails"][number % sizes] for number, record in enumerate(records)]
            etag = client.get(thumbnails[0])[1]
            kinds: dict[str, Sequence[Ask]] = {
                "disk": [_get(path) for path in thumbnails],
                "Redis": [_get(path) for path in thumbnails],
                "process": [_get(path) for path in thumbnails[:FRESH]] * (len(thumbnails) // FRESH),
                "304": [lambda client: client.get(thumbnails[0], 304, {"If-None-Match": etag})] * len(thumbnails),
                "record": [_get(f"/images/{image_id}") for image_id in ids],
                "list of 20": [_get("/images?limit=20")] * len(ids),
            }
            web: dict[str, list[float]] = {kind: [] for kind in kinds}
            valkey: dict[str, list[float]] = {kind: [] for kind in kinds}
            copies: list[float] = []
            for number in range(rounds + 1):
                progress(f"CPU for a view: round {number} of {rounds}")
                redis.flushall()
                time.sleep(STALE_SECONDS)  # what is waited for is the age of copies
                used = _used_bytes(redis)
                for kind, asks in kinds.items():
                    if kind == "Redis":
                        copies.append((_used_bytes(redis) - used) / len(thumbnails))
                        time.sleep(STALE_SECONDS)
                    if kind == "process":
                        _spent(service, client, asks[:FRESH])
                    spent = _spent(service, client, asks)
                    if number:
                        web[kind].append(spent[0])
                        valkey[kind].append(spent[1])
            progress("")
            lengths = [len(client.get(path)[0]) for path in thumbnails]
    for kind in kinds:
        yield Figure(
            "scale",
            f"CPU for a view, {kind}",
            statistics.median(web[kind]) + statistics.median(valkey[kind]),
            "ms",
            runs={"web": web[kind], "Valkey": valkey[kind]},
            are_parts=True,
        )
    yield Figure(
        "scale",
        "Redis for a copy of a thumbnail",
        statistics.median(copies) / 1000,
        "kB",
        runs={"in Redis": [length / 1000 for length in copies], "as sent": [statistics.mean(lengths) / 1000]},
        runs_unit="kB",
    )


def _ready_record(client: Client, image_id: str) -> dict[str, list[str]]:
    path = f"/images/{image_id}"
    until(lambda: json.loads(client.get(path)[0])["status"] == "ready", "an image is not ready")
    record: dict[str, list[str]] = json.loads(client.get(path)[0])
    return record


def _get(path: str) -> Ask:
    return lambda client: client.get(path)


def _spent(service: Service, client: Client, asks: Sequence[Ask]) -> tuple[float, float]:
    """Return the milliseconds that web and Valkey computed for one of these requests."""
    processes = (web_of(service), valkey_of(service))
    before = [process.cpu_seconds() for process in processes]
    for ask in asks:
        ask(client)
    web, valkey = (
        (process.cpu_seconds() - seconds) * 1000 / len(asks) for process, seconds in zip(processes, before, strict=True)
    )
    return web, valkey


def _used_bytes(redis: Redis) -> int:
    memory: Any = redis.info("memory")
    return int(memory["used_memory"])


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
