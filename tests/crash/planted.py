"""Faults planted in our own code, one at a time: the crash suite is to find each. `python -m tests.crash.planted`.

Each takes out one thing that a promise rests on, in a copy of the project, and runs the tests that are to fail there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.processes import HERE

_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "data", "docs", "__pycache__", ".*_cache", ".coverage*")


@dataclass(frozen=True)
class Planted:
    """One fault: in `file`, `old` becomes `new`; `found_by` are tests of the crash suite that must fail."""

    name: str
    file: str
    old: str
    new: str
    found_by: Sequence[str]


PLANTED = (
    Planted(
        "no fsync before the rename",
        "shared/storage/disk_draft.py",
        "        os.fsync(self._file.fileno())\n",
        "",
        ["tests/crash/test_power_cut.py"],
    ),
    Planted(
        "no fsync of the folder after the rename",
        "shared/storage/disk.py",
        "        for folder in folders:\n            fsync_path(folder)\n",
        "",
        ["tests/crash/test_power_cut.py"],
    ),
    Planted(
        "no cache token is changed",
        "shared/redis/response_cache.py",
        "        keys = [self._token_key(topic) for topic in (*image_ids, LIST_TOPIC)]\n",
        "        keys: list[str] = []\n",
        ["tests/crash/test_cache_truth.py"],
    ),
    Planted(
        "no attempt's number is compared",
        "shared/ledger/__init__.py",
        "images.c.status == image.status, images.c.attempt == image.attempt)",
        "images.c.status == image.status)",
        ["tests/crash/test_stalled.py"],
    ),
    Planted(
        "nothing is owed",
        "shared/ledger/__init__.py",
        '{"owed": Owed.TOKENS, "due": now() + SETTLE_SECONDS}',
        '{"owed": None, "due": None}',
        ["tests/crash/test_cache_truth.py"],
    ),
    Planted(
        "no sweep",
        "worker/sweep.py",
        "                await self.pass_once()\n",
        "                pass\n",
        ["tests/crash/test_storm.py", "-k", "kill and worker"],
    ),
)


def plant(planted: Planted, folder: Path) -> None:
    """Copy the project into `folder`, with the fault in it."""
    shutil.copytree(HERE, folder, ignore=_LEFT_OUT)
    path = folder / planted.file
    text = path.read_text()
    assert text.count(planted.old) == 1, f"{planted.file} has changed: {planted.name} cannot be planted"
    path.write_text(text.replace(planted.old, planted.new))


def failures(planted: Planted, folder: Path) -> list[str]:
    """Run the tests that are to find the fault, up to the first failure; return the names of those that failed."""
    options = ["-n", "0", "-x", "-q", "-p", "no:cacheprovider", "--no-header", "-rfE", "--tb=no"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *planted.found_by],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith("FAILED ")]
    # 1: tests failed. Anything else, an error in the set-up too, would be no find.
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return found if done.returncode == 1 else []


def main() -> int:
    missed = 0
    for planted in PLANTED:
        with tempfile.TemporaryDirectory() as folder:
            plant(planted, Path(folder) / "asgilook")
            began = time.monotonic()
            found = failures(planted, Path(folder) / "asgilook")
        missed += not found
        said = found[0] if found else "NOT FOUND"
        print(f"{planted.name}: {said} (after {time.monotonic() - began:.0f} s)", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
