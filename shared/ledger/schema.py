"""The ledger's tables, in SQL for both SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    and_,
    literal,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import BindParameter, ColumnElement
from sqlalchemy.sql.functions import FunctionElement

from shared.images import Status

#: The migration that this code needs. An older ledger is refused at start.
REVISION = "0004"

metadata = MetaData()

# Collation "C" compares bytes. The rules of a language are slower, and change with PostgreSQL's operating system.
_id = String(36).with_variant(String(36, collation="C"), "postgresql")

images = Table(
    "images",
    metadata,
    Column("id", _id, primary_key=True),
    Column("status", String(12), nullable=False),
    Column("work", String(12)),
    # The place of the work in the order of work; null without work.
    Column("lane", SmallInteger),
    Column("turn", Double),
    Column("wanted", Text),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("due", Double),
    Column("worker", String(128)),
    Column("paused_until", Double),
    Column("sequence", BigInteger),
    Column("owner", String(128)),
    Column("original_type", String(64), nullable=False),
    Column("original_bytes", BigInteger, nullable=False),
    Column("original_sha256", String(64), nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    # JSON: a list of width, height, length, digest, attempt and definition by file name.
    Column("renditions", Text, nullable=False),
    Column("error_type", String(64)),
    Column("error_detail", Text),
    Column("request", String(128)),
    Column("trace", String(55)),
    Column("created", Double, nullable=False),
    Column("modified", Double, nullable=False),
)

#: The unpaid debts. An id is never used again, so paying an old debt cannot remove a newer one.
debts = Table(
    "debts",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("image_id", _id, nullable=False),
    Column("kind", String(12), nullable=False),
    Column("due", Double, nullable=False),
    sqlite_autoincrement=True,
)

#: The turn of each owner's last work, and how much the owner has stored. Images without an owner count for "".
owners = Table(
    "owners",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("turn", Double, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("images", BigInteger, nullable=False),
)

#: One row: the ledger's random name, its storage's marker, and the counter for `images.sequence`.
deployment = Table(
    "deployment",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("identity", String(32), nullable=False),
    Column("marker", String(64)),
    Column("sequence", BigInteger, nullable=False),
)


def inline(value: str) -> BindParameter[str]:
    """Return `value` as a literal in the SQL: SQLite uses a partial index only for a constant in the statement."""
    return literal(str(value), String(), literal_execute=True)


def _partial_index(name: str, *columns: Column[Any], where: ColumnElement[bool]) -> None:
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


# The condition of each index that does not begin with the id names one of its columns, and each query that needs the
# index names that column too. Other queries then cannot use the index: with statistics from before a burst, PostgreSQL
# would search all of the index for one id.
_partial_index(
    "images_waiting",
    images.c.lane,
    images.c.turn,
    images.c.id,
    where=and_(images.c.worker.is_(None), images.c.turn.is_not(None)),
)
_partial_index("images_held", images.c.due, where=and_(images.c.worker.is_not(None), images.c.due.is_not(None)))
_partial_index(
    "images_listed", images.c.sequence, where=and_(images.c.status == Status.READY, images.c.sequence.is_not(None))
)
_partial_index("images_queued_by_id", images.c.id, where=images.c.status == Status.QUEUED)
_partial_index("images_processing_by_id", images.c.id, where=images.c.status == Status.PROCESSING)
_partial_index("images_failed_by_id", images.c.id, where=images.c.status == Status.FAILED)
Index("debts_due", debts.c.kind, debts.c.due)
Index("debts_of_image", debts.c.image_id)


class _Expression(FunctionElement[Any]):
    """An expression that each database writes in its own SQL."""

    sql: ClassVar[Mapping[str, str]]


@compiles(_Expression)
def _sql_of(element: _Expression, compiler: Any, **kw: Any) -> str:
    return element.sql[compiler.dialect.name]


class now(_Expression):
    """The database's clock in seconds since the epoch. The clocks of other machines may differ."""

    type = Double()
    inherit_cache = True
    sql = {
        # unixepoch('subsec') is NULL before SQLite 3.42, and Debian 12 has an older version.
        "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
        # A subquery is evaluated once per statement. The bare function would be evaluated for every row, without an
        # index.
        "postgresql": "(SELECT extract(epoch FROM clock_timestamp())::double precision)",
    }


class debts_of_image(_Expression):
    """The debts of each row of `images`, as `kind:id,kind:id`; null for none."""

    type = Text()
    inherit_cache = True
    sql = {
        "sqlite": "(SELECT group_concat(kind || ':' || id) FROM debts WHERE debts.image_id = images.id)",
        "postgresql": "(SELECT string_agg(kind || ':' || id, ',') FROM debts WHERE debts.image_id = images.id)",
    }
