"""A service to measure: Valkey, one web process and workers from the Procfile's lines, in a folder of its own."""

from __future__ import annotations

import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from launch.processes import Part, free_port, is_valkey_up, read_procfile, valkey_command

START_SECONDS = 60.0


@dataclass(frozen=True)
class Service:
    """A service that is ready."""

    valkey_port: int
    web_port: int
    valkey: Part
    workers: list[Part]
    ledger_file: Path
    #: What its processes have in their environment.
    env: Mapping[str, str] = field(default_factory=dict)

    def is_ready(self) -> bool:
        """Tell whether /readyz calls every part good."""
        try:
            with closing(HTTPConnection("127.0.0.1", self.web_port, timeout=5)) as connection:
                connection.request("GET", "/readyz")
                return bool(json.load(connection.getresponse())["status"] == "ok")
        except (OSError, HTTPException):
            return False

    def upload(self, picture: bytes) -> str:
        """Return the id of a picture that was taken; end the measurement where it was not."""
        with closing(HTTPConnection("127.0.0.1", self.web_port, timeout=60)) as connection:
            connection.request("POST", "/images", picture)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 202:
                raise SystemExit(f"an upload got {answer.status}: {body!r}")
            return str(json.loads(body)["id"])


@contextmanager
def run_service(
    folder: Path, *, ledger_script: str = "", workers: int = 1, metrics_ports: Sequence[int] = (), **settings: str
) -> Iterator[Service]:
    """Run a service for the block; the ledger's `ledger_script` may add triggers that note what is to be measured.

    With `metrics_ports` there is a worker for each of them, and web answers /metrics, too.
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
    commands = read_procfile()
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
        workers_more = [{"ASGI_LOOK_METRICS_PORT": str(port)} for port in metrics_ports] or [{}] * workers
        service.workers.extend(Part("worker", commands["worker"], env | more).start() for more in workers_more)
        parts.extend(service.workers)
        until(service.is_ready)
        yield service
    finally:
        for part in reversed(parts):
            if part.process is not None:
                part.process.terminate()
                part.process.wait()


def until(
    condition: Callable[[], bool],
    what: str = "the service does not start",
    seconds: float = START_SECONDS,
    *,
    every: float = 0.05,
) -> None:
    """Return once `condition()` is true, looking every so many seconds; end the measurement where it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(what)
        time.sleep(every)
