"""The long form of the failovers: `python -m tests.apart`. Hundreds of uploads through each."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from tests.apart.failovers import COURSES, upload_through
from tests.apart.machines import move_into_hub
from tests.apart.stores import end_stores
from tests.integration.service import APART, ended


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.apart", description=__doc__)
    parser.add_argument("--uploads", type=int, default=300, help="of each failover, at the least")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long a store is away")
    options = parser.parse_args()
    os.environ[APART] = "1"
    move_into_hub()
    wrong = 0
    try:
        for name, course in COURSES.items():
            with (
                tempfile.TemporaryDirectory() as folder,
                ended(Path(folder)) as services,
                course(services) as (service, failover),
            ):
                outcome = upload_through(service, failover, uploads=options.uploads, seconds=options.seconds)
            print(f"{name}: {outcome}", *outcome.wrong, sep="\n  ", flush=True)
            wrong += len(outcome.wrong)
    finally:
        end_stores()
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
