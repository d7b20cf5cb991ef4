"""Every query of web and worker finds its rows by an index, in order: a million images cost it nothing.

SQLite plans by rules where it has no statistics: what it does with a few rows it does with all that there may be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

from shared.images import Owed, Status
from shared.ledger import Ledger, Taken
from shared.ledger.schema import images
from shared.ledger.sqlite import RowReader
from tests.ledgers import (
    ORIGINAL,
    RENDITIONS,
    SIZE,
    claimed,
    claimed_thumbnails,
    failed,
    latest,
    let_pass,
    new_id,
    published,
    queued,
    ready,
    settled,
)

Statement = tuple[str, Any]
Query = Callable[[Ledger], Awaitable[object]]


@pytest.fixture
def statements(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Statement]]:
    """What the ledger has executed, as the database saw it."""
    executed: list[Statement] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        executed.append((statement, parameters))

    read = RowReader.read

    async def record_and_read(reader: RowReader, *parameters: Any) -> tuple[Any, ...] | None:
        executed.append((reader._statement, parameters))
        return await read(reader, *parameters)

    monkeypatch.setattr(RowReader, "read", record_and_read)
    engine = ledger._engine.sync_engine
    event.listen(engine, "before_cursor_execute", record)
    yield executed
    event.remove(engine, "before_cursor_execute", record)


async def plans_of(ledger: Ledger, statements: list[Statement], without: str | None = None) -> list[str]:
    """Return the plan of each statement on images, one line each: as it is, or `without` one of the indices."""
    ours = [(text, parameters) for text, parameters in statements if "images" in text and "EXPLAIN" not in text]
    plans = []
    async with ledger._engine.connect() as connection:
        if without is not None:
            await connection.exec_driver_sql(f"DROP INDEX {without}")
        for text, parameters in ours:
            # What was explained before would be answered as it was then, if the text were the same.
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text} -- without {without}", parameters)
            plans.append("; ".join(row.detail for row in rows))
        await connection.rollback()
    return plans


def page_of(status: Status, after: str | None, newest_first: bool) -> Query:
    """Return the query of a page of images of one status."""
    return lambda ledger: ledger.list_with_status(status, after, 9, newest_first)


BY_ID = "sqlite_autoindex_images_1 (id=?)"

#: What web and worker read, and the index that serves it.
QUERIES: dict[str, tuple[str, Query]] = {
    "the first page": ("images_listed (sequence>?)", lambda ledger: ledger.list_ready(None, 100, False)),
    "a page": ("images_listed (sequence>?)", lambda ledger: ledger.list_ready(5, 100, False)),
    "the newest": ("images_listed (sequence>?)", lambda ledger: ledger.list_ready(None, 100, True)),
    "a page backwards": ("images_listed (sequence>? AND sequence<?)", lambda ledger: ledger.list_ready(5, 100, True)),
    **{
        f"{what}{status}{', newest first' * newest_first}": (
            f"images_{status}_by_id{place}",
            page_of(status, after, newest_first),
        )
        for status in (Status.QUEUED, Status.PROCESSING, Status.FAILED)
        for what, after in (("", None), ("more ", "a"))
        for newest_first in (False, True)
        for place in ["" if after is None else " (id<?)" if newest_first else " (id>?)"]
    },
    "how many wait": ("images_queued_by_id", lambda ledger: ledger.count_queued(100_000)),
    "what is to be done": ("images_queued_by_id", lambda ledger: ledger.waiting()),
    "debts before a list": ("images_owing (owed=? AND due>?)", lambda ledger: ledger.owing_tokens()),
    "more of all": ("sqlite_autoindex_images_1 (id>?)", lambda ledger: ledger.list_all("a", 9)),
    "one image": (BY_ID, lambda ledger: ledger.get(new_id())),
    "some": (BY_ID, lambda ledger: ledger.which_are_ready([new_id(), new_id()])),
}


@pytest.mark.parametrize(("index", "query"), QUERIES.values(), ids=QUERIES)
async def test_a_reading_query_uses_its_index(
    ledger: Ledger, statements: list[Statement], index: str, query: Query
) -> None:
    await query(ledger)

    plans = await plans_of(ledger, statements)

    assert plans
    for plan in plans:
        assert f"INDEX {index}" in plan
        assert is_bounded(plan)


def is_bounded(plan: str) -> bool:
    """Tell whether nothing is sorted and nothing read in vain: only partial indices may be read from end to end."""
    steps = [step for step in plan.split("; ") if "images" in step]
    return "B-TREE" not in plan and all("SEARCH" in step or "INDEX images" in step for step in steps)


#: What the sweep takes, and by which index.
TAKES: dict[str, tuple[str, Callable[[Ledger], Awaitable[list[Taken]]]]] = {
    "tokens": ("images_owing (owed=? AND due", lambda ledger: ledger.take_owing(Owed.TOKENS)),
    "leftovers": ("images_owing (owed=? AND due", lambda ledger: ledger.take_owing(Owed.LEFTOVERS)),
    "lost leases": ("images_leased (due", lambda ledger: ledger.take_lost()),
    "thumbnails": ("images_owing (owed=? AND due", lambda ledger: ledger.take_thumbnails()),
    "queued": ("images_queued (due", lambda ledger: ledger.take_queued(300)),
}


@pytest.mark.parametrize(("index", "take"), TAKES.values(), ids=TAKES)
async def test_the_sweep_finds_what_is_due_by_its_index_in_order(
    ledger: Ledger, statements: list[Statement], index: str, take: Callable[[Ledger], Awaitable[list[Taken]]]
) -> None:
    await queued(ledger)
    await claimed(ledger)
    await failed(ledger)
    await published(ledger)
    await claimed_thumbnails(ledger)
    moved_on = await ledger.tokens_changed(await published(ledger))
    await let_pass(ledger, 1000)
    statements.clear()

    taken = await take(ledger)

    assert moved_on is not None
    assert taken
    finding = [statement for statement in statements if statement[0].startswith("SELECT")]
    taking = [statement for statement in statements if statement[0].startswith("UPDATE")]
    for plan in await plans_of(ledger, finding):
        assert f"INDEX {index}" in plan
        assert "B-TREE" not in plan
    for plan in await plans_of(ledger, taking):
        assert f"INDEX {BY_ID}" in plan
    assert (len(finding) >= 2, len(taking) >= 1) == (True, True)


async def live(ledger: Ledger) -> None:
    """Have images go through every transition that there is, one row each."""
    image = await claimed(ledger)
    assert await ledger.renew(image)
    assert await ledger.hand_back(image, 1)
    assert await ledger.count_failure(await claimed(ledger, image))
    assert await ledger.count_loss(await claimed(ledger, image))
    assert await ledger.fail(await claimed(ledger, image), "unreadable-image", "This is no picture.")
    assert await ledger.retry(image.id)
    final = await settled(ledger, await published(ledger, image))
    assert await ledger.request_thumbnails(final.id)
    thumbnails = await claimed_thumbnails(ledger, await latest(ledger, final))
    assert await ledger.give_up_thumbnails(thumbnails)
    await ledger.leftovers_removed(await latest(ledger, final))
    assert await ledger.owe_leftovers(await latest(ledger, final), 9)
    await ledger.leftovers_removed(await latest(ledger, final))
    again = await claimed_thumbnails(ledger)
    assert await ledger.publish(again, SIZE, RENDITIONS)
    await ledger.all_tokens_changed([await latest(ledger, again)])
    await ledger.give_back([Taken(await latest(ledger, again), 1.0)])
    deleted = await ledger.delete(final.id)
    assert deleted is not None
    await settled(ledger, deleted)
    await let_pass(ledger, 1000, final.id)
    await ledger.leftovers_removed(await latest(ledger, final))
    assert await ledger.get_certainly(new_id(), ORIGINAL) is None


async def test_all_images_come_in_order_of_their_ids(ledger: Ledger, statements: list[Statement]) -> None:
    await ledger.list_all(None, 9)

    assert await plans_of(ledger, statements) == ["SCAN images USING INDEX sqlite_autoindex_images_1"]


async def test_a_transition_finds_its_row_by_its_id(ledger: Ledger, statements: list[Statement]) -> None:
    await live(ledger)

    changes = [(text, values) for text, values in statements if text.startswith(("UPDATE images", "DELETE"))]
    # Those of `let_pass` are the test's own.
    changes = [(text, values) for text, values in changes if "created=" not in text]
    assert len(changes) >= 20
    for plan in await plans_of(ledger, changes):
        assert f"INDEX {BY_ID}" in plan


INDICES = sorted(str(index.name) for index in images.indexes)


@pytest.mark.parametrize("index", INDICES)
async def test_no_index_can_be_spared(ledger: Ledger, statements: list[Statement], index: str) -> None:
    """What none of these queries misses costs every commit something and serves nobody."""
    await claimed_thumbnails(ledger)
    await ready(ledger)
    statements.clear()
    for _, query in [*QUERIES.values(), *TAKES.values()]:
        await query(ledger)

    as_it_is = await plans_of(ledger, statements)
    without = await plans_of(ledger, statements, without=index)

    assert all(is_bounded(plan) for plan in as_it_is)
    assert not all(is_bounded(plan) for plan in without)
