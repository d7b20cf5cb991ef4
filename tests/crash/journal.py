"""What a ledger does not keep, noted by triggers of its own: every step of every image, by its machine's clock."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.integration.evidence import is_on_postgresql, query
from tests.integration.service import Service

_CHANGED = "NEW.status != OLD.status OR NEW.attempt != OLD.attempt OR NEW.losses > OLD.losses"
_ON_SQLITE = """
CREATE TABLE journal (
    n INTEGER PRIMARY KEY, at REAL, id TEXT, status TEXT, attempt INTEGER, losses INTEGER, worker TEXT
)
-
CREATE TRIGGER journal_{event} AFTER {event} ON images {when} BEGIN
    INSERT INTO journal (at, id, status, attempt, losses, worker)
    VALUES ((julianday('now') - 2440587.5) * 86400.0, NEW.id, NEW.status, NEW.attempt, NEW.losses, NEW.worker);
END
"""
_ON_POSTGRESQL = """
CREATE TABLE journal (
    n SERIAL, at DOUBLE PRECISION, id TEXT, status TEXT, attempt INTEGER, losses INTEGER, worker TEXT
)
-
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO journal (at, id, status, attempt, losses, worker) VALUES
    (extract(epoch FROM clock_timestamp()), NEW.id, NEW.status, NEW.attempt, NEW.losses, NEW.worker);
    RETURN NULL;
END $$
-
CREATE TRIGGER journal_{event} AFTER {event} ON images FOR EACH ROW {when} EXECUTE FUNCTION note()
"""


@dataclass(frozen=True)
class Step:
    """An image's row after one commit; `at` in seconds since the epoch, `worker` a process id."""

    at: float
    image_id: str
    status: str
    attempt: int
    losses: int
    worker: int | None


Journal = dict[str, list[Step]]


def keep_journal(service: Service) -> None:
    """Note from now on what happens to the ledger's images."""
    *once, note = (_ON_POSTGRESQL if is_on_postgresql(service) else _ON_SQLITE).split("\n-\n")
    for statement in once:
        query(service, statement)
    query(service, note.format(event="INSERT", when=""))
    query(service, note.format(event="UPDATE", when=f"WHEN ({_CHANGED})"))


def journal_of(service: Service) -> Journal:
    """Return each image's steps in their order."""
    found: Journal = {}
    for row in query(service, "SELECT * FROM journal ORDER BY n"):
        pid = None if row["worker"] is None else int(row["worker"].rpartition(":")[2])
        step = Step(row["at"], row["id"], row["status"], row["attempt"], row["losses"], pid)
        found.setdefault(step.image_id, []).append(step)
    return found


def claims_of(service: Service, image_id: str) -> list[Step]:
    """Return the beginning of each attempt at an image."""
    steps = journal_of(service)[image_id]
    return [step for before, step in pairwise(steps) if step.attempt > before.attempt and step.worker is not None]


def hand_backs_of(service: Service, image_id: str) -> list[float]:
    """Return when an image was handed back."""
    steps = journal_of(service)[image_id]
    return [
        step.at
        for before, step in pairwise(steps)
        if (before.status, step.status) == ("processing", "queued") and step.losses == before.losses
    ]


def losses_in(service: Service) -> list[Step]:
    """Return every loss so far, also those that a publication has forgiven."""
    pairs = (pair for steps in journal_of(service).values() for pair in pairwise(steps))
    return [step for before, step in pairs if step.losses > before.losses]


def claimed_again(journal: Journal, worker: int, at: float) -> Iterator[float]:
    """Yield, for each image that a worker was at when it died at that moment, when its next attempt began."""
    for steps in journal.values():
        before = [step for step in steps if step.at <= at]
        if before and before[-1].status == "processing" and before[-1].worker == worker:
            yield from [step.at for step in steps if step.status == "processing" and step.at > at][:1]
