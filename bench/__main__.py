"""The benchmarks of what users feel: `python -m bench`, some half an hour on a machine that does nothing else.

Runs every module of `bench.suite`, each in a process of its own, prints a table, and writes docs/performance.md,
docs/figures.json and the plots.

    python -m bench --quick                    a trial: three rounds, smaller, nothing is written
    python -m bench --only render,serving      these alone; the other figures on the page stay
    python -m bench --out FOLDER               written there instead
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench import machine, report, suite
from bench.figures import ROUNDS
from launch.processes import HERE

QUICK_ROUNDS = 3


def main() -> int:
    words = argparse.ArgumentParser(prog="python -m bench", description=__doc__.splitlines()[0] if __doc__ else None)
    words.add_argument("--quick", action="store_true", help="three rounds, smaller; written only with --out")
    words.add_argument("--rounds", type=int, help=f"{ROUNDS} unless told")
    words.add_argument("--only", default=",".join(suite.MODULES), help="modules, with commas between them")
    words.add_argument("--out", type=Path, help="the folder to write to, docs unless told")
    asked = words.parse_args()
    names = asked.only.split(",")
    if unknown := set(names) - set(suite.MODULES):
        words.error(f"no such module: {', '.join(sorted(unknown))}; there are {', '.join(suite.MODULES)}")
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    out = asked.out or (None if asked.quick else HERE / "docs")

    busy = machine.busy_cores()
    if busy > machine.MOST_OTHERS:
        print(f"others use {busy:.1f} cores: what is timed now says little", file=sys.stderr, flush=True)
    told = {}
    there = [name for name in names if suite.is_there(name)]
    for number, name in enumerate(names, 1):
        if name not in there:
            print(f"bench.{name} is not in this checkout: skipped", file=sys.stderr, flush=True)
            continue
        print(f"[{number}/{len(names)}] bench.{name}, {rounds} rounds", file=sys.stderr, flush=True)
        told[name] = one = suite.run(name, rounds)
        ending = f"failed: {one.failure}" if one.failure else "done"
        print(f"bench.{name} {ending}, {one.seconds:.0f} s", file=sys.stderr, flush=True)

    print("\n" + report.tables(told))
    if out is not None:
        report.write(told, out)
    return int(any(one.failure for one in told.values()))


if __name__ == "__main__":
    sys.exit(main())
