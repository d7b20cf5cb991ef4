"""The release step: bring the ledger to the revision that this code needs."""

from __future__ import annotations

import sys
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from shared.errors import AsgilookError
from shared.settings import Settings
from shared.telemetry import logs


def migrate(settings: Settings) -> None:
    """Create or upgrade the ledger that the settings name."""
    if not settings.is_on_postgresql and (database := make_url(settings.database_url).database) is not None:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["settings"] = settings
    command.upgrade(config, "head")


def main() -> int:
    """Migrate; return the exit code."""
    try:
        settings = Settings.from_env()
        logs.configure(settings.log_level)
        migrate(settings)
    except (AsgilookError, OSError, SQLAlchemyError) as exc:
        reason = exc.orig if isinstance(exc, DBAPIError) else exc
        print(f"asgilook: the ledger cannot be migrated: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
