"""The table of images, and the table with one row about the ledger itself."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    images = op.create_table(
        "images",
        sa.Column("id", sa.String(36).with_variant(sa.String(36, collation="C"), "postgresql"), primary_key=True),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("published", sa.Integer),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("wake", sa.Integer, nullable=False),
        sa.Column("due", sa.Double),
        sa.Column("owed", sa.String(12)),
        sa.Column("sequence", sa.BigInteger),
        sa.Column("original_type", sa.String(64), nullable=False),
        sa.Column("original_bytes", sa.BigInteger, nullable=False),
        sa.Column("original_sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("renditions", sa.Text, nullable=False),
        sa.Column("error_type", sa.String(64)),
        sa.Column("error_detail", sa.Text),
        sa.Column("worker", sa.String(128)),
        sa.Column("request", sa.String(128)),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("modified", sa.Double, nullable=False),
    )
    for name, column, condition in (
        ("images_queued", "due", images.c.status == "queued"),
        ("images_leased", "due", images.c.status == "processing"),
        ("images_owing", "due", images.c.owed.is_not(None)),
        ("images_owing_tokens", "id", images.c.owed == "tokens"),
        ("images_listed", "sequence", images.c.status == "ready"),
        ("images_queued_by_id", "id", images.c.status == "queued"),
        ("images_processing_by_id", "id", images.c.status == "processing"),
        ("images_failed_by_id", "id", images.c.status == "failed"),
    ):
        op.create_index(name, "images", [column], sqlite_where=condition, postgresql_where=condition)
    ledger = op.create_table(
        "ledger",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("identity", sa.String(32), nullable=False),
        sa.Column("marker", sa.String(64)),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.bulk_insert(ledger, [{"id": 1, "identity": secrets.token_hex(8), "sequence": 0}])
