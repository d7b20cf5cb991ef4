"""Alembic's migrations of the ledger. `python -m shared.migrations` runs them."""
