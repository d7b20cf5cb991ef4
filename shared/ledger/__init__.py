"""The ledger: the database that holds the truth about every image, and the order of work."""

from __future__ import annotations

from shared.ledger.ledger import (
    LEASE_SECONDS,
    MOST_LOSSES,
    PAUSE_SECONDS,
    SETTLE_SECONDS,
    TAKE_AT_MOST,
    Identity,
    Ledger,
    LedgerName,
    Waiting,
)

__all__ = [
    "LEASE_SECONDS",
    "MOST_LOSSES",
    "PAUSE_SECONDS",
    "SETTLE_SECONDS",
    "TAKE_AT_MOST",
    "Identity",
    "Ledger",
    "LedgerName",
    "Waiting",
]
