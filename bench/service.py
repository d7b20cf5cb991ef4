"""A service to measure: Valkey, a web process and workers from the Procfile's lines, in a folder of its own."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from shlex import quote
from typing import Any

from launch.processes import HERE, Part, free_port
from launch.valkey import is_valkey_up, valkey_command

START_SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """A service that is ready."""

    valkey_port: int
    web_port: int
    valkey: Part
    workers: list[Part]
    ledger_file: Path
    #: The environment of its processes.
    env: Mapping[str, str] = field(default_factory=dict)
    #: Seconds until web answered /healthz, and until /readyz named a worker.
    start_seconds: dict[str, float] = field(default_factory=dict)

    def get(self, path: str) -> Any:
        """Return the JSON of an answer; None if there is none."""
        with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", self.web_port, timeout=5)) as client:
            client.request("GET", path)
            return json.loads(client.getresponse().read() or b"{}")
        return None

    def is_ready(self) -> bool:
        """Return whether /readyz says "ok"."""
        return (self.get("/readyz") or {}).get("status") == "ok"

    def upload(self, picture: bytes) -> str:
        """Upload a picture; return its id. Raises SystemExit unless the answer is 202."""
        with closing(HTTPConnection("127.0.0.1", self.web_port, timeout=60)) as connection:
            connection.request("POST", "/images", picture)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 202:
                raise SystemExit(f"an upload got {answer.status}: {body!r}")
            return str(json.loads(body)["id"])

    def stop_workers(self) -> None:
        """Stop every worker. `worker.start()` starts one again."""
        end(self.workers)


@contextmanager
def run_service(
    folder: Path,
    *,
    code: Path = HERE,
    ledger_script: str = "",
    workers: int = 1,
    metrics_ports: Sequence[int] = (),
    **settings: str,
) -> Iterator[Service]:
    """Run a service for the block.

    `code` is the checkout that runs. `ledger_script` is SQL for the new ledger, such as triggers that note times. With
    `metrics_ports` there is a worker for each port, and web answers /metrics, too.
    """
    valkey_port, web_port = free_port(), free_port()
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOST": "127.0.0.1",
        "PORT": str(web_port),
        "REDIS_URL": f"redis://127.0.0.1:{valkey_port}/0",
        "ASGI_LOOK_STORAGE_PATH": str(folder),
        "ASGI_LOOK_LOG_LEVEL": "WARNING",
        **settings,
    }
    commands = commands_of(code)
    (folder / "valkey").mkdir()
    valkey = Part("Valkey", valkey_command(folder / "valkey", valkey_port), env).start()
    service = Service(valkey_port, web_port, valkey, [], folder / "ledger.sqlite3", env)
    parts = [valkey]
    try:
        until(lambda: valkey.process is not None and is_valkey_up(valkey_port, valkey.process.pid))
        release = Part("release", commands["release"], env).start()
        until(lambda: not release.is_running)
        with closing(sqlite3.connect(service.ledger_file)) as ledger:
            ledger.executescript(ledger_script)
        counted = {"ASGI_LOOK_METRICS": "1"} if metrics_ports else {}
        parts.append(Part("web", commands["web"], env | counted).start())
        service.start_seconds["web"] = until(lambda: service.get("/healthz") is not None, every=0.01)
        workers_more = [{"ASGI_LOOK_METRICS_PORT": str(port)} for port in metrics_ports] or [{}] * workers
        service.workers.extend(Part("worker", commands["worker"], env | more).start() for more in workers_more)
        parts.extend(service.workers)
        service.start_seconds["worker"] = until(service.is_ready, every=0.01)
        yield service
    finally:
        end(parts[::-1])


def commands_of(code: Path) -> dict[str, Sequence[str]]:
    """Return the commands of a checkout's Procfile by their names. They run in that checkout."""
    lines = (line.partition(":") for line in (code / "Procfile").read_text().splitlines())
    return {
        name.strip(): ("/bin/sh", "-c", f"cd {quote(str(code))} && exec {line.strip()}")
        for name, colon, line in lines
        if colon
    }


def end(parts: Sequence[Part]) -> None:
    """Stop processes one after the other."""
    for part in parts:
        if part.process is not None:
            part.process.terminate()
            part.process.wait()


def until(
    condition: Callable[[], bool],
    what: str = "the service does not start",
    seconds: float = START_SECONDS,
    *,
    every: float = 0.05,
) -> float:
    """Wait for a condition, checked every so many seconds; return the seconds. Raises SystemExit after `seconds`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() > began + seconds:
            raise SystemExit(what)
        time.sleep(every)
    return time.monotonic() - began
