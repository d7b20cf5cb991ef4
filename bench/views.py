"""The CPU of a view, by where its answer comes from: `python -m bench.views [rounds]`.

A service has 200 images; one thumbnail of each is viewed. The kinds of views:

- disk: Redis was flushed and web holds nothing in memory. The row is read from the ledger and the file from disk.
  Filling Redis counts, also where it ends after the answer.
- second size: another thumbnail of an image that was viewed a moment ago.
- Redis: what web held in memory is too old, and Redis has the copy.
- process: web holds the answer in memory; a few thumbnails are viewed again and again.
- 304: the same with `If-None-Match`.
- record and list of 20: JSON.

The CPU time of web and Valkey is divided by the number of requests. `bench.pace` measures uploads.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from redis import Redis

from bench.clients import Client
from bench.figures import ROUNDS, Figure, progress, rounds_asked_for, show
from bench.isolation import photograph
from bench.processes import valkey_of, web_of
from bench.service import Service, run_service, until
from launch.processes import HERE

IMAGES = 200
#: Longer than web holds anything in memory.
STALE_SECONDS = 2.5
#: Thumbnails that web is asked for while it holds them in memory.
FRESH = 20
#: Images of which both sizes are viewed before the next ones: few enough to be asked for within a moment.
TOGETHER = 50
#: Seconds without a new copy in Redis after which no more are expected.
QUIET_SECONDS = 0.3

Ask = Callable[[Client], object]


@dataclass(frozen=True)
class Spent:
    """Milliseconds of CPU for a view, and how many of the views left a copy in Redis."""

    web: float
    valkey: float
    copies: int = 0


@dataclass
class Viewed:
    """A service's images, and what views of them cost."""

    service: Service
    client: Client
    redis: Redis
    records: list[dict[str, list[str]]]

    def thumbnails(self, further: int = 0) -> list[str]:
        """Return a thumbnail of each image, the sizes in turn; with `further` of the next size."""
        each = enumerate(record["thumbnails"] for record in self.records)
        return [paths[(number + further) % len(paths)] for number, paths in each]

    def forget(self) -> None:
        """Flush Redis, and wait until web uses nothing that it holds."""
        self.redis.flushall()
        time.sleep(STALE_SECONDS)  # the age of what web holds
        self.client.close()  # web closes an idle connection; the next request opens one

    def cold(self) -> dict[str, Spent]:
        """Return the CPU of views of images not asked for before, and of second sizes asked for a moment later.

        Call `forget` first.
        """
        spent: dict[str, list[Spent]] = {"disk": [], "second size": []}
        for first in range(0, len(self.records), TOGETHER):
            for further, each in enumerate(spent.values()):
                paths = self.thumbnails(further)[first : first + TOGETHER]
                each.append(self.spent([_get(path) for path in paths], paths))
        return {
            kind: Spent(
                statistics.mean(one.web for one in each),
                statistics.mean(one.valkey for one in each),
                sum(one.copies for one in each),
            )
            for kind, each in spent.items()
        }

    def spent(self, asks: Sequence[Ask], copied: Sequence[str] = ()) -> Spent:
        """Return the CPU for one of these requests, counted until Redis has the last copy of `copied`."""
        processes = (web_of(self.service), valkey_of(self.service))

        def cpu() -> list[float]:
            return [process.cpu_seconds() for process in processes]

        keys = [self.prefix + path for path in copied]
        before = cpu()
        for ask in asks:
            ask(self.client)
        copies, after, since = self._copies(keys), cpu(), time.monotonic()
        while copies < len(keys) and time.monotonic() < since + QUIET_SECONDS:
            time.sleep(0.005)  # between two looks
            if (now := self._copies(keys)) > copies:
                copies, after, since = now, cpu(), time.monotonic()
        web, valkey = ((end - begin) * 1000 / len(asks) for begin, end in zip(before, after, strict=True))
        return Spent(web, valkey, copies)

    def _copies(self, keys: Sequence[str]) -> int:
        return int(cast("int", self.redis.exists(*keys))) if keys else 0

    @cached_property
    def prefix(self) -> str:
        """What stands before a path in the key of its copy."""
        path = self.thumbnails()[0]
        self.client.get(path)
        until(lambda: self._key(path) is not None, "a view leaves no copy in Redis")
        return str(self._key(path)).removesuffix(path)

    def _key(self, path: str) -> str | None:
        return next((key.decode() for key in self.redis.scan_iter(f"*{path}")), None)

    def used_bytes(self) -> int:
        memory: Any = self.redis.info("memory")
        return int(memory["used_memory"])


@contextmanager
def viewed(folder: Path, code: Path = HERE) -> Iterator[Viewed]:
    """Run a service with images for the block."""
    with run_service(folder, code=code, ASGI_LOOK_LOG_LEVEL="ERROR") as service:
        picture = photograph((1200, 800))
        ids = [service.upload(picture) for _ in range(IMAGES)]
        with closing(Client(service.web_port)) as client, closing(Redis(port=service.valkey_port)) as redis:
            images = Viewed(service, client, redis, [_ready_record(client, image_id) for image_id in ids])
            assert images.prefix  # noqa: S101 - found while there are copies
            yield images


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, viewed(Path(folder)) as images:
        thumbnails = images.thumbnails()
        etag = images.client.get(thumbnails[0])[1]
        kinds: dict[str, Sequence[Ask]] = {
            "Redis": [_get(path) for path in thumbnails],
            "process": [_get(path) for path in thumbnails[:FRESH]] * (len(thumbnails) // FRESH),
            "304": [lambda client: client.get(thumbnails[0], 304, {"If-None-Match": etag})] * len(thumbnails),
            "record": [_get(f"/images/{record['id']}") for record in images.records],
            "list of 20": [_get("/images?limit=20")] * len(thumbnails),
        }
        spent: dict[str, list[Spent]] = {}
        copies: list[float] = []
        for number in range(rounds + 1):
            progress(f"CPU for a view: round {number} of {rounds}")
            images.forget()
            before = images.used_bytes()
            each = images.cold()
            copies.append((images.used_bytes() - before) / sum(one.copies for one in each.values()))
            time.sleep(STALE_SECONDS)  # the age of what web holds
            for kind, asks in kinds.items():
                if kind == "process":
                    images.spent(asks[:FRESH])
                each[kind] = images.spent(asks)
            for kind, one in each.items():
                spent.setdefault(kind, []).append(one)
        progress("")
        lengths = [len(images.client.get(path)[0]) for path in thumbnails]
    for kind, ones in spent.items():
        runs = {"web": [one.web for one in ones[1:]], "Valkey": [one.valkey for one in ones[1:]]}
        total = sum(map(statistics.median, runs.values()))
        yield Figure("scale", f"CPU for a view, {kind}", total, "ms", runs=runs, are_parts=True)
    yield Figure(
        "scale",
        "Redis for a copy of a thumbnail",
        statistics.median(copies[1:]) / 1000,
        "kB",
        runs={"in Redis": [length / 1000 for length in copies[1:]], "as sent": [statistics.mean(lengths) / 1000]},
        runs_unit="kB",
    )


def _ready_record(client: Client, image_id: str) -> dict[str, list[str]]:
    path = f"/images/{image_id}"
    until(lambda: json.loads(client.get(path)[0])["status"] == "ready", "an image is not ready")
    record: dict[str, list[str]] = json.loads(client.get(path)[0])
    return record


def _get(path: str) -> Ask:
    return lambda client: client.get(path)


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
