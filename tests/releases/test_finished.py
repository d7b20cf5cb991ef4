"""Whatever release 0.1 left behind is finished and served by today's service, however its migration went.

`python -m tests.releases.copies_0_1` does the same with 10,000 images.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.settings import Settings
from tests.databases import database
from tests.integration.service import Services, services
from tests.postgresql import Postgresql
from tests.releases import copies_0_1

__all__ = ["database", "services"]

pytestmark = [
    pytest.mark.processes,
    pytest.mark.one_machine("the folder of 0.1.0 is on one disk"),
]


@pytest.fixture
def empty_database(database: str, request: pytest.FixtureRequest) -> str:
    """The address of a database without tables, or nothing for SQLite."""
    if database == "sqlite":
        return ""
    server: Postgresql = request.getfixturevalue("postgresql")
    return server.database(template="template0")


def test_copies_of_it_whose_migration_was_killed_at_each_step_are_finished_and_served(
    empty_database: str, services: Services, tmp_path: Path
) -> None:
    settings = Settings(storage_path=tmp_path / "data", database_url=empty_database)
    settings.storage_path.mkdir()
    made = copies_0_1.make(settings, 5)

    assert copies_0_1.migrate_killed_at_each_step(settings) > 20
    service = services.deploy(workers=2, data=settings.storage_path, DATABASE_URL=empty_database)
    service.until(lambda: copies_0_1.left_to_do(service) == 0, seconds=120, what="the end of all work and debts")

    assert copies_0_1.wrong_answers(service, made) == []
