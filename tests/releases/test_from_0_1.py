"""A ledger of release 0.1 becomes one of today, whatever its images' status, and however often it is interrupted."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from shared.ledger.postgresql import RELEASE_LOCK
from shared.ledger.schema import REVISION
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.databases import database
from tests.postgresql import Postgresql, execute
from tests.releases import ledger_0_1
from tests.releases.ledger_0_1 import KINDS, Row, debts_of, dump, migrated, read, rows_of, write
from tests.waiting import until

__all__ = ["database"]

ROOT = Path(__file__).resolve().parents[2]
#: The leases of its workers are over.
BEGAN = time.time() - 86_400


@pytest.fixture
def settings(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """Settings that name an empty storage, and a database without tables."""
    settings = Settings(storage_path=tmp_path)
    if database == "sqlite":
        yield settings
        return
    server: Postgresql = request.getfixturevalue("postgresql")
    yield replace(settings, database_url=(url := server.database(template="template0")))
    server.drop(url)


def left_by_0_1(settings: Settings, count: int = 10 * len(KINDS)) -> list[Row]:
    """Make the ledger that 0.1 leaves; return its rows."""
    rows = list(rows_of(count, BEGAN))
    ledger_0_1.make(settings, rows)
    return rows


def environment(settings: Settings) -> dict[str, str]:
    url = settings.database_url if settings.is_on_postgresql else ""
    return {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(settings.storage_path), "DATABASE_URL": url}


def run(settings: Settings, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT, env=environment(settings), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def images_in(settings: Settings) -> list[Row]:
    """Return the rows of `images`, their renditions as JSON."""
    rows = read(settings, "SELECT * FROM images ORDER BY id")
    return [{**row, "renditions": json.loads(row["renditions"])} for row in rows]


def without_moment(found: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """Return a dump without the moment of the migration."""
    moment = max(row["due"] or 0 for row in found["images"])
    images = [{**row, "due": None} if row["due"] == moment else row for row in found["images"]]
    return {**found, "images": images}


def test_every_row_becomes_what_it_stands_for(settings: Settings) -> None:
    rows, before = left_by_0_1(settings), time.time()

    migrate(settings)

    images = images_in(settings)
    (due,) = {row["due"] for row in images} - {None}
    assert before - 1 < due < time.time() + 1
    assert images == [migrated(row, due) for row in rows]


def test_what_was_owed_becomes_debts_with_their_times(settings: Settings) -> None:
    rows = left_by_0_1(settings)

    migrate(settings)

    debts = [(row["image_id"], row["kind"], row["due"]) for row in read(settings, "SELECT * FROM debts")]
    assert sorted(debts) == sorted(debt for row in rows for debt in debts_of(row))


def test_nobody_owns_what_is_not_being_deleted(settings: Settings) -> None:
    rows = left_by_0_1(settings)

    migrate(settings)

    kept = [row for row in rows if row["status"] != "deleting"]
    last = max(
        row["created"] for row in rows if (row["status"] in ("queued", "processing") or row["owed"] == "thumbnails")
    )
    nobody = {"owner": "", "turn": last, "bytes": sum(row["original_bytes"] for row in kept), "images": len(kept)}
    assert read(settings, "SELECT * FROM owners") == [nobody]


def test_an_empty_ledger_has_an_owner_of_nothing(settings: Settings) -> None:
    left_by_0_1(settings, 0)

    migrate(settings)

    assert read(settings, "SELECT * FROM owners") == [{"owner": "", "turn": 0.0, "bytes": 0, "images": 0}]


def test_the_ledger_keeps_its_name_its_marker_and_its_counter(settings: Settings) -> None:
    left_by_0_1(settings)
    before = read(settings, "SELECT * FROM ledger")

    migrate(settings)

    assert read(settings, "SELECT * FROM deployment") == before


def test_a_migration_that_is_killed_at_any_step_is_finished_by_the_next(
    settings: Settings, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    other = replace(settings, storage_path=tmp_path_factory.mktemp("other"), database_url="")
    if settings.is_on_postgresql:
        other = replace(settings, database_url=request.getfixturevalue("postgresql").database(template="template0"))
    for each in (settings, other):
        left_by_0_1(each, 1_200)
    migrate(other)

    killed = run(settings, "tests.releases.killed")

    assert killed.returncode == 0, killed.stderr
    # Eleven statements make the new tables and their indices, five fill them, and more than that are around them.
    assert int(killed.stdout) > 20
    finished, never_killed = (without_moment(dict(dump(each))) for each in (settings, other))
    assert finished.pop("deployment")[0]["sequence"] == never_killed.pop("deployment")[0]["sequence"]
    assert finished == never_killed


#: A release that gives up after half a second where one gives up after seconds.
IMPATIENT = """
import sys
from shared.ledger import postgresql, sqlite
postgresql.LOCK_SECONDS = sqlite.BUSY_SECONDS = 0.5
from shared.migrations.__main__ import main
sys.exit(main())
"""


async def test_releases_at_once_wait_for_one_that_takes_longer_than_a_commit_may_wait(settings: Settings) -> None:
    """On PostgreSQL no time limit of the server's ends them either."""
    await asyncio.to_thread(left_by_0_1, settings)
    if settings.is_on_postgresql:
        name = settings.database_url.rpartition("/")[2]
        execute(settings.database_url, f"ALTER DATABASE {name} SET statement_timeout = '1s'")

    async with at_work(settings) as waited_for:
        releases = [
            await asyncio.create_subprocess_exec(
                sys.executable, "-c", IMPATIENT,
                cwd=ROOT, env=environment(settings), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
            for _ in range(2)
        ]  # fmt: skip
        await until(lambda: waited_for() == 2 or any(release.returncode is not None for release in releases))
    ends = [((await release.communicate())[0], release.returncode) for release in releases]

    assert [code for _, code in ends] == [0, 0], ends
    assert read(settings, "SELECT * FROM alembic_version") == [{"version_num": REVISION}]


@asynccontextmanager
async def at_work(settings: Settings) -> AsyncIterator[Callable[[], int]]:
    """Hold what a release that_is at work holds; yields a count of the releases that have waited for too long."""
    if settings.is_on_postgresql:
        waiting = """SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
            AND clock_timestamp() - query_start > interval '1.2 s'"""
        other = await asyncpg.connect(settings.database_url)
        async with other.transaction():
            await other.execute(f"SELECT pg_advisory_xact_lock({RELEASE_LOCK})")
            await other.execute("LOCK TABLE images IN ACCESS EXCLUSIVE MODE")
            yield lambda: len(execute(settings.database_url, waiting))
        await other.close()
        return
    with closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3", isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        # SQLite tells of nobody who waits. A process that_is slow to start only waits for a shorter time.
        enough = time.monotonic() + 4
        yield lambda: 2 * (time.monotonic() > enough)


async def test_an_image_that_is_uploaded_while_the_migration_begins_is_migrated(postgresql: Postgresql) -> None:
    settings = Settings(database_url=postgresql.database(template="template0"))
    (last,) = list(rows_of(1, BEGAN))
    await asyncio.to_thread(ledger_0_1.make, settings, [])
    web_of_0_1 = await asyncpg.connect(settings.database_url)
    transaction = web_of_0_1.transaction()
    await transaction.start()
    await web_of_0_1.copy_records_to_table("images", records=[tuple(last.values())], columns=list(last))

    migration = asyncio.create_task(asyncio.to_thread(migrate, settings))
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    await until(lambda: execute(settings.database_url, waiting))
    await transaction.commit()
    await migration

    await web_of_0_1.close()
    assert [row["id"] for row in read(settings, "SELECT id FROM images")] == [last["id"]]


# --plan


def test_the_plan_says_what_becomes_of_how_many_images_and_changes_nothing(settings: Settings) -> None:
    left_by_0_1(settings, 10 * len(KINDS))
    before = dump(settings)

    plan = run(settings, "shared.migrations", "--plan")

    assert (plan.returncode, plan.stderr) == (0, "")
    assert dump(settings) == before
    assert "is at revision 0003, of release 0.1. This code needs 0004." in plan.stdout
    assert "will change its 120 images" in plan.stdout
    lines = [" ".join(line.split()) for line in plan.stdout.splitlines()]
    assert [line for line in lines if "->" in line] == [
        "10 queued -> queued, in the order of uploads",
        "10 processing -> queued again; no loss is counted",
        "10 ready -> ready",
        "10 ready, owes leftovers -> ready; owes leftovers",
        "20 ready, owes thumbnails -> ready; renditions wanted, after what is queued",
        "10 ready, owes tokens -> ready; owes tokens, a notice, leftovers",
        "10 failed -> failed",
        "10 failed, owes leftovers -> failed; owes leftovers",
        "10 failed, owes tokens -> failed; owes tokens, a notice, leftovers",
        "10 deleting, owes leftovers -> deleting; owes leftovers",
        "10 deleting, owes tokens -> deleting; owes tokens, a notice, leftovers",
    ]
    assert "Stop all web and worker processes of release 0.1" in plan.stdout
    assert "There is no way back" in plan.stdout
    assert "hold images" not in plan.stdout


def test_the_plan_names_the_workers_that_hold_images(settings: Settings) -> None:
    left_by_0_1(settings)
    hold(settings, "host:7", seconds=60)

    plan = run(settings, "shared.migrations", "--plan")

    assert "workers of release 0.1 hold images: host:7." in plan.stdout


def test_the_plan_of_a_ledger_that_is_migrated_is_to_do_nothing(settings: Settings) -> None:
    migrate(settings)

    plan = run(settings, "shared.migrations", "--plan")

    assert plan.stdout == f"The ledger is at revision {REVISION}, which this code needs. There is nothing to do.\n"
    assert plan.returncode == 0


def test_the_plan_without_a_ledger_is_to_create_it(settings: Settings) -> None:
    plan = run(settings, "shared.migrations", "--plan")

    assert plan.stdout == f"There is no ledger yet. The migration will create it, at revision {REVISION}.\n"
    assert plan.returncode == 0
    assert list(settings.storage_path.iterdir()) == []


def test_a_ledger_of_a_newer_release_is_left_alone(settings: Settings) -> None:
    migrate(settings)
    write(settings, "UPDATE alembic_version SET version_num = '9999'")

    plan, migration = run(settings, "shared.migrations", "--plan"), run(settings, "shared.migrations")

    assert plan.stdout == "The ledger is at revision 9999, which this code does not know. A newer release made it.\n"
    assert plan.returncode == 0
    assert migration.returncode == 1
    assert migration.stderr.startswith("asgilook: the ledger cannot be migrated: ")
    assert migration.stderr.count("\n") == 1


# Workers of 0.1


def test_a_migration_waits_until_the_leases_of_dead_workers_are_over(settings: Settings) -> None:
    left_by_0_1(settings)
    hold(settings, "host:7", seconds=2)
    over = read(settings, "SELECT max(due) AS due FROM images WHERE worker = 'host:7'")[0]["due"]

    migrate(settings)

    assert over < max(row["due"] or 0 for row in images_in(settings))


@pytest.mark.parametrize(("meanwhile", "worker"), [("renewed", "host:7"), ("claimed", "host:8")])
def test_a_migration_refuses_while_a_worker_is_alive(settings: Settings, meanwhile: str, worker: str) -> None:
    left_by_0_1(settings)
    hold(settings, "host:7", seconds=60)
    stopped = threading.Event()

    def work() -> None:
        while not stopped.wait(0.1):
            hold(settings, worker, seconds=60, status="processing" if meanwhile == "renewed" else "queued")

    with ThreadPoolExecutor(1) as thread:
        thread.submit(work)
        try:
            migration = run(settings, "shared.migrations")
        finally:
            stopped.set()

    assert migration.returncode == 1
    assert f"a worker of release 0.1 is still running: {worker}. Stop all its workers and web" in migration.stderr
    assert read(settings, "SELECT * FROM alembic_version") == [{"version_num": "0003"}]


def hold(settings: Settings, worker: str, seconds: float, status: str = "processing") -> None:
    """Have a worker of 0.1 hold the images of a status, by leases that end in so many seconds."""
    due = time.time() + seconds
    write(
        settings,
        f"UPDATE images SET worker = '{worker}', due = {due} WHERE status = '{status}'",  # noqa: S608 - ours
    )
