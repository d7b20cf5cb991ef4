"""The ledger: the database that holds the truth about every image, and the order of work."""

from __future__ import annotations

from shared.ledger.ledger import (
    DELETED_SECONDS,
    LEASE_SECONDS,
    MOST_LOSSES,
    PAUSE_SECONDS,
    SETTLE_SECONDS,
    TAKE_AT_MOST,
    Figures,
    Identity,
    Ledger,
    LedgerName,
)

__all__ = [
    "DELETED_SECONDS",
    "LEASE_SECONDS",
    "MOST_LOSSES",
    "PAUSE_SECONDS",
    "SETTLE_SECONDS",
    "TAKE_AT_MOST",
    "Figures",
    "Identity",
    "Ledger",
    "LedgerName",
]
