"""The release step: brings the ledger to the revision that this code needs. `--plan` only prints what would be done."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from shared.errors import AsgilookError
from shared.migrations import release_0_1
from shared.settings import Settings
from shared.telemetry import logs


def migrate(settings: Settings, revision: str = "head") -> None:
    """Create or upgrade the ledger that the settings name, by default to the latest revision."""
    if not settings.is_on_postgresql and (database := make_url(settings.database_url).database) is not None:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["settings"] = settings
    command.upgrade(config, revision)


def main() -> int:
    """Migrate, or print the plan. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m shared.migrations", description="Create or upgrade the ledger.")
    parser.add_argument("--plan", action="store_true", help="say what will be done, and change nothing")
    is_plan = parser.parse_args().plan
    try:
        settings = Settings.from_env()
        logs.configure(settings.log_level)
        if is_plan:
            print(asyncio.run(release_0_1.plan(settings)))
        else:
            migrate(settings)
    except (AsgilookError, CommandError, OSError, SQLAlchemyError) as exc:
        reason = exc.orig if isinstance(exc, DBAPIError) else exc
        print(f"asgilook: the ledger cannot be migrated: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
