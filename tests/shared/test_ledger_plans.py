"""Every query of web and worker finds its rows by an index, in order: a million images cost it nothing.

SQLite plans by rules where it has no statistics: what it does with a few rows it does with all that there may be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

from shared.images import DebtKind, Image, Lane, Status
from shared.ledger import Ledger
from shared.ledger.schema import debts, images
from shared.ledger.sqlite import RowReader
from tests.ledgers import (
    ORIGINAL,
    SIZE,
    claimed,
    claimed_renditions,
    failed,
    latest,
    let_pass,
    made_by,
    new_id,
    published_again,
    queued,
    ready,
    settled,
    wanting_renditions,
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
    engine = ledger._database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", record)
    yield executed
    event.remove(engine, "before_cursor_execute", record)


async def plans_of(ledger: Ledger, statements: list[Statement], without: str | None = None) -> list[str]:
    """Return the plan of each statement, one line each: as it is, or `without` one of the indices."""
    ours = [(text, parameters) for text, parameters in statements if "EXPLAIN" not in text]
    plans = []
    async with ledger._database._engine.connect() as connection:
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
    "how many are queued": ("images_queued_by_id", lambda ledger: ledger.count_queued(100_000)),
    "what is to be done": ("images_queued_by_id", lambda ledger: ledger.figures()),
    "what waits, in order": ("images_waiting", lambda ledger: ledger.waiting(300)),
    "what waits in a lane": ("images_waiting (lane<?)", lambda ledger: ledger.is_waiting(Lane.DEMAND)),
    "debts before a list": ("debts_due (kind=?)", lambda ledger: ledger.owing_tokens()),
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
    reading = [step for step in plan.split("; ") if step.startswith(("SEARCH", "SCAN")) and "anon_" not in step]
    bounded = [step for step in reading if step.startswith("SEARCH") or "INDEX images_" in step or "CONSTANT" in step]
    return "B-TREE" not in plan and bounded == reading


#: What the sweep takes, and by which index.
TAKES: dict[str, tuple[str, Callable[[Ledger], Awaitable[list[Image]]]]] = {
    "tokens": ("debts_due (kind=? AND due<?)", lambda ledger: ledger.take_debts(DebtKind.TOKENS)),
    "notices": ("debts_due (kind=? AND due<?)", lambda ledger: ledger.take_debts(DebtKind.NOTICE)),
    "leftovers": ("debts_due (kind=? AND due<?)", lambda ledger: ledger.take_debts(DebtKind.LEFTOVERS)),
    "lost leases": ("images_held (due<?)", lambda ledger: ledger.take_lost()),
}
BY_NUMBER = "debts USING INTEGER PRIMARY KEY (rowid=?)"


@pytest.mark.parametrize(("index", "take"), TAKES.values(), ids=TAKES)
async def test_the_sweep_finds_what_is_due_by_its_index_in_order(
    ledger: Ledger, statements: list[Statement], index: str, take: Callable[[Ledger], Awaitable[list[Image]]]
) -> None:
    for arrange in (queued, claimed, failed, published_again, claimed_renditions, wanting_renditions):
        await arrange(ledger)
    await let_pass(ledger, 1000)
    statements.clear()

    taken = await take(ledger)

    assert taken
    plans = await plans_of(ledger, statements)
    finding = [plan for plan in plans if f"INDEX {index}" in plan]
    assert len(finding) == 2
    assert [plan for plan in plans if plan not in finding] != []
    for plan in plans:
        assert is_bounded(plan)
        assert plan in finding or f"INDEX {BY_ID}" in plan or BY_NUMBER in plan


async def test_the_next_work_is_found_by_its_index_in_order(ledger: Ledger, statements: list[Statement]) -> None:
    await queued(ledger)
    statements.clear()

    assert await ledger.claim_next("host:1")

    [finding, claiming] = await plans_of(ledger, statements)
    assert "images USING INDEX images_waiting" in finding
    assert f"images USING INDEX {BY_ID}" in claiming
    assert "waiting USING INDEX images_waiting" in claiming
    assert is_bounded(claiming)


async def live(ledger: Ledger) -> None:
    """Have images go through every transition that there is, one row each."""
    image = await claimed(ledger)
    assert await ledger.renew(image)
    assert await ledger.hand_back(image, 1)
    assert await ledger.count_failure(await claimed(ledger, image))
    assert await ledger.count_loss(await claimed(ledger, image))
    assert await ledger.fail(await claimed(ledger, image), "unreadable-image", "This is no picture.")
    assert await ledger.retry(image.id)
    attempt = await claimed(ledger, image)
    published = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=10.0)
    assert published
    final = await settled(ledger, published)
    assert await ledger.request_renditions(final, Lane.DEMAND)
    assert await ledger.give_up(await claimed_renditions(ledger, final))
    assert await ledger.owe_leftovers(await latest(ledger, final), 9)
    await settled(ledger, await latest(ledger, final))
    again = await claimed_renditions(ledger)
    assert await ledger.publish(again, SIZE, made_by(again), seconds=0.1)
    deleted = await ledger.delete(final.id)
    assert deleted is not None
    await settled(ledger, deleted)
    await let_pass(ledger, 1000, final.id)
    await ledger.remove(await latest(ledger, final))
    assert await ledger.get(final.id) is None
    assert await ledger.get_certainly(new_id(), ORIGINAL) is None


def changes_in(statements: list[Statement], *, of: str) -> list[Statement]:
    """Return the statements that change rows of a table, but for those of `let_pass`, which are the test's own."""
    changes = [(text, values) for text, values in statements if text.startswith(("UPDATE", "DELETE"))]
    return [
        (text, values)
        for text, values in changes
        if of in text.split()[:3] and "created=" not in text and "due=(debts.due -" not in text
    ]


async def test_all_images_come_in_order_of_their_ids(ledger: Ledger, statements: list[Statement]) -> None:
    await ledger.list_all(None, 9)

    [plan] = await plans_of(ledger, statements)
    assert plan.startswith("SCAN images USING INDEX sqlite_autoindex_images_1")
    assert "B-TREE" not in plan


async def test_a_transition_finds_its_rows_by_their_ids(ledger: Ledger, statements: list[Statement]) -> None:
    await live(ledger)

    of_images = await plans_of(ledger, changes_in(statements, of="images"))
    of_debts = await plans_of(ledger, changes_in(statements, of="debts"))
    of_owners = await plans_of(ledger, changes_in(statements, of="owners"))
    assert (len(of_images) >= 20, len(of_debts) >= 5, len(of_owners) >= 2) == (True, True, True)
    for plan in of_images:
        assert f"INDEX {BY_ID}" in plan
    for plan in of_debts:
        assert BY_NUMBER in plan or "INDEX debts_of_image (image_id=?)" in plan
    for plan in of_owners:
        assert "INDEX sqlite_autoindex_owners_1 (owner=?)" in plan
    assert all(is_bounded(plan) for plan in (*of_images, *of_debts, *of_owners))


async def test_work_gets_its_turn_by_an_index(ledger: Ledger, statements: list[Statement]) -> None:
    await live(ledger)

    turns = [statement for statement in statements if statement[0].startswith("INSERT INTO owners")]
    plans = await plans_of(ledger, turns)
    assert len(plans) >= 4
    for plan in plans:
        assert "INDEX images_waiting (lane=? AND turn<?)" in plan
        assert is_bounded(plan)


INDICES = sorted(str(index.name) for table in (images, debts) for index in table.indexes)


@pytest.mark.parametrize("index", INDICES)
async def test_no_index_can_be_spared(ledger: Ledger, statements: list[Statement], index: str) -> None:
    """What none of these queries misses costs every commit something and serves nobody."""
    await claimed_renditions(ledger)
    await ready(ledger)
    statements.clear()
    for _, query in [*QUERIES.values(), *TAKES.values()]:
        await query(ledger)

    as_it_is = await plans_of(ledger, statements)
    without = await plans_of(ledger, statements, without=index)

    assert all(is_bounded(plan) for plan in as_it_is)
    assert not all(is_bounded(plan) for plan in without)
