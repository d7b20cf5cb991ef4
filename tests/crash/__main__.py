"""The long form of the crash suite: `python -m tests.crash`. Prints what it does, a table, and draws the timeline."""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.crash.disks import EXT4, Disk
from tests.crash.faults import Faults
from tests.crash.storm import Outcome, Plan, rage
from tests.crash.timeline import draw
from tests.integration.service import ended

_REFUSED = ("408", "503", "507")


def table(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of a Markdown table of the faults, and what the clients saw meanwhile."""
    yield "| fault | times | seconds in all | acknowledged meanwhile | refused meanwhile, sent again |"
    yield "|---|---|---|---|---|"
    for name in (*Faults.SUDDEN, *Faults.LASTING):
        those = [fault for fault in outcome.faults if fault.name == name]
        if not those:
            continue
        if name in Faults.SUDDEN:
            yield f"| {name} | {len(those)} | a moment | | |"
            continue
        taken = sum(fault.began <= image.at <= fault.ended for image in outcome.saw.acknowledged for fault in those)
        refused = sum(
            fault.began <= one.at <= fault.ended and one.outcome in _REFUSED
            for one in outcome.saw.tries
            for fault in those
        )
        seconds = sum(fault.ended - fault.began for fault in those)
        yield f"| {name} | {len(those)} | {seconds:.0f} | {taken} | {refused} |"


def figures(outcome: Outcome) -> Iterator[str]:
    """Yield the lines of what was found."""
    images = outcome.images
    tries = Counter(one.outcome for one in outcome.saw.tries)
    yield f"acknowledged: {images['acknowledged']} of {outcome.plan.uploads}"
    yield f"tries: {sum(tries.values())}, {dict(tries)}"
    yield f"acknowledged and lost: {images['lost']}"
    yield f"stuck (queued or processing): {images['queued'] + images['processing']}"
    yield f"honest images failed: {images['failed']}"
    yield f"in the list exactly once: {images['listed exactly once']}"
    yield f"pictures decoded: {images['pictures decoded']}, torn or wrong: {images['pictures torn or wrong']}"
    yield f"images that lost an attempt: {images['lost an attempt']}"
    yield f"answers to reads: {dict(outcome.saw.reads)}"
    yield f"processes that ended by themselves: {len(outcome.exits)}"
    if claims := outcome.next_claims():
        yield (
            f"from kill -9 of a worker to the next claim of its image: median {statistics.median(claims):.1f} s, "
            f"worst {max(claims):.1f} s ({len(claims)} images)"
        )
    for fault, taken, refused, seconds in outcome.backlogs():
        yield (
            f"Valkey gone for {fault.ended - fault.began:.0f} s: {taken} acknowledged meanwhile, {refused} refused, "
            f"all ready {seconds:.1f} s after its return"
        )
    slowest = [fault.told for fault in outcome.faults if fault.told]
    yield f"deploys, the slowest exit of each: {', '.join(slowest)}"
    yield f"from the last upload to calm: {outcome.seconds_to_calm:.1f} s"
    unowned = {
        what: images[what] for what in ("not acknowledged, yet taken", "originals without a row", "forgotten drafts")
    }
    yield f"of uploads whose client was never told: {unowned}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=3.0, help="uploads a second")
    parser.add_argument("--sudden", type=int, default=60, help="how many kills and losses there are, at random moments")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="how long lasting faults last; 1: Valkey is gone for 60 s"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("docs/crash-timeline.png"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _own_disk(Path(folder)) as disk:
        return _storm(options, Path(folder), disk)


def _storm(options: argparse.Namespace, folder: Path, disk: Path | None) -> int:
    dice = random.Random(options.seed)
    sudden = [Faults.SUDDEN[number % len(Faults.SUDDEN)] for number in range(options.sudden)]
    lasting = [*Faults.LASTING, "deploy web", "deploy worker"]
    if disk is None:
        print("no disk of its own can be mounted here (that takes root): the disk will not be full")
        lasting.remove("disk full")
    dice.shuffle(sudden)
    dice.shuffle(lasting)
    plan = Plan(options.uploads, options.rate, [sudden, lasting], options.seed, options.scale)

    began = time.time()

    def tell(line: str) -> None:
        print(f"{time.time() - began:6.1f} s  {line}", flush=True)

    with ended(folder) as services:
        tell("starting Valkey, two web processes and two workers")
        data = None if disk is None else disk / "data"
        service = services.deploy(webs=2, workers=2, data=data, ASGI_LOOK_FREE_DISK_FLOOR="0")
        try:
            outcome = rage(service, plan, tell)
        finally:
            service.stop()
    print("", *table(outcome), "", *figures(outcome), sep="\n")
    draw(outcome, options.picture)
    print(f"drawn: {options.picture}")
    for line in outcome.wrong:
        print(f"WRONG: {line}")
    print("every promise was kept" if not outcome.wrong else f"{len(outcome.wrong)} things are wrong")
    return 1 if outcome.wrong else 0


@contextmanager
def _own_disk(folder: Path) -> Iterator[Path | None]:
    """Yield a small disk of the storm's own, which may be filled; None where nothing can be mounted."""
    if os.geteuid() != 0:
        yield None
        return
    with Disk.make(folder / "disk", EXT4, 4 * 1024**3).mounted(folder / "mounted") as mounted:
        yield mounted


if __name__ == "__main__":
    sys.exit(main())
