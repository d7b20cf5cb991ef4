"""The ledger: the database table that is the truth about every image.

Every transition is one guarded `UPDATE … WHERE … RETURNING`. The guard names the status and the attempt that the
caller read. A transition returns None if another process changed the row first; the caller then stops quietly.

This module is longer than 250 lines on purpose: the guards are only correct together, so they stand in one file.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import namedtuple
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    delete,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.sql.dml import Update

from shared.cancellation import to_the_end
from shared.errors import LedgerNotMigrated, LedgerUnavailable, NothingCommitted
from shared.images import Image, Original, Owed, Rendition, Size, Status
from shared.ledger import sqlite
from shared.ledger.engine import create_engine
from shared.ledger.schema import REVISION, images, inline, ledger, now
from shared.settings import Settings
from shared.telemetry.tracing import traceparent

T = TypeVar("T")

#: Returns the ledger's name. The web process knows it only once it has started.
LedgerName = Callable[[], str]

#: Seconds that a lease lasts without a renewal.
LEASE_SECONDS = 12.0
#: Seconds after an enqueue until the sweep checks whether the job was taken.
WAKE_SECONDS = 10.0
#: Seconds that the committing process has for settling. After that the sweep settles.
SETTLE_SECONDS = 1.0
#: Seconds for which failed thumbnails are not requested again. Also the time between a DELETE and its row's removal.
PAUSE_SECONDS = 60.0
#: Losses after which an image is failed.
MOST_LOSSES = 20
#: Rows of one kind that one pass of the sweep takes at most.
TAKE_AT_MOST = 200

_WORKER_LOST = (
    "The server lost this picture's rendering again and again, by no fault of the file. "
    "Retry it, or ask the operator of the server."
)

_queued = images.c.status == inline(Status.QUEUED)
_processing = images.c.status == inline(Status.PROCESSING)
_ready = images.c.status == inline(Status.READY)
_owes_tokens = images.c.owed == inline(Owed.TOKENS)
_owes_leftovers = images.c.owed == inline(Owed.LEFTOVERS)
_owes_thumbnails = images.c.owed == inline(Owed.THUMBNAILS)
_is_due = images.c.due <= now()
#: An attempt holds a row while it is processing, or while it is ready and owes thumbnails.
_may_be_held = or_(_processing, and_(_ready, _owes_thumbnails))

#: The columns of a row that is queued again; the caller enqueues it next.
_AWAKE: Mapping[str, Any] = {
    "status": Status.QUEUED,
    "wake": images.c.wake + 1,
    "due": now() + WAKE_SECONDS,
    "worker": None,
}


_OWING_TOKENS: Mapping[str, Any] = {"owed": Owed.TOKENS, "due": now() + SETTLE_SECONDS}


@dataclass(frozen=True)
class Taken:
    """A row that a pass of the sweep took, and its former `due`, which `give_back` restores."""

    image: Image
    due: float


@dataclass(frozen=True)
class Identity:
    """The random name of a ledger, and the marker of the storage that belongs to it."""

    name: str
    marker: str | None


@dataclass(frozen=True)
class Waiting:
    """The work at this moment: images queued, images processing, and the age of the oldest queued one in seconds."""

    queued: int
    processing: int
    seconds: float


class Ledger:
    """All reads and transitions of images. Any method may raise LedgerUnavailable."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        #: The same engine; single reads on SQLite need no transaction.
        self._reading_engine = engine.execution_options(reading=True)
        database = engine.url.database or ""
        self._is_postgresql = engine.dialect.name == "postgresql"
        self._writing: AbstractAsyncContextManager[Any] = nullcontext() if self._is_postgresql else asyncio.Lock()
        self._rows = None if self._is_postgresql else sqlite.RowReader(database, _GET)

    @classmethod
    def connect(cls, settings: Settings, existing: bool = False) -> Ledger:
        """Return the ledger that the settings name. With `existing`, a missing SQLite file is not created."""
        return cls(create_engine(settings, existing=existing))

    async def close(self) -> None:
        """Close all connections."""
        if self._rows is not None:
            await self._rows.close()
        await self._engine.dispose()

    # Identity

    async def identity(self) -> Identity:
        """Return the ledger's identity. Raises LedgerNotMigrated if its tables are missing or older than this code."""

        async def work(connection: AsyncConnection) -> Identity:
            try:
                revision = (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).scalar_one()
            except (DBAPIError, NoResultFound) as exc:
                if isinstance(exc, DBAPIError) and not _has_no_table(exc):
                    raise
                raise LedgerNotMigrated("the ledger has no tables yet: run `python -m shared.migrations`") from exc
            if revision < REVISION:
                raise LedgerNotMigrated(
                    f"the ledger is at {revision}, not {REVISION}: run `python -m shared.migrations`"
                )
            row = (await connection.execute(select(ledger.c.identity, ledger.c.marker))).one()
            return Identity(row.identity, row.marker)

        return await self._read(work)

    async def adopt_marker(self, marker: str) -> str:
        """Store `marker` unless the ledger has one already; return the marker that it has now."""

        async def work(connection: AsyncConnection) -> str:
            await connection.execute(update(ledger).where(ledger.c.marker.is_(None)).values(marker=marker))
            return str((await connection.execute(select(ledger.c.marker))).scalar_one())

        return await self._write(work)

    # Reading

    async def get(self, image_id: str) -> Image | None:
        """Return the image, or None. An image that is `deleting` is returned too."""
        if self._rows is not None:
            return await to_the_end(self._get_from_sqlite(self._rows, image_id))

        async def work(connection: AsyncConnection) -> Image | None:
            row = (await connection.execute(_GET, {"of_id": image_id})).one_or_none()
            return None if row is None else _image(row)

        return await self._read(work)

    async def _get_from_sqlite(self, rows: sqlite.RowReader, image_id: str) -> Image | None:
        try:
            row = await rows.read(image_id)
        except (sqlite3.Error, OSError) as exc:
            raise NothingCommitted(str(exc)) from exc
        return None if row is None else _image(_Row(*row))

    async def which_are_ready(self, image_ids: Sequence[str]) -> set[str]:
        """Return the ids among `image_ids` whose image is ready."""

        async def work(connection: AsyncConnection) -> set[str]:
            rows = await connection.execute(select(images.c.id, images.c.status).where(images.c.id.in_(image_ids)))
            return {row.id for row in rows if row.status == Status.READY}

        return await self._read(work)

    async def list_ready(self, after: int | None, limit: int, newest_first: bool) -> list[Image]:
        """Return ready images in order of their sequence, beginning behind `after`, which need not exist."""
        # Every ready image has a sequence. The condition only makes the database use the partial index.
        column, rows = images.c.sequence, select(images).where(_ready, images.c.sequence.is_not(None))
        return await self._page(rows, column, after, limit, newest_first)

    async def list_with_status(self, status: Status, after: str | None, limit: int, newest_first: bool) -> list[Image]:
        """Return the images of one status in order of their id, beginning behind `after`, which need not exist."""
        rows = select(images).where(images.c.status == inline(status))
        return await self._page(rows, images.c.id, after, limit, newest_first)

    async def list_all(self, after: str | None, limit: int) -> list[Image]:
        """Return images of every status in order of their id, beginning behind `after`."""
        return await self._page(select(images), images.c.id, after, limit, newest_first=False)

    async def owing_tokens(self) -> list[Image]:
        """Return images whose cache tokens have not been changed since their last commit, at most 1,000."""
        owing = select(images).where(_owes_tokens, images.c.due.is_not(None))
        return await self._select(owing.order_by(images.c.due).limit(1000))

    async def count_queued(self, at_most: int) -> int:
        """Count the queued images, up to `at_most`."""
        # It selects a constant: for a column SQLite would read each row, not only the index.
        some = select(literal_column("1").label("one")).where(_queued).limit(at_most).subquery()

        async def work(connection: AsyncConnection) -> int:
            return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())

        return await self._read(work)

    async def waiting(self) -> Waiting:
        """Return how much work waits: the figures from which an autoscaler decides the number of workers."""
        # The order by id is the order by age. An image that was queued again waits since its last claim.
        oldest = select(images.c.modified).where(_queued).order_by(images.c.id).limit(100).subquery()
        query = select(
            select(func.count()).select_from(images).where(_queued).scalar_subquery(),
            select(func.count()).select_from(images).where(_processing).scalar_subquery(),
            now() - select(func.min(oldest.c.modified)).scalar_subquery(),
        )

        async def work(connection: AsyncConnection) -> Waiting:
            queued, processing, seconds = (await connection.execute(query)).one()
            return Waiting(queued, processing, max(0.0, seconds or 0.0))

        return await self._read(work)

    async def now(self) -> float:
        """Return the ledger's clock, in seconds since the epoch."""

        async def work(connection: AsyncConnection) -> float:
            return float((await connection.execute(select(now()))).scalar_one())

        return await self._read(work)

    # From upload to ready

    async def add(self, image_id: str, original: Original, request: str | None) -> Image:
        """Commit a queued image: from here on the service must finish it. The caller enqueues it."""

        async def work(connection: AsyncConnection) -> Image:
            added = insert(images).values(_new(image_id, original, request)).returning(images)
            return _image((await connection.execute(added)).one())

        return await self._write(work)

    async def get_certainly(self, image_id: str, original: Original) -> Image | None:
        """Return the image whose `add` failed without a known outcome. None means that it cannot appear any more."""
        if not self._is_postgresql:
            return await self.get(image_id)

        async def work(connection: AsyncConnection) -> None:
            # PostgreSQL may still be at work on a commit whose connection was lost. An insert of the same id waits for
            # its end.
            await connection.execute(insert(images).values(_new(image_id, original, None)))
            await connection.execute(delete(images).where(images.c.id == image_id))

        try:
            await self._write(work)
        except NothingCommitted as exc:
            if not isinstance(exc.__cause__, IntegrityError):
                raise
        return await self.get(image_id)

    async def claim(self, image_id: str, worker: str) -> Image | None:
        """Claim a queued image for a new attempt, with a lease."""
        return await self._transition(_CLAIM, {"of_id": image_id, "of_worker": worker})

    async def renew(self, attempt: Image) -> Image | None:
        """Renew the lease of this attempt."""
        return await self._update(_held(attempt), due=now() + LEASE_SECONDS)

    async def publish(self, attempt: Image, size: Size, renditions: Mapping[str, Rendition]) -> Image | None:
        """Make this attempt's renditions the image's. The first publication takes the next place in the list."""

        published = _read_as(attempt) | {
            "of_width": size[0],
            "of_height": size[1],
            "of_renditions": _renditions_text(renditions),
        }

        async def work(connection: AsyncConnection) -> Image | None:
            row = (await connection.execute(_PUBLISH, published)).one_or_none()
            if row is None or row.sequence is not None:
                return None if row is None else _image(row)
            # The counter's row stays locked until the commit, so that commit order is list order.
            sequence = (await connection.execute(_NEXT)).scalar_one()
            numbered = await connection.execute(_NUMBER, {"of_id": attempt.id, "of_sequence": sequence})
            return _image(numbered.one())

        return await self._write(work)

    async def hand_back(self, attempt: Image, seconds: float) -> Image | None:
        """End an attempt without counting a failure or a loss. The sweep enqueues the image again in `seconds`."""
        status = Status.QUEUED if attempt.status is Status.PROCESSING else Status.READY
        return await self._update(_held(attempt), status=status, due=now() + seconds, worker=None)

    async def fail(self, attempt: Image, error_type: str, detail: str) -> Image | None:
        """Make the image `failed`: its file is at fault."""
        return await self._update(_held(attempt), **_failed(error_type, detail))

    async def count_failure(self, attempt: Image) -> Image | None:
        """Count a failure that is not final yet and queue the image again. The caller enqueues it."""
        return await self._update(_held(attempt), **_AWAKE, failures=images.c.failures + 1)

    async def count_loss(self, attempt: Image) -> Image | None:
        """Count a loss and queue the image again; at the last loss it fails.

        The caller enqueues a conversion. Thumbnails are left to the sweep.
        """
        last = attempt.losses + 1 >= MOST_LOSSES
        lost: dict[str, Any] = {"losses": images.c.losses + 1}
        if attempt.status is Status.READY:
            # After the pause a new request starts again from zero losses.
            values = _no_thumbnails_for_now() | {"losses": 0} if last else lost | {"due": now(), "worker": None}
        else:
            values = lost | (_failed("worker-lost", _WORKER_LOST) if last else dict(_AWAKE))
        return await self._update(_held(attempt), **values)

    # Thumbnails of a ready image: it stays ready while they are made

    async def request_thumbnails(self, image_id: str, published: int | None = None) -> Image | None:
        """Make a ready image owe thumbnails. The caller enqueues it.

        With `published`, the attempt whose thumbnails are missing, nothing happens if another attempt is published now.
        """
        is_meant = images.c.published == published if published is not None else true()
        return await self._update(
            and_(images.c.id == image_id, _ready, images.c.owed.is_(None), is_meant),
            owed=Owed.THUMBNAILS,
            wake=images.c.wake + 1,
            due=now() + WAKE_SECONDS,
            worker=None,
            trace=traceparent(),
        )

    async def claim_thumbnails(self, image_id: str, wake: int, worker: str) -> Image | None:
        """Claim a ready image that owes thumbnails, with a lease."""
        wanted = and_(_ready, _owes_thumbnails, images.c.wake == wake, images.c.worker.is_(None))
        return await self._update(
            and_(images.c.id == image_id, wanted),
            attempt=images.c.attempt + 1,
            due=now() + LEASE_SECONDS,
            worker=worker,
        )

    async def give_up_thumbnails(self, attempt: Image) -> Image | None:
        """End an attempt at thumbnails; the image stays ready, and they are not requested again for a minute."""
        return await self._update(_held(attempt), **_no_thumbnails_for_now())

    # Deleting and retrying

    async def delete(self, image_id: str, meant: Image | None = None) -> Image | None:
        """Begin to delete the image. From this commit on every request for it is answered as if it were gone.

        With `meant`, nothing happens if the image has changed since `meant` was read.
        """
        unchanged = true() if meant is None else and_(_as_read(meant), images.c.modified == meant.modified)
        return await self._update(
            and_(images.c.id == image_id, images.c.status != Status.DELETING, unchanged),
            status=Status.DELETING,
            worker=None,
            modified=now(),
            **_OWING_TOKENS,
        )

    async def retry(self, image_id: str) -> Image | None:
        """Queue a failed image again with its counts reset. The caller enqueues it."""
        return await self._update(
            and_(images.c.id == image_id, images.c.status == Status.FAILED),
            **_AWAKE,
            owed=None,
            failures=0,
            losses=0,
            error_type=None,
            error_detail=None,
            trace=traceparent(),
            modified=now(),
        )

    # Settling

    async def tokens_changed(self, image: Image, *, leaves_nothing: bool = False) -> Image | None:
        """Record that the cache tokens were changed after the commit that `image` shows.

        The row owes leftovers next, unless that commit `leaves_nothing`.
        """
        return await self._transition(_SETTLED if leaves_nothing else _TOKENS_CHANGED, _read_as(image))

    async def all_tokens_changed(self, owing: Sequence[Image]) -> None:
        """Record the same for many images, in one commit."""

        async def work(connection: AsyncConnection) -> None:
            # Rows are locked in one order everywhere: in different orders two transactions would deadlock.
            for image in sorted(owing, key=lambda image: image.id):
                changed = update(images).where(_as_read(image), _owes_tokens)
                await connection.execute(changed.values(owed=Owed.LEFTOVERS, due=now() + WAKE_SECONDS))

        await self._write(work)

    async def owe_leftovers(self, image: Image, attempt: int) -> Image | None:
        """Make a final image that owes nothing owe leftovers: the folders of its attempts up to `attempt`.

        The row's attempt number rises to `attempt`, so no attempt writes to these folders after this commit.
        """
        settled = and_(_as_read(image), or_(_ready, images.c.status == Status.FAILED), images.c.owed.is_(None))
        most = max(image.attempt, attempt)
        return await self._update(settled, attempt=most, owed=Owed.LEFTOVERS, due=now() + WAKE_SECONDS)

    async def leftovers_removed(self, image: Image) -> None:
        """Record that all leftovers are gone. A deleted image's row is removed a minute after its DELETE."""
        if image.status is not Status.DELETING:
            await self._transition(_LEFTOVERS_REMOVED, _read_as(image))
            return
        settled = and_(_as_read(image), _owes_leftovers)

        async def work(connection: AsyncConnection) -> None:
            # Before that minute is over the row is only made due again: a late attempt may still write a folder.
            again = images.c.modified + PAUSE_SECONDS
            removed = await connection.execute(delete(images).where(settled, again <= now()).returning(images.c.id))
            if removed.one_or_none() is None:
                await connection.execute(update(images).where(settled).values(due=again))

        await self._write(work)

    # Rows that the sweep takes, oldest first

    async def take_owing(self, owed: Owed) -> list[Taken]:
        """Take the rows that are due and owe tokens, or leftovers."""
        condition = _owes_tokens if owed is Owed.TOKENS else _owes_leftovers
        return await self._take(condition, TAKE_AT_MOST, due=now() + WAKE_SECONDS)

    async def take_lost(self) -> list[Taken]:
        """Take the attempts whose lease is over: queued again for the caller to enqueue, or failed at the last loss."""
        last = images.c.losses + 1 >= MOST_LOSSES
        lost = {"losses": images.c.losses + 1}
        failed = await self._take(and_(_processing, last), TAKE_AT_MOST, **lost, **_failed("worker-lost", _WORKER_LOST))
        return failed + await self._take(_processing, TAKE_AT_MOST, **lost, **_AWAKE)

    async def take_thumbnails(self) -> list[Taken]:
        """Take the due rows that owe thumbnails, for the caller to enqueue. At the last loss they are given up."""
        was_leased = images.c.worker.is_not(None)
        last = and_(was_leased, images.c.losses + 1 >= MOST_LOSSES)
        # The fence rises here too: an attempt that was only frozen must not publish a folder that is a leftover now.
        given_up = _no_thumbnails_for_now() | {"attempt": images.c.attempt + 1, "losses": 0}
        await self._take(and_(_owes_thumbnails, last), TAKE_AT_MOST, **given_up)
        return await self._take(
            _owes_thumbnails,
            TAKE_AT_MOST,
            wake=images.c.wake + 1,
            attempt=images.c.attempt + 1,
            losses=images.c.losses + case((was_leased, 1), else_=0),
            due=now() + WAKE_SECONDS,
            worker=None,
        )

    async def take_queued(self, at_most: int) -> list[Taken]:
        """Take the queued images that are due, for the caller to enqueue: their last wake-up was lost."""
        return await self._take(_queued, min(at_most, TAKE_AT_MOST), **_AWAKE)

    async def give_back(self, taken: list[Taken]) -> None:
        """Restore the former `due` of rows that the caller could not serve."""

        async def work(connection: AsyncConnection) -> None:
            for row in sorted(taken, key=lambda row: row.image.id):
                unchanged = and_(_as_read(row.image), images.c.due == row.image.due)
                await connection.execute(update(images).where(unchanged).values(due=row.due))

        if taken:
            await self._write(work)

    # Transactions

    async def _page(
        self, rows: Select[Any], column: Any, after: int | str | None, limit: int, newest_first: bool
    ) -> list[Image]:
        if after is not None:
            rows = rows.where(column < after if newest_first else column > after)
        return await self._select(rows.order_by(column.desc() if newest_first else column).limit(limit))

    async def _select(self, query: Select[Any]) -> list[Image]:
        async def work(connection: AsyncConnection) -> list[Image]:
            return [_image(row) for row in await connection.execute(query)]

        return await self._read(work)

    async def _update(self, where: ColumnElement[bool], **values: Any) -> Image | None:
        return await self._transition(_returning(where, values), {})

    async def _transition(self, statement: Any, parameters: Mapping[str, Any]) -> Image | None:
        async def work(connection: AsyncConnection) -> Image | None:
            row = (await connection.execute(statement, parameters)).one_or_none()
            return None if row is None else _image(row)

        return await self._write(work)

    async def _take(self, condition: ColumnElement[bool], at_most: int, **values: Any) -> list[Taken]:
        oldest = (
            select(images.c.id, images.c.due)
            .where(condition, _is_due)
            .order_by(images.c.due)
            .limit(at_most)
            .with_for_update(skip_locked=True)
        )

        async def work(connection: AsyncConnection) -> list[Taken]:
            due = {row.id: float(row.due) for row in await connection.execute(oldest)}
            if not due:
                return []
            rows = await connection.execute(_returning(images.c.id.in_(due), values))
            taken = [Taken(image, due[image.id]) for image in map(_image, rows)]
            return sorted(taken, key=lambda row: row.due)

        # The read comes first, so that a pass without work does not take SQLite's write lock.
        if not await self._read(lambda connection: _has_rows(connection, condition)):
            return []
        return await self._write(work)

    async def _read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        # Not cancellable: aiosqlite's thread must not report its result to a closed event loop.
        return await to_the_end(self._in_reading_connection(work))

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        # SQLite lets one writer in at a time, in no order. This lock makes them wait in order, and keeps the pool's
        # other connections for readers.
        async with self._writing:
            return await to_the_end(self._in_transaction(work))

    async def _in_reading_connection(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        try:
            async with self._reading_engine.connect() as connection:
                return await work(connection)
        except (SQLAlchemyError, OSError) as exc:
            raise NothingCommitted(_reason_of(exc)) from exc

    async def _in_transaction(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        committing = False
        try:
            async with self._engine.begin() as connection:
                result = await work(connection)
                committing = True
            return result
        except (SQLAlchemyError, OSError) as exc:
            raise (LedgerUnavailable if committing else NothingCommitted)(_reason_of(exc)) from exc


async def _has_rows(connection: AsyncConnection, condition: ColumnElement[bool]) -> bool:
    # The order makes PostgreSQL use the index on `due`: its statistics do not tell it how few rows are due.
    query = select(images.c.id).where(condition, _is_due).order_by(images.c.due).limit(1)
    return (await connection.execute(query)).one_or_none() is not None


def _reason_of(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error) or "it does not answer in time"


def _has_no_table(error: DBAPIError) -> bool:
    # 42P01 is PostgreSQL's SQLSTATE of an undefined table. The message does not tell: without the right to read, it
    # names the table as well.
    state = getattr(error.orig, "sqlstate", None)
    return "no such table" in str(error.orig) if state is None else state == "42P01"


def _new(image_id: str, original: Original, request: str | None) -> dict[str, Any]:
    return {
        "id": image_id,
        "status": Status.QUEUED,
        "attempt": 0,
        "failures": 0,
        "losses": 0,
        "wake": 1,
        "due": now() + WAKE_SECONDS,
        "original_type": original.type,
        "original_bytes": original.bytes,
        "original_sha256": original.sha256,
        "renditions": "{}",
        "request": request,
        "trace": traceparent(),
        "created": now(),
        "modified": now(),
    }


def _returning(where: ColumnElement[bool], values: Mapping[str, Any]) -> Any:
    statement: Update = update(images).where(where).values(dict(values))
    return statement.returning(images)


def _as_read(image: Image) -> ColumnElement[bool]:
    return and_(images.c.id == image.id, images.c.status == image.status, images.c.attempt == image.attempt)


def _held(attempt: Image) -> ColumnElement[bool]:
    """True for the row of this attempt, while the attempt holds it."""
    return and_(_as_read(attempt), _may_be_held)


# Statements that every image needs are built once: building one takes as long as running it.

_is_as_read = and_(
    images.c.id == bindparam("of_id"),
    images.c.status == bindparam("of_status"),
    images.c.attempt == bindparam("of_attempt"),
)

_GET = select(images).where(images.c.id == bindparam("of_id"))
_CLAIM = _returning(
    and_(images.c.id == bindparam("of_id"), _queued),
    {
        "status": Status.PROCESSING,
        "attempt": images.c.attempt + 1,
        "due": now() + LEASE_SECONDS,
        "worker": bindparam("of_worker"),
        "modified": now(),
    },
)
_PUBLISH = _returning(
    and_(_is_as_read, _may_be_held),
    {
        "status": Status.READY,
        "published": images.c.attempt,
        "failures": 0,
        "losses": 0,
        "width": bindparam("of_width"),
        "height": bindparam("of_height"),
        "renditions": bindparam("of_renditions"),
        "worker": None,
        "modified": now(),
        **_OWING_TOKENS,
    },
)
_NEXT = update(ledger).values(sequence=ledger.c.sequence + 1).returning(ledger.c.sequence)
_NUMBER = _returning(images.c.id == bindparam("of_id"), {"sequence": bindparam("of_sequence")})
# Not due at once: the settling process removes the leftovers next. The sweep does it only if that process died.
_TOKENS_CHANGED = _returning(and_(_is_as_read, _owes_tokens), {"owed": Owed.LEFTOVERS, "due": now() + WAKE_SECONDS})
_SETTLED = _returning(and_(_is_as_read, _owes_tokens), {"owed": None, "due": None})
_LEFTOVERS_REMOVED = _returning(and_(_is_as_read, _owes_leftovers), {"owed": None, "due": None})


def _read_as(image: Image) -> dict[str, Any]:
    """Return the parameters of `_is_as_read`."""
    return {"of_id": image.id, "of_status": image.status, "of_attempt": image.attempt}


def _failed(error_type: str, detail: str) -> dict[str, Any]:
    return {
        "status": Status.FAILED,
        "error_type": error_type,
        "error_detail": detail,
        "worker": None,
        "modified": now(),
        **_OWING_TOKENS,
    }


def _no_thumbnails_for_now() -> dict[str, Any]:
    # A row that owes leftovers does not accept a request for thumbnails. So this debt is the pause.
    return {"owed": Owed.LEFTOVERS, "due": now() + PAUSE_SECONDS, "worker": None}


def _renditions_text(renditions: Mapping[str, Rendition]) -> str:
    return json.dumps({name: [*r.size, r.bytes, r.sha256] for name, r in renditions.items()})


#: A row as RowReader returns it.
_Row = namedtuple("_Row", [column.name for column in images.columns])  # type: ignore[misc] # named by the schema


def _image(row: Any) -> Image:
    stored: dict[str, tuple[int, int, int, str]] = json.loads(row.renditions)
    return Image(
        id=row.id,
        status=Status(row.status),
        attempt=row.attempt,
        published=row.published,
        failures=row.failures,
        losses=row.losses,
        wake=row.wake,
        due=row.due,
        owed=None if row.owed is None else Owed(row.owed),
        sequence=row.sequence,
        original=Original(row.original_type, row.original_bytes, row.original_sha256),
        size=None if row.width is None else (row.width, row.height),
        renditions={name: Rendition((w, h), length, digest) for name, (w, h, length, digest) in stored.items()},
        error_type=row.error_type,
        error_detail=row.error_detail,
        worker=row.worker,
        request=row.request,
        created=row.created,
        modified=row.modified,
        trace=row.trace,
    )
