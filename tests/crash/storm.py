"""A storm: a steady stream of uploads under faults, then calm, then a look at everything that was promised."""

from __future__ import annotations

import io
import json
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from tests.crash.clients import Clients, Observations
from tests.crash.faults import Fault, Faults, Supervisor
from tests.crash.journal import Journal, claimed_again, journal_of, keep_journal
from tests.crash.numbered import number_in
from tests.crash.retrying import ids_in_list
from tests.integration.evidence import files_of, is_at_rest, named_by, rows_of
from tests.integration.service import Deployed

#: Seconds from the last fault until everything must be final: a lease, a pause of a sick worker, and the backlog.
CALM_SECONDS = 240.0


@dataclass(frozen=True)
class Plan:
    """What is to happen. Faults of one sequence follow each other; the sequences go on side by side."""

    uploads: int
    rate: float
    sequences: Sequence[Sequence[str]]
    seed: int = 1
    scale: float = 1.0
    uploaders: int = 6
    readers: int = 2
    #: Seconds after which the first fault of each sequence happens; at random unless told.
    begins: float | None = None


@dataclass(frozen=True)
class Absence:
    """A time without Valkey, and what became of the uploads that were acknowledged meanwhile."""

    fault: Fault
    acknowledged: int
    refused: int
    #: From the first byte sent to ready, in seconds, of each that was ready in the end.
    to_ready: Sequence[float]
    #: The attempts at each of them.
    attempts: Sequence[int]
    #: From Valkey's return to the last of them ready, in seconds.
    caught_up: float

    @property
    def seconds(self) -> float:
        return self.fault.ended - self.fault.began


@dataclass
class Outcome:
    """What happened, and what was found wrong afterwards, in words; `wrong` is empty where every promise was kept."""

    plan: Plan
    began: float
    saw: Observations
    faults: list[Fault]
    journal: Journal
    exits: list[tuple[float, str, str]]
    seconds_to_calm: float
    wrong: list[str] = field(default_factory=list)
    #: Images in the ledger, by what there is to say about them.
    images: Counter[str] = field(default_factory=Counter)

    def next_claims(self) -> list[float]:
        """Return, for each image that a killed worker was at, the seconds from the kill to the next claim.

        Where another fault that lasts kept everybody from claiming anything, there is no such figure.
        """
        lasting = [fault for fault in self.faults if fault.name in Faults.LASTING]
        claims = []
        for kill in self.faults:
            if kill.name == "kill worker" and kill.pid is not None:
                for claimed in claimed_again(self.journal, kill.pid, kill.began):
                    disturbed = any(fault.began < claimed and fault.ended > kill.began for fault in lasting)
                    if not disturbed:
                        claims.append(claimed - kill.began)
        return claims

    def absences(self) -> Iterator[Absence]:
        """Yield each absence of Valkey."""
        for fault in self.faults:
            if fault.name != "Valkey gone":
                continue
            meanwhile = [image for image in self.saw.acknowledged if fault.began <= image.at <= fault.ended]
            refused = [
                one for one in self.saw.tries if fault.began <= one.at <= fault.ended and one.outcome in ("503", "507")
            ]
            steps = {image: self.journal.get(image.image_id, []) for image in meanwhile}
            ready = {image: [step.at for step in taken if step.status == "ready"] for image, taken in steps.items()}
            last = max((at for ats in ready.values() for at in ats), default=fault.ended)
            yield Absence(
                fault,
                len(meanwhile),
                len(refused),
                [min(ats) - image.began for image, ats in ready.items() if ats],
                [max((step.attempt for step in taken), default=0) for taken in steps.values()],
                max(0.0, last - fault.ended),
            )


def rage(service: Deployed, plan: Plan, tell: Callable[[str], None] = lambda line: None) -> Outcome:
    """Have the plan happen to a service that is ready, wait for calm, check every promise."""
    keep_journal(service)
    supervisor = Supervisor(service)
    faults = Faults(service, supervisor, random.Random(f"{plan.seed} faults"), plan.scale)
    clients = Clients(
        service,
        uploads=plan.uploads,
        rate=plan.rate,
        uploaders=plan.uploaders,
        readers=plan.readers,
        seed=plan.seed,
    )
    over = threading.Event()
    broken: list[BaseException] = []
    troubles = [
        threading.Thread(target=_trouble, args=(plan, number, faults, over, broken, tell), daemon=True)
        for number in range(len(plan.sequences))
    ]
    began = time.time()
    clients.start()
    for trouble in troubles:
        trouble.start()
    last_told = began
    while clients.are_uploading or any(trouble.is_alive() for trouble in troubles):
        supervisor.look()
        if time.time() - last_told > 10:
            last_told = time.time()
            tell(f"{len(clients.saw.acknowledged)} of {plan.uploads} acknowledged, {len(faults.done)} faults so far")
        time.sleep(0.05)  # between two looks
        if broken:
            over.set()
            clients.stop()
            raise broken[0]
    ended = time.time()
    tell("all sent, waiting for calm")
    while not (calm := _is_calm(service)) and time.time() - ended < CALM_SECONDS:
        supervisor.look()
        time.sleep(0.1)  # between two looks
    clients.stop()
    outcome = Outcome(
        plan,
        began,
        clients.saw,
        faults.done,
        journal_of(service),
        supervisor.exits,
        time.time() - ended,
    )
    if not calm:
        outcome.wrong.append(f"after {CALM_SECONDS:.0f} s of calm not everything is final and paid")
    # A deploy may have ended just now, and its web process not have begun to listen.
    service.until(service.is_ready, what="readiness")
    tell("calm, looking at every picture")
    _check(service, outcome)
    return outcome


def _trouble(
    plan: Plan,
    number: int,
    faults: Faults,
    over: threading.Event,
    broken: list[BaseException],
    tell: Callable[[str], None],
) -> None:
    """Have one sequence of faults happen, at random moments that are spread over the time of the uploads."""
    dice = random.Random(f"{plan.seed} sequence {number}")
    to_come = deque(plan.sequences[number])
    began, step = time.time(), plan.uploads / plan.rate / len(to_come)
    try:
        for position in range(len(to_come)):
            after = (position + dice.uniform(0.1, 0.9)) * step
            if position == 0 and plan.begins is not None:
                after = plan.begins
            if over.wait(max(0.0, began + after - time.time())):
                return
            while (fault := faults.happen(to_come[0])) is None:
                # Whom it should happen to is away by another fault: what comes next goes first.
                to_come.rotate(-1)
                if over.wait(0.2):
                    return
            to_come.popleft()
            lasted = f" for {fault.ended - fault.began:.1f} s" if fault.ended > fault.began else ""
            tell(f"{fault.name}{lasted}{fault.told and ', ' + fault.told}")
    except BaseException as exc:
        broken.append(exc)


def _is_calm(service: Deployed) -> bool:
    rows = rows_of(service)
    return all(row["status"] in ("ready", "failed") and is_at_rest(row) for row in rows.values())


def _check(service: Deployed, outcome: Outcome) -> None:
    """Note everything that is not as promised."""
    wrong, saw = outcome.wrong, outcome.saw
    wrong += saw.wrong
    wrong += [f"{name} ended by itself: {how}" for _, name, how in outcome.exits]
    rows = rows_of(service)
    acknowledged = {image.image_id: image for image in saw.acknowledged}
    if len(acknowledged) != outcome.plan.uploads:
        wrong.append(f"{len(acknowledged)} uploads were acknowledged, of {outcome.plan.uploads}")
    outcome.images["acknowledged"] = len(acknowledged)
    outcome.images["lost"] = len(lost := acknowledged.keys() - rows.keys())
    wrong += [f"{image_id} was acknowledged and is gone" for image_id in sorted(lost)]
    for status in ("queued", "processing", "failed"):
        outcome.images[status] = len(those := [row for row in rows.values() if row["status"] == status])
        wrong += [f"{row['id']} is {status}: {row['error_type']}, {row['losses']} losses" for row in those]
    unpaid = [row for row in rows.values() if row["debts"]]
    wrong += [f"{row['id']} still owes {', '.join(row['debts'])}" for row in unpaid]
    outcome.images["not acknowledged, yet taken"] = len(rows.keys() - acknowledged.keys())
    outcome.images["lost an attempt"] = sum(row["attempt"] > 1 for row in rows.values())

    listed = ids_in_list(service)
    wrong += [f"{name} is in the list {times} times" for name, times in Counter(listed).items() if times != 1]
    ready = {row["id"] for row in rows.values() if row["status"] == "ready"}
    if set(listed) != ready:
        wrong.append(f"the list differs from the ledger by {sorted(set(listed) ^ ready)}")
    outcome.images["listed exactly once"] = len(set(listed))

    # Someone whose upload was not acknowledged sends it again: a number may have several images, never none.
    numbers = {digest: number for number, digest in saw.digests.items()}
    for image_id in sorted(ready):
        number = numbers.get(rows[image_id]["original_sha256"])
        if number is None:
            wrong.append(f"{image_id} is made from bytes that nobody sent")
            continue
        if image_id in acknowledged and acknowledged[image_id].number != number:
            wrong.append(f"{image_id} is another upload's")
        for complaint in _pictures_wrong(service, image_id, number):
            wrong.append(complaint)
            outcome.images["pictures torn or wrong"] += 1
        outcome.images["pictures decoded"] += len(json.loads(rows[image_id]["renditions"]))
    _check_files(service, rows, outcome)


def _check_files(service: Deployed, rows: dict[str, dict[str, Any]], outcome: Outcome) -> None:
    files = files_of(service)
    for path in files:
        kind, *rest = path.split("/")
        if kind == "drafts":
            # Of processes that were killed; swept when they are an hour old.
            outcome.images["forgotten drafts"] += 1
        elif kind == "originals":
            if rest[-1] not in rows:
                # Of uploads that were not acknowledged; removed by a person's command.
                outcome.images["originals without a row"] += 1
        elif rest[-3] not in rows or "/".join(rest[-2:]) not in named_by(rows[rest[-3]]):
            outcome.wrong.append(f"{path} is a leftover")


def _pictures_wrong(service: Deployed, image_id: str, number: int) -> Iterator[str]:
    record = service.get(f"/images/{image_id}").json
    for path in (record["image"], *record["thumbnails"]):
        answer = service.get(path)
        if answer.status != 200:
            yield f"{path} gets {answer.status}"
            continue
        with Image.open(io.BytesIO(answer.body)) as picture:
            try:
                said = number_in(picture)
            except OSError as exc:
                yield f"{path} is torn: {exc}"
                continue
            size = (
                path.rpartition("/")[2].removesuffix(".jpeg")
                if "thumbnails" in path
                else "{}x{}".format(*record["size"])
            )
            if said != number or "{}x{}".format(*picture.size) != size:
                yield f"{path} shows number {said} at {picture.size}, not {number} at {size}"
