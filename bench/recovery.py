"""How soon a killed worker's image is claimed again: `python -m bench.recovery [kills]`, on a service of its own.

Two workers render pictures that take more than a second. The worker that has the newest one is killed with -9 at a
random moment of the render, and started again. A trigger in the ledger notes every claim, to the millisecond.
"""

from __future__ import annotations

import io
import random
import socket
import sqlite3
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from PIL import Image, ImageCms

from bench.service import Service, run_service, until
from launch.processes import Part

KILLS = 20
WORKERS = 2
SEED = 20
#: Lost images at the most before the next kill.
MOST_LOST = 2
#: The latest kill, in seconds after the claim.
LATEST_SECONDS = 0.8

_NOTE_CLAIMS = """
CREATE TABLE claims (id TEXT, attempt INTEGER, at REAL, PRIMARY KEY (id, attempt));
CREATE TRIGGER note_claim AFTER UPDATE OF status ON images WHEN NEW.status = 'processing' BEGIN
    INSERT INTO claims VALUES (NEW.id, NEW.attempt, (julianday('now') - 2440587.5) * 86400.0);
END;
"""


def slow_picture() -> bytes:
    """Return a small file that takes more than a second to render: 25 MP, progressive, of another colour space."""
    gradient = Image.linear_gradient("L").resize((5001, 4999))
    picture = Image.merge("RGB", (gradient, gradient.transpose(Image.Transpose.FLIP_TOP_BOTTOM), gradient))
    file = io.BytesIO()
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    picture.save(file, "JPEG", progressive=True, icc_profile=profile.tobytes())
    return file.getvalue()


def worker_with(ledger: sqlite3.Connection, image_id: str, workers: list[Part]) -> Part | None:
    """Return the worker that has the image, or None."""
    ((name,),) = ledger.execute("SELECT worker FROM images WHERE id = ?", (image_id,))
    return next((worker for worker in workers if name == name_of(worker)), None)


def name_of(worker: Part) -> str:
    return f"{socket.gethostname()}:{worker.process.pid if worker.process else 0}"


def kill(worker: Part, ledger: sqlite3.Connection) -> list[tuple[str, int, float]]:
    """Kill a worker and start it again; return its images, their attempts, and the time of the kill."""
    if worker.process is None:
        raise SystemExit("a worker has not started")
    name, at = name_of(worker), time.time()
    worker.process.kill()
    worker.process.wait()
    query = "SELECT id, attempt FROM images WHERE status = 'processing' AND worker = ?"
    lost = [(image_id, attempt, at) for image_id, attempt in ledger.execute(query, (name,))]
    worker.start()
    return lost


def measure(service: Service, ledger: sqlite3.Connection, kills: int) -> list[float]:
    """Return the seconds from each kill to the next claim of a lost image."""
    picture, moments = slow_picture(), random.Random(SEED)  # noqa: S311 - no secret
    lost: list[tuple[str, int, float]] = []
    done = 0
    while done < kills:
        image_id = service.upload(picture)
        until(lambda image_id=image_id: worker_with(ledger, image_id, service.workers) is not None)  # type: ignore[misc] # a default is no argument
        time.sleep(moments.uniform(0, LATEST_SECONDS))  # into the middle of the render
        worker = worker_with(ledger, image_id, service.workers)
        if worker is not None and (had := kill(worker, ledger)):
            lost.extend(had)
            done += 1
            # Few enough that none waits for a free slot besides.
            until(lambda: len(lost) - len(recovered(ledger, lost)) <= MOST_LOST)
    until(lambda: len(recovered(ledger, lost)) == len(lost))
    return recovered(ledger, lost)


def recovered(ledger: sqlite3.Connection, lost: list[tuple[str, int, float]]) -> list[float]:
    """Return the seconds to the next claim of those images that were claimed again."""
    claims = {(image_id, attempt): at for image_id, attempt, at in ledger.execute("SELECT id, attempt, at FROM claims")}
    return [claims[image_id, attempt + 1] - at for image_id, attempt, at in lost if (image_id, attempt + 1) in claims]


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else KILLS
    with (
        tempfile.TemporaryDirectory() as folder,
        run_service(
            Path(folder),
            ledger_script=_NOTE_CLAIMS,
            workers=WORKERS,
            ASGI_LOOK_RENDER_SLOTS="2",
            ASGI_LOOK_LOG_LEVEL="ERROR",
        ) as service,
        closing(sqlite3.connect(service.ledger_file, timeout=10, isolation_level=None)) as ledger,
    ):
        seconds = sorted(measure(service, ledger, kills))
        until(lambda: not ledger.execute("SELECT 1 FROM images WHERE status <> 'ready'").fetchall())
        ((images,),) = ledger.execute("SELECT count(*) FROM images")
    print(
        f"kill -9 to the next claim: median {statistics.median(seconds):.1f} s, "
        f"95% within {seconds[len(seconds) * 95 // 100]:.1f} s, worst {seconds[-1]:.1f} s "
        f"({kills} kills, {len(seconds)} attempts lost, all {images} images ready)"
    )


if __name__ == "__main__":
    main()
