"""How long a process that sees another storage or ledger takes to refuse: `python -m bench.mismatch`.

It runs the cases of `tests/integration/test_mismatch.py` beside a running service, one after the other, and prints the
seconds from each process's start to its end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.integration.service import ended
from tests.integration.test_mismatch import Places, deploy, start, what_it_said
from tests.objects import ObjectServer
from tests.postgresql import started


def main() -> int:
    slowest = 0.0
    print(f"{'the service has':<24}{'the process':<10}{'has':<20}{'refuses after'}")
    with tempfile.TemporaryDirectory() as above, started() as postgresql:
        objects = ObjectServer(Path(above) / "objects")
        try:
            for number, kind in enumerate(("disk and SQLite", "objects and PostgreSQL")):
                (folder := Path(above) / str(number)).mkdir()
                places = Places(folder, postgresql, objects)
                with ended(folder) as services:
                    service = deploy(services, places, kind)
                    for first in places.strangers(service):
                        for process in ("web", "worker"):
                            stranger = replace(first, process=process)
                            began = time.monotonic()
                            start(service, stranger).wait(60)
                            seconds = time.monotonic() - began
                            slowest = max(slowest, seconds)
                            told = "" if what_it_said(service, stranger) else "  without a reason"
                            print(f"{kind:<24}{process:<10}{stranger.differs:<20}{seconds:6.1f} s{told}", flush=True)
                places.end()
        finally:
            objects.end()
    return 0 if slowest < 10 else 1


if __name__ == "__main__":
    sys.exit(main())
