"""Images a second of the whole service, and what each costs in CPU: `python -m bench.pace [rounds]`.

Several clients upload photographs at once; the time is that from the first byte to the last `ready`. One worker with
one slot, one with its default (a slot for each core), and two of these take turns. The capacity model uses the CPU of
each kind of process for an image.
"""

from __future__ import annotations

import json
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection
from itertools import chain, pairwise
from pathlib import Path

from bench.clients import at_once
from bench.figures import ROUNDS, Figure, Runs, in_turns, ratio, rounds_asked_for, show
from bench.isolation import photograph
from bench.processes import Process, all_of
from bench.service import Service, run_service, until
from shared.renditions import Size

SIZES: dict[str, Size] = {"3 MP": (2048, 1536), "12 MP": (4200, 2800)}
IMAGES = {"3 MP": 40, "12 MP": 16}
CLIENTS = 4

#: The number of workers, and their slots (empty: the default).
SIDES = {"1 worker, 1 slot": (1, "1"), "1 worker": (1, ""), "2 workers": (2, "")}
#: The side whose costs count for the capacity model.
USUAL = "1 worker"

NOTE_STATUSES = """
CREATE TABLE notes (id TEXT, status TEXT, at REAL);
CREATE INDEX notes_by_status ON notes (status);
CREATE TRIGGER note_new AFTER INSERT ON images BEGIN
    INSERT INTO notes VALUES (NEW.id, NEW.status, (julianday('now') - 2440587.5) * 86400.0);
END;
CREATE TRIGGER note_status AFTER UPDATE OF status ON images WHEN NEW.status != OLD.status BEGIN
    INSERT INTO notes VALUES (NEW.id, NEW.status, (julianday('now') - 2440587.5) * 86400.0);
END;
"""


@dataclass
class Costs:
    """Milliseconds of CPU for an image by kind of process, and from claim to ready. The first round warms up."""

    cpu: Runs = field(default_factory=dict)
    #: Milliseconds from claim to ready of each image, by round.
    rendering: list[list[float]] = field(default_factory=list)


def drain(service: Service, picture: bytes, images: int, costs: Costs) -> float:
    """Upload so many images and wait for the last; return images a second."""
    processes = all_of(service)
    before = [process.cpu_seconds() for process in processes]
    began = time.time()
    ids: list[str] = []
    at_once(lambda: ids.extend(service.upload(picture) for _ in range(images // CLIENTS)), CLIENTS)
    with closing(sqlite3.connect(service.ledger_file, timeout=10)) as ledger:
        until(lambda: _ready(ledger, began) >= len(ids), "an image is not ready")
        (ended,) = ledger.execute("SELECT max(at) FROM notes WHERE status = 'ready'").fetchone()
        costs.rendering.append(milliseconds_to_ready(ledger, began))
    for name, used in _by_kind(processes, before).items():
        costs.cpu.setdefault(name, []).append(used * 1000 / len(ids))
    return len(ids) / (float(ended) - began)


def _ready(ledger: sqlite3.Connection, since: float) -> int:
    query = "SELECT count(*) FROM notes WHERE status IN ('ready', 'failed') AND at > ?"
    return int(ledger.execute(query, (since,)).fetchone()[0])


def milliseconds_to_ready(ledger: sqlite3.Connection, since: float) -> list[float]:
    """Return the milliseconds from claim to ready of each image."""
    query = """SELECT (done.at - taken.at) * 1000 FROM notes AS done JOIN notes AS taken USING (id)
        WHERE done.status = 'ready' AND taken.status = 'processing' AND done.at > ?"""
    return [milliseconds for (milliseconds,) in ledger.execute(query, (since,))]


def _by_kind(processes: Sequence[Process], before: Sequence[float]) -> dict[str, float]:
    used: dict[str, float] = {}
    for process, seconds in zip(processes, before, strict=True):
        used[process.name] = used.get(process.name, 0.0) + process.cpu_seconds() - seconds
    return used


def one_after_the_other(service: Service, picture: bytes, images: int) -> Runs:
    """Return the milliseconds of each part of an upload's way, one upload at a time.

    The client and the ledger use one clock; the ledger's notes are of the millisecond.
    """
    parts: Runs = {"last byte to row": [], "row to claim": [], "claim to ready": [], "ready to answer": []}
    with (
        closing(sqlite3.connect(service.ledger_file, timeout=10)) as ledger,
        closing(HTTPConnection("127.0.0.1", service.web_port, timeout=60)) as connection,
    ):
        for _ in range(images):
            connection.request("POST", "/images", picture, {"Prefer": "wait=20"})
            sent = time.time()
            answer = connection.getresponse()
            body = answer.read()
            answered = time.time()
            if answer.status != 201:
                raise SystemExit(f"an upload got {answer.status}: {body!r}")
            image_id = json.loads(body)["id"]
            notes = dict(ledger.execute("SELECT status, at FROM notes WHERE id = ?", (image_id,)).fetchall())
            times = [sent, notes["queued"], notes["processing"], notes["ready"], answered]
            for part, (begun, ended) in zip(parts.values(), pairwise(times), strict=True):
                part.append((ended - begun) * 1000)
    return parts


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        services = {}
        for number, (name, (workers, slots)) in enumerate(SIDES.items()):
            (folder := Path(place) / str(number)).mkdir()
            running = run_service(
                folder,
                ledger_script=NOTE_STATUSES,
                workers=workers,
                ASGI_LOOK_RENDER_SLOTS=slots,
                ASGI_LOOK_LOG_LEVEL="ERROR",
            )
            services[name] = stack.enter_context(running)
        for size, pixels in SIZES.items():
            yield from _figures_of(size, photograph(pixels), services, rounds)


def _figures_of(size: str, picture: bytes, services: dict[str, Service], rounds: int) -> Iterator[Figure]:
    costs = {name: Costs() for name in services}
    sides = {name: partial(drain, service, picture, IMAGES[size], costs[name]) for name, service in services.items()}
    runs = in_turns(sides, rounds, f"images a second, {size}")
    for name, values in runs.items():
        yield Figure("scale", f"images a second, {size}, {name}", statistics.median(values), "/s")
    yield Figure(
        "scale",
        f"images a second, {size}: 1 worker with a slot a core / with 1 slot",
        ratio(runs, "1 worker", "1 worker, 1 slot"),
        runs=runs,
        runs_unit="images/s",
    )
    usual = costs[USUAL]
    total = sum(statistics.median(values[1:]) for values in usual.cpu.values())
    yield Figure(
        "scale",
        f"CPU for an image, {size}",
        total,
        "ms",
        runs={name: values[1:] for name, values in usual.cpu.items()},
        note=f"{len(picture):,} bytes",
        are_parts=True,
    )
    parts = one_after_the_other(services[USUAL], picture, 3 * rounds)
    alone = [claimed + ready for claimed, ready in zip(parts["row to claim"], parts["claim to ready"], strict=True)]
    yield Figure(
        "scale",
        f"upload to ready, {size}, alone",
        statistics.median(alone),
        "ms",
        runs={"alone": alone, "from its claim, every slot busy": [*chain(*usual.rendering[1:])]},
    )
    yield Figure(
        "waiting",
        f"the way of an upload, {size}: its last byte to its answer",
        sum(statistics.median(values) for values in parts.values()),
        "ms",
        runs=parts,
        note="Prefer: wait, one at a time",
        are_parts=True,
    )


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
