"""The ledger's tables, in the SQL that SQLite and PostgreSQL share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Double,
    Index,
    Integer,
    MetaData,
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

#: The migration that this code needs; an older ledger is refused at start.
REVISION = "0003"

metadata = MetaData()

images = Table(
    "images",
    metadata,
    # Compared byte by byte: a language's rules are slower, and change with the system that PostgreSQL runs on.
    Column("id", String(36).with_variant(String(36, collation="C"), "postgresql"), primary_key=True),
    Column("status", String(12), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("published", Integer),
    Column("failures", Integer, nullable=False),
    Column("losses", Integer, nullable=False),
    Column("wake", Integer, nullable=False),
    Column("due", Double),
    Column("owed", String(12)),
    Column("sequence", BigInteger),
    Column("original_type", String(64), nullable=False),
    Column("original_bytes", BigInteger, nullable=False),
    Column("original_sha256", String(64), nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    Column("renditions", Text, nullable=False),
    Column("error_type", String(64)),
    Column("error_detail", Text),
    Column("worker", String(128)),
    Column("request", String(128)),
    Column("created", Double, nullable=False),
    Column("modified", Double, nullable=False),
    Column("trace", String(55)),
)

#: One row: who this ledger is, the storage it belongs to, and the counter behind `images.sequence`.
ledger = Table(
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("identity", String(32), nullable=False),
    Column("marker", String(64)),
    Column("sequence", BigInteger, nullable=False),
)


def inline(value: str) -> BindParameter[str]:
    """Return `value` written into the SQL itself: SQLite uses a partial index only for a constant it can see."""
    return literal(str(value), String(), literal_execute=True)


def _partial_index(name: str, *columns: Column[Any], where: ColumnElement[bool]) -> None:
    Index(name, *columns, sqlite_where=where, postgresql_where=where)


# Where an index is not by id, its condition names its last column as well, and whoever is to use it names it, too. Else
# PostgreSQL searches all of it for one id, once it thinks that it is small: its statistics may be older than a burst.
_due = images.c.due.is_not(None)
_partial_index("images_queued", images.c.due, where=and_(images.c.status == Status.QUEUED, _due))
_partial_index("images_leased", images.c.due, where=and_(images.c.status == Status.PROCESSING, _due))
_partial_index("images_owing", images.c.owed, images.c.due, where=and_(images.c.owed.is_not(None), _due))
_partial_index(
    "images_listed", images.c.sequence, where=and_(images.c.status == Status.READY, images.c.sequence.is_not(None))
)
_partial_index("images_queued_by_id", images.c.id, where=images.c.status == Status.QUEUED)
_partial_index("images_processing_by_id", images.c.id, where=images.c.status == Status.PROCESSING)
_partial_index("images_failed_by_id", images.c.id, where=images.c.status == Status.FAILED)


class now(FunctionElement[float]):
    """The ledger's own clock in seconds since the epoch: the machines' clocks differ."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: Any, **kw: Any) -> str:
    # unixepoch('subsec') is NULL before SQLite 3.42, which Debian 12 has not.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: Any, **kw: Any) -> str:
    # Asked once a statement. Bare, it is asked again for every row, and no index can be searched by it.
    return "(SELECT extract(epoch FROM clock_timestamp())::double precision)"
