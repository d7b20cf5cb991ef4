"""On PostgreSQL, too, every query of web and worker looks at the rows that it wants, and at no others.

PostgreSQL plans by statistics, which it gathers once a tenth of a table has changed: of a million images, 100,000. So
each test runs twice: with statistics of the table as it is, and with some of a quiet time, when nothing was at work, to
which a burst came. What counts is what is executed: the rows looked at, of forty thousand.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from shared.images import Owed, Status
from shared.ledger import Ledger
from shared.settings import Settings
from tests.postgresql import Postgresql, execute
from tests.shared.test_ledger_plans import INDICES, Query, Statement, live, page_of, statements

__all__ = ["statements"]

#: Forty thousand rows, nine in ten of them ready and settled; the others, in every status, are due to one half.
_ROWS = """
INSERT INTO images (id, status, attempt, published, failures, losses, wake, due, owed, sequence, original_type,
    original_bytes, original_sha256, width, height, renditions, worker, request, created, modified)
SELECT '01900000-0000-7000-8000-' || lpad(to_hex(n * 7919 % 16777216), 12, '0'), status, 1,
    CASE WHEN status = 'ready' THEN 1 END, 0, 0, 1,
    CASE WHEN status IN ('queued', 'processing', 'deleting') OR owed IS NOT NULL
        THEN extract(epoch FROM now()) + 36000 * (n / 100 % 2) - 1000 - n / 100.0 END,
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
_AT_REST = "status IN ('ready', 'failed') AND owed IS NULL"
#: The id in the middle.
MIDDLE = "01900000-0000-7000-8000-000000800000"


@pytest.fixture(scope="module", params=["statistics as they should be", "statistics of a quiet time"])
def crowded(postgresql: Postgresql, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a ledger with many rows, which the tests share: none takes so much that another has too little."""
    url = postgresql.database()
    if request.param == "statistics as they should be":
        execute(url, _ROWS)
        execute(url, "VACUUM ANALYZE images")
    else:
        execute(url, f"{_ROWS} WHERE {_AT_REST}")
        execute(url, "VACUUM ANALYZE images")
        execute(url, f"{_ROWS} WHERE NOT ({_AT_REST})")
    yield url
    postgresql.drop(url)


@pytest.fixture
async def ledger(crowded: str) -> AsyncIterator[Ledger]:
    ledger = Ledger.connect(Settings(database_url=crowded))
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


async def plans_of(ledger: Ledger, statements: list[Statement], without: str | None = None) -> list[Plan]:
    """Execute what the ledger has executed on images once more, without effect; return how PostgreSQL did it."""
    ours = [(text, parameters) for text, parameters in statements if "images" in text and "EXPLAIN" not in text]
    plans = []
    for text, parameters in ours:
        async with ledger._engine.connect() as connection:
            if without is not None:
                await connection.exec_driver_sql(f"DROP INDEX {without}")
            (row,) = await connection.exec_driver_sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", parameters)
            plans.append(_plan(json.loads(row[0])[0]["Plan"] if isinstance(row[0], str) else row[0][0]["Plan"]))
            await connection.rollback()
    return plans


#: Pages, which are to come sorted out of their index: its name, and the query.
PAGES: dict[str, tuple[str, Query]] = {
    "the first page": ("images_listed", lambda ledger: ledger.list_ready(None, 9, newest_first=False)),
    "a page": ("images_listed", lambda ledger: ledger.list_ready(5000, 9, newest_first=False)),
    "the newest": ("images_listed", lambda ledger: ledger.list_ready(None, 9, newest_first=True)),
    "a page backwards": ("images_listed", lambda ledger: ledger.list_ready(5000, 9, newest_first=True)),
    **{
        f"{what}{status}{', newest first' * newest_first}": (
            f"images_{status}_by_id",
            page_of(status, after, newest_first),
        )
        for status in (Status.QUEUED, Status.PROCESSING, Status.FAILED)
        for what, after in (("", None), ("more ", MIDDLE))
        for newest_first in (False, True)
    },
    "debts before a list": ("images_owing", lambda ledger: ledger.owing_tokens()),
    "all": ("images_pkey", lambda ledger: ledger.list_all(None, 9)),
    "more of all": ("images_pkey", lambda ledger: ledger.list_all(MIDDLE, 9)),
    "one image": ("images_pkey", lambda ledger: ledger.get(MIDDLE)),
}


@pytest.mark.parametrize(("index", "query"), PAGES.values(), ids=PAGES)
async def test_a_page_comes_sorted_out_of_its_index(
    ledger: Ledger, statements: list[Statement], index: str, query: Query
) -> None:
    """What is sorted was all read first: of a million images, all that are ready."""
    await query(ledger)

    [plan] = await plans_of(ledger, statements)

    assert plan.nodes <= {"Limit", "Index Scan"}
    assert plan.indices == {index}
    assert plan.looked_at <= (40 if index == "images_owing" else 9)


#: What the sweep takes, 200 rows at the most, and by which index.
TAKES: dict[str, tuple[str, Query]] = {
    "tokens": ("images_owing", lambda ledger: ledger.take_owing(Owed.TOKENS)),
    "leftovers": ("images_owing", lambda ledger: ledger.take_owing(Owed.LEFTOVERS)),
    "lost leases": ("images_leased", lambda ledger: ledger.take_lost()),
    "thumbnails": ("images_owing", lambda ledger: ledger.take_thumbnails()),
    "queued": ("images_queued", lambda ledger: ledger.take_queued(300)),
}


@pytest.mark.parametrize(("index", "take"), TAKES.values(), ids=TAKES)
async def test_the_sweep_looks_at_no_row_that_it_does_not_take(
    ledger: Ledger, statements: list[Statement], index: str, take: Query
) -> None:
    taken = await take(ledger)

    assert taken
    finding = [statement for statement in statements if statement[0].startswith("SELECT")]
    for plan in await plans_of(ledger, finding):
        assert plan.nodes <= {"Limit", "LockRows", "Index Scan", "Result"}
        assert plan.indices == {index}
        assert plan.looked_at <= 200
    taking = [statement for statement in statements if statement[0].startswith("UPDATE")]
    for plan in await plans_of(ledger, taking):
        assert plan.indices == {"images_pkey"}
        # By a bitmap where that is cheaper: to name a row and what it was before are two looks, to read it is another.
        assert plan.looked_at <= 3 * 200
    assert (len(finding) >= 2, len(taking) >= 1) == (True, True)


#: Counts, which cannot look at less than they count: at most 1,600 images wait here.
COUNTS: dict[str, Query] = {
    "how many wait": lambda ledger: ledger.count_queued(100_000),
    "what is to be done": lambda ledger: ledger.waiting(),
}


@pytest.mark.parametrize("count", COUNTS.values(), ids=COUNTS)
async def test_a_count_looks_at_nothing_that_it_does_not_count(
    ledger: Ledger, statements: list[Statement], count: Query
) -> None:
    await count(ledger)

    [plan] = await plans_of(ledger, statements)

    assert "Seq Scan" not in plan.nodes
    # A bitmap is one look, the rows that it names are another.
    assert plan.looked_at <= 2 * 1600 + 1600


async def test_a_transition_finds_its_row_by_its_id(ledger: Ledger, statements: list[Statement]) -> None:
    """Searched by id it must be, however few rows PostgreSQL thinks another index to have."""
    await live(ledger)

    changes = [(text, values) for text, values in statements if text.startswith(("UPDATE images", "DELETE"))]
    # Those of `let_pass` are the test's own.
    changes = [(text, values) for text, values in changes if "created=" not in text]
    assert len(changes) >= 20
    for plan in await plans_of(ledger, changes):
        assert plan.nodes <= {"Result", "ModifyTable", "Index Scan"}
        assert plan.indices <= {"images_pkey", *(name for name in INDICES if name.endswith("by_id"))}
        assert plan.looked_at <= 1 + 2  # and what clocks there are in it


@pytest.mark.parametrize("index", INDICES)
async def test_no_index_can_be_spared(ledger: Ledger, statements: list[Statement], index: str) -> None:
    """What none of these queries misses costs every commit something and serves nobody."""
    [query, *_] = [query for name, query in [*PAGES.values(), *TAKES.values()] if name == index]
    await query(ledger)
    finding = [(text, values) for text, values in statements if text.startswith("SELECT")]

    as_it_is = await plans_of(ledger, finding)
    without = await plans_of(ledger, finding, without=index)

    assert sum(plan.looked_at for plan in without) >= sum(plan.looked_at for plan in as_it_is) + 100


async def test_an_idle_sweep_looks_at_no_row(ledger: Ledger, crowded: str, statements: list[Statement]) -> None:
    """A clock that counts as new for every row could not be searched by: all that wait would be read every time."""
    execute(crowded, "UPDATE images SET due = due + 1e10 WHERE due IS NOT NULL")

    taken = [await take(ledger) for _, take in TAKES.values()]

    assert taken == [[], [], [], [], []]
    plans = await plans_of(ledger, statements)
    assert len(plans) >= 5
    assert max(plan.looked_at for plan in plans) <= 1
    execute(crowded, "UPDATE images SET due = due - 1e10 WHERE due IS NOT NULL")
