"""What happens to a service's stores and machines while clients upload, and what is to be said of it afterwards."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from tests.apart.machines import hub
from tests.apart.stores import stores
from tests.apart.uploads import Uploaders, leftovers, shortfalls, until_settled
from tests.integration.service import Deployed, Services
from tests.objects import Troublemaker
from tests.postgresql import started

#: Makes trouble for so many seconds, and makes it good.
Failover = Callable[[Deployed, Uploaders, float], None]
Course = Callable[[Services], AbstractContextManager[tuple[Deployed, Failover]]]


@dataclass(frozen=True)
class Outcome:
    """What became of the uploads before, during and after a failover."""

    uploads: Uploaders
    seconds: float
    acknowledged_meanwhile: int
    settled_seconds: float
    wrong: list[str]
    #: Rows, and originals, of uploads whose client was never told that they were taken.
    untold_rows: list[str]
    untold_originals: list[str]

    def assert_nothing_is_missing(self) -> None:
        """Assert that all that was acknowledged is there and whole, and that who was refused was told to come back."""
        print(self)
        assert self.wrong == []

    def __str__(self) -> str:
        uploads = self.uploads
        return (
            f"{len(uploads.acknowledged)} uploads acknowledged, {self.acknowledged_meanwhile} of them in the "
            f"{self.seconds:.1f} s of trouble; {len(uploads.refused)} times refused, {len(uploads.sent_again)} "
            f"pictures, {len(uploads.succeeded)} acknowledged later; {sum(uploads.unanswered.values())} times not "
            f"answered; all settled {self.settled_seconds:.1f} s after the last upload; untold: "
            f"{len(self.untold_rows)} rows, {len(self.untold_originals)} originals; wrong: {len(self.wrong)}"
        )


def upload_through(service: Deployed, failover: Failover, *, uploads: int, seconds: float) -> Outcome:
    """Have clients upload before, during and after a failover, a third each at least; look at all that they sent."""
    with Uploaders(service) as uploaders:
        uploaders.until_acknowledged(uploads // 3)
        before, began = len(uploaders.acknowledged), time.monotonic()
        failover(service, uploaders, seconds)
        meanwhile, lasted = len(uploaders.acknowledged) - before, time.monotonic() - began
        uploaders.until_acknowledged(max(uploads // 3, uploads - len(uploaders.acknowledged)))
    ended = time.monotonic()
    until_settled(service)
    settled = time.monotonic() - ended
    wrong = [*uploaders.surprises, *shortfalls(service, uploaders.acknowledged)]
    wrong += [f"picture {number} was refused for good" for number in uploaders.sent_again - uploaders.succeeded]
    return Outcome(uploaders, lasted, meanwhile, settled, wrong, *leftovers(service, uploaders.acknowledged))


def fail_over_redis(service: Deployed, uploaders: Uploaders, seconds: float) -> None:
    """Have others take the places of both Redis servers, who know nothing."""
    for valkey in service.valkeys:
        valkey.kill()
        valkey.wait()
    for folder in service.data.glob("*valkey"):
        shutil.rmtree(folder)
    time.sleep(seconds)  # that it lasts is the fault
    service.start_valkeys()


def move_everybody(service: Deployed, uploaders: Uploaders, seconds: float) -> None:
    """Kill the web process and both workers, one after another; each goes on elsewhere, with an empty disk."""
    for web in range(len(service.webs)):
        service.webs[web].kill()
        service.webs[web].wait()
        service.start_web_again(web)
        service.until(lambda web=web: service.is_ready(web), 60, "the web process's return")  # type: ignore[misc] # a default is no argument
        uploaders.until_acknowledged(4)
    for worker in range(len(service.workers)):
        service.workers[worker].kill()
        service.workers[worker].wait()
        service.start_worker_again(worker)
        uploaders.until_acknowledged(4)


@contextmanager
def restarting_postgresql(services: Services) -> Iterator[tuple[Deployed, Failover]]:
    """A service on a PostgreSQL of its own, and what ends that with all its sessions, and starts it again."""
    with started() as server:

        def restart(service: Deployed, uploaders: Uploaders, seconds: float) -> None:
            server.stop()
            try:
                uploaders.until_refused(8)
                time.sleep(seconds)  # that it lasts is the fault
            finally:
                server.start()

        service = services.deploy(workers=2, DATABASE_URL=server.database().replace("127.0.0.1", hub()))
        try:
            yield service, restart
        finally:
            service.stop()


@contextmanager
def refusing_store(services: Services) -> Iterator[tuple[Deployed, Failover]]:
    """A service on a store that can be made to answer 503 to everything, and what makes it do so."""
    trouble = Troublemaker(stores().objects.port)

    def refuse(service: Deployed, uploaders: Uploaders, seconds: float) -> None:
        trouble.refuse("GET", "HEAD", "PUT", "POST", "DELETE")
        try:
            uploaders.until_refused(4)
            time.sleep(seconds)  # that it lasts is the fault
        finally:
            trouble.refuse()

    try:
        yield services.deploy(workers=2, AWS_ENDPOINT_URL=f"http://{hub()}:{trouble.port}"), refuse
    finally:
        trouble.end()


def _deployed(failover: Failover) -> Course:
    @contextmanager
    def course(services: Services) -> Iterator[tuple[Deployed, Failover]]:
        yield services.deploy(workers=2), failover

    return course


#: Each gives a service of a web process and two workers, and what is to happen to it.
COURSES: dict[str, Course] = {
    "everybody moves": _deployed(move_everybody),
    "PostgreSQL restarts": restarting_postgresql,
    "S3 answers 503": refusing_store,
    "Redis fails over": _deployed(fail_over_redis),
}
