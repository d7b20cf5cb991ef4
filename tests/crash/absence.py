"""A time without Redis, however long: several clients go on uploading and reading, then it is there again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.crash.retrying import Clients
from tests.integration.evidence import rows_of
from tests.integration.service import Deployed

#: Seconds that a backlog may take at the most; what it took is in the report.
_PATIENCE_SECONDS = 300.0


@dataclass(frozen=True)
class Absence:
    """What came of it: the clients that were there, how long Redis was gone, and how long the backlog then took."""

    clients: Clients
    gone_seconds: float
    caught_up_seconds: float

    def __str__(self) -> str:
        return (
            f"Redis was gone for {self.gone_seconds:.1f} s; {len(self.clients.acknowledged)} uploads meanwhile, all "
            f"converted {self.caught_up_seconds:.1f} s after its return; {self.clients.summary}"
        )


def live_without_redis(service: Deployed, is_over: Callable[[Clients], bool], *, emptied: bool = False) -> Absence:
    """Kill Valkey, let clients go on until `is_over(clients)`, start it again; return when all they sent is converted.

    `emptied`: it comes back without its append-only file. Whether the clients were content is for the caller to judge.
    """
    service.valkey.kill()
    service.valkey.wait()
    gone_at = time.monotonic()
    with Clients(service, uploaders=3, readers=2) as clients:
        service.until(lambda: is_over(clients), seconds=60, what="the end of the absence")
    if emptied:
        shutil.rmtree(service.data / "valkey")
    service.start_valkey()
    back_at = time.monotonic()

    def are_converted() -> bool:
        rows = rows_of(service)
        return all(rows[image_id]["status"] == "ready" for image_id in clients.acknowledged)

    service.until(are_converted, seconds=_PATIENCE_SECONDS, what="every conversion")
    return Absence(clients, back_at - gone_at, time.monotonic() - back_at)
