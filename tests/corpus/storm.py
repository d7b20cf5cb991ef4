"""The storm: every specimen and many good photographs, uploaded by a few clients at a time to a running service."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.corpus.specimens import Specimen
from tests.corpus.watch import Watch
from tests.integration.evidence import lines_of, rows_of
from tests.integration.service import Deployed, Response

CLIENTS = 6
#: How often each good photograph is uploaded alone, and how often in the midst of the others.
TIMES_ALONE, TIMES_AMONG = 3, 3
#: Seconds from its upload until an image must be final, behind everything that is before it.
PATIENCE = 150.0

_EDGE = b"edge-of-a-part"


@dataclass(frozen=True)
class Fate:
    """What became of one file: an outcome as specimens have it, or in words what should not have come."""

    name: str
    outcome: str
    detail: str = ""
    image_id: str = ""


@dataclass(frozen=True)
class Rendering:
    """How long a good photograph took from its claim to ready, and how long it takes alone; seconds."""

    name: str
    took: float
    alone: float
    #: Processor time that neither the service nor its clients took meanwhile.
    foreign: float

    @property
    def late(self) -> float:
        return self.took - self.alone


@dataclass
class Storm:
    """What came of it all."""

    seconds: float = 0.0
    fates: list[Fate] = field(default_factory=list)
    good: list[Fate] = field(default_factory=list)
    #: Answers to whatever was asked, by their status.
    answers: Counter[int] = field(default_factory=Counter)
    renderings: list[Rendering] = field(default_factory=list)
    #: How many renditions were fetched and looked at.
    fetched: int = 0
    #: Most memory of every process, in bytes: by its kind and its pid.
    peaks: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    #: Exit codes of the children that were replaced.
    replaced: Counter[int] = field(default_factory=Counter)
    #: Names of images an attempt of which was lost, and how many were.
    lost: dict[str, int] = field(default_factory=dict)
    #: Processes of the service that are not there any more.
    gone: list[str] = field(default_factory=list)
    #: What the service's log calls an error, and whatever was printed beside the log.
    errors: list[str] = field(default_factory=list)


def rage(service: Deployed, specimens: Sequence[Specimen], photographs: Mapping[str, bytes]) -> Storm:
    """Upload everything, wait for the last, and look at what is there to be seen."""
    storm = Storm()
    with Watch(service) as watch:
        alone = _time_alone(service, photographs, storm)
        began = time.time()
        _upload_all(service, _mixed(specimens, photographs), storm)
        storm.seconds = time.time() - began
    storm.peaks = watch.peaks
    photos = {fate.image_id: fate.name for fate in storm.good}
    for image_id, moment, took in _published(service):
        if image_id in photos:
            name = photos[image_id]
            foreign = watch.foreign_seconds(moment - took, moment)
            storm.renderings.append(Rendering(name, took, alone[name], foreign))
    storm.replaced = Counter(line["exit"] for line in lines_of(service, message="replacing a child"))
    names = {fate.image_id: fate.name for fate in (*storm.fates, *storm.good)}
    rows = rows_of(service)
    storm.lost = {names.get(name, name): row["losses"] for name, row in rows.items() if row["losses"]}
    lost_lines = Counter(line["image"] for line in lines_of(service) if "was lost" in line["message"])
    storm.lost |= {names.get(name, name): count for name, count in lost_lines.items()}
    storm.gone = [str(process.args) for process in (*service.webs, *service.workers) if process.poll() is not None]
    storm.errors = _errors_in(service.output)
    return storm


def _errors_in(output: str) -> list[str]:
    """Return the lines of errors, and of a traceback, say, in what web and worker have printed since they are up."""
    lines = output.rpartition("\n")[0].splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("{"))
    return [line for line in lines[first:] if line[:1] != "{" or json.loads(line)["level"] in ("ERROR", "CRITICAL")]


def _time_alone(service: Deployed, photographs: Mapping[str, bytes], storm: Storm) -> dict[str, float]:
    names: dict[str, str] = {}
    for _ in range(TIMES_ALONE):
        for name, content in photographs.items():
            fate = _fate_of(service, name, content, storm, in_form=False)
            assert fate.outcome == "ready", fate
            names[fate.image_id] = name
    taken = defaultdict(list)
    for image_id, _, took in _published(service):
        taken[names[image_id]].append(took)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


def _published(service: Deployed) -> list[tuple[str, float, float]]:
    """Return each publication: which image, when, and how many seconds after its claim."""
    lines = lines_of(service, message="published")
    return [(line["image"], datetime.fromisoformat(line["time"]).timestamp(), line["seconds"]) for line in lines]


def _mixed(specimens: Sequence[Specimen], photographs: Mapping[str, bytes]) -> deque[tuple[str, bytes, bool]]:
    """Return the order of uploads, each with whether it is a good one: these are spread evenly over the others."""
    dice = random.Random("order")
    bad = dice.sample(specimens, len(specimens))
    # What takes longest begins in time: waiting for it at the end, the rest of the storm would be over.
    bad.sort(key=lambda specimen: "render-timed-out" not in specimen.outcomes or specimen.kind != "bombs")
    good = list(photographs.items()) * TIMES_AMONG
    dice.shuffle(good)
    order = [((number + 0.5) / len(bad), one.name, one.content, False) for number, one in enumerate(bad)]
    order += [((number + 0.5) / len(good), name, content, True) for number, (name, content) in enumerate(good)]
    return deque((name, content, is_good) for _, name, content, is_good in sorted(order, key=lambda one: one[0]))


def _upload_all(service: Deployed, files: deque[tuple[str, bytes, bool]], storm: Storm) -> None:
    def upload() -> None:
        while True:
            try:
                name, content, is_good = files.popleft()
            except IndexError:
                return
            # One of two comes in a form, by its name; the other calls itself a JPEG, whatever it is.
            fate = _fate_of(service, name, content, storm, in_form=len(files) % 2 == 0)
            (storm.good if is_good else storm.fates).append(fate)

    clients = [threading.Thread(target=upload, daemon=True) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()


def _fate_of(service: Deployed, name: str, content: bytes, storm: Storm, *, in_form: bool) -> Fate:
    headers, body = {"Prefer": "wait=20", "Content-Type": "image/jpeg"}, content
    if in_form:
        headers["Content-Type"] = f"multipart/form-data; boundary={_EDGE.decode()}"
        head = b'Content-Disposition: form-data; name="image"; filename="%s"\r\n\r\n' % name.encode()
        body = b"--%s\r\n%s%s\r\n--%s--\r\n" % (_EDGE, head, content, _EDGE)
    try:
        answer = _counted(storm, lambda: service.request("POST", "/images", body, headers))
        if answer.status not in (201, 202):
            problem = answer.json
            record = problem.get("image") or {}
            return Fate(name, _short(problem["type"]), problem.get("detail") or problem["title"], record.get("id", ""))
        record, deadline = answer.json, time.monotonic() + PATIENCE
        while record["status"] not in ("ready", "failed"):
            if time.monotonic() > deadline:
                return Fate(name, f"still {record['status']} after {PATIENCE:.0f} s", image_id=record["id"])
            path = f"/images/{record['id']}"
            record = _counted(storm, lambda path=path: service.get(path, {"Prefer": "wait=20"})).json  # type: ignore[misc] # a default is no argument
    except (OSError, http.client.HTTPException) as exc:
        return Fate(name, f"no answer: {exc!r}")
    error: dict[str, Any] = record["error"] or {"type": "ready", "detail": ""}
    return Fate(name, _short(error["type"]), error["detail"], record["id"])


def _short(problem_type: str) -> str:
    return problem_type.rpartition(":")[2]


def _counted(storm: Storm, ask: Callable[[], Response]) -> Response:
    answer = ask()
    storm.answers[answer.status] += 1
    return answer
