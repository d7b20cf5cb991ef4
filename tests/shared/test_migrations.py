"""The release step makes exactly the ledger that the code expects, however often and by whomever it is run."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, create_engine, inspect

from shared.errors import LedgerNotMigrated
from shared.ledger import Ledger
from shared.migrations.__main__ import migrate
from shared.schema import REVISION, metadata
from shared.settings import Settings
from tests.ledgers import latest, queued

ROOT = Path(__file__).resolve().parents[2]


async def test_migrating_again_changes_nothing(settings: Settings, ledger: Ledger) -> None:
    image, identity = await queued(ledger), await ledger.identity()

    await asyncio.to_thread(migrate, settings)

    assert await ledger.identity() == identity
    assert await latest(ledger, image) == image


def test_the_migrated_ledger_is_what_the_schema_says(migrated_ledger: Path) -> None:
    engine = create_engine(f"sqlite:///{migrated_ledger}")

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
    created = create_engine("sqlite://")
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


def test_releases_at_once_in_many_processes_leave_one_ledger(tmp_path: Path) -> None:
    env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(tmp_path), "DATABASE_URL": ""}
    command = [sys.executable, "-m", "shared.migrations"]

    releases = [
        subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(3)
    ]
    ends = [(release.communicate(timeout=60)[0].decode(), release.returncode) for release in releases]

    assert [code for _, code in ends] == [0, 0, 0], ends
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.sqlite3")
    with engine.connect() as connection:
        versions = connection.exec_driver_sql("SELECT version_num FROM alembic_version").all()
        assert [tuple(row) for row in versions] == [(REVISION,)]
        assert connection.exec_driver_sql("SELECT count(*) FROM ledger").scalar_one() == 1
    engine.dispose()


def test_a_release_on_a_new_machine_makes_its_ledgers_folder(tmp_path: Path) -> None:
    env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(tmp_path / "not" / "yet")}
    env.pop("DATABASE_URL", None)

    release = subprocess.run([sys.executable, "-m", "shared.migrations"], cwd=ROOT, env=env, check=False)

    assert release.returncode == 0
    assert (tmp_path / "not" / "yet" / "ledger.sqlite3").is_file()


def test_a_release_that_cannot_reach_the_ledger_says_so_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    env = {**os.environ, "DATABASE_URL": f"sqlite:///{tmp_path}/file/ledger.sqlite3"}

    release = subprocess.run(
        [sys.executable, "-m", "shared.migrations"], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )

    assert release.returncode == 1
    assert release.stderr.startswith("asgilook: the ledger cannot be migrated: ")
    assert release.stderr.count("\n") == 1


async def test_a_ledger_without_tables_is_refused_with_what_to_do(tmp_path: Path) -> None:
    ledger = Ledger.connect(Settings(storage_path=tmp_path))

    with pytest.raises(LedgerNotMigrated, match=r"python -m shared.migrations"):
        await ledger.identity()

    await ledger.close()


async def test_a_ledger_of_an_older_revision_is_refused_with_what_to_do(ledger: Ledger) -> None:
    async with ledger._engine.begin() as connection:
        await connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")

    with pytest.raises(LedgerNotMigrated, match=r"at 0000, not 0001: run `python -m shared.migrations`"):
        await ledger.identity()


async def test_every_ledger_has_a_name_of_its_own(settings: Settings, ledger: Ledger, tmp_path: Path) -> None:
    other_settings = Settings(storage_path=tmp_path)
    await asyncio.to_thread(migrate, other_settings)
    other = Ledger.connect(other_settings)

    names = {(await ledger.identity()).name, (await other.identity()).name}

    await other.close()
    assert len(names) == 2
