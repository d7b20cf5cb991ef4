"""The resource `/metrics`, which exists if metrics are switched on."""

from __future__ import annotations

from falcon.asgi import Request, Response

from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.telemetry.exposition import CONTENT_TYPE, Exposition


class Metrics:
    """`/metrics`: the counts of all web processes of this supervisor."""

    def __init__(self, exposition: Exposition, ledger: Ledger, queue: Queue) -> None:
        self._exposition = exposition
        self._ledger = ledger
        self._queue = queue

    async def on_get(self, req: Request, resp: Response) -> None:
        resp.data = await self._exposition.text(self._ledger, self._queue)
        resp.content_type = CONTENT_TYPE
        resp.set_header("Cache-Control", "no-store")

    on_head = on_get
