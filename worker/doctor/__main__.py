"""`python -m worker.doctor`: the doctor's composition root."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys

from shared.errors import AsgilookError
from shared.identity import check_storage_as_it_is
from shared.ledger import Ledger
from shared.settings import Settings
from shared.storage.backends import open_storage
from shared.telemetry import logs
from worker.doctor.doctor import Doctor
from worker.doctor.report import Report


async def run(settings: Settings, *, digests: bool, mend: bool) -> int:
    """Compare the ledger and the storage that the settings name. Returns the exit code."""
    ledger = Ledger.connect(settings, existing=True)
    try:
        storage = open_storage(settings)
        identity = await check_storage_as_it_is(ledger, storage, settings)
        report = Report(mend)
        doctor = Doctor(
            ledger, storage, identity, report, keep_originals=settings.keep_originals, digests=digests, mend=mend
        )
        await doctor.examine()
        report.sum_up()
        return 0 if report.is_well else 1
    finally:
        await ledger.close()


def main() -> int:
    """Read the arguments and run. Returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m worker.doctor",
        description="Compare the ledger with the storage: list and count what is wrong between them. Web and workers "
        "may be at work meanwhile. Nothing is changed without --mend.",
        epilog="Exit code: 0 where nothing is wrong or all was mended, 1 where something is wrong, 2 where that cannot "
        "be told.",
    )
    parser.add_argument("--mend", action="store_true", help="remove what nobody needs, have renditions made again")
    parser.add_argument("--digests", action="store_true", help="read every file and compare its SHA-256, too: slow")
    arguments = parser.parse_args()
    try:
        settings = Settings.from_env()
        logs.configure("ERROR")
        return asyncio.run(run(settings, digests=arguments.digests, mend=arguments.mend))
    except BrokenPipeError:
        # The reader closed the pipe, as `| head` does. Without this, Python would flush to it at exit and fail.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("asgilook: interrupted", file=sys.stderr)
        return 130
    except (AsgilookError, OSError) as exc:
        print(f"asgilook: what is wrong cannot be told: {exc}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
