"""Indices that PostgreSQL uses whatever its statistics say. One index serves every kind of debt."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    images = sa.table("images", *(sa.column(name) for name in ("id", "status", "due", "owed", "sequence")))
    due = images.c.due.is_not(None)
    for name in ("images_queued", "images_leased", "images_owing", "images_owing_tokens", "images_listed"):
        op.drop_index(name, "images")
    for name, columns, condition in (
        ("images_queued", ["due"], sa.and_(images.c.status == "queued", due)),
        ("images_leased", ["due"], sa.and_(images.c.status == "processing", due)),
        ("images_owing", ["owed", "due"], sa.and_(images.c.owed.is_not(None), due)),
        ("images_listed", ["sequence"], sa.and_(images.c.status == "ready", images.c.sequence.is_not(None))),
    ):
        op.create_index(name, "images", columns, sqlite_where=condition, postgresql_where=condition)
