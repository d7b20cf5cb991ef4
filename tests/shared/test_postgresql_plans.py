"""On PostgreSQL, too, every query of web and worker looks at the rows that it wants, and at no others.

PostgreSQL plans by statistics, which it gathers once a tenth of a table has changed: of a million images, 100,000. So
each test runs three times: with statistics of the tables as they are; with some of a quiet time, when nothing was at
work, to which a burst came; and with some of a burst that is over. What counts is what is executed: the rows looked at,
of forty thousand images.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from shared.images import DebtKind, Lane, Status
from shared.ledger import Ledger
from shared.settings import Settings
from tests.ledgers import queued
from tests.postgresql import Postgresql, execute
from tests.shared.test_ledger_plans import INDICES, Query, Statement, changes_in, live, page_of, statements

__all__ = ["statements"]

#: Forty thousand rows, nine in ten of them ready without work or debts; the others, in every status, owe something,
#: wait or are held. One half of the leases and debts is due, and nearly all of the work that waits.
_NUMBERED = """
SELECT n, '01900000-0000-7000-8000-' || lpad(to_hex(n * 7919 % 16777216), 12, '0') AS id,
    extract(epoch FROM now()) + 36000 * (n / 100 % 2) - 1000 - n / 100.0 AS due,
    CASE n % 100 WHEN 0 THEN 'failed' WHEN 1 THEN 'processing' WHEN 2 THEN 'queued' WHEN 3 THEN 'queued'
        WHEN 4 THEN 'queued' WHEN 5 THEN 'deleting' ELSE 'ready' END AS status,
    CASE WHEN n % 100 BETWEEN 1 AND 4 THEN 'convert' WHEN n % 100 IN (6, 7) THEN 'renditions' END AS work,
    CASE WHEN n % 100 IN (1, 7) THEN 'host:1' END AS worker,
    CASE WHEN n % 100 BETWEEN 1 AND 4 THEN 0 WHEN n % 100 IN (6, 7) THEN 1 + n / 100 % 3 END AS lane,
    CASE WHEN n % 100 = 5 THEN ARRAY['notice', 'leftovers'] WHEN n % 100 = 8 THEN ARRAY['leftovers']
        WHEN n % 1000 = 9 THEN ARRAY['tokens', 'notice'] ELSE ARRAY[]::text[] END AS kinds
FROM generate_series(1, 40000) AS n
"""
_IMAGES = f"""
INSERT INTO images (id, status, work, lane, turn, due, worker, attempt, failures, losses, sequence, original_type,
    original_bytes, original_sha256, width, height, renditions, request, created, modified)
SELECT id, status, work, lane, CASE WHEN work IS NOT NULL THEN 1.7e9 + n * 7919 % 40009 END,
    CASE WHEN worker IS NOT NULL OR n % 10000 = 2 THEN due WHEN work IS NOT NULL THEN 1.7e9 END, worker, 1, 0, 0,
    CASE WHEN status = 'ready' THEN n END, 'image/png', 68, repeat('0a', 32), 640, 360,
    '{{"image.jpeg": [640, 360, 1000, "' || repeat('1b', 32) || '", 1, "0123abcd"]}}', 'request', 1.7e9 + n, 1.7e9 + n
FROM ({_NUMBERED}) AS numbered
"""  # noqa: S608 - our own words
#: Each image owes leftovers that are not due, too, as do many others: the storage was away.
_DEBTS = f"""
INSERT INTO debts (image_id, kind, due) SELECT id, unnest(kinds || 'leftovers'::text),
    unnest(array_fill(due, ARRAY[cardinality(kinds)]) || (extract(epoch FROM now()) + 1e6)::double precision)
FROM ({_NUMBERED}) AS numbered
UNION ALL SELECT 'another ' || n, 'leftovers', extract(epoch FROM now()) + 1e6 FROM generate_series(1, 200000) AS n
"""  # noqa: S608 - our own words
_AT_REST = "status IN ('ready', 'failed') AND work IS NULL AND cardinality(kinds) = 0"
#: A sixth of the images are queued, and many owe tokens, while statistics are gathered. Then all is as before.
_BURST = (
    "CREATE TABLE former_images AS SELECT * FROM images",
    "CREATE TABLE former_debts AS SELECT * FROM debts",
    "UPDATE images SET status = 'queued', work = 'convert', lane = 0, turn = 1.7e9, due = 1.7e9, worker = NULL "
    "WHERE sequence IS NULL OR sequence % 10 = 0",
    "UPDATE debts SET kind = 'tokens', due = 1.7e9 WHERE id % 600 = 0",
    "ANALYZE images, debts",
    "DELETE FROM images",
    "DELETE FROM debts",
    "INSERT INTO images SELECT * FROM former_images",
    "INSERT INTO debts SELECT * FROM former_debts",
    "DROP TABLE former_images, former_debts",
    "VACUUM images, debts",
)
#: The id in the middle.
MIDDLE = "01900000-0000-7000-8000-000000800000"
#: The id of one image.
FIRST = "01900000-0000-7000-8000-000000001eef"


AS_THEY_SHOULD_BE, QUIET, BUSY = (f"statistics {what}" for what in ("as they should be", "of quiet", "of a burst"))


@pytest.fixture(scope="module", params=[AS_THEY_SHOULD_BE, QUIET, BUSY])
def crowded(postgresql: Postgresql, request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a ledger with many rows, which the tests share: none takes so much that another has too little."""
    url = postgresql.database()
    analyze = "VACUUM ANALYZE images, debts, owners"
    if request.param == AS_THEY_SHOULD_BE:
        execute(url, _IMAGES)
        execute(url, _DEBTS)
        execute(url, analyze)
    elif request.param == QUIET:
        execute(url, f"{_IMAGES} WHERE {_AT_REST}")
        execute(url, analyze)
        execute(url, f"{_IMAGES} WHERE NOT ({_AT_REST})")
        execute(url, _DEBTS)
    else:
        execute(url, _IMAGES)
        execute(url, _DEBTS)
        for statement in _BURST:
            execute(url, statement)
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
    """Execute what the ledger has executed on its tables once more, without effect; return how PostgreSQL did it."""
    ours = [
        (text, parameters)
        for text, parameters in statements
        if any(table in text for table in ("images", "debts", "owners")) and "EXPLAIN" not in text
    ]
    plans = []
    for text, parameters in ours:
        async with ledger._database._engine.connect() as connection:
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
    "all": ("images_pkey", lambda ledger: ledger.list_all(None, 9)),
    "more of all": ("images_pkey", lambda ledger: ledger.list_all(MIDDLE, 9)),
    "one image": ("images_pkey", lambda ledger: ledger.get(FIRST)),
}


@pytest.mark.parametrize(("index", "query"), PAGES.values(), ids=PAGES)
async def test_a_page_comes_sorted_out_of_its_index(
    ledger: Ledger, statements: list[Statement], index: str, query: Query
) -> None:
    """What is sorted was all read first: of a million images, all that are ready."""
    await query(ledger)

    [plan] = await plans_of(ledger, statements)

    assert plan.nodes <= {"Limit", "Index Scan", "Aggregate", *BITMAP}
    assert plan.indices - {"debts_of_image"} == {index}
    assert plan.looked_at <= 9 + 2 * 9 * 2


#: A bitmap is one look, the rows that it names are another. PostgreSQL takes it for the few rows of one id, too.
BITMAP = {"Bitmap Heap Scan", "Bitmap Index Scan"}


async def test_debts_before_a_list_are_found_by_their_kind(ledger: Ledger, statements: list[Statement]) -> None:
    await ledger.owing_tokens()

    [plan] = await plans_of(ledger, statements)

    assert plan.indices == {"debts_due", "images_pkey", "debts_of_image"}
    assert not plan.nodes & {"Seq Scan", "Sort"}
    assert plan.looked_at <= 3 * 40 + 40 * 3 * 2  # of 40 images, each with 3 debts


#: What of the work in order is wanted, and how many rows.
IN_ORDER: dict[str, tuple[int, Query]] = {
    "what waits": (300, lambda ledger: ledger.waiting(300)),
    "whether something waits": (1, lambda ledger: ledger.is_waiting(Lane.UPLOAD)),
    "whether something waits in a lane": (1, lambda ledger: ledger.is_waiting(Lane.BULK)),
}


@pytest.mark.parametrize(("rows", "query"), IN_ORDER.values(), ids=IN_ORDER)
async def test_what_waits_is_found_by_its_index(
    ledger: Ledger, statements: list[Statement], rows: int, query: Query
) -> None:
    await query(ledger)

    [plan] = await plans_of(ledger, statements)

    assert not plan.nodes & {"Seq Scan", "Sort"}
    assert "images_waiting" in plan.indices
    # Four that were handed back are not due yet. A count looks at its rows once more, a list at each one's debt, twice.
    assert plan.looked_at <= 3 * (rows + 4) + 1


async def test_the_next_work_is_found_by_its_index_in_order(ledger: Ledger, statements: list[Statement]) -> None:
    assert await ledger.claim_next("host:1")

    [looking, claiming] = await plans_of(ledger, statements)

    assert looking.looked_at <= 2 * 5 + 1
    assert claiming.nodes <= {"ModifyTable", "Index Scan", "Limit", "LockRows", "Result"}
    assert claiming.indices == {"images_pkey", "images_waiting"}
    assert claiming.looked_at <= 1 + 5 + 3  # and what clocks there are in it


async def test_work_gets_its_turn_by_an_index(ledger: Ledger, statements: list[Statement]) -> None:
    image = await queued(ledger)
    await ledger.delete(image.id)

    [plan] = await plans_of(ledger, [one for one in statements if one[0].startswith("INSERT INTO owners")])

    assert "Seq Scan" not in plan.nodes
    assert plan.indices == {"images_waiting"}
    assert plan.looked_at <= 1


#: What the sweep takes, 200 rows at the most, and by which index.
TAKES: dict[str, tuple[str, Query]] = {
    "tokens": ("debts_due", lambda ledger: ledger.take_debts(DebtKind.TOKENS)),
    "notices": ("debts_due", lambda ledger: ledger.take_debts(DebtKind.NOTICE)),
    "leftovers": ("debts_due", lambda ledger: ledger.take_debts(DebtKind.LEFTOVERS)),
    "lost leases": ("images_held", lambda ledger: ledger.take_lost()),
}


@pytest.mark.parametrize(("index", "take"), TAKES.values(), ids=TAKES)
async def test_the_sweep_looks_at_no_row_that_it_does_not_take(
    ledger: Ledger, statements: list[Statement], index: str, take: Query
) -> None:
    taken = await take(ledger)

    assert taken
    plans = await plans_of(ledger, [one for one in statements if not one[0].startswith("INSERT")])
    finding = [plan for plan in plans if index in plan.indices]
    assert len(finding) == 2
    for plan in finding:
        assert plan.nodes <= {"Limit", "LockRows", "Index Scan", "Index Only Scan", "Result"}
        assert plan.indices == {index}
        assert plan.looked_at <= 200
    changing = [plan for plan in plans if plan not in finding]
    assert changing != []
    for plan in changing:
        assert plan.indices <= {"images_pkey", "images_processing_by_id", "debts_pkey"}
        assert not plan.nodes & {"Seq Scan", "Sort"}
        # By a bitmap where that is cheaper: to name a row and what it was before are two looks, to read it is another.
        assert plan.looked_at <= 3 * 200 + 3


#: Counts, which cannot look at less than they count: at most 1,600 images wait here.
COUNTS: dict[str, Query] = {
    "how many are queued": lambda ledger: ledger.count_queued(100_000),
    "what is to be done": lambda ledger: ledger.figures(),
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


async def test_a_transition_finds_its_rows_by_their_ids(ledger: Ledger, statements: list[Statement]) -> None:
    """Searched by id it must be, however few rows PostgreSQL thinks another index to have."""
    await live(ledger)

    of_images = await plans_of(ledger, changes_in(statements, of="images"))
    of_debts = await plans_of(ledger, changes_in(statements, of="debts"))
    assert (len(of_images) >= 20, len(of_debts) >= 5) == (True, True)
    for plan in of_images:
        assert plan.nodes <= {"Result", "ModifyTable", "Index Scan", "Index Only Scan", *BITMAP}
        by_id = {"images_pkey", *(name for name in INDICES if name.endswith("by_id"))}
        assert plan.indices <= {*by_id, "debts_of_image"}
        assert plan.looked_at <= 1 + 2  # and what clocks there are in it
    for plan in of_debts:
        assert plan.nodes <= {"Result", "ModifyTable", "Index Scan", *BITMAP}
        assert plan.indices <= {"debts_pkey", "debts_of_image"}
        assert plan.looked_at <= 2 * 3 + 2


#: Of each index, a query that needs it.
NEEDING: dict[str, Query] = {
    **dict([*PAGES.values(), *TAKES.values()]),
    "images_waiting": lambda ledger: ledger.waiting(10),
    "debts_of_image": lambda ledger: ledger.get(FIRST),
}


@pytest.mark.parametrize("index", INDICES)
async def test_no_index_can_be_spared(ledger: Ledger, statements: list[Statement], index: str) -> None:
    """What none of these queries misses costs every commit something and serves nobody."""
    await NEEDING[index](ledger)
    finding = [(text, values) for text, values in statements if text.startswith("SELECT")]

    as_it_is = await plans_of(ledger, finding)
    without = await plans_of(ledger, finding, without=index)

    assert sum(plan.looked_at for plan in without) >= sum(plan.looked_at for plan in as_it_is) + 100


async def test_an_idle_sweep_looks_at_no_row(ledger: Ledger, crowded: str, statements: list[Statement]) -> None:
    """A clock that counts as new for every row could not be searched by: all that wait would be read every time."""
    for table in ("images", "debts"):
        execute(crowded, f"UPDATE {table} SET due = due + 1e10 WHERE due IS NOT NULL")  # noqa: S608 - our own words

    taken = [await take(ledger) for _, take in TAKES.values()]

    assert taken == [[], [], [], []]
    plans = await plans_of(ledger, statements)
    assert len(plans) >= 4
    assert max(plan.looked_at for plan in plans) <= 1
    for table in ("images", "debts"):
        execute(crowded, f"UPDATE {table} SET due = due - 1e10 WHERE due IS NOT NULL")  # noqa: S608 - our own words
