"""How soon an idle worker starts: `python -m bench.enqueue_to_start [uploads]`, on a service of its own.

MONITOR gives the time of an enqueue, by Valkey's clock. A trigger in the ledger notes the time of the claim, to the
millisecond. Both are the same machine's clock.
"""

from __future__ import annotations

import io
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

import redis
from PIL import Image

from bench.service import run_service

UPLOADS = 200
WARM_UP = 20

NOTE_CLAIMS = """
CREATE TABLE claims (id TEXT PRIMARY KEY, at REAL);
CREATE TRIGGER note_claim AFTER UPDATE OF status ON images WHEN NEW.status = 'processing' BEGIN
    INSERT OR IGNORE INTO claims VALUES (NEW.id, (julianday('now') - 2440587.5) * 86400.0);
END;
"""


def tiny_picture() -> bytes:
    """Return a JPEG of 160x120, whose render takes next to nothing."""
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((160, 120)).save(file, "JPEG")
    return file.getvalue()


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
        # Jobs of release 0.1 begin with "convert".
        if name.upper() == "ZADD" and (job := arguments[-1]).startswith(("work:", "convert:")):
            found.setdefault(job.split(":")[2], command["time"])
            if len(found) == count:
                break
    return found


def main() -> None:
    uploads = int(sys.argv[1]) if len(sys.argv) > 1 else UPLOADS
    picture = tiny_picture()
    with (
        tempfile.TemporaryDirectory() as folder,
        run_service(Path(folder), ledger_script=NOTE_CLAIMS) as service,
    ):
        with (
            closing(redis.Redis(port=service.valkey_port)) as client,
            client.monitor() as monitor,  # type: ignore[no-untyped-call] # redis has no types there
            closing(HTTPConnection("127.0.0.1", service.web_port, timeout=30)) as connection,
        ):
            seconds = [upload(connection, picture) for _ in range(WARM_UP + uploads)][WARM_UP:]
            enqueued = enqueues(monitor, WARM_UP + uploads)
        with closing(sqlite3.connect(service.ledger_file)) as ledger:
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
