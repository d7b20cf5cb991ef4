"""A real service under a load of a given rate: how long images waited, and how many cores it used."""

from __future__ import annotations

import json
import random
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.clients import Client
from bench.figures import progress
from bench.isolation import photograph
from bench.pace import NOTE_STATUSES, SIZES
from bench.processes import all_of
from bench.queueing import arrivals, percentile
from bench.service import Service, run_service, until

#: Clients: more than are ever busy at once while the service keeps up.
UPLOADERS, VIEWERS = 32, 4
#: Images whose thumbnails are viewed.
VIEWED = 60
#: Seconds of load before the measurement begins.
WARM_SECONDS = 8.0


@dataclass(frozen=True)
class Point:
    """One measured run."""

    #: The share of the predicted capacity.
    asked: float
    #: A second.
    uploads: float
    views: float
    seconds: float
    images: int
    #: Seconds from upload to claim, and to ready.
    median_wait: float
    median: float
    slowest_of_20: float
    #: Cores used by the service, and by its clients.
    cores: float
    client_cores: float


@dataclass(frozen=True)
class Load:
    """A load: uploads of several sizes, and views."""

    asked: float
    uploads: float
    views: float
    mix: dict[float, float]
    seconds: float


def measure(load: Load, seed: int = 1) -> Point:
    """Run a service, one web process and one worker, under a load."""
    chance = random.Random(seed)  # noqa: S311 - no secret
    pictures = {megapixels: photograph(SIZES[f"{megapixels:g} MP"]) for megapixels in load.mix}
    with (
        tempfile.TemporaryDirectory() as folder,
        run_service(Path(folder), ledger_script=NOTE_STATUSES, ASGI_LOOK_LOG_LEVEL="ERROR") as service,
        closing(sqlite3.connect(service.ledger_file, timeout=10)) as ledger,
    ):
        paths = _viewed(service)
        ends = WARM_SECONDS + load.seconds
        uploads = arrivals(lambda now: load.uploads, load.uploads, ends, chance)
        choices = chance.choices(list(load.mix), list(load.mix.values()), k=len(uploads))
        failures: list[BaseException] = []
        began = time.time()
        threads = [
            threading.Thread(
                target=_noting(failures, _view), args=(service, paths, load.views / VIEWERS, ends, seed + at)
            )
            for at in range(VIEWERS)
        ]
        threads.append(threading.Thread(target=_noting(failures, _upload), args=(service, uploads, choices, pictures)))
        for thread in threads:
            thread.start()
        _pause_until(began + WARM_SECONDS)
        processes = all_of(service)
        before, own = sum(process.cpu_seconds() for process in processes), time.process_time()
        _pause_until(began + ends)
        cores = (sum(process.cpu_seconds() for process in processes) - before) / load.seconds
        client_cores = (time.process_time() - own) / load.seconds
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        until(lambda: _unfinished(ledger) == 0, "an image is not ready")
        return _point(load, ledger, began + WARM_SECONDS, cores, client_cores)


def _viewed(service: Service) -> list[str]:
    """Upload images; return the paths of their thumbnails, all viewed once."""
    ids = [service.upload(photograph((1200, 800))) for _ in range(VIEWED)]
    with closing(Client(service.web_port)) as client:
        paths = []
        for image_id in ids:
            uri = f"/images/{image_id}"
            until(lambda uri=uri: json.loads(client.get(uri)[0])["status"] == "ready", "an image is not ready")  # type: ignore[misc] # a default is no argument
            paths += json.loads(client.get(uri)[0])["thumbnails"]
        for path in paths:
            client.get(path)
    return paths


def _noting(failures: list[BaseException], act: Callable[..., None]) -> Callable[..., None]:
    def do(*arguments: object) -> None:
        try:
            act(*arguments)
        except BaseException as exc:
            failures.append(exc)

    return do


def _upload(service: Service, times: Sequence[float], choices: Sequence[float], pictures: dict[float, bytes]) -> None:
    """Send each upload at its time, even if earlier ones are not answered."""
    began = time.time()
    with ThreadPoolExecutor(UPLOADERS) as clients:
        sent = []
        for number, (at, choice) in enumerate(zip(times, choices, strict=True)):
            _pause_until(began + at)
            progress(f"upload {number + 1} of {len(times)}")
            sent.append(clients.submit(service.upload, pictures[choice]))
        for one in sent:
            one.result()
    progress("")


def _view(service: Service, paths: Sequence[str], rate: float, seconds: float, seed: int) -> None:
    chance, began = random.Random(seed), time.time()  # noqa: S311 - no secret
    with closing(Client(service.web_port)) as client:
        for at in arrivals(lambda now: rate, rate, seconds, chance):
            _pause_until(began + at)
            client.get(chance.choice(paths))


def _pause_until(when: float) -> None:
    time.sleep(max(0.0, when - time.time()))  # the load has a clock of its own


def _unfinished(ledger: sqlite3.Connection) -> int:
    return int(ledger.execute("SELECT count(*) FROM images WHERE status NOT IN ('ready', 'failed')").fetchone()[0])


def _point(load: Load, ledger: sqlite3.Connection, since: float, cores: float, client_cores: float) -> Point:
    query = """SELECT queued.at, taken.at, done.at FROM notes AS queued
        JOIN notes AS taken ON taken.id = queued.id AND taken.status = 'processing'
        JOIN notes AS done ON done.id = queued.id AND done.status = 'ready'
        WHERE queued.status = 'queued'"""
    ends = since + load.seconds
    rows: list[tuple[float, float, float]] = ledger.execute(query).fetchall()
    ours = [row for row in rows if since <= row[0] < ends]
    times = [done - queued for queued, _, done in ours]
    return Point(
        load.asked,
        load.uploads,
        load.views,
        load.seconds,
        len(ours),
        percentile([taken - queued for queued, taken, _ in ours], 0.5),
        percentile(times, 0.5),
        percentile(times, 0.95),
        cores,
        client_cores,
    )
