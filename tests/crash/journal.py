"""What a ledger does not keep, noted by triggers of its own: every claim, who made it and when, and every loss."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.integration.service import Service

_TRIGGERS = """
CREATE TABLE claims (id TEXT, attempt INTEGER, worker TEXT, at REAL);
CREATE TRIGGER note_claim AFTER UPDATE OF attempt ON images WHEN NEW.worker IS NOT NULL BEGIN
    INSERT INTO claims VALUES (NEW.id, NEW.attempt, NEW.worker, (julianday('now') - 2440587.5) * 86400.0);
END;
CREATE TABLE hand_backs (id TEXT, at REAL);
CREATE TRIGGER note_hand_back AFTER UPDATE OF status ON images
WHEN OLD.status = 'processing' AND NEW.status = 'queued' AND NEW.losses = OLD.losses BEGIN
    INSERT INTO hand_backs VALUES (NEW.id, (julianday('now') - 2440587.5) * 86400.0);
END;
CREATE TABLE losses (id TEXT, attempt INTEGER, losses INTEGER);
CREATE TRIGGER note_loss AFTER UPDATE OF losses ON images WHEN NEW.losses > OLD.losses BEGIN
    INSERT INTO losses VALUES (NEW.id, OLD.attempt, NEW.losses);
END;
"""


@dataclass(frozen=True)
class Claim:
    """One attempt's beginning: its number, its worker's process id and the time."""

    attempt: int
    worker: int
    at: float


def keep_journal(service: Service) -> None:
    """Note from now on what happens to the ledger's images."""
    with closing(sqlite3.connect(service.data / "ledger.sqlite3", timeout=10)) as ledger:
        ledger.executescript(_TRIGGERS)


def claims_of(service: Service, image_id: str) -> list[Claim]:
    """Return all attempts at an image."""
    rows = _rows(service, "SELECT attempt, worker, at FROM claims WHERE id = ? ORDER BY attempt", image_id)
    return [Claim(attempt, int(worker.rpartition(":")[2]), at) for attempt, worker, at in rows]


def hand_backs_of(service: Service, image_id: str) -> list[float]:
    """Return when an image was handed back."""
    return [at for (at,) in _rows(service, "SELECT at FROM hand_backs WHERE id = ?", image_id)]


def losses_in(service: Service) -> list[tuple[str, int, int]]:
    """Return every loss so far, also those that a publication has forgiven: image, attempt and its count of them."""
    return _rows(service, "SELECT id, attempt, losses FROM losses")


def _rows(service: Service, query: str, *arguments: str) -> list[Any]:
    with closing(sqlite3.connect(service.data / "ledger.sqlite3", timeout=10)) as ledger:
        return ledger.execute(query, arguments).fetchall()
