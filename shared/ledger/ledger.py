"""Reads and transitions of images.

Every transition is one guarded `UPDATE … WHERE … RETURNING`. The guard names the status and the attempt that the
caller read. A transition returns None if another process changed the row first; the caller then stops without an
error. A transition's transaction also adds its debts.

This module is longer than 250 lines on purpose: the guards are only correct together, so they stand in one file.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    and_,
    bindparam,
    case,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.errors import LedgerNotMigrated, LedgerUnavailable, NothingCommitted
from shared.images import Debt, DebtKind, Image, Lane, Original, Status, Work
from shared.ledger.database import Database, has_no_table
from shared.ledger.engine import create_engine
from shared.ledger.rows import image_of, image_with_debts, renditions_text
from shared.ledger.schema import REVISION, debts, debts_of_image, deployment, images, inline, now, owners
from shared.renditions import Rendition, Size
from shared.settings import Settings
from shared.telemetry.tracing import traceparent

#: Returns the ledger's name. The web process knows it only once it has started.
LedgerName = Callable[[], str]

#: Seconds that a lease lasts without a renewal.
LEASE_SECONDS = 12.0
#: Seconds that the committing process has to pay its debts. After that the sweep pays.
SETTLE_SECONDS = 1.0
#: Seconds after which a debt that was taken but not paid is due again.
AGAIN_SECONDS = 10.0
#: Seconds that the committing process has to remove leftovers. It does so after it has paid its other debts.
LEFTOVERS_SECONDS = 10.0
#: Seconds for which renditions that were given up are not requested again.
PAUSE_SECONDS = 60.0
#: The least time in seconds between a DELETE and the removal of its row.
DELETED_SECONDS = 60.0
#: Seconds that rendering may take more than expected before it moves the owner's next turn.
LATE_SECONDS = 1.0
#: Losses after which a conversion fails, or more renditions of a ready image are given up.
MOST_LOSSES = 20
#: The most rows of one kind that one pass of the sweep takes.
TAKE_AT_MOST = 200

_WORKER_LOST = (
    "The server lost this picture's rendering again and again, by no fault of the file. "
    "Retry it, or ask the operator of the server."
)

_COMMIT_OWES = (DebtKind.TOKENS, DebtKind.NOTICE)
_EVERYTHING = (*_COMMIT_OWES, DebtKind.LEFTOVERS)

_queued = images.c.status == inline(Status.QUEUED)
_processing = images.c.status == inline(Status.PROCESSING)
_ready = images.c.status == inline(Status.READY)
_is_due = images.c.due <= now()
#: Work waits for a worker. Only work has a turn.
_waits = and_(images.c.turn.is_not(None), images.c.worker.is_(None))
_in_order = (images.c.lane, images.c.turn, images.c.id)
_rows = select(images, debts_of_image().label("debts"))

_NEW_WORK: Mapping[str, Any] = {"due": now(), "failures": 0, "losses": 0}
_WITHOUT_WORK: Mapping[str, Any] = dict.fromkeys(("work", "lane", "turn", "wanted", "due", "worker"))


@dataclass(frozen=True)
class Identity:
    """A ledger's random name, and the marker of its storage."""

    name: str
    marker: str | None


@dataclass(frozen=True)
class Figures:
    """The work at this moment: images queued, images processing, and the age of the oldest queued one in seconds."""

    queued: int
    processing: int
    seconds: float


class Ledger:
    """All reads and transitions of images. Any method may raise LedgerUnavailable."""

    def __init__(self, engine: AsyncEngine, *, keeps_originals: bool = True) -> None:
        self._database = Database(engine, _GET)
        self._keeps_originals = keeps_originals

    @classmethod
    def connect(cls, settings: Settings, existing: bool = False) -> Ledger:
        """Return the ledger that the settings name. With `existing`, a missing SQLite file is not created."""
        return cls(create_engine(settings, existing=existing), keeps_originals=settings.keep_originals)

    async def close(self) -> None:
        """Close all connections."""
        await self._database.close()

    # Identity

    async def identity(self) -> Identity:
        """Return the ledger's identity. Raises LedgerNotMigrated if tables are missing or older than this code."""

        async def work(connection: AsyncConnection) -> Identity:
            try:
                revision = (await connection.exec_driver_sql("SELECT version_num FROM alembic_version")).scalar_one()
            except (DBAPIError, NoResultFound) as exc:
                if isinstance(exc, DBAPIError) and not has_no_table(exc):
                    raise
                raise LedgerNotMigrated("the ledger has no tables yet: run `python -m shared.migrations`") from exc
            if revision < REVISION:
                raise LedgerNotMigrated(
                    f"the ledger is at {revision}, not {REVISION}: run `python -m shared.migrations`"
                )
            row = (await connection.execute(select(deployment.c.identity, deployment.c.marker))).one()
            return Identity(row.identity, row.marker)

        return await self._database.read(work)

    async def adopt_marker(self, marker: str) -> str:
        """Store `marker` unless the ledger already has one. Returns the ledger's marker."""

        async def work(connection: AsyncConnection) -> str:
            await connection.execute(update(deployment).where(deployment.c.marker.is_(None)).values(marker=marker))
            return str((await connection.execute(select(deployment.c.marker))).scalar_one())

        return await self._database.write(work)

    # Reading

    async def get(self, image_id: str) -> Image | None:
        """Return the image, also one that is `deleting`, or None."""
        row = await self._database.row(image_id)
        return None if row is None else image_with_debts(row)

    async def which_are_ready(self, image_ids: Sequence[str]) -> set[str]:
        """Return the ids among `image_ids` whose image is ready."""

        async def work(connection: AsyncConnection) -> set[str]:
            rows = await connection.execute(select(images.c.id, images.c.status).where(images.c.id.in_(image_ids)))
            return {row.id for row in rows if row.status == Status.READY}

        return await self._database.read(work)

    async def list_ready(self, after: int | None, limit: int, newest_first: bool) -> list[Image]:
        """Return ready images in the order of their sequence, starting after `after`, which need not exist.

        Images of a list come without their debts, but for `list_all` and `owing_tokens`.
        """
        # Every ready image has a sequence. The condition only makes the database use the partial index.
        rows = select(images).where(_ready, images.c.sequence.is_not(None))
        return await self._page(rows, images.c.sequence, after, limit, newest_first)

    async def list_with_status(self, status: Status, after: str | None, limit: int, newest_first: bool) -> list[Image]:
        """Return images of one status in the order of their ids, starting after `after`, which need not exist."""
        rows = select(images).where(images.c.status == inline(status))
        return await self._page(rows, images.c.id, after, limit, newest_first)

    async def list_all(self, after: str | None, limit: int) -> list[Image]:
        """Return images of every status in the order of their ids, starting after `after`, which need not exist."""
        return await self._page(_rows, images.c.id, after, limit, False, image_with_debts)

    async def count_queued(self, at_most: int) -> int:
        """Count the queued images, up to `at_most`."""
        return await self._count(_queued, (images.c.id,), at_most)

    async def figures(self) -> Figures:
        """Return how much work waits. An autoscaler can derive the number of workers from these figures."""
        # Ids are in the order of age. An image that was queued again counts as waiting since its last claim.
        oldest = select(images.c.modified).where(_queued).order_by(images.c.id).limit(100).subquery()
        query = select(
            select(func.count()).select_from(images).where(_queued).scalar_subquery(),
            select(func.count()).select_from(images).where(_processing).scalar_subquery(),
            now() - select(func.min(oldest.c.modified)).scalar_subquery(),
        )

        async def work(connection: AsyncConnection) -> Figures:
            queued, processing, seconds = (await connection.execute(query)).one()
            return Figures(queued, processing, max(0.0, seconds or 0.0))

        return await self._database.read(work)

    async def now(self) -> float:
        """Return the ledger's clock, in seconds since the epoch."""

        async def work(connection: AsyncConnection) -> float:
            return float((await connection.execute(select(now()))).scalar_one())

        return await self._database.read(work)

    # The order of work

    async def waiting(self, at_most: int) -> list[Image]:
        """Return images whose work waits and may be claimed, in the order of work."""
        return await self._select(select(images).where(_waits, _is_due).order_by(*_in_order).limit(at_most))

    async def is_waiting(self, lane: Lane) -> bool:
        """Return whether work of this lane, or of a more urgent one, waits and may be claimed."""
        return await self._count(and_(_waits, _is_due, images.c.lane <= lane.value), _in_order, 1) > 0

    # From upload to ready

    async def add(self, image_id: str, original: Original, request: str | None, *, owner: str | None = None) -> Image:
        """Commit a queued image. From this commit on, the service must finish it. The caller enqueues it."""

        async def work(connection: AsyncConnection) -> Image:
            turn = await _next_turn(connection, owner, Lane.UPLOAD, original.bytes, is_new=True)
            values = _new(image_id, original, request, owner) | {"turn": turn}
            return image_of((await connection.execute(_ADD, values)).one())

        return await self._database.write(work)

    async def get_certainly(self, image_id: str, original: Original) -> Image | None:
        """Return the image whose `add` failed with an unknown outcome. None means that it will never appear."""
        if not self._database.is_postgresql:
            return await self.get(image_id)

        async def work(connection: AsyncConnection) -> None:
            # PostgreSQL may still be working on the commit although its connection was lost. An insert of the same id
            # waits until that commit has ended.
            await connection.execute(_ADD, _new(image_id, original, None, None) | {"turn": 0.0})
            await connection.execute(delete(images).where(images.c.id == image_id))

        try:
            await self._database.write(work)
        except NothingCommitted as exc:
            if not isinstance(exc.__cause__, IntegrityError):
                raise
        return await self.get(image_id)

    async def claim(self, image_id: str, worker: str) -> Image | None:
        """Claim the work that waits on this image: begin a new attempt with a lease."""
        return await self._change(_CLAIM, {"of_id": image_id, "of_worker": worker})

    async def claim_next(self, worker: str) -> Image | None:
        """Claim the first work in the order of work that may be claimed."""
        if not await self.is_waiting(Lane.BULK):
            return None  # without SQLite's write lock
        return await self._change(_CLAIM_NEXT, {"of_worker": worker})

    async def renew(self, attempt: Image) -> Image | None:
        """Renew the lease of this attempt."""
        return await self._change(_RENEW, _as(attempt))

    async def publish(
        self, attempt: Image, size: Size, renditions: Iterable[Rendition], *, seconds: float
    ) -> Image | None:
        """Add this attempt's renditions to the image's renditions. They replace those with the same file name.

        The first publication takes the next sequence. If rendering took notably more `seconds` than expected, the
        owner's next work gets a later turn.
        """
        made = {rendition.file: rendition for rendition in renditions}
        is_first = attempt.sequence is None
        values = _as(attempt) | {
            "of_width": size[0],
            "of_height": size[1],
            "of_renditions": renditions_text({**attempt.renditions, **made}),
        }

        async def work(connection: AsyncConnection) -> Image | None:
            if is_first:
                # The counter's row stays locked until the commit, so the order of commits is the order of the list.
                values["of_sequence"] = (await connection.execute(_NEXT)).scalar_one()
            row = (await connection.execute(_PUBLISH_FIRST if is_first else _PUBLISH, values)).one_or_none()
            if row is None:
                raise _Taken
            return image_of(row, await _owe(connection, attempt.id, self._owed_by(attempt, made)))

        try:
            published = await self._database.write(work)
        except _Taken:
            return None
        # Only move the turn later. At an earlier turn, the owner's next work would overtake work that waits.
        late = seconds - _expected_seconds(attempt.original.bytes)
        if late > LATE_SECONDS:
            correction = {"of_owner": attempt.owner or "", "of_seconds": late}
            # In its own transaction, after the publication: a frozen upload may have locked the owner's row, and all
            # publications wait for the counter's. If this update is lost, only the order of work changes.
            with contextlib.suppress(LedgerUnavailable):
                await self._database.write(lambda connection: connection.execute(_CORRECT, correction))
        return published

    def _owed_by(self, attempt: Image, made: Mapping[str, Rendition]) -> tuple[DebtKind, ...]:
        """Return the debts of a publication. A new format of a ready image changes neither records nor old files."""
        if attempt.work is Work.CONVERT:
            changes, leaves = True, attempt.attempt > 1 or not self._keeps_originals
        else:
            replaces = bool(made.keys() & attempt.renditions.keys())
            # The record lists the thumbnails.
            tells = replace(attempt, renditions={**attempt.renditions, **made}).thumbnails != attempt.thumbnails
            changes, leaves = replaces or tells, replaces or attempt.losses > 0 or attempt.failures > 0
        return _COMMIT_OWES * changes + (DebtKind.LEFTOVERS,) * leaves

    async def hand_back(self, attempt: Image, seconds: float) -> Image | None:
        """End an attempt without counting a failure or a loss. The work may be claimed again after `seconds`."""
        owes = (DebtKind.LEFTOVERS,) if attempt.work is Work.RENDITIONS else ()
        return await self._end(attempt, owes, _waiting_again(attempt) | {"due": now() + seconds})

    async def fail(self, attempt: Image, error_type: str, detail: str) -> Image | None:
        """End a conversion and make the image `failed`, because its file is at fault."""
        return await self._end(attempt, _EVERYTHING, _failed(error_type, detail), images.c.work == Work.CONVERT)

    async def count_failure(self, attempt: Image) -> Image | None:
        """Count a failure that is not final yet. The work waits again, and the caller enqueues it."""
        return await self._end(attempt, (), _waiting_again(attempt) | {"failures": images.c.failures + 1})

    async def count_loss(self, attempt: Image) -> Image | None:
        """Count a loss. The work waits again, and the caller enqueues it. After MOST_LOSSES the work is given up."""
        return await self._database.write(lambda connection: _lose(connection, attempt))

    # More renditions of a ready image, which stays ready meanwhile

    async def request_renditions(self, image: Image, lane: Lane, wanted: Sequence[str] | None = None) -> Image | None:
        """Request renditions of a ready image: the files `wanted`, or by default its JPEG and its thumbnails.

        The caller enqueues the image. If its work waits in a later lane, that work moves to this lane with a new turn,
        and makes the files of both requests. If one of these is for the JPEG and the thumbnails, it makes only those:
        the next reader of another missing file requests it again.

        Nothing happens if `image` is held or has work of this or an earlier lane, if its work or its attempt has
        changed since `image` was read, or during the pause after renditions were given up.
        """
        if image.worker is not None or (image.lane is not None and image.lane <= lane):
            return None  # also if that work has ended meanwhile: its end does not change the attempt number
        if image.work is None:
            values = {"work": Work.RENDITIONS, **_NEW_WORK}
        else:
            # Its counts stay: they show whether earlier attempts left files.
            values = {}
            wanted = None if wanted is None or image.wanted is None else sorted({*image.wanted, *wanted})
        values["wanted"] = None if wanted is None else json.dumps(list(wanted))
        is_paused = func.coalesce(images.c.paused_until, 0.0) > now()
        # Each piece of work has another turn.
        may_be_asked = and_(_is_as_read, _ready, images.c.turn.is_not_distinct_from(image.turn), ~is_paused)
        return await self._database.write(
            lambda connection: _put_in_order(connection, may_be_asked, _as(image), lane, values)
        )

    async def give_up(self, attempt: Image) -> Image | None:
        """End an attempt at more renditions. The image stays ready. It ignores requests for renditions for a minute."""
        return await self._end(attempt, (DebtKind.LEFTOVERS,), _given_up(), images.c.work == Work.RENDITIONS)

    # Deleting and retrying

    async def delete(self, image_id: str, meant: Image | None = None) -> Image | None:
        """Begin to delete the image. From this commit on, every request for it gets the answer for a missing image.

        With `meant`, nothing happens if the image has changed since `meant` was read.
        """
        unchanged = true() if meant is None else and_(_is_as_read, images.c.modified == meant.modified)
        gone = (
            update(images)
            .where(images.c.id == image_id, images.c.status != Status.DELETING, unchanged)
            .values(**_WITHOUT_WORK, status=Status.DELETING, modified=now())
            .returning(images)
        )

        async def work(connection: AsyncConnection) -> Image | None:
            row = (await connection.execute(gone, {} if meant is None else _as(meant))).one_or_none()
            if row is None:
                return None
            less = {"bytes": owners.c.bytes - row.original_bytes, "images": owners.c.images - 1}
            await connection.execute(update(owners).where(owners.c.owner == (row.owner or "")).values(less))
            return image_of(row, await _owe(connection, image_id, _EVERYTHING))

        return await self._database.write(work)

    async def retry(self, image_id: str) -> Image | None:
        """Queue a failed image again with its counts reset. The caller enqueues it."""

        is_failed = and_(images.c.id == image_id, images.c.status == Status.FAILED)
        values = {"status": Status.QUEUED, "work": Work.CONVERT, "error_type": None, "error_detail": None}
        return await self._database.write(
            lambda connection: _put_in_order(
                connection, is_failed, {}, Lane.UPLOAD, {**values, **_NEW_WORK, "modified": now()}
            )
        )

    async def remove(self, image: Image) -> None:
        """Remove the row of a deleted image whose files are removed, if a minute has passed and nothing else is owed.

        Otherwise the leftovers of `image` become due again later, because a late attempt may still write files.
        """
        of_image = debts.c.image_id == image.id
        owes_more = exists().where(of_image, debts.c.kind != DebtKind.LEFTOVERS)
        again = image.modified + DELETED_SECONDS

        async def work(connection: AsyncConnection) -> None:
            gone = delete(images).where(images.c.id == image.id, images.c.status == Status.DELETING)
            removed = await connection.execute(gone.where(again <= now(), ~owes_more).returning(images.c.id))
            if removed.one_or_none() is None:
                due = case((now() < again, again), else_=now() + AGAIN_SECONDS)
                # Selected by their ids: by image and kind, PostgreSQL may read all leftovers in the table.
                later = update(debts).where(debts.c.id.in_([debt.id for debt in image.owes(DebtKind.LEFTOVERS)]))
                await connection.execute(later.values(due=due))
            else:
                await connection.execute(delete(debts).where(of_image))

        await self._database.write(work)

    # Debts

    async def owing_tokens(self) -> list[Image]:
        """Return at most 1,000 images that owe a change of their cache tokens."""
        owing = select(debts.c.image_id).where(_is_of(DebtKind.TOKENS)).order_by(debts.c.due).limit(1000)
        return await self._select(_rows.where(images.c.id.in_(owing)), image_with_debts)

    async def owe_leftovers(self, image: Image, attempt: int) -> Image | None:
        """Add a debt of leftovers to a final image without work, for the files of attempts up to `attempt`.

        The row's attempt number rises to at least `attempt`, so no attempt writes to their folders after this commit.
        """
        is_still = and_(_is_as_read, images.c.work.is_(None), or_(_ready, images.c.status == inline(Status.FAILED)))
        risen = update(images).where(is_still).values(attempt=max(image.attempt, attempt)).returning(images)
        return await self._change(risen, _as(image), (DebtKind.LEFTOVERS,))

    async def paid(self, paid: Sequence[Debt]) -> None:
        """Record that debts are paid."""
        if paid:
            # PostgreSQL chooses the order in which it locks the rows. If two payers deadlock, one of them raises
            # NothingCommitted, and its debts are taken again.
            ids = [debt.id for debt in paid]
            await self._database.write(lambda connection: connection.execute(_PAID, {"of_ids": ids}))

    async def take_debts(self, kind: DebtKind) -> list[Image]:
        """Take the oldest due debts of a kind. Returns their images, each with only these debts.

        A debt that is not paid within ten seconds is due again.
        """
        are_due = select(debts.c.id).where(_is_of(kind), debts.c.due <= now()).order_by(debts.c.due)
        oldest = are_due.limit(TAKE_AT_MOST).with_for_update(skip_locked=True)

        async def work(connection: AsyncConnection) -> list[Image]:
            ids = (await connection.execute(oldest)).scalars().all()
            later = update(debts).where(debts.c.id.in_(ids)).values(due=now() + AGAIN_SECONDS)
            taken: dict[str, list[Debt]] = {}
            for row in await connection.execute(later.returning(debts.c.id, debts.c.image_id)):
                taken.setdefault(row.image_id, []).append(Debt(row.id, kind))
            rows = await connection.execute(select(images).where(images.c.id.in_(taken)).order_by(images.c.id))
            return [image_of(row, taken[row.id]) for row in rows]

        # Read first, so that a pass without work does not take SQLite's write lock.
        if not await self._has_rows(are_due):
            return []
        return await self._database.write(work)

    async def take_lost(self) -> list[Image]:
        """End the attempts whose lease is over, and return their images. Their work waits again or is given up."""
        are_over = select(images).where(images.c.worker.is_not(None), _is_due).order_by(images.c.due)
        oldest = are_over.limit(TAKE_AT_MOST).with_for_update(skip_locked=True)

        async def work(connection: AsyncConnection) -> list[Image]:
            lost = [await _lose(connection, image_of(row)) for row in (await connection.execute(oldest)).all()]
            return [image for image in lost if image is not None]

        if not await self._has_rows(are_over):
            return []
        return await self._database.write(work)

    # Statements

    async def _page(
        self,
        rows: Select[Any],
        column: Any,
        after: int | str | None,
        limit: int,
        newest_first: bool,
        convert: Callable[[Any], Image] = image_of,
    ) -> list[Image]:
        if after is not None:
            rows = rows.where(column < after if newest_first else column > after)
        return await self._select(rows.order_by(column.desc() if newest_first else column).limit(limit), convert)

    async def _select(self, query: Select[Any], convert: Callable[[Any], Image] = image_of) -> list[Image]:
        async def work(connection: AsyncConnection) -> list[Image]:
            return [convert(row) for row in await connection.execute(query)]

        return await self._database.read(work)

    async def _count(self, condition: ColumnElement[bool], order: Sequence[Any], at_most: int) -> int:
        # Select a constant: for a column SQLite would read each row, not only the index. The order makes PostgreSQL use
        # the index: its statistics do not show how few rows match.
        some = select(literal_column("1").label("one")).where(condition).order_by(*order).limit(at_most).subquery()

        async def work(connection: AsyncConnection) -> int:
            return int((await connection.execute(select(func.count()).select_from(some))).scalar_one())

        return await self._database.read(work)

    async def _has_rows(self, query: Select[Any]) -> bool:
        # The query's order makes PostgreSQL use the index, as in `_count`.
        async def work(connection: AsyncConnection) -> bool:
            return (await connection.execute(query.limit(1))).first() is not None

        return await self._database.read(work)

    async def _end(
        self, attempt: Image, owes: Sequence[DebtKind], values: Mapping[str, Any], *conditions: ColumnElement[bool]
    ) -> Image | None:
        return await self._change(_held_by(values, *conditions), _as(attempt), owes)

    async def _change(
        self, statement: Any, parameters: Mapping[str, Any], owes: Sequence[DebtKind] = ()
    ) -> Image | None:
        async def work(connection: AsyncConnection) -> Image | None:
            row = (await connection.execute(statement, parameters)).one_or_none()
            return None if row is None else image_of(row, await _owe(connection, row.id, owes))

        return await self._database.write(work)


class _Taken(Exception):
    """Another process has the image. Raised to roll the transaction back, which has already taken a sequence."""


async def _lose(connection: AsyncConnection, attempt: Image) -> Image | None:
    owes: tuple[DebtKind, ...] = ()
    values: Mapping[str, Any] = _waiting_again(attempt) | {"losses": images.c.losses + 1}
    if attempt.losses + 1 >= MOST_LOSSES:
        is_conversion = attempt.work is Work.CONVERT
        owes = _EVERYTHING if is_conversion else (DebtKind.LEFTOVERS,)
        values = _failed("worker-lost", _WORKER_LOST) | {"losses": MOST_LOSSES} if is_conversion else _given_up()
    row = (await connection.execute(_held_by(values), _as(attempt))).one_or_none()
    return None if row is None else image_of(row, await _owe(connection, row.id, owes))


async def _owe(connection: AsyncConnection, image_id: str, kinds: Sequence[DebtKind]) -> list[Debt]:
    """Add debts in the transaction of the commit that leaves them."""
    if not kinds:
        return []
    added = await connection.execute(_owing(tuple(kinds)), {"of_image": image_id})
    return [Debt(row.id, DebtKind(row.kind)) for row in added]


async def _put_in_order(
    connection: AsyncConnection,
    condition: ColumnElement[bool],
    parameters: Mapping[str, Any],
    lane: Lane,
    values: Mapping[str, Any],
) -> Image | None:
    """Change the image that meets the condition, and give its work a place in the order of work."""
    # Lock the image's row before its owner's, as all transactions do: otherwise two of them could deadlock.
    found = select(images.c.id, images.c.owner, images.c.original_bytes).where(condition).with_for_update()
    row = (await connection.execute(found, parameters)).one_or_none()
    if row is None:
        return None
    turn = await _next_turn(connection, row.owner, lane, row.original_bytes)
    order = {"lane": lane.value, "turn": turn, "trace": traceparent()}
    put = update(images).where(images.c.id == row.id).values(**order, **values).returning(images)
    return image_of((await connection.execute(put)).one())


async def _next_turn(
    connection: AsyncConnection, owner: str | None, lane: Lane, original_bytes: int, *, is_new: bool = False
) -> float:
    """Return the turn of an owner's next work. A new image is added to what the owner stores.

    An owner without waiting work starts at the first waiting turn of the lane or, without one, at the present moment.
    Each piece of work moves the owner's next turn by the expected time of its rendering. So owners with much work and
    owners with little are served in turn.
    """
    cost = {"of_owner": owner or "", "of_lane": lane.value, "of_seconds": _expected_seconds(original_bytes)}
    stores = {"of_bytes": original_bytes * is_new, "of_images": int(is_new)}
    return float((await connection.execute(_turn(connection.dialect.name), cost | stores)).scalar_one())


def _expected_seconds(original_bytes: int) -> float:
    """Return the expected time of rendering: a photograph of 12 MP and 3 MB takes a third of a second."""
    return 0.03 + original_bytes / 10_000_000


def _new(image_id: str, original: Original, request: str | None, owner: str | None) -> dict[str, Any]:
    return {
        "id": image_id,
        "owner": owner,
        "original_type": original.type,
        "original_bytes": original.bytes,
        "original_sha256": original.sha256,
        "request": request,
        "trace": traceparent(),
    }


def _as(image: Image) -> dict[str, Any]:
    """Return the parameters of `_is_as_read` for an image as it was read."""
    return {"of_id": image.id, "of_status": image.status, "of_attempt": image.attempt}


def _is_of(kind: DebtKind) -> ColumnElement[bool]:
    return debts.c.kind == kind.value


def _held_by(values: Mapping[str, Any], *conditions: ColumnElement[bool]) -> Any:
    """Return the statement that changes an attempt's row, if the attempt still holds it."""
    return update(images).where(_is_held, *conditions).values(dict(values)).returning(images)


def _waiting_again(attempt: Image) -> dict[str, Any]:
    status = Status.QUEUED if attempt.work is Work.CONVERT else attempt.status
    return {"status": status, "due": now(), "worker": None}


def _failed(error_type: str, detail: str) -> dict[str, Any]:
    error = {"status": Status.FAILED, "error_type": error_type, "error_detail": detail}
    return {**_WITHOUT_WORK, **error, "modified": now()}


def _given_up() -> dict[str, Any]:
    return {**_WITHOUT_WORK, "losses": 0, "paused_until": now() + PAUSE_SECONDS}


# Statements that every image needs are built once: building a statement takes as long as running it.

_is_as_read = and_(
    images.c.id == bindparam("of_id"),
    images.c.status == bindparam("of_status"),
    images.c.attempt == bindparam("of_attempt"),
)
_is_held = and_(_is_as_read, images.c.worker.is_not(None))

_GET = _rows.where(images.c.id == bindparam("of_id"))
_ADD = (
    insert(images)
    .values(
        {column: bindparam(column) for column in _new("", Original("", 0, ""), None, None)}
        | {"status": Status.QUEUED, "work": Work.CONVERT, "lane": Lane.UPLOAD.value, "turn": bindparam("turn")}
        | {"attempt": 0, "failures": 0, "losses": 0, "renditions": "{}"}
        | {"due": now(), "created": now(), "modified": now()}
    )
    .returning(images)
)
_NEW_ATTEMPT: Mapping[str, Any] = {
    "status": case((images.c.work == Work.CONVERT, Status.PROCESSING), else_=images.c.status),
    "modified": case((images.c.work == Work.CONVERT, now()), else_=images.c.modified),
    "attempt": images.c.attempt + 1,
    "due": now() + LEASE_SECONDS,
    "worker": bindparam("of_worker"),
}
_CLAIM = (
    update(images)
    .where(images.c.id == bindparam("of_id"), images.c.work.is_not(None), images.c.worker.is_(None))
    .values(_NEW_ATTEMPT)
    .returning(images)
)
_other = images.alias("waiting")
_FIRST = (
    select(_other.c.id)
    .where(_other.c.turn.is_not(None), _other.c.worker.is_(None), _other.c.due <= now())
    .order_by(_other.c.lane, _other.c.turn, _other.c.id)
    .limit(1)
    .with_for_update(skip_locked=True)
)
_CLAIM_NEXT = update(images).where(images.c.id == _FIRST.scalar_subquery()).values(_NEW_ATTEMPT).returning(images)
_RENEW = _held_by({"due": now() + LEASE_SECONDS})
_PUBLISHED: Mapping[str, Any] = {
    **_WITHOUT_WORK,
    "status": Status.READY,
    "failures": 0,
    "losses": 0,
    "paused_until": None,
    "width": bindparam("of_width"),
    "height": bindparam("of_height"),
    "renditions": bindparam("of_renditions"),
}
_PUBLISH = _held_by(_PUBLISHED)
_PUBLISH_FIRST = _held_by({**_PUBLISHED, "sequence": bindparam("of_sequence"), "modified": now()})
_NEXT = update(deployment).values(sequence=deployment.c.sequence + 1).returning(deployment.c.sequence)
_PAID = delete(debts).where(debts.c.id.in_(bindparam("of_ids", expanding=True)))
_others = images.alias("others")
# If work waits longer than expected, its turns are in the past, and a new owner must not start after all of it.
_first_waiting = (
    select(_others.c.turn)
    .where(_others.c.lane == bindparam("of_lane"), _others.c.turn < now(), _others.c.worker.is_(None))
    .order_by(_others.c.turn)
    .limit(1)
)
_CORRECT = (
    update(owners).where(owners.c.owner == bindparam("of_owner")).values(turn=owners.c.turn + bindparam("of_seconds"))
)


@functools.lru_cache
def _owing(kinds: tuple[DebtKind, ...]) -> Any:
    seconds = {DebtKind.LEFTOVERS: LEFTOVERS_SECONDS}
    rows = [
        {"image_id": bindparam("of_image"), "kind": kind.value, "due": now() + seconds.get(kind, SETTLE_SECONDS)}
        for kind in kinds
    ]
    return insert(debts).values(rows).returning(debts.c.id, debts.c.kind)


@functools.lru_cache
def _turn(dialect: str) -> Any:
    # One statement, because with an update and then an insert, two concurrent first images of an owner would both be
    # inserted. Each database has its own `insert`. Importing the other database's takes a tenth of a second.
    first = (
        import_module(f"sqlalchemy.dialects.{dialect}")
        .insert(owners)
        .values(
            owner=bindparam("of_owner"),
            turn=func.coalesce(_first_waiting.scalar_subquery(), now()) + bindparam("of_seconds"),
            bytes=bindparam("of_bytes"),
            images=bindparam("of_images"),
        )
    )
    following = owners.c.turn + bindparam("of_seconds")
    changes = {
        "turn": case((following > first.excluded.turn, following), else_=first.excluded.turn),
        "bytes": owners.c.bytes + first.excluded.bytes,
        "images": owners.c.images + first.excluded.images,
    }
    return first.on_conflict_do_update(index_elements=[owners.c.owner], set_=changes).returning(owners.c.turn)
