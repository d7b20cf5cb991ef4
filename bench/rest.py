"""What each process takes to start, and what it takes while nobody asks: `python -m bench.rest [rounds]`.

Started are the Procfile's lines on a Valkey and a ledger that are there: web until it answers, the worker until
/readyz names one, a child until it says that it is warm, and ./run, which starts all of it, until it calls itself
ready. While nothing happens, CPU and wake-ups are counted over seconds; memory is each one's share of what it uses
(PSS), after an upload.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from bench.figures import ROUNDS, ROUNDS_THAT_COUNT, Figure, Runs, progress, rounds_asked_for, show
from bench.footprint import await_ready, running
from bench.isolation import photograph
from bench.processes import Process, all_of
from bench.service import run_service
from launch.processes import HERE, Part, free_port, is_valkey_up, read_procfile, valkey_command
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from worker.renderer.pool import Renderer

#: Between two looks at whether something has started.
LOOK_SECONDS = 0.01


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    yield from _starts(rounds)
    yield from _at_rest(20.0 if rounds >= ROUNDS_THAT_COUNT else 5.0)


def _starts(rounds: int) -> Iterator[Figure]:
    runs: Runs = {"web": [], "worker": [], "child": [], "./run": []}
    with tempfile.TemporaryDirectory() as place:
        for number in range(rounds + 1):
            progress(f"starts: round {number} of {rounds}")
            (folder := Path(place) / str(number)).mkdir()
            seconds = {
                **_start_of_parts(folder),
                "child": asyncio.run(_start_of_child()),
                "./run": _start_of_run(folder),
            }
            for name, value in seconds.items():
                if number and value is not None:
                    runs[name].append(value)
    progress("")
    for name, values in runs.items():
        if values:
            yield Figure(
                "scale", f"start of {name}", statistics.median(values), "s", runs={name: values}, runs_unit="s"
            )


def _start_of_parts(folder: Path) -> dict[str, float]:
    """Return the seconds until web answered, and until the worker was known."""
    valkey_port, web_port = free_port(), free_port()
    (data := folder / "data").mkdir()
    migrate(Settings(storage_path=data))
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOST": "127.0.0.1",
        "PORT": str(web_port),
        "REDIS_URL": f"redis://127.0.0.1:{valkey_port}/0",
        "ASGI_LOOK_STORAGE_PATH": str(data),
        "ASGI_LOOK_LOG_LEVEL": "ERROR",
    }
    commands = read_procfile()
    valkey = Part("Valkey", valkey_command(folder, valkey_port), env).start()
    parts = [valkey]
    try:
        _seconds_until(lambda: valkey.process is not None and is_valkey_up(valkey_port, valkey.process.pid))
        parts.append(Part("web", commands["web"], env).start())
        web = _seconds_until(lambda: _get(web_port, "/healthz") is not None)
        parts.append(Part("worker", commands["worker"], env).start())
        worker = _seconds_until(lambda: (_get(web_port, "/readyz") or {}).get("status") == "ok")
        return {"web": web, "worker": worker}
    finally:
        for part in reversed(parts):
            if part.process is not None:
                part.process.terminate()
                part.process.wait()


def _seconds_until(condition: Callable[[], bool]) -> float:
    began = time.perf_counter()
    while not condition():
        if time.perf_counter() - began > 60:
            raise SystemExit("a part does not start")
        time.sleep(LOOK_SECONDS)  # between two looks
    return time.perf_counter() - began


def _get(port: int, path: str) -> dict[str, str] | None:
    with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        connection.request("GET", path)
        answer: dict[str, str] = json.loads(connection.getresponse().read() or b"{}")
        return answer
    return None


async def _start_of_child() -> float:
    settings = Settings()
    renderer = Renderer(settings, 1, settings.max_pixels)
    began = time.perf_counter()
    await renderer.start()
    seconds = time.perf_counter() - began
    await renderer.close()
    return seconds


def _start_of_run(folder: Path) -> float | None:
    """Return the seconds from ./run to its being ready; none where it would install something first."""
    lists = [place / "requirements-single.txt" for place in (HERE, HERE / ".venv")]
    if not all(file.exists() for file in lists) or lists[0].read_bytes() != lists[1].read_bytes():
        print("./run would install first: its start is skipped", file=sys.stderr)
        return None
    began = time.perf_counter()
    with running(HERE, str(folder / "run"), free_port()) as run:
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
        time.sleep(3)  # until all debts are paid
        cpu_before = [process.cpu_seconds() for process in processes]
        woken_before = [process.wakeups() for process in processes]
        progress(f"at rest: {seconds:.0f} s")
        time.sleep(seconds)  # it is over this time that they are counted
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
    """Return their names, with numbers where there are several of a kind."""
    count = Counter(process.name for process in processes)
    seen: Counter[str] = Counter()
    names = []
    for process in processes:
        seen[process.name] += 1
        names.append(process.name if count[process.name] == 1 else f"{process.name} {seen[process.name]}")
    return names


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
