from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.migrations.__main__ import migrate
from shared.settings import Settings
from shared.telemetry import logs
from tests.api import arrange
from tests.api.arrange import Redises, Service, introduce
from tests.api.http_server import access, serve

__all__ = ["access", "serve"]

#: Starts another application on this test's storage, with these settings.
Start = Callable[..., Any]


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with its ledger, migrated, and no image: made once, and copied for each test."""
    folder = tmp_path_factory.mktemp("template") / "data"
    settings = Settings(storage_path=folder)
    folder.mkdir()
    migrate(settings)
    asyncio.run(introduce(settings))
    return folder


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    """All that production would log, from DEBUG on, as it would be written."""
    lines, root, ours = io.StringIO(), logging.getLogger(), [logging.getLogger(name) for name in ("api", "shared")]
    handler, levels = logs.JsonHandler(lines), [logger.level for logger in ours]
    root.addHandler(handler)
    for logger in ours:
        logger.setLevel(logging.DEBUG)
    yield lines
    for logger, level in zip(ours, levels, strict=True):
        logger.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture
def redises() -> Redises:
    return Redises()


@pytest_asyncio.fixture
async def start(template: Path, tmp_path: Path, redises: Redises) -> AsyncIterator[Start]:
    async with contextlib.AsyncExitStack() as services:

        async def start(*, injected: dict[str, Any] | None = None, **settings: Any) -> Service:
            chosen = Settings(**{"storage_path": tmp_path / "data", "free_disk_floor": 0, **settings})
            return await services.enter_async_context(arrange.serve(template, chosen, redises, **(injected or {})))

        yield start


@pytest_asyncio.fixture
async def service(start: Start) -> Service:
    started: Service = await start()
    return started
