"""The ledger: the database table that is the truth about every image.

Every transition is one guarded `UPDATE … WHERE … RETURNING`: it names the status and the attempt that its caller
read, and whoever gets None back has lost the image to somebody else and stops quietly.

Longer than our other modules on purpose: whoever checks one guard must see all the others.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    Row,
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
from shared.engine import create_engine
from shared.errors import LedgerNotMigrated, LedgerUnavailable, NothingCommitted
from shared.images import Image, Original, Owed, Rendition, Size, Status
from shared.schema import REVISION, images, inline, ledger, now
from shared.settings import Settings
from shared.telemetry.tracing import traceparent

T = TypeVar("T")

#: Gives the name of the ledger at hand, which the web process knows only once it has started.
LedgerName = Callable[[], str]

#: Seconds that an attempt holds an image without renewing.
LEASE_SECONDS = 12.0
#: Seconds after an enqueue until somebody looks whether it worked.
WAKE_SECONDS = 10.0
#: Seconds that whoever commits has for settling, before the sweep does it.
SETTLE_SECONDS = 1.0
#: Seconds for which thumbnails that failed are not asked for again, and between a DELETE and its row's end.
PAUSE_SECONDS = 60.0
#: Losses at which we give an image up.
MOST_LOSSES = 20
#: Rows of one kind that one pass of the sweep takes.
TAKE_AT_MOST = 200

_WORKER_LOST = (
    "The server lost this picture's rendering again and again, by no fault of the file. "
    "Retry it, or ask whoever runs the server."
)

_queued = images.c.status == inline(Status.QUEUED)
_processing = images.c.status == inline(Status.PROCESSING)
_ready = images.c.status == inline(Status.READY)
_owes_tokens = images.c.owed == inline(Owed.TOKENS)
_owes_leftovers = images.c.owed == inline(Owed.LEFTOVERS)
_owes_thumbnails = images.c.owed == inline(Owed.THUMBNAILS)
_is_due = images.c.due <= now()
#: Of a row that an attempt holds: a conversion's, or that of a ready image's thumbnails.
_may_be_held = or_(_processing, and_(_ready, _owes_thumbnails))

#: What a row that is queued again and about to be enqueued gets.
_AWAKE: Mapping[str, Any] = {
    "status": Status.QUEUED,
    "wake": images.c.wake + 1,
    "due": now() + WAKE_SECONDS,
    "worker": None,
}


_OWING_TOKENS: Mapping[str, Any] = {"owed": Owed.TOKENS, "due": now() + SETTLE_SECONDS}


@dataclass(frozen=True)
class Taken:
    """A row that a pass of the sweep took, and the `due` to give back when it could not be served."""

    image: Image
    due: float


@dataclass(frozen=True)
class Identity:
    """Who a ledger is: its random name, and the marker of the storage that it belongs to."""

    name: str
    marker: str | None


@dataclass(frozen=True)
class Waiting:
    """What is to be done at this moment: images queued, being processed, and how long the oldest queued one waits."""

    queued: int
    processing: int
    seconds: float


class Ledger:
    """All reads and transitions of images. Any method may raise LedgerUnavailable."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._is_postgresql = engine.dialect.name == "postgresql"
        self._writing: AbstractAsyncContextManager[Any] = nullcontext() if self._is_postgresql else asyncio.Lock()

    @classmethod
    def connect(cls, settings: Settings, existing: bool = False) -> Ledger:
        """Return the ledger that the settings name; an `existing` one is not begun where it is missing."""
        return cls(create_engine(settings, existing=existing))

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    # Who this ledger is

    async def identity(self) -> Identity:
        """Return who this ledger is. Raises LedgerNotMigrated where its tables are missing or older than this code."""

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
        """Make `marker` the ledger's unless it has one; return the one it has."""

        async def work(connection: AsyncConnection) -> str:
            await connection.execute(update(ledger).where(ledger.c.marker.is_(None)).values(marker=marker))
            return str((await connection.execute(select(ledger.c.marker))).scalar_one())

        return await self._write(work)

    # Reading

    async def get(self, image_id: str) -> Image | None:
        """Return the image, or None; a deleting one is returned too."""
        found = await self._select(select(images).where(images.c.id == image_id))
        return found[0] if found else None

    async def which_are_ready(self, image_ids: Sequence[str]) -> set[str]:
        """Return those of these images that are ready."""

        async def work(connection: AsyncConnection) -> set[str]:
            rows = await connection.execute(select(images.c.id, images.c.status).where(images.c.id.in_(image_ids)))
            return {row.id for row in rows if row.status == Status.READY}

        return await self._read(work)

    async def list_ready(self, after: int | None, limit: int, newest_first: bool) -> list[Image]:
        """Return ready images in order of their sequence, beginning behind `after`, which need not exist."""
        # All that are ready have one. To say so is to name the index.
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
        """Return every image whose cache tokens have not been changed since its last commit."""
        owing = select(images).where(_owes_tokens, images.c.due.is_not(None))
        return await self._select(owing.order_by(images.c.due).limit(1000))

    async def count_queued(self, at_most: int) -> int:
        """Count the queued images, without counting further than `at_most`."""
        # Of no column: whoever asks SQLite for one has it read each row.
        some = select(literal_column("1").label("one")).where(_queued).limit(at_most).subquery()

        async def work(connection: AsyncConnection) -> int:
            return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())

        return await self._read(work)

    async def waiting(self) -> Waiting:
        """Return what is to be done, for whoever decides how many workers there should be."""
        # By id is by age, and the order in which they are taken. What was queued again waits since its last claim.
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
        """Commit a queued image: from here on it is ours to finish. Its first wake-up is the caller's to send."""

        async def work(connection: AsyncConnection) -> Image:
            added = insert(images).values(_new(image_id, original, request)).returning(images)
            return _image((await connection.execute(added)).one())

        return await self._write(work)

    async def get_certainly(self, image_id: str, original: Original) -> Image | None:
        """Return the image whose `add` failed, nobody knows how far; None only where it can no longer come to be."""
        if not self._is_postgresql:
            return await self.get(image_id)

        async def work(connection: AsyncConnection) -> None:
            # The server may still be busy with a commit whose connection was lost. To insert the same id waits for it.
            await connection.execute(insert(images).values(_new(image_id, original, None)))
            await connection.execute(delete(images).where(images.c.id == image_id))

        try:
            await self._write(work)
        except NothingCommitted as exc:
            if not isinstance(exc.__cause__, IntegrityError):
                raise
        return await self.get(image_id)

    async def claim(self, image_id: str, worker: str) -> Image | None:
        """Take a queued image for a new attempt, with a lease."""
        return await self._transition(_CLAIM, {"of_id": image_id, "of_worker": worker})

    async def renew(self, attempt: Image) -> Image | None:
        """Begin the lease of this attempt anew."""
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
        """Give an attempt up without blame; the sweep enqueues the image again in `seconds`."""
        status = Status.QUEUED if attempt.status is Status.PROCESSING else Status.READY
        return await self._update(_held(attempt), status=status, due=now() + seconds, worker=None)

    async def fail(self, attempt: Image, error_type: str, detail: str) -> Image | None:
        """End a conversion as failed, by the file's fault."""
        return await self._update(_held(attempt), **_failed(error_type, detail))

    async def count_failure(self, attempt: Image) -> Image | None:
        """Count a failure that is not final yet, and queue the image again; the wake-up is the caller's to send."""
        return await self._update(_held(attempt), **_AWAKE, failures=images.c.failures + 1)

    async def count_loss(self, attempt: Image) -> Image | None:
        """Count a loss, and give the image back or, at the last one, up.

        A conversion is queued again, its wake-up the caller's to send; thumbnails are left to the sweep.
        """
        last = attempt.losses + 1 >= MOST_LOSSES
        lost: dict[str, Any] = {"losses": images.c.losses + 1}
        if attempt.status is Status.READY:
            # Whoever asks for them again in a minute asks for twenty more tries.
            values = _no_thumbnails_for_now() | {"losses": 0} if last else lost | {"due": now(), "worker": None}
        else:
            values = lost | (_failed("worker-lost", _WORKER_LOST) if last else dict(_AWAKE))
        return await self._update(_held(attempt), **values)

    # Thumbnails of a ready image, which stays ready meanwhile

    async def request_thumbnails(self, image_id: str, published: int | None = None) -> Image | None:
        """Have a ready image's thumbnails made; the wake-up is the caller's to send.

        Given the attempt that lacks them, nothing is done where another one has been published since.
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
        """Take a ready image whose thumbnails are wanted, with a lease."""
        wanted = and_(_ready, _owes_thumbnails, images.c.wake == wake, images.c.worker.is_(None))
        return await self._update(
            and_(images.c.id == image_id, wanted),
            attempt=images.c.attempt + 1,
            due=now() + LEASE_SECONDS,
            worker=worker,
        )

    async def give_up_thumbnails(self, attempt: Image) -> Image | None:
        """Leave a ready image as it is; its thumbnails are not asked for again for a minute."""
        return await self._update(_held(attempt), **_no_thumbnails_for_now())

    # Deleting and retrying

    async def delete(self, image_id: str, meant: Image | None = None) -> Image | None:
        """Begin to delete the image, or only as it was `meant`; it is gone for everybody from this commit on."""
        unchanged = true() if meant is None else and_(_as_read(meant), images.c.modified == meant.modified)
        return await self._update(
            and_(images.c.id == image_id, images.c.status != Status.DELETING, unchanged),
            status=Status.DELETING,
            worker=None,
            modified=now(),
            **_OWING_TOKENS,
        )

    async def retry(self, image_id: str) -> Image | None:
        """Queue a failed image again with its counts reset; the wake-up is the caller's to send."""
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
        """Record that the cache tokens were changed after the commit that `image` was read from.

        Leftovers are owed next, unless that commit `leaves_nothing`.
        """
        return await self._transition(_SETTLED if leaves_nothing else _TOKENS_CHANGED, _read_as(image))

    async def all_tokens_changed(self, owing: Sequence[Image]) -> None:
        """Record the same for many images, in one commit."""

        async def work(connection: AsyncConnection) -> None:
            # In one order everywhere: who locks the same rows in another may wait for us while we wait for them.
            for image in sorted(owing, key=lambda image: image.id):
                changed = update(images).where(_as_read(image), _owes_tokens)
                await connection.execute(changed.values(owed=Owed.LEFTOVERS, due=now() + WAKE_SECONDS))

        await self._write(work)

    async def owe_leftovers(self, image: Image, attempt: int) -> Image | None:
        """Have a final image that owes nothing owe the folders of its attempts up to `attempt`, published or not.

        From this commit on no attempt writes to them: the number has risen to theirs.
        """
        settled = and_(_as_read(image), or_(_ready, images.c.status == Status.FAILED), images.c.owed.is_(None))
        most = max(image.attempt, attempt)
        return await self._update(settled, attempt=most, owed=Owed.LEFTOVERS, due=now() + WAKE_SECONDS)

    async def leftovers_removed(self, image: Image) -> None:
        """Record that all leftovers are gone; a deleted image's row goes a minute after its DELETE, or is due then."""
        if image.status is not Status.DELETING:
            await self._transition(_LEFTOVERS_REMOVED, _read_as(image))
            return
        settled = and_(_as_read(image), _owes_leftovers)

        async def work(connection: AsyncConnection) -> None:
            # What a late attempt wrote after the first look at its folders is found by the second.
            again = images.c.modified + PAUSE_SECONDS
            removed = await connection.execute(delete(images).where(settled, again <= now()).returning(images.c.id))
            if removed.one_or_none() is None:
                await connection.execute(update(images).where(settled).values(due=again))

        await self._write(work)

    # What the sweep takes, oldest first

    async def take_owing(self, owed: Owed) -> list[Taken]:
        """Take the rows that have owed tokens, or leftovers, for too long."""
        condition = _owes_tokens if owed is Owed.TOKENS else _owes_leftovers
        return await self._take(condition, TAKE_AT_MOST, due=now() + WAKE_SECONDS)

    async def take_lost(self) -> list[Taken]:
        """Take the attempts whose lease is over, queued again and ready to be enqueued, or failed at the last loss."""
        last = images.c.losses + 1 >= MOST_LOSSES
        lost = {"losses": images.c.losses + 1}
        failed = await self._take(and_(_processing, last), TAKE_AT_MOST, **lost, **_failed("worker-lost", _WORKER_LOST))
        return failed + await self._take(_processing, TAKE_AT_MOST, **lost, **_AWAKE)

    async def take_thumbnails(self) -> list[Taken]:
        """Take the thumbnails whose wake-up or lease is over, ready to be enqueued; given up at the last loss."""
        was_leased = images.c.worker.is_not(None)
        last = and_(was_leased, images.c.losses + 1 >= MOST_LOSSES)
        # The fence rises here too: who was only frozen must not publish a folder that goes as a leftover.
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
        """Take queued images whose last wake-up came to nothing, ready to be enqueued."""
        return await self._take(_queued, min(at_most, TAKE_AT_MOST), **_AWAKE)

    async def give_back(self, taken: list[Taken]) -> None:
        """Give rows that could not be served their `due` back."""

        async def work(connection: AsyncConnection) -> None:
            for row in sorted(taken, key=lambda row: row.image.id):
                unchanged = and_(_as_read(row.image), images.c.due == row.image.due)
                await connection.execute(update(images).where(unchanged).values(due=row.due))

        if taken:
            await self._write(work)

    # How all of the above talk to the database

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

        # An idle pass costs a read, not a turn at SQLite's one write lock.
        if not await self._read(lambda connection: _has_rows(connection, condition)):
            return []
        return await self._write(work)

    async def _read(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        # To the end as well: aiosqlite's thread must not find its event loop closed under what it still does.
        return await to_the_end(self._in_connection(work, reading=True))

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        # SQLite's writers wait for each other in any case, and unfairly: here they do so in a queue, and leave the
        # other connections to readers.
        async with self._writing:
            return await to_the_end(self._in_connection(work, reading=False))

    async def _in_connection(self, work: Callable[[AsyncConnection], Awaitable[T]], reading: bool) -> T:
        committing = False
        try:
            async with self._engine.connect() as connection:
                await connection.execution_options(reading=reading)
                async with connection.begin():
                    result = await work(connection)
                    committing = True
            return result
        except (SQLAlchemyError, OSError) as exc:
            reason = str(getattr(exc, "orig", None) or exc) or "it does not answer in time"
            raise (LedgerUnavailable if committing else NothingCommitted)(reason) from exc


async def _has_rows(connection: AsyncConnection, condition: ColumnElement[bool]) -> bool:
    # In order: or else PostgreSQL, which cannot know how few are due, may look for the first one anywhere.
    query = select(images.c.id).where(condition, _is_due).order_by(images.c.due).limit(1)
    return (await connection.execute(query)).one_or_none() is not None


def _has_no_table(error: DBAPIError) -> bool:
    # PostgreSQL's SQLSTATE of an undefined table: who may not read one is told its name as well.
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
    """True for the row that this attempt still holds: a conversion's, or that of a ready image's thumbnails."""
    return and_(_as_read(attempt), _may_be_held)


# What every image goes through, said once: to put such a statement together takes as long as to run it.

_is_as_read = and_(
    images.c.id == bindparam("of_id"),
    images.c.status == bindparam("of_status"),
    images.c.attempt == bindparam("of_attempt"),
)

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
# Not due at once: whoever settles goes on to the leftovers, the sweep comes only if they died.
_TOKENS_CHANGED = _returning(and_(_is_as_read, _owes_tokens), {"owed": Owed.LEFTOVERS, "due": now() + WAKE_SECONDS})
_SETTLED = _returning(and_(_is_as_read, _owes_tokens), {"owed": None, "due": None})
_LEFTOVERS_REMOVED = _returning(and_(_is_as_read, _owes_leftovers), {"owed": None, "due": None})


def _read_as(image: Image) -> dict[str, Any]:
    """Return what `_is_as_read` compares a row with."""
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
    # Owing leftovers keeps further requests away until they are paid: that is the minute.
    return {"owed": Owed.LEFTOVERS, "due": now() + PAUSE_SECONDS, "worker": None}


def _renditions_text(renditions: Mapping[str, Rendition]) -> str:
    return json.dumps({name: [*r.size, r.bytes, r.sha256] for name, r in renditions.items()})


def _image(row: Row[Any]) -> Image:
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
