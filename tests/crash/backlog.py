"""Backlogs of any length, put straight into a ledger; and what it takes to work them off.

`python -m tests.crash.backlog [images]` does so with 10,000, far past what arq reads at a time or keeps for a day.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import uuid_utils
from PIL import Image

from tests.crash.journal import keep_journal, losses_in
from tests.crash.retrying import ids_in_list
from tests.integration.evidence import original_of, query, rows_of
from tests.integration.service import Deployed, Service, ended, is_apart
from tests.worker.pictures import encoded

DAY = 86_400.0


@dataclass(frozen=True)
class Drained:
    """How long a backlog took; the statuses in which its images ended, and those in the list but once."""

    count: int
    seconds: float
    statuses: set[str]
    listed: list[str]

    def __str__(self) -> str:
        return f"{self.count} images in {self.seconds:.1f} s, {self.count / self.seconds:.0f} a second"


def new_ids(count: int) -> list[str]:
    """Return so many ids in their order."""
    return [str(uuid_utils.uuid7()) for _ in range(count)]


def ledger_name_of(service: Service) -> str:
    """Return the name of a service's ledger, which its jobs have in their ids."""
    ((name,),) = (row.values() for row in query(service, "SELECT identity FROM deployment"))
    return str(name)


def queue_up(service: Service, image_ids: list[str], *, age: float = 3 * DAY) -> None:
    """Commit images as uploads of `age` seconds ago whose only wake-up has been forgotten; they are due since then.

    Their originals are one file, on a disk each a hard link to it.
    """
    content = encoded(Image.linear_gradient("L").convert("RGB").resize((80, 64)), "PNG").getvalue()
    digest = hashlib.sha256(content).hexdigest()
    store_originals(service, image_ids, content)
    created = time.time() - age
    rows = (
        f"('{image_id}', 'queued', 'convert', 0, {at}, 0, 0, 0, {at}, 'image/png', {len(content)}, '{digest}', '{{}}',"
        f" {at}, {at})"
        for at, image_id in ((created + number / 1000, image_id) for number, image_id in enumerate(image_ids))
    )
    query(
        service,
        "INSERT INTO images (id, status, work, lane, turn, attempt, failures, losses, due, original_type,"  # noqa: S608 - ids of ours
        f" original_bytes, original_sha256, renditions, created, modified) VALUES {', '.join(rows)}",
    )


def store_originals(service: Service, image_ids: list[str], content: bytes) -> None:
    """Store the same bytes as the original of each of these images."""
    places = [original_of(service, image_id) for image_id in image_ids]
    if is_apart():
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda place: place.write_bytes(content), places))
        return
    template = service.data / "template"
    template.write_bytes(content)
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(template, place)
    template.unlink()


def drain(service: Deployed, image_ids: list[str], patience: float) -> Drained:
    """Wait until none of these images is queued or being processed any more."""
    started, wanted = time.monotonic(), set(image_ids)

    unfinished = "SELECT count(*) AS unfinished FROM images WHERE status IN ('queued', 'processing')"
    service.until(lambda: query(service, unfinished)[0]["unfinished"] == 0, patience, "the backlog's end")
    seconds = time.monotonic() - started
    statuses = {row["status"] for image_id, row in rows_of(service).items() if image_id in wanted}
    listed = [image_id for image_id in ids_in_list(service) if image_id in wanted]
    return Drained(len(image_ids), seconds, statuses, listed)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder, ended(Path(folder)) as services:
        service = services.deploy(workers=2)
        keep_journal(service)
        image_ids = new_ids(count)
        queue_up(service, image_ids)
        print(f"{count:,} images are queued", flush=True)
        drained = drain(service, image_ids, patience=3600)
        losses, exits = len(losses_in(service)), sum(worker.poll() is not None for worker in service.workers)
    are_listed = sorted(drained.listed) == sorted(image_ids)
    print(f"{drained}; statuses: {sorted(drained.statuses)}, each in the list once: {are_listed}")
    print(f"attempts lost: {losses}, workers that ended: {exits}")
    return 0 if drained.statuses == {"ready"} and are_listed and not losses and not exits else 1


if __name__ == "__main__":
    sys.exit(main())
