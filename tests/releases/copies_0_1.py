"""Many copies of the data folder that release 0.1.0 left behind, upgraded and finished by today's service.

    python -m tests.releases.copies_0_1 [--copies 834]

Makes some 10,000 images in every status of the 12 in `data-0.1.0.tar.gz`: files are linked, rows are written by SQL.
Then migrates them on SQLite and on PostgreSQL, killed at each step and run again, starts today's processes, and waits
until nothing is left to do. Prints what it took.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.settings import Settings
from tests.integration.evidence import query
from tests.integration.service import Deployed, ended, host_of
from tests.postgresql import started
from tests.releases import ledger_0_1
from tests.releases.ledger_0_1 import Row, write

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
#: What 0.1.0 left behind, by id.
IMAGES: dict[str, dict[str, Any]] = json.loads((HERE / "data-0.1.0.json").read_text())["images"]
#: Statements that count what is left to do.
_UNFINISHED = "SELECT count(*) AS number FROM images WHERE work IS NOT NULL OR status NOT IN ('ready', 'failed')"
_OWED = "SELECT count(*) AS number FROM debts"


@dataclass(frozen=True)
class Copy:
    """A copy of an image."""

    id: str
    #: The id of the image that was copied.
    of: str

    @property
    def image(self) -> dict[str, Any]:
        """What is known of the image that was copied."""
        return IMAGES[self.of]

    def path(self, path: str) -> str:
        """Return the copy's path for one of the image."""
        return path.replace(self.of, self.id)


def make(settings: Settings, copies: int) -> list[Copy]:
    """Fill the folder and the ledger that the settings name; return the copies."""
    with tempfile.TemporaryDirectory(dir=settings.storage_path.parent) as place:
        with tarfile.open(HERE / "data-0.1.0.tar.gz") as tar:
            tar.extractall(place, filter="data")
        data = Path(place) / "data"
        with closing(sqlite3.connect(data / "ledger.sqlite3")) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute("SELECT * FROM images")]
            (ledger,) = (dict(row) for row in connection.execute("SELECT * FROM ledger"))
        made, copied = [], []
        for number in range(copies):
            for row in rows:
                copy = Copy(f"{row['id'][:24]}{number:012x}", row["id"])
                made.append(copy)
                copied.append(_copy_of(row, copy.id, number * len(rows)))
                for kind in ("originals", "renditions"):
                    _link(_place_of(data / kind, copy.of), _place_of(settings.storage_path / kind, copy.id))
        shutil.copytree(data / "markers", settings.storage_path / "markers")
    ledger_0_1.make(settings, copied)
    write(settings, f"UPDATE ledger SET identity = '{ledger['identity']}', marker = '{ledger['marker']}'")  # noqa: S608
    return made


def _copy_of(row: Row, image_id: str, later: int) -> Row:
    sequence = None if row["sequence"] is None else row["sequence"] + later
    return {**row, "id": image_id, "sequence": sequence}


def _place_of(folder: Path, image_id: str) -> Path:
    return folder / image_id[:5] / image_id[5:8] / image_id


def _link(original: Path, copy: Path) -> None:
    files = [path for path in original.rglob("*") if path.is_file()] if original.is_dir() else [original]
    for file in files:
        if file.exists():
            place = copy / file.relative_to(original)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, place)


def migrate_killed_at_each_step(settings: Settings) -> int:
    """Migrate in processes that are killed, each at a later step; return their number. The last one finishes."""
    url = settings.database_url if settings.is_on_postgresql else ""
    env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(settings.storage_path), "DATABASE_URL": url}
    command = [sys.executable, "-m", "tests.releases.killed"]
    return int(subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, check=True).stdout)


def left_to_do(service: Deployed) -> int:
    """Return the number of images with work or a status that is not final, and of debts."""
    return sum(int(query(service, statement)[0]["number"]) for statement in (_UNFINISHED, _OWED))


def wrong_answers(service: Deployed, copies: list[Copy]) -> list[str]:
    """Return what today's service answers otherwise than 0.1.0 did, or would have done once it had finished."""
    wrong = []
    with closing(http.client.HTTPConnection(host_of(port := service.ports[0]), port, timeout=60)) as connection:

        def get(path: str) -> tuple[int, bytes]:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()

        for copy in copies:
            status, body = get(f"/images/{copy.id}")
            expected = {"deleting": 404}.get(copy.image["status"], 200)
            if status != expected:
                wrong.append(f"{copy.id} ({copy.image['case']}): {status}")
                continue
            if status == 404:
                continue
            record = json.loads(body)
            if record["status"] != ("failed" if copy.image["status"] == "failed" else "ready"):
                wrong.append(f"{copy.id} ({copy.image['case']}): {record['status']}")
                continue
            for path in (record["image"], *record["thumbnails"]) if record["status"] == "ready" else ():
                status, body = get(path)
                # A file of 0.1.0 has the bytes that it had. Thumbnails that were wanted may be others.
                before = {copy.path(path): digest for path, digest in copy.image["pictures"].items()}
                is_kept = not copy.image["missing"] or path == record["image"]
                if status != 200 or (is_kept and before.get(path, _digest(body)) != _digest(body)):
                    wrong.append(f"{path} ({copy.image['case']}): {status}")
    return wrong


def _digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Upgrade copies of a data folder of release 0.1.0.")
    parser.add_argument("--copies", type=int, default=834)
    copies = parser.parse_args().copies
    with tempfile.TemporaryDirectory() as folder, started() as server:
        for database in ("sqlite", "postgresql"):
            place = Path(folder) / database
            (place / "data").mkdir(parents=True)
            url = server.database(template="template0") if database == "postgresql" else ""
            settings = Settings(storage_path=place / "data", database_url=url)
            made = make(settings, copies)
            killed = migrate_killed_at_each_step(settings)
            began = time.monotonic()
            with ended(place) as services:
                service = services.deploy(workers=2, data=settings.storage_path, DATABASE_URL=url)
                while left := left_to_do(service):
                    print(f"\r{database}: {left} left to do ", end="", file=sys.stderr)
                    time.sleep(1)
                seconds = time.monotonic() - began
                wrong = wrong_answers(service, made)
            print(f"\r{database}: {len(made):,} images; {killed} migrations were killed before one finished;")
            print(f"all was finished {seconds:.0f} s after the start of today's processes; wrong answers: {len(wrong)}")
            print(*wrong[:10], sep="\n")


if __name__ == "__main__":
    main()
