"""How soon the next job runs after a decoder hung, crashed or took all memory: `python -m bench.next_job [rounds]`.

The service has one slot, and children with planted faults (`bench/planted`). In each round a bad picture has the slot
while a good one waits. A trigger in the ledger notes, to the millisecond, when the bad one was given up and when the
good one was claimed and ready. A crash is retried once; both attempts count.
"""

from __future__ import annotations

import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.isolation import SIZES, photograph
from bench.service import Service, run_service, until

ROUNDS = 10
FAULTS = {"hang": "hung (limit 1 s)", "segfault": "crashed", "allocate": "took all memory (limit 512 MiB)"}

_NOTE_STATUSES = """
CREATE TABLE notes (id TEXT, status TEXT, at REAL);
CREATE TRIGGER note_status AFTER UPDATE OF status ON images WHEN NEW.status != OLD.status BEGIN
    INSERT INTO notes VALUES (NEW.id, NEW.status, (julianday('now') - 2440587.5) * 86400.0);
END;
"""


@dataclass(frozen=True)
class Gap:
    """Milliseconds from a bad picture's end to the good one's claim, and to its being ready."""

    claimed: float
    ready: float


def notes_of(ledger: sqlite3.Connection, image_id: str) -> list[tuple[str, float]]:
    return ledger.execute("SELECT status, at FROM notes WHERE id = ? ORDER BY at", (image_id,)).fetchall()


def try_once(service: Service, ledger: sqlite3.Connection, fault: str, good: bytes) -> Gap:
    bad_id = service.upload(f"GIF89a FAULT render {fault}\n".encode() + bytes(64))
    until(lambda: len(notes_of(ledger, bad_id)) > 0, "the bad picture is not claimed")
    good_id = service.upload(good)
    until(lambda: {status for status, _ in notes_of(ledger, good_id)} >= {"ready"}, "the good picture is not ready")
    until(lambda: {status for status, _ in notes_of(ledger, bad_id)} >= {"failed"}, "the bad picture has not failed")
    times = dict(notes_of(ledger, good_id))
    given_up = max(
        at for status, at in notes_of(ledger, bad_id) if status != "processing" and at <= times["processing"]
    )
    return Gap((times["processing"] - given_up) * 1000, (times["ready"] - given_up) * 1000)


def measure(rounds: int) -> None:
    good = photograph(SIZES["1 MP"])
    with (
        tempfile.TemporaryDirectory() as folder,
        run_service(
            Path(folder),
            ledger_script=_NOTE_STATUSES,
            PYTHONPATH=str(Path(__file__).parent / "planted"),
            ASGI_LOOK_RENDER_SLOTS="1",
            ASGI_LOOK_RENDER_WALL_SECONDS="1",
            ASGI_LOOK_RENDER_MEMORY_BYTES=str(512 * 1024 * 1024),
            ASGI_LOOK_LOG_LEVEL="ERROR",
        ) as service,
        closing(sqlite3.connect(service.ledger_file, timeout=10)) as ledger,
    ):
        for fault, what in FAULTS.items():
            gaps = []
            for done in range(rounds):
                if sys.stderr.isatty():
                    print(f"\r{fault}: {done} of {rounds}", end="", file=sys.stderr)
                gaps.append(try_once(service, ledger, fault, good))
                time.sleep(0.05)  # so that rounds do not coincide with the sweep
            print(f"A decoder {what}: the next job was")
            for name in ("claimed", "ready"):
                values = [getattr(gap, name) for gap in gaps]
                print(
                    f"  {name} after {statistics.median(values):.0f} ms, worst {max(values):.0f} ms ({rounds} rounds)"
                )


if __name__ == "__main__":
    measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
