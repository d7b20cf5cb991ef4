"""What the ledger costs with 1,000,000 rows, and with 1,000: `python -m bench.rows [rounds] [rows]`, on both databases.

Each step runs in one ledger and right after in the other; they take turns at being first. Files are in memory where
possible, and nothing is fsynced, since waiting for a disk would hide the cost of rows. DATABASE_URL names another
PostgreSQL than our own. At the end 100,000 of the many rows are queued, to see what a backlog costs. Prints tables, and
draws docs/growth.png.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uuid_utils
from matplotlib.figure import Figure as Sheet
from sqlalchemy import and_, delete, select, update

from bench import figures as forms
from bench.population import (
    LATER_SECONDS,
    Kind,
    Population,
    fill_postgresql,
    fill_sqlite,
    on_postgresql,
    on_sqlite,
    postgresql_server,
)
from shared.images import DebtKind, Image, Lane, Original, Status, Work
from shared.ledger import Ledger
from shared.ledger.engine import create_engine
from shared.ledger.schema import debts, images, now
from shared.renditions import FULL, Rendition, Size, ladder, thumbnail_name
from shared.settings import Settings
from tests.postgresql import execute

ROUNDS = 200
FEW, MANY = 1_000, 1_000_000
#: How much more a step may cost with many rows than with few.
MOST = 1.3
#: Rows of each kind that are due in one pass of the sweep.
DUE = 20
#: Queued rows at the end: the most before uploads are refused.
BACKLOG = 100_000
#: Images of a page, and one more that shows whether there is a next page.
PAGE = 101

ORIGINAL = Original("image/jpeg", 4_000_000, "0a" * 32)
SIZE: Size = (4000, 3000)
#: Jobs that the sweep lets wait in the queue.
QUEUE = 300


def like_a_photograph(attempt: int) -> list[Rendition]:
    """Return what an attempt makes of a photograph."""
    sizes = {FULL: SIZE} | {thumbnail_name(size): size for size in ladder(SIZE, 64)}
    return [
        Rendition(file, size, size[0] * size[1] // 5, "2c" * 32, attempt, "0123abcd") for file, size in sizes.items()
    ]


@dataclass
class Side:
    """One of the two ledgers, and the state of the round in it."""

    ledger: Ledger
    population: Population
    chance: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311 - no secret
    image: Image | None = None
    due: list[str] = field(default_factory=list)
    taken: list[Image] = field(default_factory=list)

    @property
    def current(self) -> Image:
        """The image that goes through its life in this round."""
        return there(self.image)

    def any_id(self, kind: Kind) -> str:
        return self.chance.choice(self.population.ids[kind])

    def any_sequence(self) -> int:
        """A random place in the list with a whole page on either side."""
        return self.chance.randrange(PAGE + 1, self.population.ready - PAGE)


Act = Callable[[Side], Awaitable[Any]]
Fill = Callable[[Settings, int], Awaitable[Population]]


@dataclass(frozen=True)
class Counts:
    """The numbers of rounds and rows."""

    rounds: int
    rows: int
    #: Whether to measure a backlog as well.
    with_backlog: bool = True


@dataclass(frozen=True)
class Step:
    """A step that is measured, with what comes before and after it, which is not."""

    name: str
    act: Act
    before: Act | None = None
    behind: Act | None = None


def there(image: Image | None) -> Image:
    if image is None:
        raise SystemExit("a transition found another row than it was made for")
    return image


def _page(of: Status, after: Callable[[Side], int | str | None], newest_first: bool) -> Act:
    async def act(side: Side) -> None:
        place = after(side)
        if isinstance(place, str) or of is not Status.READY:
            found = await side.ledger.list_with_status(of, None if place is None else str(place), PAGE, newest_first)
        else:
            found = await side.ledger.list_ready(place, PAGE, newest_first)
        least = 1 if isinstance(place, str) else min(PAGE, len(side.population.ids[of]))
        if len(found) < least:
            raise SystemExit(f"a page of {of} has {len(found)} images")

    return act


async def _execute(side: Side, statement: Any) -> None:
    """Change rows directly."""
    async with side.ledger._database._engine.begin() as connection:
        await connection.execute(statement)


async def _set(side: Side, ids: list[str], **values: Any) -> None:
    await _execute(side, update(images).where(images.c.id.in_(ids)).values(**values))


def _make_due(kind: Kind) -> Act:
    async def before(side: Side) -> None:
        side.due = side.population.ids[kind][:DUE]
        await _set_due(side, kind, -10.0)

    return before


async def _set_due(side: Side, kind: Kind, seconds: float) -> None:
    if isinstance(kind, DebtKind):
        await _execute(side, update(debts).where(debts.c.image_id.in_(side.due)).values(due=now() + seconds))
    else:
        await _set(side, side.due, due=now() + seconds)


def _take(take: Callable[[Ledger], Awaitable[list[Image]]]) -> Act:
    async def act(side: Side) -> None:
        side.taken = await take(side.ledger)

    return act


def _as_they_were(kind: Kind, **values: Any) -> Act:
    async def behind(side: Side) -> None:
        # In a backlog others are before them.
        if len(side.taken) < QUEUE and {image.id for image in side.taken} != set(side.due):
            raise SystemExit(f"{len(side.taken)} rows were taken of {len(side.due)}")
        await _set_due(side, kind, LATER_SECONDS)
        if values:
            await _set(side, side.due, **values)

    return behind


async def _sweep_in_vain(side: Side) -> None:
    await side.ledger.take_lost()
    await side.ledger.waiting(QUEUE)
    for kind in DebtKind:
        await side.ledger.take_debts(kind)


async def _claim_next(side: Side) -> None:
    side.taken = [there(await side.ledger.claim_next("host:1"))]


async def _unclaim(side: Side) -> None:
    await _set_due(side, Status.QUEUED, LATER_SECONDS)
    (image,) = side.taken
    await _set(side, [image.id], status=Status.QUEUED, worker=None, attempt=0, due=now() + LATER_SECONDS)


async def _add(side: Side) -> None:
    side.image = await side.ledger.add(str(uuid_utils.uuid7()), ORIGINAL, "0c" * 16)


async def _claim(side: Side) -> None:
    side.image = await side.ledger.claim(side.current.id, "host:1")


async def _renew(side: Side) -> None:
    side.image = await side.ledger.renew(side.current)


async def _publish(side: Side) -> None:
    made = like_a_photograph(side.current.attempt)
    side.image = await side.ledger.publish(side.current, SIZE, made, seconds=0.4)


async def _settle(side: Side) -> None:
    await side.ledger.paid(side.current.owes(DebtKind.TOKENS))
    await side.ledger.paid(side.current.owes(DebtKind.NOTICE))
    side.image = await side.ledger.get(side.current.id)


async def _request(side: Side) -> None:
    side.image = await side.ledger.request_renditions(side.current, Lane.DEMAND, ["image.webp"])


async def _publish_more_late(side: Side) -> None:
    """Publish a render that took so long that the owner's turn is corrected."""
    made = Rendition("image.webp", SIZE, 1_900_000, "3d" * 32, side.current.attempt, "4567cdef")
    side.image = await side.ledger.publish(side.current, SIZE, [made], seconds=2.0)


async def _delete(side: Side) -> None:
    side.image = await side.ledger.delete(side.current.id)
    await side.ledger.paid(side.current.owes(DebtKind.TOKENS))
    await side.ledger.paid(side.current.owes(DebtKind.NOTICE))
    await side.ledger.remove(side.current)


async def _forget(side: Side) -> None:
    await _execute(side, delete(images).where(images.c.id == side.current.id))
    await _execute(side, delete(debts).where(debts.c.image_id == side.current.id))


STEPS = (
    Step("list, first page", _page(Status.READY, lambda side: None, False)),
    Step("list, after= anywhere", _page(Status.READY, Side.any_sequence, False)),
    Step("list, order=desc", _page(Status.READY, lambda side: None, True)),
    Step("list, order=desc, after= anywhere", _page(Status.READY, Side.any_sequence, True)),
    Step("list, status=queued", _page(Status.QUEUED, lambda side: None, False)),
    Step("list, status=processing", _page(Status.PROCESSING, lambda side: None, False)),
    Step("list, status=failed, order=desc", _page(Status.FAILED, lambda side: None, True)),
    Step("debts asked for by a list", lambda side: side.ledger.owing_tokens()),
    Step("poll", lambda side: side.ledger.get(side.any_id(Status.READY))),
    Step("poll of an id that is not there", lambda side: side.ledger.get(str(uuid_utils.uuid7()))),
    Step("add", _add),
    Step("claim", _claim),
    Step("renew a lease", _renew),
    Step("publish", _publish),
    Step("settle", _settle),
    Step("request a rendition", _request),
    Step("publish one more rendition, late", _publish_more_late, before=_claim),
    Step("delete", _delete, behind=_forget),
    Step("claim the next", _claim_next, _make_due(Status.QUEUED), _unclaim),
    Step("does more urgent work wait", lambda side: side.ledger.is_waiting(Lane.DEMAND)),
    Step("sweep, nothing due", _sweep_in_vain),
    Step(
        f"sweep, {DUE} leases over",
        _take(lambda ledger: ledger.take_lost()),
        _make_due(Status.PROCESSING),
        _as_they_were(Status.PROCESSING, status=Status.PROCESSING, worker="host:1", losses=0),
    ),
    Step(
        f"sweep, {DUE} wait",
        _take(lambda ledger: ledger.waiting(QUEUE)),
        _make_due(Status.QUEUED),
        _as_they_were(Status.QUEUED),
    ),
    *(
        Step(
            f"sweep, {DUE} owe {kind}",
            _take(functools.partial(Ledger.take_debts, kind=kind)),
            _make_due(kind),
            _as_they_were(kind),
        )
        for kind in DebtKind
    ),
    Step("what waits (metrics)", lambda side: side.ledger.figures()),
    Step("is there room for an upload", lambda side: side.ledger.count_queued(100_000)),
)

#: The steps that read queued rows.
IN_A_BACKLOG = (
    "list, status=queued",
    "add",
    "claim",
    "claim the next",
    "does more urgent work wait",
    "delete",
    f"sweep, {DUE} wait",
    "what waits (metrics)",
    "is there room for an upload",
)


@dataclass
class Times:
    """Milliseconds of each round, with few rows and with many."""

    few: list[float] = field(default_factory=list)
    many: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        return statistics.median(self.many) / statistics.median(self.few)


async def _timed(step: Step, side: Side) -> float:
    if step.before is not None:
        await step.before(side)
    began = time.perf_counter()
    await step.act(side)
    took = (time.perf_counter() - began) * 1000
    if step.behind is not None:
        await step.behind(side)
    return took


async def compare(database: str, few: Side, many: Side, rounds: int, steps: Sequence[Step] = STEPS) -> dict[str, Times]:
    """Run every step in both ledgers, round by round."""
    times = {step.name: Times() for step in steps}
    for number in range(-5, rounds):
        for step in steps:
            sides = [(few, times[step.name].few), (many, times[step.name].many)]
            for side, took in sides if number % 2 else sides[::-1]:
                milliseconds = await _timed(step, side)
                if number >= 0:  # earlier rounds warm up
                    took.append(milliseconds)
        if number >= 0 and (number + 1) % 20 == 0:
            forms.progress(f"{database}: round {number + 1} of {rounds}")
    forms.progress("")
    return times


async def with_backlog(side: Side, settings: Settings) -> dict[str, float]:
    """Queue many rows, all of them due; return the milliseconds of the steps that read them."""
    engine = create_engine(settings, migrating=True)
    async with engine.begin() as connection:
        owing = select(debts.c.image_id).scalar_subquery()
        is_settled = and_(images.c.status == Status.READY, images.c.work.is_(None), images.c.id.not_in(owing))
        waiting = {"status": Status.QUEUED, "work": Work.CONVERT, "lane": Lane.UPLOAD.value, "turn": images.c.created}
        waiting |= {"due": now(), "sequence": None, "renditions": "{}"}
        await connection.execute(update(images).where(is_settled, images.c.sequence <= BACKLOG).values(waiting))
    await engine.dispose()
    took: dict[str, list[float]] = {name: [] for name in IN_A_BACKLOG}
    for _ in range(21):
        for step in STEPS:
            if step.name in took:
                took[step.name].append(await _timed(step, side))
    return {name: statistics.median(times) for name, times in took.items()}


@asynccontextmanager
async def _side(settings: Settings, population: Population) -> AsyncIterator[Side]:
    ledger = Ledger.connect(settings)
    try:
        yield Side(ledger, population)
    finally:
        await ledger.close()


@dataclass(frozen=True)
class Measured:
    """The results for a database: all steps, those with a backlog, and the bytes of table and indices."""

    times: dict[str, Times]
    backlog: dict[str, float]
    sizes: dict[str, int]


async def measure(
    database: str, few: Settings, many: Settings, fill: Fill, counts: Counts, steps: Sequence[Step] = STEPS
) -> Measured:
    """Fill the two ledgers that the settings name, and compare them."""
    began = time.monotonic()
    some, crowd = await fill(few, FEW), await fill(many, counts.rows)
    print(f"{database}: {counts.rows:,} rows in {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    sizes = await asyncio.to_thread(sizes_on_postgresql if many.is_on_postgresql else sizes_on_sqlite, many)
    async with _side(few, some) as one, _side(many, crowd) as other:
        times = await compare(database, one, other, counts.rounds, steps)
        return Measured(times, await with_backlog(other, many) if counts.with_backlog else {}, sizes)


def sizes_on_sqlite(settings: Settings) -> dict[str, int]:
    """Return the bytes of the table and of each of its indices."""
    query = """SELECT name, sum(pgsize) FROM dbstat
        WHERE name LIKE '%images%' OR name LIKE 'debts%' GROUP BY name"""
    with closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3")) as connection:
        return dict(connection.execute(query).fetchall())


def sizes_on_postgresql(settings: Settings) -> dict[str, int]:
    """Return the bytes of the table and of each of its indices."""
    query = """SELECT relname, pg_relation_size(oid) AS bytes FROM pg_class
        WHERE (relname LIKE 'images%' OR relname LIKE 'debts%') AND relkind IN ('r', 'i')"""
    return {row["relname"]: row["bytes"] for row in execute(settings.database_url, query)}


def draw(measured: dict[str, Measured], rows: int, path: Path) -> None:
    """Draw what each step costs with few rows and with many, a panel a database."""
    figure = Sheet(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
    for panel, (database, one) in zip(panels, measured.items(), strict=True):
        for place, times in enumerate(one.times.values()):
            few, many = statistics.median(times.few), statistics.median(times.many)
            panel.plot([few, many], [place, place], color="#b8b8b8", linewidth=3, zorder=1)
            panel.plot(few, place, "o", color="#5b5f97", markersize=8, label=None if place else f"{FEW:,} rows")
            panel.plot(many, place, "D", color="#e08a1e", markersize=5, label=None if place else f"{rows:,} rows")
            colour = "#c0392b" if times.ratio > MOST else "#2a7f62"
            where = {"xy": (0.99, place), "xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
            panel.annotate(f"x {times.ratio:.2f}", color=colour, **where)
        panel.set_xscale("log")
        panel.set_xlim(0.2, 150)
        panel.set_xticks(ticks := [0.5, 1, 2, 5, 10, 20, 50], [f"{tick:g} ms" for tick in ticks])
        panel.minorticks_off()
        panel.set_yticks(range(len(one.times)), list(one.times))
        panel.grid(axis="x", alpha=0.3)
        panel.set_title(f"{database}: medians, and how many times the cost", loc="left", fontsize=11)
        panel.legend(loc="upper left", fontsize=9)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=80)


def show(database: str, one: Measured, counts: Counts) -> None:
    """Print what was measured on one database."""
    print(f"\n{database + ', medians of ' + str(counts.rounds):36} {FEW:>9,} {counts.rows:>9,}")
    for name, times in one.times.items():
        few, many = statistics.median(times.few), statistics.median(times.many)
        too_much = "  more than wanted" if times.ratio > MOST else ""
        print(f"{name:36} {few:6.2f} ms {many:6.2f} ms {times.ratio:6.2f}{too_much}")
    print(f"with {BACKLOG:,} that wait")
    for name, milliseconds in one.backlog.items():
        print(f"{name:36} {'':9} {milliseconds:6.2f} ms")
    print(f"bytes a row {sum(one.sizes.values()) / counts.rows:.0f}, of which")
    for name, size in sorted(one.sizes.items(), key=lambda item: -item[1]):
        print(f"  {name:34} {size / counts.rows:9.2f}")


def databases(counts: Counts, steps: Sequence[Step] = STEPS) -> Iterator[tuple[str, Measured]]:
    """Measure on SQLite, then on PostgreSQL."""
    memory = "/dev/shm"  # noqa: S108 - only where it is, and in a folder of our own
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        few, many = on_sqlite(Path(folder) / "few"), on_sqlite(Path(folder) / "many")
        yield "SQLite", asyncio.run(measure("SQLite", few, many, fill_sqlite, counts, steps))
    with postgresql_server() as server, on_postgresql(server, "few") as few, on_postgresql(server, "many") as many:
        yield "PostgreSQL", asyncio.run(measure("PostgreSQL", few, many, fill_postgresql, counts, steps))


def figures(rounds: int = forms.ROUNDS) -> Iterator[forms.Figure]:
    """Yield what pages of the list and polls cost; the worst of all pages counts."""
    rows = MANY if rounds >= forms.ROUNDS_THAT_COUNT else MANY // 10
    steps = [step for step in STEPS if step.name.startswith(("list", "poll"))]
    try:
        for database, one in databases(Counts(20 * rounds, rows, with_backlog=False), steps):
            for what in ("list", "poll"):
                ours = {name: times for name, times in one.times.items() if name.startswith(what)}
                worst = max(ours, key=lambda name: ours[name].ratio)
                yield forms.Figure(
                    "scale",
                    f"{'a page of the list' if what == 'list' else 'a poll'}, {database}: {rows:,} rows / {FEW:,}",
                    ours[worst].ratio,
                    bar=forms.at_most(MOST),
                    runs={f"{FEW:,} rows": ours[worst].few, f"{rows:,} rows": ours[worst].many},
                    note=f"the worst of {len(ours)}: {worst}",
                )
            yield forms.Figure("scale", f"a row, {database}", sum(one.sizes.values()) / rows, "bytes")
    except pytest.skip.Exception as exc:
        print(f"PostgreSQL is skipped: {exc}", file=sys.stderr)


def main() -> int:
    given = [int(text) for text in sys.argv[1:]]
    counts = Counts(given[0] if given else ROUNDS, given[1] if len(given) > 1 else MANY)
    measured = dict(databases(counts))
    for database, one in measured.items():
        show(database, one, counts)
    if counts.rows == MANY:
        draw(measured, counts.rows, Path("docs/growth.png"))
    return int(any(times.ratio > MOST for one in measured.values() for times in one.times.values()))


if __name__ == "__main__":
    sys.exit(main())
