"""Separate columns and tables for work, its order, and debts: the step from release 0.1, without a way back.

The migration makes a new table `images`. Processes of release 0.1 then refuse to start, because the table `ledger` has
another name. Their writes fail, because they name a column that is gone. Only the write `give_back` names no such
column. It finds no row, because the migration sets every `due` anew. Files stay where they are.
"""

from __future__ import annotations

import json
from hashlib import sha256

import sqlalchemy as sa
from alembic import context, op

revision = "0004"
down_revision = "0003"

_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    # Not now(), which is the time when the transaction began: it may have waited ten minutes since then.
    "postgresql": "extract(epoch FROM statement_timestamp())::double precision",
}
_KEPT = (
    *("id", "attempt", "failures", "losses", "sequence", "original_type", "original_bytes", "original_sha256"),
    *("width", "height", "error_type", "error_detail", "request", "trace", "created", "modified"),
)
_MAKE_IMAGES = f"""
    INSERT INTO new_images (status, work, lane, turn, due, renditions, {", ".join(_KEPT)})
    SELECT
        CASE status WHEN 'processing' THEN 'queued' ELSE status END,
        work,
        CASE work WHEN 'convert' THEN 0 WHEN 'renditions' THEN 1 END,
        CASE WHEN work IS NOT NULL THEN created END,
        CASE WHEN work IS NOT NULL THEN {{now}} END,
        -- JSON as Python writes it. A name or a digest has no bracket, so each "]" ends a rendition or its list.
        CASE WHEN published IS NULL THEN renditions
            ELSE replace(renditions, ']', ', ' || published || ', "{{definition}}"]') END,
        {", ".join(_KEPT)}
    FROM (
        SELECT images.*, CASE
            WHEN status IN ('queued', 'processing') THEN 'convert'
            WHEN status = 'ready' AND owed = 'thumbnails' THEN 'renditions'
        END AS work FROM images
    ) AS former
"""  # noqa: S608 - our own names
_MAKE_DEBTS = """
    INSERT INTO debts (image_id, kind, due)
    SELECT id, '{kind}', coalesce(due, {now}) FROM images WHERE owed IN ({owed}) ORDER BY due, id
"""
_MAKE_OWNERS = """
    INSERT INTO owners (owner, turn, bytes, images)
    SELECT '', coalesce(max(turn), 0), coalesce(sum(CASE WHEN status <> 'deleting' THEN original_bytes END), 0),
        count(CASE WHEN status <> 'deleting' THEN 1 END)
    FROM new_images
"""


def upgrade() -> None:
    dialect = op.get_bind().dialect.name
    is_postgresql = dialect == "postgresql"
    now = _NOW[dialect]
    if is_postgresql:
        # Without this lock, an image that is uploaded between the copy and the drop of the table would be lost. On
        # SQLite the transaction excludes all writers.
        op.execute("LOCK TABLE images, ledger IN ACCESS EXCLUSIVE MODE")

    _create_tables()
    op.execute(_MAKE_IMAGES.format(now=now, definition=_definition()))
    # In the order in which release 0.1 paid them.
    for kind, owed in (
        ("tokens", "'tokens'"),
        ("notice", "'tokens'"),
        ("leftovers", "'tokens', 'leftovers'"),
    ):
        op.execute(_MAKE_DEBTS.format(kind=kind, owed=owed, now=now))
    op.execute(_MAKE_OWNERS)

    op.drop_table("images")
    op.rename_table("new_images", "images")
    op.rename_table("ledger", "deployment")
    if is_postgresql:
        op.execute("ALTER INDEX new_images_pkey RENAME TO images_pkey")
        op.execute("ALTER INDEX ledger_pkey RENAME TO deployment_pkey")
        op.execute("ALTER SEQUENCE ledger_id_seq RENAME TO deployment_id_seq")
    _create_indices()
    if is_postgresql:
        op.execute("ANALYZE images, debts")


def _definition() -> str:
    """Return the definition of 0.1's JPEGs, as `shared.definitions` computes it, with the present background."""
    # The settings are repeated here, because later releases may change theirs.
    background = context.config.attributes["settings"].background
    made_by = {"format": "jpeg", "background": background, "settings": {"quality": 85, "subsampling": "4:2:0"}}
    return sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]


def _create_tables() -> None:
    image_id = sa.String(36).with_variant(sa.String(36, collation="C"), "postgresql")
    op.create_table(
        "new_images",
        sa.Column("id", image_id, primary_key=True),
        sa.Column("status", sa.String(12), nullable=False),
        sa.Column("work", sa.String(12)),
        sa.Column("lane", sa.SmallInteger),
        sa.Column("turn", sa.Double),
        sa.Column("wanted", sa.Text),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("failures", sa.Integer, nullable=False),
        sa.Column("losses", sa.Integer, nullable=False),
        sa.Column("due", sa.Double),
        sa.Column("worker", sa.String(128)),
        sa.Column("paused_until", sa.Double),
        sa.Column("sequence", sa.BigInteger),
        sa.Column("owner", sa.String(128)),
        sa.Column("original_type", sa.String(64), nullable=False),
        sa.Column("original_bytes", sa.BigInteger, nullable=False),
        sa.Column("original_sha256", sa.String(64), nullable=False),
        sa.Column("width", sa.Integer),
        sa.Column("height", sa.Integer),
        sa.Column("renditions", sa.Text, nullable=False),
        sa.Column("error_type", sa.String(64)),
        sa.Column("error_detail", sa.Text),
        sa.Column("request", sa.String(128)),
        sa.Column("trace", sa.String(55)),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("modified", sa.Double, nullable=False),
    )
    op.create_table(
        "debts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("image_id", image_id, nullable=False),
        sa.Column("kind", sa.String(12), nullable=False),
        sa.Column("due", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "owners",
        sa.Column("owner", sa.String(128), primary_key=True),
        sa.Column("turn", sa.Double, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("images", sa.BigInteger, nullable=False),
    )


def _create_indices() -> None:
    images = sa.table("images", *(sa.column(name) for name in ("id", "status", "turn", "due", "worker", "sequence")))
    free, held = images.c.worker.is_(None), images.c.worker.is_not(None)
    for name, columns, condition in (
        ("images_waiting", ["lane", "turn", "id"], sa.and_(free, images.c.turn.is_not(None))),
        ("images_held", ["due"], sa.and_(held, images.c.due.is_not(None))),
        ("images_listed", ["sequence"], sa.and_(images.c.status == "ready", images.c.sequence.is_not(None))),
        ("images_queued_by_id", ["id"], images.c.status == "queued"),
        ("images_processing_by_id", ["id"], images.c.status == "processing"),
        ("images_failed_by_id", ["id"], images.c.status == "failed"),
    ):
        op.create_index(name, "images", columns, sqlite_where=condition, postgresql_where=condition)
    op.create_index("debts_due", "debts", ["kind", "due"])
    op.create_index("debts_of_image", "debts", ["image_id"])
