"""This checkout against another revision, in pairs: `python -m bench.against REV [modules…] [--rounds N]`.

`git archive` writes the other revision to a temporary folder. Services of both start from their own Procfile, with the
same interpreter and packages; this checkout's code measures both. Each round measures one after the other, in an order
that turns around, and makes a ratio of the pair. A figure is the median of these ratios. Everything measured is a cost:
CPU, time or memory. A bar of at least 0.95 is for the other's cost divided by ours, which is our speed. A bar of at
most 0.75 is for our cost divided by the other's.

The modules:

- serving: CPU of cold views and of second sizes (`bench.views`); 12 MB streamed from disk.
- waiting: one upload at a time: its render, enqueue to start, last byte to ready.
- backlog: the time to a 202 while no worker runs, then how long a worker with two slots takes for all of them.
- start: start-up of web, worker and the launcher; web's memory, once warm and under uploads.

It takes some 10 minutes and 5 GB of temporary files with 7 rounds. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import io
import sqlite3
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from http.client import HTTPConnection
from pathlib import Path

import redis

from bench import machine, suite
from bench.enqueue_to_start import NOTE_CLAIMS, enqueues, tiny_picture, upload
from bench.figures import ROUNDS, Bar, Figure, at_least, at_most, in_turns, ratios, show
from bench.pace import NOTE_STATUSES
from bench.processes import children_of, web_of
from bench.rest import seconds_to_ready
from bench.service import run_service, until
from bench.serving import STREAMED, drive, noise, picture_of, request_for
from bench.uploads import Client, photo
from bench.views import viewed
from bench.waiting import PAUSE_SECONDS
from bench.web_memory import under_uploads
from launch.processes import HERE

#: Uploads of a turn: of large and of small pictures one at a time, and of a backlog.
LARGE, SMALL, QUEUED = 6, 30, 60
#: Downloads of 12 MB of a turn.
STREAMS = 60
SLOTS = "2"
DRAINED_SECONDS = 120.0

#: Measures once; returns the costs by their names in `COSTS`.
Turn = Callable[[], Mapping[str, float]]
#: Starts what is needed of a checkout, with a new folder for its data.
Module = Callable[[ExitStack, Path, Path], Turn]

#: What is measured, in order: the unit, and the bar.
COSTS: Mapping[str, tuple[str, Bar | None]] = {
    "CPU of a cold view": ("ms", at_most(0.75)),
    "CPU of a second size": ("ms", None),
    "12 MB from disk: CPU": ("ms", at_least(0.95)),
    "12 MB from disk: a request": ("ms", at_least(0.95)),
    "render of 12 MP: CPU of the child": ("ms", at_least(0.95)),
    "last byte to ready, 12 MP": ("ms", at_least(0.95)),
    "last byte to ready, 160x120": ("ms", at_least(0.95)),
    "enqueue to start": ("ms", at_least(0.95)),
    "time to 202, 3 MB": ("ms", at_least(0.95)),
    f"backlog of {QUEUED}, {SLOTS} slots": ("s", at_least(0.95)),
    "start of web": ("s", at_least(0.95)),
    "start of a worker": ("s", at_least(0.95)),
    "start of ./run": ("s", at_least(0.95)),
    "web's memory, warm": ("MB", at_least(0.95)),
    "web's memory, peak under uploads": ("MB", at_least(0.95)),
}


def serving(stack: ExitStack, code: Path, folder: Path) -> Turn:
    images = stack.enter_context(viewed(folder, code))
    web, port = web_of(images.service), images.service.web_port
    streamed = [request_for(picture_of(images.service, noise((4400, 3400)), STREAMED).path)]

    def turn() -> dict[str, float]:
        images.forget()
        cold, second = images.cold().values()
        if cold.copies < 0.95 * len(images.records):
            raise SystemExit(
                f"{len(images.records)} cold views left {cold.copies} copies: their fills are not in the CPU"
            )
        before = web.cpu_seconds()
        seconds = drive(port, streamed, STREAMS)
        return {
            "CPU of a cold view": cold.web + cold.valkey,
            "CPU of a second size": second.web + second.valkey,
            "12 MB from disk: CPU": (web.cpu_seconds() - before) * 1000 / STREAMS,
            "12 MB from disk: a request": seconds * 1000 / STREAMS,
        }

    return turn


def waiting(stack: ExitStack, code: Path, folder: Path) -> Turn:
    service = stack.enter_context(run_service(folder, code=code, ledger_script=NOTE_CLAIMS))
    connection = stack.enter_context(closing(HTTPConnection("127.0.0.1", service.web_port, timeout=60)))
    client = stack.enter_context(closing(redis.Redis(port=service.valkey_port)))
    ledger = stack.enter_context(closing(sqlite3.connect(service.ledger_file, timeout=10)))
    large, small = photo(), tiny_picture()

    def milliseconds(picture: bytes, times: int) -> float:
        seconds = []
        for _ in range(times):
            time.sleep(PAUSE_SECONDS)  # one client that waits: what follows an answer is over
            seconds.append(upload(connection, picture))
        return statistics.median(seconds) * 1000

    def turn() -> dict[str, float]:
        connection.close()  # web closes an idle connection; the next request opens one
        children = children_of(service)
        before = sum(child.cpu_seconds() for child in children)
        to_ready = milliseconds(large, LARGE)
        render = (sum(child.cpu_seconds() for child in children) - before) * 1000 / LARGE
        with client.monitor() as monitor:  # type: ignore[no-untyped-call] # redis has no types there
            small_to_ready = milliseconds(small, SMALL)
            enqueued = enqueues(monitor, SMALL)
        claimed = dict(ledger.execute("SELECT id, at FROM claims"))
        return {
            "render of 12 MP: CPU of the child": render,
            "last byte to ready, 12 MP": to_ready,
            "last byte to ready, 160x120": small_to_ready,
            "enqueue to start": statistics.median((claimed[id_] - at) * 1000 for id_, at in enqueued.items()),
        }

    return turn


def backlog(stack: ExitStack, code: Path, folder: Path) -> Turn:
    service = stack.enter_context(
        run_service(folder, code=code, ledger_script=NOTE_STATUSES, ASGI_LOOK_RENDER_SLOTS=SLOTS)
    )
    client = stack.enter_context(closing(Client(service, photo())))
    ledger = stack.enter_context(closing(sqlite3.connect(service.ledger_file, timeout=10)))
    service.stop_workers()

    def when(status: str, since: float) -> list[float]:
        rows = ledger.execute("SELECT at FROM notes WHERE status = ? AND at > ? ORDER BY at", (status, since))
        return [at for (at,) in rows]

    def turn() -> dict[str, float]:
        client.close()  # web closes an idle connection; the next request opens one
        began = time.time()
        to_202 = statistics.median(client.upload() for _ in range(QUEUED)) * 1000
        service.workers[0].start()
        until(lambda: len(when("ready", began)) == QUEUED, "the backlog is not drained", DRAINED_SECONDS, every=0.5)
        service.stop_workers()
        drained = when("ready", began)[-1] - when("processing", began)[0]
        return {"time to 202, 3 MB": to_202, f"backlog of {QUEUED}, {SLOTS} slots": drained}

    return turn


def start(stack: ExitStack, code: Path, folder: Path) -> Turn:
    # Without bytecode the other revision would be compiled at each start, where PYTHONDONTWRITEBYTECODE is set.
    subprocess.run([sys.executable, "-m", "compileall", "-q", "-x", r"/\.venv/", code], check=True)  # noqa: S603 - ours
    launcher = next(path for path in (code / "launch", code / "launch.py") if path.exists())

    def turn() -> dict[str, float]:
        with tempfile.TemporaryDirectory(dir=folder) as data:
            (service_folder := Path(data) / "service").mkdir()
            with run_service(service_folder, code=code, ASGI_LOOK_LOG_LEVEL="ERROR") as service:
                warm, peak, _ = under_uploads(service)
            return {
                "start of web": service.start_seconds["web"],
                "start of a worker": service.start_seconds["worker"],
                "start of ./run": seconds_to_ready([sys.executable, launcher], Path(data) / "run"),
                "web's memory, warm": warm,
                "web's memory, peak under uploads": peak,
            }

    return turn


MODULES: Mapping[str, Module] = {each.__name__: each for each in (serving, waiting, backlog, start)}


def compare(module: Module, codes: Mapping[str, Path], rounds: int) -> Iterator[Figure]:
    """Measure the first of two checkouts against the second."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        sides: dict[str, Turn] = {}
        for name, code in codes.items():
            (folder := Path(place) / str(len(sides))).mkdir()
            sides[name] = module(stack, code, folder)
        turns = in_turns(sides, rounds, module.__name__)
    ours, other = codes
    for cost in turns[ours][0]:
        yield figure_of(cost, *([turn[cost] for turn in turns[name]] for name in codes), ours=ours, other=other)


def figure_of(cost: str, costs: Sequence[float], others: Sequence[float], *, ours: str, other: str) -> Figure:
    """Return the median of the ratios, pair by pair, against the cost's bar."""
    unit, bar = COSTS[cost]
    is_speed = bar is not None and bar.kind == "at least"
    runs = {ours: list(costs), other: list(others)}
    above, below = (other, ours) if is_speed else (ours, other)
    pairs = ratios(runs, above, below)
    return Figure(
        "against",
        f"{cost}: {above} / {below}",
        statistics.median(pairs),
        bar=bar,
        runs=runs,
        runs_unit=unit,
        note=f"ratios {min(pairs):.2f} to {max(pairs):.2f}",
    )


def lay_out(revision: str, folder: Path) -> None:
    """Write the files of a revision of this repository to a folder."""
    files = subprocess.run(["git", "-C", HERE, "archive", revision], check=True, stdout=subprocess.PIPE).stdout  # noqa: S603, S607 - git's own checks
    with tarfile.open(fileobj=io.BytesIO(files)) as archive:
        archive.extractall(folder, filter="data")


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m bench.against", description=str(__doc__).splitlines()[0])
    words.add_argument("revision")
    words.add_argument("modules", nargs="*", default=list(MODULES), help=f"all of {', '.join(MODULES)} unless given")
    words.add_argument("--rounds", type=int, default=ROUNDS, help=f"{ROUNDS} unless given")
    asked = words.parse_args()
    if unknown := set(asked.modules) - set(MODULES):
        words.error(f"no such module: {', '.join(sorted(unknown))}")
    if (busy := machine.busy_cores()) > machine.MOST_OTHERS:
        print(f"others use {busy:.1f} cores: what is timed now says little", file=sys.stderr, flush=True)
    shown: list[Figure] = []
    with tempfile.TemporaryDirectory() as folder:
        lay_out(asked.revision, Path(folder))
        print(f"the services print to {suite.redirect_services(Path(f'{folder}.log'))}", file=sys.stderr, flush=True)
        for name in asked.modules:
            began = time.monotonic()
            shown += show(compare(MODULES[name], {"this": HERE, asked.revision: Path(folder)}, asked.rounds))
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return int(not all(figure.is_met for figure in shown))


if __name__ == "__main__":
    sys.exit(main())
