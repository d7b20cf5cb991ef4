"""The release step makes exactly the ledger that the code expects, however often and by whomever it is run."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect
from sqlalchemy import create_engine as create_sync_engine

from launch.processes import free_port
from shared.errors import LedgerNotMigrated
from shared.ledger import Ledger
from shared.ledger.engine import create_engine
from shared.ledger.postgresql import RELEASE_LOCK
from shared.ledger.schema import REVISION, metadata
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.databases import database
from tests.ledgers import latest, queued
from tests.postgresql import Postgresql, execute
from tests.waiting import until

__all__ = ["database"]

ROOT = Path(__file__).resolve().parents[2]


async def test_migrating_again_changes_nothing(settings: Settings, ledger: Ledger) -> None:
    image, identity = await queued(ledger), await ledger.identity()

    await asyncio.to_thread(migrate, settings)

    assert await ledger.identity() == identity
    assert await latest(ledger, image) == image


def test_the_migrated_ledger_is_what_the_schema_says(migrated_ledger: Path) -> None:
    engine = create_sync_engine(f"sqlite:///{migrated_ledger}")

    def index_conditions(connection: Connection) -> dict[str, str]:
        rows = connection.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL")
        return {row.name: row.sql.replace("\n", " ") for row in rows}

    try:
        with engine.connect() as connection:
            differences = compare_metadata(MigrationContext.configure(connection), metadata)
            migrated = index_conditions(connection)
            columns = {
                table: [(column["name"], str(column["type"]), column["nullable"]) for column in found]
                for (_, table), found in inspect(connection).get_multi_columns().items()
                if table in metadata.tables
            }
    finally:
        engine.dispose()
    created = create_sync_engine("sqlite://")
    try:
        with created.begin() as connection:
            metadata.create_all(connection)
            expected = index_conditions(connection)
            expected_columns = {
                table: [(column["name"], str(column["type"]), column["nullable"]) for column in found]
                for (_, table), found in inspect(connection).get_multi_columns().items()
            }
    finally:
        created.dispose()

    assert differences == []
    # Alembic compares neither the conditions of partial indexes nor, by itself, every type.
    assert migrated == expected
    assert columns == expected_columns


async def test_the_migrated_ledger_on_postgresql_is_what_the_schema_says(postgresql: Postgresql) -> None:
    def described(connection: Connection) -> tuple[object, ...]:
        rows = connection.exec_driver_sql(
            "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
        )
        columns = connection.exec_driver_sql(
            "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable, collation_name, "
            "column_default FROM information_schema.columns "
            "WHERE table_schema = 'public' AND table_name <> 'alembic_version'"
        )
        return sorted(row.indexdef for row in rows), sorted(map(str, columns))

    migrated = create_engine(Settings(database_url=postgresql.database()))
    created = create_engine(Settings(database_url=postgresql.database(template="template0")))
    async with migrated.connect() as connection:
        differences = await connection.run_sync(
            lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
        )
        found = await connection.run_sync(described)
    async with created.connect() as connection:
        await connection.run_sync(metadata.create_all)
        expected = await connection.run_sync(described)
    await migrated.dispose()
    await created.dispose()

    assert differences == []
    assert found == expected


@pytest.fixture
def unmigrated(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """The environment of a release that finds no ledger yet."""
    env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(tmp_path), "DATABASE_URL": ""}
    if database == "postgresql":
        server: Postgresql = request.getfixturevalue("postgresql")
        env["DATABASE_URL"] = server.database(template="template0")
    return env


def test_releases_at_once_in_many_processes_leave_one_ledger(unmigrated: dict[str, str]) -> None:
    command = [sys.executable, "-m", "shared.migrations"]

    releases = [
        subprocess.Popen(command, cwd=ROOT, env=unmigrated, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for _ in range(3)
    ]
    ends = [(release.communicate(timeout=60)[0].decode(), release.returncode) for release in releases]

    async def looked_at() -> tuple[list[str], int]:
        engine = create_engine(Settings.from_env(unmigrated))
        async with engine.connect() as connection:
            versions = await connection.exec_driver_sql("SELECT version_num FROM alembic_version")
            rows = await connection.exec_driver_sql("SELECT count(*) FROM deployment")
            found = list(versions.scalars()), rows.scalar_one()
        await engine.dispose()
        return found

    assert [code for _, code in ends] == [0, 0, 0], ends
    assert asyncio.run(looked_at()) == ([REVISION], 1)


async def test_a_release_on_postgresql_waits_for_another_that_is_at_work(postgresql: Postgresql) -> None:
    settings = Settings(database_url=postgresql.database(template="template0"))
    other = await asyncpg.connect(settings.database_url)
    async with other.transaction():
        await other.execute(f"SELECT pg_advisory_xact_lock({RELEASE_LOCK})")

        releasing = asyncio.create_task(asyncio.to_thread(migrate, settings))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
        await until(lambda: execute(settings.database_url, waiting))
        made_meanwhile = await other.fetchval("SELECT to_regclass('images')")
    await releasing

    made = await other.fetchval("SELECT to_regclass('images')")
    await other.close()
    assert (made_meanwhile, made) == (None, "images")


def test_a_release_on_a_new_machine_makes_its_ledgers_folder(tmp_path: Path) -> None:
    env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(tmp_path / "not" / "yet")}
    env.pop("DATABASE_URL", None)

    release = subprocess.run([sys.executable, "-m", "shared.migrations"], cwd=ROOT, env=env, check=False)

    assert release.returncode == 0
    assert (tmp_path / "not" / "yet" / "ledger.sqlite3").is_file()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite:///{tmp_path}/file/ledger.sqlite3", "exists"),
        ("postgres://me:s3cret@127.0.0.1:{closed}/asgilook", "PostgreSQL at 127.0.0.1:{closed} cannot be reached: "),
        ("postgres://me:s3cret@127.0.0.1:{silent}/asgilook?connect_timeout=1", "did not let us in within 1 s"),
        ("postgres://asgilook:s3cret@127.0.0.1:{server}/missing", "does not exist"),
    ],
)
def test_a_release_that_cannot_reach_the_ledger_says_so_in_one_line(
    tmp_path: Path, url: str, reason: str, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "file").touch()
    silent = socket.create_server(("127.0.0.1", 0))
    ports = {"closed": free_port(), "silent": silent.getsockname()[1]}
    if "{server}" in url:
        ports["server"] = request.getfixturevalue("postgresql").port
    env = {**os.environ, "DATABASE_URL": url.format(tmp_path=tmp_path, **ports)}

    release = subprocess.run(
        [sys.executable, "-m", "shared.migrations"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )

    silent.close()
    assert release.returncode == 1
    assert release.stderr.startswith("asgilook: the ledger cannot be migrated: ")
    assert release.stderr.count("\n") == 1
    assert reason.format(**ports) in release.stderr
    assert "s3cret" not in release.stderr


async def test_a_ledger_without_tables_is_refused_with_what_to_do(unmigrated: dict[str, str]) -> None:
    ledger = Ledger.connect(Settings.from_env(unmigrated))

    with pytest.raises(LedgerNotMigrated, match=r"python -m shared.migrations"):
        await ledger.identity()

    await ledger.close()


async def test_a_ledger_of_an_older_revision_is_refused_with_what_to_do(ledger: Ledger) -> None:
    async with ledger._database._engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")

    with pytest.raises(LedgerNotMigrated, match=rf"at 0000, not {REVISION}: run `python -m shared.migrations`"):
        await ledger.identity()


async def test_every_ledger_has_a_name_of_its_own(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    other_settings = Settings(storage_path=tmp_path)
    await asyncio.to_thread(migrate, other_settings)
    other = Ledger.connect(other_settings)

    names = {(await ledger.identity()).name, (await other.identity()).name}

    await other.close()
    assert len(names) == 2
