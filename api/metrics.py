"""`/metrics`, where it is asked for, and which route a request took."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from falcon.asgi import Request, Response

from api.uploads import require_bearer
from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.telemetry.exposition import CONTENT_TYPE, Exposition


class Metrics:
    """`/metrics`: what all web processes of this supervisor have counted."""

    def __init__(self, exposition: Exposition, token: str | None, ledger: Ledger, queue: Queue) -> None:
        self._exposition = exposition
        self._token = token
        self._ledger = ledger
        self._queue = queue

    async def on_get(self, req: Request, resp: Response) -> None:
        require_bearer(req, self._token)
        resp.data = await self._exposition.text(self._ledger, self._queue)
        resp.content_type = CONTENT_TYPE
        resp.set_header("Cache-Control", "no-store")

    on_head = on_get


class RouteNoting:
    """Falcon middleware that tells the guard which template a request matched: a label, which its path must not be."""

    async def process_resource(self, req: Request, resp: Response, resource: Any, params: dict[str, Any]) -> None:
        req.scope["asgilook.route"] = _readable(req.uri_template)


@cache
def _readable(template: str) -> str:
    """Return a template without the names of our converters: there are as many as there are routes."""
    return re.sub(r"\{(\w+):\w+\}", r"{\1}", template)
