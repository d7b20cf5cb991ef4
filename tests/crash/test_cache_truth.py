"""Promise 7 among many clients at several web processes: nobody sees what is older than what somebody saw before.

./test tests/crash/test_cache_truth.py -n 0 -s        prints what was done and seen
"""

from __future__ import annotations

import math
import random
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from operator import itemgetter

import pytest
import redis

from launch.processes import free_port
from tests.apart.machines import hub
from tests.crash.crowd import Crowd
from tests.crash.sightings import Sighting
from tests.integration.evidence import lines_of, rows_of
from tests.integration.faults import freeze, frozen, thaw
from tests.integration.service import Deployed, Services, is_apart

pytestmark = pytest.mark.processes

#: Reads of records and lists while Redis is there, at the least: one that stands still is not away.
READS = 10_000
READS_IN_TROUBLE = 4_000
#: Seconds for which the contract allows stale answers once a Redis that was away answers again.
GRACE = 2.0
#: Seconds for which it allows a web process to send a picture that it holds, and that another one has deleted.
HELD = 2.0
#: Seconds that only a machine in need of rest takes.
_PATIENCE = 400.0
_SEED = 3
#: The log tells the time to the millisecond.
_LOG_SECONDS = 0.001

#: From when until when Redis was away, or back for less than two seconds.
Absences = list[tuple[float, float]]


@dataclass
class Trouble:
    """What troubles a service with a crowd at work, and until when that excuses a stale answer."""

    service: Deployed
    crowd: Crowd
    dice: random.Random = field(default_factory=lambda: random.Random(_SEED))
    done: list[str] = field(default_factory=list)
    frozen: Absences = field(default_factory=list)

    def stumble(self) -> None:
        """Have a process stand still for a moment, as on a busy machine, perhaps longer than Redis' deadline.

        Between a commit and the change of its tokens, say, when others can see already what no copy tells yet.
        """
        with frozen(self.dice.choice([*self.service.webs, *self.service.workers])):
            self.crowd.wait(self.dice.uniform(0.002, 0.1))
        self.done.append("stumble")
        self.crowd.wait(self.dice.uniform(0.02, 0.2))

    def freeze_valkey(self) -> None:
        since = time.monotonic()
        with ExitStack() as stack:
            for valkey in self.service.valkeys:
                stack.enter_context(frozen(valkey))
            self.crowd.wait(self.dice.uniform(1.0, 4.0))
        self.frozen.append((since, time.monotonic() + GRACE))
        self.done.append("freeze of Valkey")

    def flush(self) -> None:
        for port in self.service.valkey_ports:
            with closing(redis.Redis(port=port, socket_timeout=10)) as client:
                client.flushall()
        self.done.append("FLUSHALL")

    def kill_web(self) -> None:
        """Kill a web process, though not one that owes Redis what it did while it left it alone; start it again."""
        number = self.dice.randrange(len(self.service.webs))
        web = self.service.webs[number]

        def is_stopped_in_peace() -> bool:
            freeze(web)
            if self.absences and self.absences[-1][1] == math.inf:
                thaw(web)
                return False
            return True

        self.service.until(is_stopped_in_peace, what="every web's trust in Redis")
        web.kill()
        web.wait()
        self.service.start_web_again(number)
        self.service.until(lambda: self.service.is_ready(number), what="the web's return")
        self.done.append("kill -9 of web")

    @property
    def absences(self) -> Absences:
        """When Valkey was frozen, and when a web process left it alone for whatever reason.

        That is until the last of them asks it again, and for no shorter time than the contract allows.
        """
        to_monotonic = time.monotonic() - time.time()
        found: Absences = []
        alone = 0
        for line in lines_of(self.service, logger="shared.redis.clients"):
            moment = datetime.fromisoformat(line["time"]).timestamp() + to_monotonic
            if line["message"] == "redis is left alone":
                if not alone:
                    found.append((moment - _LOG_SECONDS, math.inf))
                alone += 1
            elif line["message"] == "redis is asked again":
                alone -= 1
                if not alone:
                    since = found[-1][0]
                    found[-1] = (since, max(since + GRACE, moment + _LOG_SECONDS))
        return sorted([*found, *self.frozen])

    def reads(self) -> int:
        """Count the reads of records and lists that were made while Redis was there."""
        absences = self.absences
        return sum(is_read(seen) and not is_within(absences, seen) for seen in tuple(self.crowd.seen.all))


def is_read(seen: Sighting) -> bool:
    return seen.request.startswith("GET /images") and ".jpeg" not in seen.request


def is_within(absences: Absences, seen: Sighting) -> bool:
    return any(since <= seen.ended and seen.began <= until for since, until in absences)


def deployed(services: Services) -> Deployed:
    """Return a service of three web processes and a worker that is a stretch away from Redis.

    What it publishes can be seen by others for a while before Redis has been told of it.
    """
    service = services.deploy(webs=3, workers=1, ASGI_LOOK_MIN_THUMB_SIZE="16")
    # One that is near would take every job before the other has heard of it.
    near = service.workers.pop()
    near.terminate()
    near.wait()
    urls = {port: url_from_afar(service, port, milliseconds=20) for port in service.valkey_ports}
    service.start_worker(REDIS_URL=urls[service.valkey_port], CACHE_REDIS_URL=urls[service.cache_port])
    service.until(lambda: len(lines_of(service, message="the worker is ready")) == 2, what="the far worker's readiness")
    return service


def url_from_afar(service: Deployed, target: int, milliseconds: int) -> str:
    """Return the URL of the Redis on the port `target` at the other end of a stretch that takes so long."""
    host, port = hub() if is_apart() else "127.0.0.1", free_port()
    command = [sys.executable, "-m", "tests.crash.distance", host, str(port), str(target), str(milliseconds)]
    service.start(command)

    def is_open() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex((host, port)) == 0

    service.until(is_open, what="a way to Redis")
    return f"redis://{host}:{port}/0"


@contextmanager
def a_crowd_at(service: Deployed) -> Iterator[Trouble]:
    """Have six writers and four readers at work for the block."""
    crowd = Crowd(service, writers=6, readers=4, seed=_SEED)
    with crowd.at_work():
        yield Trouble(service, crowd)


def go_on(trouble: Trouble, reads: int, steps: Sequence[Callable[[], None]]) -> None:
    """Take the steps, then stumble, until so many reads were made while Redis was there."""
    deadline = time.monotonic() + _PATIENCE
    remaining = list(steps)
    # The first figure is cheaper.
    while remaining or trouble.crowd.reads < reads or trouble.reads() < reads:
        if remaining:
            remaining.pop()()
        for _ in range(10):
            trouble.stumble()
        assert trouble.crowd.is_whole
        assert time.monotonic() < deadline, "there are too few reads"


def assert_true(trouble: Trouble, reads: int) -> None:
    """Print what the crowd did and saw; assert that nothing was wrong, nor stale while Redis was there.

    But for a picture, for two seconds, at another process than the one that deleted it.
    """
    crowd, absences = trouble.crowd, trouble.absences
    stale = crowd.seen.stale()
    held = [each for each in stale if crowd.seen.is_held_picture(each, HELD)]
    others = [each for each in stale if each not in held]
    unexcused = [each for each in others if not is_within(absences, each.sighting)]
    figures: dict[str, object] = {
        **dict(sorted(crowd.counts.items())),
        "images deleted": len(crowd.seen.deleted),
        "images retried": len(crowd.seen.retried),
        **{f"done: {what}": trouble.done.count(what) for what in sorted(set(trouble.done))},
        "times that Redis was away": len(absences),
        "reads while Redis was there": trouble.reads(),
        "stale while Redis was there": len(unexcused),
        "stale while Redis was away": len(others) - len(unexcused),
        "worst of these, in seconds": round(max((each.seconds for each in others), default=0.0), 3),
        "pictures held elsewhere": len(held),
        "the last of these, in seconds": round(max((each.seconds for each in held), default=0.0), 3),
    }
    print("\n" + "\n".join(f"{name:32} {figure:>9}" for name, figure in figures.items()))
    assert [str(each) for each in unexcused[:20]] == []
    assert crowd.wrong == []
    assert trouble.reads() >= reads
    assert min(crowd.counts[f"{kind}: Hit"] for kind in ("lists", "records", "pictures")) > 0


def until_all_webs_agree(service: Deployed) -> None:
    """Return once everything is settled, and each web process has a list of the very images that are ready."""

    def is_settled() -> bool:
        rows = rows_of(service).values()
        return all(row["status"] in ("ready", "failed", "deleting") and "tokens" not in row["debts"] for row in rows)

    service.until(is_settled, seconds=60, what="the end of all work")
    ready = [row for row in rows_of(service).values() if row["status"] == "ready"]
    expected = [row["id"] for row in sorted(ready, key=itemgetter("sequence"))]
    for web in range(len(service.webs)):
        service.until(
            lambda web=web: [record["id"] for record in service.get("/images?limit=1000", web=web).json] == expected,  # type: ignore[misc] # a default is no argument
            what=f"the whole list of web {web}",
        )


def test_nobody_sees_an_older_state_than_one_that_was_visible_already(services: Services) -> None:
    service = deployed(services)
    with a_crowd_at(service) as trouble:
        go_on(trouble, READS, [])

    assert_true(trouble, READS)
    until_all_webs_agree(service)


def test_what_redis_and_web_processes_suffer_makes_nothing_stale_but_in_its_absence(services: Services) -> None:
    """Frozen, Redis can be told nothing, and what it was sent it does when it wakes; emptied, it knows no token."""
    service = deployed(services)
    with a_crowd_at(service) as trouble:
        steps = [trouble.freeze_valkey, trouble.kill_web, trouble.flush] * 2
        trouble.dice.shuffle(steps)
        go_on(trouble, READS_IN_TROUBLE, steps)

    assert_true(trouble, READS_IN_TROUBLE)
    until_all_webs_agree(service)
