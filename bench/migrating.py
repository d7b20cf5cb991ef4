"""How long the migration from release 0.1 takes.

    python -m bench.migrating [--images 100000]

Makes a ledger of release 0.1 in each database, with images in every status, and migrates it as the release step does.
Prints the seconds from the start of the process to its end, and what the ledger takes before and after.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launch.processes import HERE
from shared.settings import Settings
from tests.postgresql import started
from tests.releases import ledger_0_1


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the migration from release 0.1.")
    parser.add_argument("--images", type=int, default=100_000)
    count = parser.parse_args().images
    print("| ledger | images | the release step, s | MB before | MB after |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, started() as server:
        for name, url in (("SQLite", ""), ("PostgreSQL", server.database(template="template0"))):
            settings = Settings(storage_path=Path(folder), database_url=url)
            ledger_0_1.make(settings, list(ledger_0_1.rows_of(count, time.time() - 86_400)))
            before = _megabytes(settings)
            seconds = _migrate(folder, url)
            print(f"| {name} | {count:,} | {seconds:.1f} | {before:.0f} | {_megabytes(settings):.0f} |")


def _migrate(folder: str, url: str) -> float:
    env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": folder, "DATABASE_URL": url}
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", "shared.migrations"], cwd=HERE, env=env, check=True)
    return time.perf_counter() - began


def _megabytes(settings: Settings) -> float:
    if settings.is_on_postgresql:
        (row,) = ledger_0_1.read(settings, "SELECT pg_database_size(current_database()) AS bytes")
        return float(row["bytes"]) / 1e6
    return sum(file.stat().st_size for file in settings.storage_path.glob("ledger.sqlite3*")) / 1e6


if __name__ == "__main__":
    main()
