"""The picture of a storm: what was done to the service, what its clients saw, how long each image took."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure

from tests.crash.faults import Faults
from tests.crash.storm import Outcome

_GOOD, _LATE, _BAD, _FAULT = "#2a7f62", "#e08a1e", "#c0392b", "#5b5f97"


def draw(outcome: Outcome, path: Path) -> None:
    """Draw the timeline into a PNG."""
    began = outcome.began
    names = [name for name in (*Faults.LASTING, *Faults.SUDDEN) if any(f.name == name for f in outcome.faults)]
    figure = Figure(figsize=(12, 6.5 + 0.25 * len(names)), layout="constrained")
    lanes, rates, latencies = figure.subplots(3, 1, sharex=True, height_ratios=(0.25 * len(names), 1.2, 1.8))

    for fault in outcome.faults:
        lane = names.index(fault.name)
        if fault.ended > fault.began:
            lanes.barh(lane, fault.ended - fault.began, left=fault.began - began, height=0.6, color=_FAULT)
            for panel in (rates, latencies):
                panel.axvspan(fault.began - began, fault.ended - began, color=_FAULT, alpha=0.09, linewidth=0)
        else:
            lanes.plot(fault.began - began, lane, "x", color=_BAD, markersize=7, markeredgewidth=2)
    lanes.set_yticks(range(len(names)), names)
    lanes.invert_yaxis()
    lanes.set_title("What was done to the service", loc="left", fontsize=11)
    lanes.grid(axis="x", alpha=0.3)

    seconds = Counter((int(one.at - began), _kind(one.outcome)) for one in outcome.saw.tries)
    last = max(second for second, _ in seconds) + 1
    bottom = [0] * last
    for kind, colour in (("acknowledged", _GOOD), ("sent again", _LATE), ("vanished", "#b8b8b8")):
        heights = [seconds[second, kind] for second in range(last)]
        rates.bar(range(last), heights, 1.0, bottom, color=colour, label=kind, align="edge")
        bottom = [below + height for below, height in zip(bottom, heights, strict=True)]
    rates.set_title("Uploads a second, as their clients saw them end", loc="left", fontsize=11)
    rates.legend(loc="upper right", ncols=3, fontsize=8)

    for label, colour, lost in (("ready at the first attempt", _GOOD, False), ("after a lost attempt", _LATE, True)):
        points = [
            (image.at - began, step.at - image.began)
            for image in outcome.saw.acknowledged
            for step in outcome.journal.get(image.image_id, [])
            if step.status == "ready" and (step.attempt > 1) is lost
        ]
        if points:
            across, up = zip(*points, strict=True)
            latencies.plot(across, up, ".", color=colour, markersize=5, label=f"{label} ({len(points)})")
    latencies.set_yscale("log")
    latencies.set_yticks([0.1, 1, 10, 100], ["0.1 s", "1 s", "10 s", "100 s"])
    latencies.set_title(
        "From the first byte sent to ready, each image a point at the time of its 202", loc="left", fontsize=11
    )
    latencies.legend(loc="upper right", fontsize=8)
    latencies.grid(alpha=0.3)
    latencies.set_xlabel("seconds")

    images = outcome.images
    what = outcome.faults[0].name if len(outcome.faults) == 1 else f"{len(outcome.faults)} faults"
    figure.suptitle(
        f"{images['acknowledged']} uploads acknowledged, {what}: {images['lost']} lost, "
        f"{images['queued'] + images['processing']} stuck, {images['failed']} failed, "
        f"{images['pictures torn or wrong']} of {images['pictures decoded']} pictures torn or wrong",
        fontsize=13,
    )
    figure.savefig(path, dpi=100)


def _kind(outcome: str) -> str:
    return {"202": "acknowledged", "201": "acknowledged", "vanished": "vanished"}.get(outcome, "sent again")
