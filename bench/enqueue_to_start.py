"""How soon an idle worker starts: `python -m bench.enqueue_to_start [uploads]`, on a service of its own.

The time of an enqueue is Valkey's own, told by MONITOR; a trigger in the ledger notes that of the claim, to the
millisecond. Both are the same machine's clock.
"""

from __future__ import annotations

import io
import json
import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import redis
from PIL import Image

from parts import Part, free_port, is_valkey_up, read_procfile, valkey_command

UPLOADS = 200
WARM_UP = 20
START_SECONDS = 60.0

_NOTE_CLAIMS = """
CREATE TABLE claims (id TEXT PRIMARY KEY, at REAL);
CREATE TRIGGER note_claim AFTER UPDATE OF status ON images WHEN NEW.status = 'processing' BEGIN
    INSERT OR IGNORE INTO claims VALUES (NEW.id, (julianday('now') - 2440587.5) * 86400.0);
END;
"""


@contextmanager
def service(folder: Path) -> Iterator[tuple[int, int]]:
    """Run the service for the block; yield the ports of Valkey and web."""
    valkey_port, web_port = free_port(), free_port()
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "HOST": "127.0.0.1",
        "PORT": str(web_port),
        "REDIS_URL": f"redis://127.0.0.1:{valkey_port}/0",
        "ASGI_LOOK_STORAGE_PATH": str(folder),
        "ASGI_LOOK_LOG_LEVEL": "WARNING",
    }
    commands = read_procfile()
    (folder / "valkey").mkdir()
    valkey = Part("Valkey", valkey_command(folder / "valkey", valkey_port), env).start()
    parts = [valkey]
    try:
        until(lambda: valkey.process is not None and is_valkey_up(valkey_port, valkey.process.pid))
        release = Part("release", commands["release"], env).start()
        until(lambda: not release.is_running)
        with closing(sqlite3.connect(folder / "ledger.sqlite3")) as ledger:
            ledger.executescript(_NOTE_CLAIMS)
        parts += [Part(name, commands[name], env).start() for name in ("web", "worker")]
        until(lambda: is_ready(web_port))
        yield valkey_port, web_port
    finally:
        for part in reversed(parts):
            if part.process is not None:
                part.process.terminate()
                part.process.wait()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the service does not start")
        time.sleep(0.05)  # between two looks


def is_ready(port: int) -> bool:
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
            connection.request("GET", "/readyz")
            return bool(json.load(connection.getresponse())["status"] == "ok")
    except (OSError, HTTPException):
        return False


def upload(connection: HTTPConnection, picture: bytes) -> float:
    """Upload a picture and wait until it is ready; return the seconds since its last byte was sent."""
    connection.request("POST", "/images", picture, {"Prefer": "wait=20"})
    sent = time.perf_counter()
    answer = connection.getresponse()
    body = answer.read()
    seconds = time.perf_counter() - sent
    if answer.status != 201:
        raise SystemExit(f"an upload got {answer.status}: {body!r}")
    return seconds


def enqueues(monitor: redis.client.Monitor, count: int) -> dict[str, float]:
    """Return when each of the first `count` images was enqueued."""
    found: dict[str, float] = {}
    for command in monitor.listen():  # type: ignore[no-untyped-call] # redis has no types there
        name, *arguments = command["command"].split()
        if name.upper() == "ZADD" and (job := arguments[-1]).startswith("convert:"):
            found.setdefault(job.split(":")[2], command["time"])
            if len(found) == count:
                break
    return found


def main() -> None:
    uploads = int(sys.argv[1]) if len(sys.argv) > 1 else UPLOADS
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((160, 120)).save(file, "JPEG")
    with tempfile.TemporaryDirectory() as folder, service(Path(folder)) as (valkey_port, web_port):
        with (
            closing(redis.Redis(port=valkey_port)) as client,
            client.monitor() as monitor,  # type: ignore[no-untyped-call] # redis has no types there
            closing(HTTPConnection("127.0.0.1", web_port, timeout=30)) as connection,
        ):
            seconds = [upload(connection, file.getvalue()) for _ in range(WARM_UP + uploads)][WARM_UP:]
            enqueued = enqueues(monitor, WARM_UP + uploads)
        with closing(sqlite3.connect(Path(folder) / "ledger.sqlite3")) as ledger:
            claimed = dict(ledger.execute("SELECT id, at FROM claims"))
    starts = [claimed[image_id] - at for image_id, at in enqueued.items()][WARM_UP:]
    for what, values in (("enqueue to claim", starts), ("last byte to ready", seconds)):
        milliseconds = sorted(value * 1000 for value in values)
        print(
            f"{what}: median {statistics.median(milliseconds):.1f} ms, "
            f"95% within {milliseconds[len(milliseconds) * 95 // 100]:.1f} ms, worst {milliseconds[-1]:.1f} ms "
            f"({len(milliseconds)} uploads)"
        )


if __name__ == "__main__":
    main()
