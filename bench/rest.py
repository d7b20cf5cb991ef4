"""What each process takes to start, and what it takes at rest: `python -m bench.rest [rounds]`.

The Procfile's lines start on a Valkey and a ledger that are there. Timed are web until it answers, the worker until
/readyz names one, a child until it says that it is warm, and ./run, which starts all of them, until it says "ready".
CPU and wake-ups are counted over seconds in which nothing is asked. Memory is each process's share (PSS), after some
uploads.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from bench.figures import ROUNDS, ROUNDS_THAT_COUNT, Figure, Runs, progress, rounds_asked_for, show
from bench.footprint import await_ready, running
from bench.isolation import photograph
from bench.processes import Process, all_of
from bench.service import run_service
from launch.processes import HERE, free_port
from shared.settings import Settings
from worker.renderer.pool import Renderer


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    yield from _starts(rounds)
    yield from _at_rest(20.0 if rounds >= ROUNDS_THAT_COUNT else 5.0)


def _starts(rounds: int) -> Iterator[Figure]:
    runs: Runs = {"web": [], "worker": [], "child": [], "./run": []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds + 1):
            progress(f"starts: round {number} of {rounds}")
            (folder := Path(place) / str(number)).mkdir()
            with run_service(folder, ASGI_LOOK_LOG_LEVEL="ERROR") as service:
                seconds: dict[str, float | None] = {**service.start_seconds}
            seconds |= {"child": asyncio.run(_start_of_child()), "./run": _start_of_run(folder)}
            for name, value in seconds.items():
                if number and value is not None:
                    runs[name].append(value)
    progress("")
    for name, values in runs.items():
        if values:
            yield Figure(
                "scale", f"start of {name}", statistics.median(values), "s", runs={name: values}, runs_unit="s"
            )


async def _start_of_child() -> float:
    settings = Settings()
    renderer = Renderer(settings, 1, settings.max_pixels)
    began = time.perf_counter()
    await renderer.start()
    seconds = time.perf_counter() - began
    await renderer.close()
    return seconds


def _start_of_run(folder: Path) -> float | None:
    """Return the seconds until ./run is ready; None if it would install something first."""
    lists = [place / "requirements-single.txt" for place in (HERE, HERE / ".venv")]
    if not all(file.exists() for file in lists) or lists[0].read_bytes() != lists[1].read_bytes():
        print("./run would install first: its start is skipped", file=sys.stderr)
        return None
    return seconds_to_ready([HERE / "run"], folder / "run")


def seconds_to_ready(command: Sequence[str | Path], data: Path) -> float:
    """Return the seconds until a launcher on a new data folder says "ready"."""
    began = time.perf_counter()
    with running(command, str(data), free_port()) as run:
        await_ready(run)
        return time.perf_counter() - began


def _at_rest(seconds: float) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder, run_service(Path(folder), ASGI_LOOK_LOG_LEVEL="ERROR") as service:
        picture = photograph((2048, 1536))
        for _ in range(4):
            with closing(HTTPConnection("127.0.0.1", service.web_port, timeout=60)) as connection:
                connection.request("POST", "/images", picture, {"Prefer": "wait=20"})
                connection.getresponse().read()
        processes = all_of(service)
        time.sleep(3)  # until all debts are settled
        cpu_before = [process.cpu_seconds() for process in processes]
        woken_before = [process.wakeups() for process in processes]
        progress(f"at rest: {seconds:.0f} s")
        time.sleep(seconds)  # the time over which CPU and wake-ups are counted
        progress("")
        names = _names(processes)
        computed = [process.cpu_seconds() for process in processes]
        cores = [(after - before) / seconds * 100 for after, before in zip(computed, cpu_before, strict=True)]
        woken_after = [process.wakeups() for process in processes]
        woken = [(after - before) / seconds for after, before in zip(woken_after, woken_before, strict=True)]
        memory = [process.own_megabytes() for process in processes]
    yield Figure(
        "scale",
        "idle memory of web, a worker and its children (PSS)",
        sum(value for process, value in zip(processes, memory, strict=True) if process.name != "Valkey"),
        "MB",
        runs={name: [value] for name, value in zip(names, memory, strict=True)},
        runs_unit="MB",
    )
    yield Figure(
        "scale",
        "idle CPU of all, Valkey included",
        sum(cores),
        "% of a core",
        runs={name: [value] for name, value in zip(names, cores, strict=True)},
        runs_unit="% of a core",
        note=", ".join(f"{name} woken {value:.0f} times a second" for name, value in zip(names, woken, strict=True)),
    )


def _names(processes: Sequence[Process]) -> list[str]:
    """Return the names, numbered where several processes are of one kind."""
    count = Counter(process.name for process in processes)
    seen: Counter[str] = Counter()
    names = []
    for process in processes:
        seen[process.name] += 1
        names.append(process.name if count[process.name] == 1 else f"{process.name} {seen[process.name]}")
    return names


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
