"""What an upload waits for, beyond the render: `python -m bench.waiting [rounds]`, on a service of its own.

An upload with `Prefer: wait` is timed from its last byte to the commit that makes it ready, by the time in the row, and
from there to the last byte of its answer. In turns with it: the same render alone, into memory, in a plain process with
the pages of memory that a child has; and an fsync of the same bytes, the original and its renditions, each in a file.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from http.client import HTTPConnection
from itertools import count
from json import loads
from pathlib import Path

import redis

from bench.enqueue_to_start import NOTE_CLAIMS, enqueues, tiny_picture
from bench.figures import ROUNDS, Figure, at_most, in_turns, rounds_asked_for, show
from bench.render import Side, rendered
from bench.service import Service, run_service
from bench.uploads import photo
from worker.renderer.child import ENVIRONMENT

#: Measurements of each side in each round; their median counts.
TIMES = 7
#: Seconds between two uploads, so that what follows an answer does not slow the next upload.
PAUSE_SECONDS = 0.05


@dataclass
class Waits:
    """Uploads over one connection, and the seconds from each commit to the answer."""

    service: Service
    answers: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._connection = HTTPConnection("127.0.0.1", self.service.web_port, timeout=60)

    def upload(self, body: bytes) -> float:
        """Upload and wait; return the seconds from the last byte to the commit that made it ready."""
        time.sleep(PAUSE_SECONDS)
        self._connection.request("POST", "/images", body, {"Prefer": "wait=20"})
        sent = time.time()
        answer = self._connection.getresponse()
        told = answer.read()
        answered = time.time()
        if answer.status != 201:
            raise SystemExit(f"an upload got {answer.status}: {told!r}")
        with closing(sqlite3.connect(self.service.ledger_file)) as ledger:
            (ready,) = ledger.execute("SELECT modified FROM images WHERE id = ?", [loads(told)["id"]]).fetchone()
        self.answers.append(answered - ready)
        return float(ready - sent)

    def close(self) -> None:
        self._connection.close()


def renders(stack: ExitStack, file: Path, original: bytes) -> Callable[[], float]:
    """Start a process that renders this original; return a function that has it render and returns the seconds."""
    file.write_bytes(original)
    side = Side([sys.executable, "-m", "bench.render", "--side", "ours", str(file)], os.environ | ENVIRONMENT)
    stack.callback(side.end)

    def render() -> float:
        side()
        return side.clock[-1] / 1000

    return render


def seconds_of(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def fsynced(folder: Path, contents: list[bytes], number: Iterator[int]) -> None:
    """Write each to a new file, and fsync it."""
    for content in contents:
        with (folder / str(next(number))).open("xb", buffering=0) as file:
            file.write(content)
            os.fsync(file.fileno())


def median_of(once: Callable[[], float]) -> float:
    return statistics.median(once() for _ in range(TIMES)) * 1000


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    """Yield the waits beyond the render, from the commit to the answer, and from the enqueue to the start."""
    large, small = photo(), tiny_picture()
    with tempfile.TemporaryDirectory() as here, ExitStack() as stack:
        folder, copies, number = Path(here, "service"), Path(here, "copies"), count()
        folder.mkdir()
        copies.mkdir()
        with run_service(folder, ledger_script=NOTE_CLAIMS) as service, closing(Waits(service)) as waits:
            render_large, render_small = (renders(stack, Path(here, str(len(one))), one) for one in (large, small))
            written = {body: [body, *rendered(body).values()] for body in (large, small)}
            runs = in_turns(
                {
                    "upload to ready": lambda: median_of(lambda: waits.upload(large)),
                    "render": lambda: median_of(render_large),
                    "fsyncs": lambda: median_of(lambda: seconds_of(lambda: fsynced(copies, written[large], number))),
                    "small upload to ready": lambda: median_of(lambda: waits.upload(small)),
                    "its render": lambda: median_of(render_small),
                    "its fsyncs": lambda: median_of(
                        lambda: seconds_of(lambda: fsynced(copies, written[small], number))
                    ),
                },
                rounds,
                "waiting",
            )
            # Without those of the round that warms up, large and small.
            answers = [seconds * 1000 for seconds in waits.answers[2 * TIMES :]]
            starts = _starts(service, waits, small)
    names = list(runs)
    yield _beyond("an upload's last byte to ready, beyond the render: 12 MP, 3 MB", runs, names[:3])
    yield _beyond("the same for a picture of 160x120", runs, names[3:])
    yield Figure("waiting", "ready to the waiting client's answer", statistics.median(answers), "ms")
    yield Figure("waiting", "enqueue to start", statistics.median(starts), "ms", bar=at_most(10))


def _beyond(name: str, runs: dict[str, list[float]], sides: list[str]) -> Figure:
    own = {side: runs[side] for side in sides}
    uploads, its_renders, _ = own.values()
    waits = statistics.median(upload - render for upload, render in zip(uploads, its_renders, strict=True))
    return Figure("waiting", name, waits, "ms", bar=at_most(40), runs=own)


def _starts(service: Service, waits: Waits, body: bytes, uploads: int = 50) -> list[float]:
    """Return the milliseconds from each enqueue (MONITOR) to the claim (in the ledger), which use one clock."""
    with (
        closing(redis.Redis(port=service.valkey_port)) as client,
        client.monitor() as monitor,  # type: ignore[no-untyped-call] # redis has no types there
    ):
        for _ in range(uploads):
            waits.upload(body)
        enqueued = enqueues(monitor, uploads)
    with closing(sqlite3.connect(service.ledger_file)) as ledger:
        claimed = dict(ledger.execute("SELECT id, at FROM claims"))
    return [(claimed[image_id] - at) * 1000 for image_id, at in enqueued.items()]


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
