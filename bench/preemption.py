"""How soon an upload is claimed while bulk work has the only slot: `python -m bench.preemption [uploads]`.

Renditions of ready images are made again in lane `bulk`; each takes 10 s, since their child (`bench/planted`) computes
that long before it renders. Uploads come one by one, each at a random moment of such a render. A trigger in the ledger
notes, to the millisecond, when each was added and claimed, and every loss. In the end all bulk work must be done.
"""

from __future__ import annotations

import asyncio
import io
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image as Pictures

from bench.enqueue_to_start import tiny_picture
from bench.pace import NOTE_STATUSES
from bench.service import Service, run_service, until
from shared.images import Lane
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import worker_client
from shared.redis.queue import Queue
from shared.settings import Settings

UPLOADS = 20
BULK = 2
BULK_SECONDS = 10
#: The latest upload, in seconds after a bulk render has begun.
LATEST_SECONDS = 2.0
DONE_SECONDS = 120.0
MOST_MILLISECONDS = 200.0
SEED = 14

_NOTE_WORK = """
CREATE TABLE work_notes (id TEXT, work TEXT, at REAL);
CREATE TRIGGER note_work AFTER UPDATE OF work ON images BEGIN
    INSERT INTO work_notes VALUES (NEW.id, NEW.work, (julianday('now') - 2440587.5) * 86400.0);
END;
CREATE TABLE losses (id TEXT);
CREATE TRIGGER note_loss AFTER UPDATE OF losses ON images WHEN NEW.losses > OLD.losses BEGIN
    INSERT INTO losses VALUES (NEW.id);
END;
"""


def slow_picture() -> bytes:
    """Return a picture whose comment tells the planted child how long to take."""
    file = io.BytesIO()
    picture = Pictures.linear_gradient("L").convert("RGB").resize((400, 300))
    picture.save(file, "JPEG", comment=f"FAULT slow {BULK_SECONDS}\n".encode())
    return file.getvalue()


async def make_again(service: Service, folder: Path, image_ids: Sequence[str]) -> None:
    """Queue renditions of ready images as bulk work."""
    settings = Settings(storage_path=folder, database_url=f"sqlite:///{service.ledger_file}")
    ledger = Ledger.connect(settings)
    redis = worker_client(f"redis://127.0.0.1:{service.valkey_port}/0")
    breaker = CircuitBreaker(redis, WORKER_DEADLINE)
    name = (await ledger.identity()).name
    queue = Queue(redis, breaker, lambda: name)
    try:
        for image_id in image_ids:
            image = await ledger.get(image_id)
            row = None if image is None else await ledger.request_renditions(image, Lane.BULK)
            if row is None:
                raise SystemExit(f"no renditions of {image_id} could be asked for")
            await queue.enqueue(row)
    finally:
        await breaker.close()
        await redis.aclose()
        await ledger.close()


@dataclass
class Measured:
    #: Milliseconds from each upload's row to its claim, and to `ready`.
    to_claim: list[float] = field(default_factory=list)
    to_ready: list[float] = field(default_factory=list)
    #: Seconds from each bulk image's request to the end of its work, and how often bulk work began.
    bulk_seconds: list[float] = field(default_factory=list)
    begun: int = 0


def measure(service: Service, ledger: sqlite3.Connection, folder: Path, uploads: int) -> Measured:
    moments = random.Random(SEED)  # noqa: S311 - no secret
    bulk = [service.upload(slow_picture()) for _ in range(BULK)]

    def ids(condition: str) -> set[str]:
        return {image_id for (image_id,) in ledger.execute(f"SELECT id FROM images WHERE {condition}")}  # noqa: S608 - ours

    until(lambda: ids("status = 'ready'") >= {*bulk}, "an image is not ready", DONE_SECONDS)
    until(lambda: not ledger.execute("SELECT 1 FROM debts").fetchall(), "what is owed is not paid")
    asyncio.run(make_again(service, folder, bulk))
    measured = Measured()
    for _ in range(uploads):
        until(lambda: ids("worker IS NOT NULL") <= {*bulk} and ids("worker IS NOT NULL") != set(), every=0.01)
        time.sleep(moments.uniform(0.2, LATEST_SECONDS))  # into the middle of a bulk render
        image_id = service.upload(tiny_picture())
        until(lambda image_id=image_id: image_id in ids("status = 'ready'"), "an upload is not ready")  # type: ignore[misc] # a default is no argument
        noted = dict(ledger.execute("SELECT status, at FROM notes WHERE id = ?", (image_id,)).fetchall())
        measured.to_claim.append((noted["processing"] - noted["queued"]) * 1000)
        measured.to_ready.append((noted["ready"] - noted["queued"]) * 1000)
    until(lambda: not ids("work IS NOT NULL"), "bulk work is not done", DONE_SECONDS)
    rows = ledger.execute("SELECT id, attempt, status FROM images").fetchall()
    if {status for _, _, status in rows} != {"ready"} or ledger.execute("SELECT 1 FROM losses").fetchall():
        raise SystemExit("an image was lost or has failed")
    for image_id in bulk:
        noted = dict(ledger.execute("SELECT work, max(at) FROM work_notes WHERE id = ? GROUP BY work", (image_id,)))
        measured.bulk_seconds.append(noted[None] - noted["renditions"])
    # The first attempt was the conversion.
    measured.begun = sum(attempt - 1 for image_id, attempt, _ in rows if image_id in bulk)
    return measured


def main() -> int:
    uploads = int(sys.argv[1]) if len(sys.argv) > 1 else UPLOADS
    with (
        tempfile.TemporaryDirectory() as name,
        run_service(
            Path(name),
            ledger_script=NOTE_STATUSES + _NOTE_WORK,
            PYTHONPATH=str(Path(__file__).parent / "planted"),
            ASGI_LOOK_RENDER_SLOTS="1",
            ASGI_LOOK_LOG_LEVEL="ERROR",
        ) as service,
        closing(sqlite3.connect(service.ledger_file, timeout=10)) as ledger,
    ):
        measured = measure(service, ledger, Path(name), uploads)
    print(f"beside bulk work of {BULK_SECONDS} s in the only slot, {uploads} uploads:")
    for what, milliseconds in (("its claim", measured.to_claim), ("ready", measured.to_ready)):
        middle, worst = statistics.median(milliseconds), max(milliseconds)
        print(f"an upload's row to {what}: median {middle:.0f} ms, worst {worst:.0f} ms")
    took = ", ".join(f"{seconds:.0f} s" for seconds in measured.bulk_seconds)
    print(f"bulk work of {BULK} images: begun {measured.begun} times, done {took} after its request, no loss counted")
    return int(max(measured.to_claim) > MOST_MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
