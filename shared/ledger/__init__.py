"""The ledger: the database that is the truth about every image, and the order in which their work is done."""

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
