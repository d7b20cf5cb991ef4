"""Every query that lists, polls or sweeps finds its rows by an index, in order: a million images cost it nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event

from shared.images import Owed, Status
from shared.ledger import Ledger
from tests.ledgers import claimed, claimed_thumbnails, failed, let_pass, new_id, published, queued, settled

Statement = tuple[str, Any]


@pytest.fixture
def statements(ledger: Ledger) -> Iterator[list[Statement]]:
    """What the ledger has executed, as the database saw it."""
    executed: list[Statement] = []

    def record(connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        executed.append((statement, parameters))

    engine = ledger._engine.sync_engine
    event.listen(engine, "before_cursor_execute", record)
    yield executed
    event.remove(engine, "before_cursor_execute", record)


async def plans_of(ledger: Ledger, statements: list[Statement]) -> list[str]:
    """Return each statement's plan, one line each."""
    plans = []
    async with ledger._engine.connect() as connection:
        for statement, parameters in [*statements]:
            rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append("; ".join(row.detail for row in rows))
    return plans


QUERIES: dict[str, tuple[str, Callable[[Ledger], Awaitable[object]]]] = {
    "the first page": ("images_listed", lambda ledger: ledger.list_ready(None, 100, newest_first=False)),
    "a page": ("images_listed (sequence>?)", lambda ledger: ledger.list_ready(5, 100, newest_first=False)),
    "the newest": ("images_listed", lambda ledger: ledger.list_ready(None, 100, newest_first=True)),
    "a page backwards": ("images_listed (sequence<?)", lambda ledger: ledger.list_ready(5, 100, newest_first=True)),
    "queued": ("images_queued_by_id", lambda ledger: ledger.list_with_status(Status.QUEUED, None, 9, False)),
    "more queued": ("images_queued_by_id (id>?)", lambda ledger: ledger.list_with_status(Status.QUEUED, "a", 9, False)),
    "processing": (
        "images_processing_by_id",
        lambda ledger: ledger.list_with_status(Status.PROCESSING, None, 9, False),
    ),
    "more processing": (
        "images_processing_by_id (id>?)",
        lambda ledger: ledger.list_with_status(Status.PROCESSING, "a", 9, False),
    ),
    "failed": ("images_failed_by_id", lambda ledger: ledger.list_with_status(Status.FAILED, None, 9, True)),
    "more failed": ("images_failed_by_id (id<?)", lambda ledger: ledger.list_with_status(Status.FAILED, "a", 9, True)),
    "how many wait": ("images_queued", lambda ledger: ledger.count_queued(100_000)),
    "what is to be done": ("images_queued_by_id", lambda ledger: ledger.waiting()),
    "debts before a list": ("images_owing_tokens", lambda ledger: ledger.owing_tokens()),
    "all": ("sqlite_autoindex_images_1", lambda ledger: ledger.list_all(None, 9)),
    "more of all": ("sqlite_autoindex_images_1 (id>?)", lambda ledger: ledger.list_all("a", 9)),
    "one image": ("sqlite_autoindex_images_1 (id=?)", lambda ledger: ledger.get(new_id())),
    "some": ("sqlite_autoindex_images_1 (id=?)", lambda ledger: ledger.which_are_ready([new_id(), new_id()])),
}


@pytest.mark.parametrize(("index", "query"), QUERIES.values(), ids=QUERIES)
async def test_a_reading_query_uses_its_index(
    ledger: Ledger, statements: list[Statement], index: str, query: Callable[[Ledger], Awaitable[object]]
) -> None:
    await query(ledger)

    plans = await plans_of(ledger, statements)

    assert plans
    for plan in plans:
        assert f"INDEX {index}" in plan
        assert "B-TREE" not in plan


TAKES: dict[str, tuple[str, Callable[[Ledger], Awaitable[list[Any]]]]] = {
    "tokens": ("images_owing", lambda ledger: ledger.take_owing(Owed.TOKENS)),
    "leftovers": ("images_owing", lambda ledger: ledger.take_owing(Owed.LEFTOVERS)),
    "lost leases": ("images_leased", lambda ledger: ledger.take_lost()),
    "thumbnails": ("images_owing", lambda ledger: ledger.take_thumbnails()),
    "queued": ("images_queued", lambda ledger: ledger.take_queued(300)),
}


@pytest.mark.parametrize(("index", "take"), TAKES.values(), ids=TAKES)
async def test_the_sweep_finds_what_is_due_by_its_index_in_order(
    ledger: Ledger, statements: list[Statement], index: str, take: Callable[[Ledger], Awaitable[list[Any]]]
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
        assert f"INDEX {index} (due" in plan
        assert "B-TREE" not in plan
    for plan in await plans_of(ledger, taking):
        assert "INDEX sqlite_autoindex_images_1 (id=?)" in plan
    assert (len(finding) >= 2, len(taking) >= 1) == (True, True)


async def test_a_transition_finds_its_row_by_its_id(ledger: Ledger, statements: list[Statement]) -> None:
    await settled(ledger, await published(ledger))

    updates = [statement for statement in statements if statement[0].startswith("UPDATE images")]
    for plan in await plans_of(ledger, updates):
        assert "INDEX sqlite_autoindex_images_1 (id=?)" in plan
    assert len(updates) >= 5
