"""On PostgreSQL, too, every query of web and worker looks at the rows that it wants, and at no others."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest

from shared.images import Owed, Status
from shared.ledger import Ledger, Taken
from shared.settings import Settings
from tests.ledgers import RENDITIONS, SIZE, latest
from tests.postgresql import Postgresql, execute
from tests.shared.test_ledger_plans import Statement, statements

__all__ = ["statements"]

#: Forty thousand rows, nine in ten of them ready and settled; the others, in every status, are due to one half.
_ROWS = """
INSERT INTO images (id, status, attempt, published, failures, losses, wake, due, owed, sequence, original_type,
    original_bytes, original_sha256, width, height, renditions, worker, request, created, modified)
SELECT '01900000-0000-7000-8000-' || lpad(to_hex(n * 7919 % 16777216), 12, '0'), status, 1,
    CASE WHEN status = 'ready' THEN 1 END, 0, 0, 1,
    CASE WHEN status IN ('queued', 'processing', 'deleting') OR owed IS NOT NULL
        THEN extract(epoch FROM now()) + 3600 * (n % 2) - 1000 - n / 100.0 END,
    owed, CASE WHEN status = 'ready' THEN n END, 'image/png', 68, repeat('0a', 32), 640, 360,
    '{"image.jpeg": [640, 360, 1000, "' || repeat('1b', 32) || '"]}', NULL, 'request', 1.7e9 + n, 1.7e9 + n
FROM (
    SELECT n, CASE WHEN n % 100 = 0 THEN 'failed' WHEN n % 100 = 1 THEN 'processing' WHEN n % 100 < 5 THEN 'queued'
        WHEN n % 100 = 5 THEN 'deleting' ELSE 'ready' END AS status,
        CASE WHEN n % 100 = 5 THEN 'leftovers' WHEN n % 100 = 6 THEN 'thumbnails' WHEN n % 100 = 7 THEN 'leftovers'
        WHEN n % 1000 = 8 THEN 'tokens' END AS owed
    FROM generate_series(1, 40000) AS n
) AS numbered
"""
#: The id in the middle.
MIDDLE = "01900000-0000-7000-8000-000000800000"


@pytest.fixture(scope="module")
def crowded(postgresql: Postgresql) -> Iterator[str]:
    """The address of a ledger with many rows, for tests to copy."""
    url = postgresql.database()
    execute(url, _ROWS)
    execute(url, "VACUUM ANALYZE images")
    yield url
    postgresql.drop(url)


@pytest.fixture
def settings(postgresql: Postgresql, crowded: str) -> Iterator[Settings]:
    url = postgresql.database(template=crowded.rpartition("/")[2])
    yield replace(Settings(), database_url=url)
    postgresql.drop(url)


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    ledger = Ledger.connect(settings)
    yield ledger
    await ledger.close()


@dataclass
class Plan:
    """What PostgreSQL did for one statement: the nodes of its plan, and the rows that it looked at."""

    nodes: set[str]
    indices: set[str]
    looked_at: int


def _plan(top: dict[str, Any]) -> Plan:
    plan = Plan(set(), set(), 0)
    waiting = [top]
    while waiting:
        node = waiting.pop()
        waiting += node.get("Plans", [])
        plan.nodes.add(node["Node Type"])
        if "Index Name" in node:
            plan.indices.add(node["Index Name"])
        if "Scan" in node["Node Type"]:
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Recheck", 0)
            plan.looked_at += round(rows * node["Actual Loops"])
    return plan


async def plans_of(ledger: Ledger, statements: list[Statement]) -> list[Plan]:
    """Execute what the ledger has executed on images once more, without effect; return how PostgreSQL did it."""
    ours = [(text, parameters) for text, parameters in statements if "images" in text]
    plans = []
    for text, parameters in ours:
        async with ledger._engine.connect() as connection:
            (row,) = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", parameters)
            plans.append(_plan(json.loads(row[0])[0]["Plan"] if isinstance(row[0], str) else row[0][0]["Plan"]))
            await connection.rollback()
    return plans


Query = Callable[[Ledger], Awaitable[object]]

#: The index, the rows that may be looked at (twice where a bitmap is made of them first), and the query.
QUERIES: dict[str, tuple[str, int, Query]] = {
    "the first page": ("images_listed", 100, lambda ledger: ledger.list_ready(None, 100, newest_first=False)),
    "a page": ("images_listed", 100, lambda ledger: ledger.list_ready(5000, 100, newest_first=False)),
    "the newest": ("images_listed", 100, lambda ledger: ledger.list_ready(None, 100, newest_first=True)),
    "a page backwards": ("images_listed", 100, lambda ledger: ledger.list_ready(5000, 100, newest_first=True)),
    "queued": ("images_queued_by_id", 9, lambda ledger: ledger.list_with_status(Status.QUEUED, MIDDLE, 9, False)),
    "processing": (
        "images_processing_by_id",
        9,
        lambda ledger: ledger.list_with_status(Status.PROCESSING, MIDDLE, 9, False),
    ),
    "failed": ("images_failed_by_id", 9, lambda ledger: ledger.list_with_status(Status.FAILED, MIDDLE, 9, True)),
    "debts before a list": ("images_owing_tokens", 2 * 40, lambda ledger: ledger.owing_tokens()),
    "all": ("images_pkey", 9, lambda ledger: ledger.list_all(MIDDLE, 9)),
    "one image": ("images_pkey", 1, lambda ledger: ledger.get(MIDDLE)),
    "how many wait": ("images_queued", 2 * 1200, lambda ledger: ledger.count_queued(100_000)),
    "tokens": ("images_owing_tokens", 200, lambda ledger: ledger.take_owing(Owed.TOKENS)),
    "leftovers": ("images_owing", 2 * 800, lambda ledger: ledger.take_owing(Owed.LEFTOVERS)),
    "lost leases": ("images_leased", 2 * 400, lambda ledger: ledger.take_lost()),
    "thumbnails": ("images_owing", 2 * 800, lambda ledger: ledger.take_thumbnails()),
    "queued again": ("images_queued", 2 * 800, lambda ledger: ledger.take_queued(300)),
}


@pytest.mark.parametrize(("index", "most", "query"), QUERIES.values(), ids=QUERIES)
async def test_a_query_finds_its_rows_by_its_index_and_looks_at_no_others(
    ledger: Ledger, statements: list[Statement], index: str, most: int, query: Query
) -> None:
    await query(ledger)

    plans = await plans_of(ledger, statements)

    assert plans
    for plan in plans:
        assert "Seq Scan" not in plan.nodes
        assert plan.looked_at <= most
    assert any(index in plan.indices for plan in plans)


PAGES = [name for name, (_, most, _) in QUERIES.items() if most in (9, 100)]


@pytest.mark.parametrize("page", PAGES)
async def test_a_page_comes_sorted_out_of_its_index(ledger: Ledger, statements: list[Statement], page: str) -> None:
    """What is sorted was all read first: of a million images, all that are ready."""
    index, _, query = QUERIES[page]

    await query(ledger)

    [plan] = await plans_of(ledger, statements)
    assert plan.nodes <= {"Limit", "Index Scan"}
    assert plan.indices == {index}


async def test_an_idle_sweep_looks_at_no_row_that_is_not_due(ledger: Ledger, statements: list[Statement]) -> None:
    """A clock that counts as new for every row could not be searched by: all that wait would be read every time."""
    while any([await take(ledger) for take in TAKES]):
        pass
    statements.clear()

    taken = [await take(ledger) for take in TAKES]

    assert taken == [[], [], [], [], []]
    plans = await plans_of(ledger, statements)
    assert len(plans) >= 5
    # The few that owe tokens may be found by that, and then asked when they are due.
    assert max(plan.looked_at for plan in plans) <= 40


TAKES: list[Callable[[Ledger], Awaitable[list[Taken]]]] = [
    lambda ledger: ledger.take_owing(Owed.TOKENS),
    lambda ledger: ledger.take_owing(Owed.LEFTOVERS),
    lambda ledger: ledger.take_lost(),
    lambda ledger: ledger.take_thumbnails(),
    lambda ledger: ledger.take_queued(300),
]


async def test_a_transition_finds_its_row_by_its_id(ledger: Ledger, statements: list[Statement]) -> None:
    [image] = await ledger.list_with_status(Status.QUEUED, MIDDLE, 1, False)
    statements.clear()

    attempt = await ledger.claim(image.id, "host:1")
    assert attempt is not None
    renewed = await ledger.renew(attempt)
    published = await ledger.publish(attempt, SIZE, RENDITIONS)

    assert renewed is not None
    assert published is not None
    assert await latest(ledger, image) == published
    updates = [statement for statement in statements if statement[0].startswith("UPDATE images")]
    for plan in await plans_of(ledger, updates):
        assert plan.nodes - {"Result"} == {"ModifyTable", "Index Scan"}
        assert plan.looked_at <= 1
    assert len(updates) == 4
