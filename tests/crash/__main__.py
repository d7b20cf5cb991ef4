"""The long form of the crash suite: `python -m tests.crash [storm|absence]`. Prints what it does, and draws it.

First Valkey is gone for a minute, and nothing else happens; then comes a storm of all faults, with its table.
"""

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
from tests.crash.storm import Absence, Outcome, Plan, rage
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
    yield from map(told, outcome.absences())
    slowest = [fault.told for fault in outcome.faults if fault.told]
    yield f"deploys, the slowest exit of each: {', '.join(slowest)}"
    yield f"from the last upload to calm: {outcome.seconds_to_calm:.1f} s"
    unowned = {
        what: images[what] for what in ("not acknowledged, yet taken", "originals without a row", "forgotten drafts")
    }
    yield f"of uploads whose client was never told: {unowned}"


def told(absence: Absence) -> str:
    """Return what an absence of Valkey cost, in a line."""
    if not absence.to_ready:
        return f"Valkey gone for {absence.seconds:.0f} s: nothing was acknowledged meanwhile"
    return (
        f"Valkey gone for {absence.seconds:.0f} s: {absence.acknowledged} acknowledged meanwhile, "
        f"{absence.refused} refused; from upload to ready median {statistics.median(absence.to_ready):.2f} s, "
        f"worst {max(absence.to_ready):.2f} s; renders of an image: {min(absence.attempts)} to "
        f"{max(absence.attempts)}; all ready {absence.caught_up:.1f} s after its return"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description=__doc__)
    parser.add_argument("parts", nargs="*", help="storm, absence: both unless given")
    parser.add_argument("--uploads", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=3.0, help="uploads a second")
    parser.add_argument("--sudden", type=int, default=60, help="how many kills and losses there are, at random moments")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="how long lasting faults last; 1: Valkey is gone for 60 s"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--picture", type=Path, default=Path("docs/crash-timeline.png"))
    parser.add_argument("--absence-picture", type=Path, default=Path("docs/redis-away.png"))
    options = parser.parse_args()
    wrong = 0
    if not options.parts or "absence" in options.parts:
        with tempfile.TemporaryDirectory() as folder:
            wrong += _absence(options, Path(folder))
    if not options.parts or "storm" in options.parts:
        with tempfile.TemporaryDirectory() as folder, _own_disk(Path(folder)) as disk:
            wrong += _storm(options, Path(folder), disk)
    return int(wrong > 0)


#: Seconds of uploads before Valkey goes.
_BEFORE_SECONDS = 5.0
#: Seconds of its absence, with a scale of 1.
_GONE_SECONDS = 60.0


def _absence(options: argparse.Namespace, folder: Path) -> int:
    """Have Valkey gone, and nothing else, under steady uploads that end when it returns; return what is wrong."""
    uploads = round((_BEFORE_SECONDS + _GONE_SECONDS * options.scale) * options.rate)
    plan = Plan(uploads, options.rate, [["Valkey gone"]], options.seed, options.scale, begins=_BEFORE_SECONDS)
    print("Valkey goes, and nothing else: two web processes, two workers", flush=True)
    with ended(folder) as services:
        service = services.deploy(webs=2, workers=2)
        try:
            outcome = rage(service, plan, lambda line: print(line, flush=True))
        finally:
            service.stop()
    (absence,) = outcome.absences()
    print(told(absence), f"from the return to calm: {outcome.seconds_to_calm:.1f} s", "", sep="\n")
    draw(outcome, options.absence_picture)
    return _told_wrong(outcome, options.absence_picture)


def _told_wrong(outcome: Outcome, picture: Path) -> int:
    print(f"drawn: {picture}")
    for line in outcome.wrong:
        print(f"WRONG: {line}")
    print("every promise was kept" if not outcome.wrong else f"{len(outcome.wrong)} things are wrong")
    return len(outcome.wrong)


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
    return _told_wrong(outcome, options.picture)


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
