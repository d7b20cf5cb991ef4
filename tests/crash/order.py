"""The order of work when Redis forgets: how many images are claimed before others whose turn came first.

`python -m tests.crash.order [images]` queues 2,000 in two lanes, takes everything from Redis again and again while two
workers work them off, and counts.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.crash.backlog import new_ids, queue_up
from tests.crash.journal import Journal, journal_of, keep_journal
from tests.integration.evidence import query
from tests.integration.service import Deployed, ended

#: Most inversions, of all pairs of images.
MOST = 0.01
BULK = 3


@dataclass(frozen=True)
class Order:
    """The images as they were claimed: how many were claimed before one whose turn came first, and which pairs."""

    claims: int
    overtaking: int
    inversions: int
    flushes: int

    @property
    def share(self) -> float:
        """The inversions, of all pairs."""
        return self.inversions / max(1, self.claims * (self.claims - 1) // 2)

    def __str__(self) -> str:
        return (
            f"{self.claims:,} claims, Redis emptied {self.flushes} times: {self.inversions:,} inversions, "
            f"{self.share:.3%} of all pairs; {self.overtaking:,} images came before one of an earlier turn"
        )


def queue_in_lanes(service: Deployed, count: int) -> list[str]:
    """Queue images of which every other one is bulk work; return their ids in the order of work."""
    image_ids = new_ids(count)
    queue_up(service, image_ids, age=60)
    bulk = image_ids[1::2]
    names = ", ".join(f"'{image_id}'" for image_id in bulk)
    query(service, f"UPDATE images SET lane = {BULK} WHERE id IN ({names})")  # noqa: S608 - ids of ours
    return [*image_ids[::2], *bulk]


def queue_while_stopped(service: Deployed, count: int) -> list[str]:
    """Stop the workers, begin a journal, queue images in two lanes, and start as many workers again."""
    for worker in service.workers:
        worker.terminate()
        assert worker.wait(30) == 0
    keep_journal(service)
    in_order = queue_in_lanes(service, count)
    for number in range(len(service.workers)):
        service.start_worker_again(number)
    return in_order


def drain_and_flush(service: Deployed, in_order: list[str], *, flushes: int, patience: float) -> Order:
    """Empty Redis again and again, at even distances, until all images are ready; return how they were claimed."""
    left = "SELECT count(*) AS unfinished FROM images WHERE status <> 'ready'"
    done = 0
    deadline = time.monotonic() + patience
    while (unfinished := query(service, left)[0]["unfinished"]) > 0:
        assert time.monotonic() < deadline, f"{unfinished} images are not ready"
        assert [worker.poll() for worker in service.workers] == [None] * len(service.workers)
        if len(in_order) - unfinished >= (done + 1) * len(in_order) / (flushes + 1) and done < flushes:
            with redis.Redis(port=service.valkey_port) as client:
                client.flushall()
            done += 1
        time.sleep(0.05)  # between two looks
    return order_of(journal_of(service), in_order, done)


def order_of(journal: Journal, in_order: list[str], flushes: int = 0) -> Order:
    """Count the pairs of images of which the later one was claimed first."""
    rank = {image_id: number for number, image_id in enumerate(in_order)}
    claimed = sorted(
        (step.at, rank[image_id])
        for image_id, steps in journal.items()
        if image_id in rank
        for step in steps
        if step.attempt == 1 and step.status == "processing"
    )
    ranks = [number for _, number in claimed]
    inversions = sum(later < number for place, number in enumerate(ranks) for later in ranks[place + 1 :])
    overtaking = sum(any(later < number for later in ranks[place + 1 :]) for place, number in enumerate(ranks))
    return Order(len(ranks), overtaking, inversions, flushes)


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as folder, ended(Path(folder)) as services:
        service = services.deploy(workers=2)
        in_order = queue_while_stopped(service, count)
        print(f"{count:,} images are queued in two lanes", flush=True)
        order = drain_and_flush(service, in_order, flushes=5, patience=3600)
    print(order)
    return 0 if order.claims == count and order.share <= MOST else 1


if __name__ == "__main__":
    sys.exit(main())
