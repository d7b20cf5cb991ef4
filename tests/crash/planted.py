"""Faults planted in our own code, one at a time: tests are to find each. `python -m tests.crash.planted [names …]`.

Each takes out one thing that a promise rests on, in a copy of the project, and runs the tests that are to fail there:
those of the crash suite, or faster ones that find the same.
"""

from __future__ import annotations

import argparse
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
    """One fault: in `file`, `old` becomes `new`; `found_by` tells pytest the tests of which one must fail."""

    name: str
    file: str
    old: str
    new: str
    found_by: Sequence[str]


_LEDGER = "shared/ledger/ledger.py"
_QUEUE = "shared/redis/queue.py"

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
        _LEDGER,
        'images.c.attempt == bindparam("of_attempt")',
        'images.c.attempt >= 0 * bindparam("of_attempt")',
        ["tests/crash/test_stalled.py", "-k", "in_the_place_of"],
    ),
    Planted(
        "what an attempt holds is claimed again",
        _LEDGER,
        "images.c.work.is_not(None), images.c.worker.is_(None))",
        "images.c.work.is_not(None))",
        ["tests/shared/test_ledger.py", "-k", "claim"],
    ),
    Planted(
        "nothing is owed",
        _LEDGER,
        "_COMMIT_OWES = (DebtKind.TOKENS, DebtKind.NOTICE)",
        "_COMMIT_OWES: tuple[DebtKind, ...] = ()",
        ["tests/crash/test_cache_truth.py"],
    ),
    Planted(
        "no notice is owed",
        _LEDGER,
        "_COMMIT_OWES = (DebtKind.TOKENS, DebtKind.NOTICE)",
        "_COMMIT_OWES = (DebtKind.TOKENS,)",
        ["tests/shared/test_ledger.py", "-k", "owe"],
    ),
    Planted(
        "no leftovers are owed",
        _LEDGER,
        "_EVERYTHING = (*_COMMIT_OWES, DebtKind.LEFTOVERS)",
        "_EVERYTHING = _COMMIT_OWES",
        ["tests/shared/test_ledger.py", "-k", "owe"],
    ),
    Planted(
        "a payer pays for a later commit",
        _LEDGER,
        '_PAID = delete(debts).where(debts.c.id.in_(bindparam("of_ids", expanding=True)))',
        """_mine = debts.alias()
_PAID = delete(debts).where(
    exists().where(
        _mine.c.image_id == debts.c.image_id,
        _mine.c.kind == debts.c.kind,
        _mine.c.id.in_(bindparam("of_ids", expanding=True)),
    )
)""",
        ["tests/shared/test_ledger.py", "tests/shared/test_settling.py", "-k", "debt or paid"],
    ),
    Planted(
        "no sweep",
        "worker/sweep.py",
        "                await self.pass_once()\n",
        "                pass\n",
        ["tests/crash/test_claimed_ahead.py", "-k", "killed"],
    ),
    Planted(
        "the sweep enqueues nothing",
        "worker/sweep.py",
        "            await self._fill_queue()\n",
        "",
        ["tests/integration/test_redis_lost.py", "-k", "found_in_the_ledger"],
    ),
    Planted(
        "lanes are ignored in Redis",
        _QUEUE,
        "return (image.lane or 0) * _LANE_SCORE + round((image.turn or 0) * 1000)",
        "return round((image.turn or 0) * 1000)",
        ["tests/shared/redis/test_queue.py", "-k", "lane"],
    ),
    Planted(
        "turns are ignored in Redis",
        _QUEUE,
        "return (image.lane or 0) * _LANE_SCORE + round((image.turn or 0) * 1000)",
        "return (image.lane or 0) * _LANE_SCORE",
        ["tests/shared/redis/test_queue.py", "-k", "turn"],
    ),
    Planted(
        "lanes are ignored by the sweep",
        _LEDGER,
        "_in_order = (images.c.lane, images.c.turn, images.c.id)",
        "_in_order = (images.c.turn, images.c.id)",
        ["tests/shared/test_ledger.py", "-k", "lane or turn or order"],
    ),
    Planted(
        "turns are ignored by the sweep",
        _LEDGER,
        "_in_order = (images.c.lane, images.c.turn, images.c.id)",
        "_in_order = (images.c.lane, images.c.id)",
        ["tests/shared/test_ledger.py", "-k", "lane or turn or order"],
    ),
    Planted(
        "lanes are ignored without Redis",
        _LEDGER,
        "    .order_by(_other.c.lane, _other.c.turn, _other.c.id)\n",
        "    .order_by(_other.c.turn, _other.c.id)\n",
        ["tests/shared/test_ledger.py", "-k", "claimed_next"],
    ),
    Planted(
        "turns are ignored without Redis",
        _LEDGER,
        "    .order_by(_other.c.lane, _other.c.turn, _other.c.id)\n",
        "    .order_by(_other.c.lane, _other.c.id)\n",
        ["tests/shared/test_ledger.py", "-k", "claimed_next"],
    ),
    Planted(
        "an owner's work takes no turn",
        _LEDGER,
        'following = owners.c.turn + bindparam("of_seconds")',
        'following = owners.c.turn + 0 * bindparam("of_seconds")',
        ["tests/shared/test_ledger.py", "-k", "turn"],
    ),
    Planted(
        "publishing replaces what there is",
        _LEDGER,
        "renditions_text({**attempt.renditions, **made})",
        "renditions_text(made)",
        ["tests/shared/test_ledger.py", "-k", "rendition"],
    ),
    Planted(
        "files that a rendition names are removed as leftovers",
        "shared/settling.py",
        "                if stored.key not in named:\n",
        "                if stored.key:\n",
        ["tests/shared/test_settling.py", "-k", "folder_in_use"],
    ),
    Planted(
        "leftovers of a folder in use stay",
        "shared/settling.py",
        "                if stored.key not in named:\n",
        "                if not stored.key:\n",
        ["tests/shared/test_settling.py", "-k", "folder_in_use"],
    ),
    Planted(
        "who is preempted is blamed",
        "worker/attempts.py",
        "row = await self._ledger.hand_back(image, 0.0)",
        "row = await self._ledger.count_loss(image)",
        ["tests/integration/test_preemption.py", "-k", "done_afterwards"],
    ),
    Planted(
        "nothing makes room",
        "worker/consumer.py",
        "            slot.preempt()\n",
        "            pass\n",
        ["tests/worker/test_consumer.py", "-k", "makes_room"],
    ),
    Planted(
        "a cancelled claim is not handed back",
        "worker/attempts.py",
        "                await self._ledger.hand_back(image, 0.0)\n",
        "                pass\n",
        ["tests/worker/test_attempts.py", "-k", "cancelled"],
    ),
    Planted(
        "workers wait for Redis",
        "worker/consumer.py",
        "            await self._take_from_ledger()\n",
        "            await self._wait_for_slot(_WAIT_SECONDS)\n",
        ["tests/crash/test_redis_away.py", "-k", "without_it"],
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
    names = [planted.name for planted in PLANTED]
    parser = argparse.ArgumentParser(prog="python -m tests.crash.planted", description="Plant faults and find them.")
    parser.add_argument("names", nargs="*", default=names, help=f"all of {', '.join(names)} unless given")
    asked = parser.parse_args().names
    if unknown := set(asked) - set(names):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    missed = 0
    for planted in (planted for planted in PLANTED if planted.name in asked):
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
