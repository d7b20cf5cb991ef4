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
    # Collation "C" compares bytes. A language's rules are slower, and change with PostgreSQL's operating system.
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

#: One row: the ledger's random name, its storage's marker, and the counter behind `images.sequence`.
ledger = Table(
    "ledger",
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


# The condition of an index that is not by id names its last column, and a query that needs the index names it too.
# Other queries then cannot use it: with statistics older than a burst, PostgreSQL would search all of it for one id.
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
    """The database's clock in seconds since the epoch. The clocks of the other machines may differ."""

    type = Double()
    inherit_cache = True


@compiles(now, "sqlite")
def _sqlite_now(element: now, compiler: Any, **kw: Any) -> str:
    # unixepoch('subsec') is NULL before SQLite 3.42; Debian 12 has an older one.
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(now, "postgresql")
def _postgresql_now(element: now, compiler: Any, **kw: Any) -> str:
    # A subquery is evaluated once a statement. The bare function is evaluated for every row, and uses no index.
    return "(SELECT extract(epoch FROM clock_timestamp())::double precision)"
