"""Migrated ledgers, images in every status, and time that passes at once."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uuid_utils
from sqlalchemy import update

from shared.images import DebtKind, Image, Lane, Original, Status
from shared.ledger import Ledger, schema
from shared.migrations.__main__ import migrate
from shared.renditions import FULL, Rendition
from shared.settings import Settings
from tests.postgresql import Postgresql

ORIGINAL = Original("image/png", 68, "0a" * 32)
SIZE = (640, 360)
#: What an attempt makes, but for its number: see `made_by`.
RENDITIONS = (
    Rendition(FULL, SIZE, 1000, "1b" * 32, 0, "0123abcd"),
    Rendition("320x180.jpeg", (320, 180), 300, "2c" * 32, 0, "0123abcd"),
    Rendition("160x90.jpeg", (160, 90), 100, "3d" * 32, 0, "0123abcd"),
)


@pytest.fixture(scope="session")
def migrated_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a ledger that was migrated and never used: tests copy it, which is faster than to migrate."""
    folder = tmp_path_factory.mktemp("migrated")
    migrate(Settings(storage_path=folder))
    return folder / "ledger.sqlite3"


@pytest.fixture
def database() -> str:
    """The database that the ledger is on, unless the test's module has it from `databases.py`."""
    return "sqlite"


@pytest.fixture
def settings(
    tmp_path: Path, migrated_ledger: Path, database: str, request: pytest.FixtureRequest
) -> Iterator[Settings]:
    """Settings whose storage is empty and whose ledger is migrated."""
    folder = tmp_path / "data"
    folder.mkdir()
    settings = Settings(storage_path=folder, log_level="DEBUG")
    if database == "sqlite":
        shutil.copy(migrated_ledger, folder)
        yield settings
        return
    server: Postgresql = request.getfixturevalue("postgresql")
    yield replace(settings, database_url=(url := server.database()))
    server.drop(url)


@pytest.fixture
async def ledger(settings: Settings) -> AsyncIterator[Ledger]:
    """An empty ledger."""
    ledger = Ledger.connect(settings)
    yield ledger
    await ledger.close()


def new_id() -> str:
    """Return an id as uploads get it."""
    return str(uuid_utils.uuid7())


async def alter(ledger: Ledger, image_id: str | None = None, **values: Any) -> None:
    """Change one row, or all, behind the ledger's back."""
    statement = update(schema.images).values(**values)
    async with ledger._database._engine.begin() as connection:
        await connection.execute(statement if image_id is None else statement.where(schema.images.c.id == image_id))


async def let_pass(ledger: Ledger, seconds: float, image_id: str | None = None) -> None:
    """Let time pass, as far as one row, or all, can tell."""
    columns, debts = schema.images.c, schema.debts
    times = ("due", "paused_until", "created", "modified")
    await alter(ledger, image_id, **{name: columns[name] - seconds for name in times})
    earlier = update(debts).values(due=debts.c.due - seconds)
    async with ledger._database._engine.begin() as connection:
        await connection.execute(earlier if image_id is None else earlier.where(debts.c.image_id == image_id))


def made_by(attempt: Image) -> list[Rendition]:
    """Return the renditions that an attempt has made."""
    return [replace(rendition, attempt=attempt.attempt) for rendition in RENDITIONS]


async def latest(ledger: Ledger, image: Image) -> Image:
    """Return an image's row, which must be there, as it is now."""
    row = await ledger.get(image.id)
    assert row is not None
    return row


async def queued(ledger: Ledger) -> Image:
    """Return a new image."""
    return await ledger.add(new_id(), ORIGINAL, "request-1")


async def claimed(ledger: Ledger, image: Image | None = None, worker: str = "host:1") -> Image:
    """Return an image, a new one unless told, in an attempt's hands."""
    row = await ledger.claim((image or await queued(ledger)).id, worker)
    assert row is not None
    return row


async def published(ledger: Ledger, image: Image | None = None) -> Image:
    """Return a ready image that owes what its publication left to be done."""
    attempt = await claimed(ledger, image)
    row = await ledger.publish(attempt, SIZE, made_by(attempt), seconds=0.1)
    assert row is not None
    return row


async def published_again(ledger: Ledger) -> Image:
    """Return a ready image that owes leftovers, too: its second attempt is the one published."""
    row = await ledger.hand_back(await claimed(ledger), 0.0)
    assert row is not None
    return await published(ledger, row)


async def ready(ledger: Ledger) -> Image:
    """Return a ready image that owes nothing."""
    return await settled(ledger, await published(ledger))


async def failed(ledger: Ledger) -> Image:
    """Return a failed image that owes nothing."""
    row = await ledger.fail(await claimed(ledger), "unreadable-image", "This is no picture.")
    assert row is not None
    return await settled(ledger, row)


async def wanting_renditions(ledger: Ledger, lane: Lane = Lane.DEMAND) -> Image:
    """Return a ready image that owes nothing, and whose renditions were asked for."""
    row = await ledger.request_renditions(await ready(ledger), lane)
    assert row is not None
    return row


async def claimed_renditions(ledger: Ledger, image: Image | None = None, worker: str = "host:1") -> Image:
    """Return a ready image with its renditions in an attempt's hands."""
    return await claimed(ledger, image or await wanting_renditions(ledger), worker)


async def settled(ledger: Ledger, image: Image) -> Image:
    """Have the ledger record that an image's debts are paid; return its row."""
    await ledger.paid(
        [debt for debt in image.debts if image.status is not Status.DELETING or debt.kind is not DebtKind.LEFTOVERS]
    )
    if image.status is Status.DELETING:
        await ledger.remove(image)
    return await latest(ledger, image)
