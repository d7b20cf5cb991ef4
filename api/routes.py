"""The HTTP surface: path → resource, and the scope that each method needs. A method without a scope is public."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from api.authorization import Scope
from api.collaborators import Collaborators
from api.health import Alive, Ready
from api.images import ImageList, ImageRecord, Retry
from api.metrics import Metrics
from api.renditions.memory_door import FULL_ROUTE, THUMBNAIL_ROUTE
from api.renditions.resources import Renditions
from api.uploads import Uploads


@dataclass(frozen=True)
class Route:
    template: str
    resource: Any
    scopes: Mapping[str, Scope] = field(default_factory=dict)


def routes(web: Collaborators, uploads: Uploads) -> list[Route]:
    """Return all routes. `/metrics` is among them only if metrics are switched on."""
    renditions = Renditions(web.settings, web.ledger, web.storage, web.settling, web.queue, web.memory)
    table = [
        Route("/images", ImageList(web.ledger, web.settling, web.queue, web.waiter, uploads), {"POST": Scope.WRITE}),
        Route("/images/{image_id}", ImageRecord(web.ledger, web.settling, web.waiter), {"DELETE": Scope.DELETE}),
        Route("/images/{image_id}/retry", Retry(web.ledger, web.settling, web.queue), {"POST": Scope.WRITE}),
        Route(FULL_ROUTE, renditions),
        Route(THUMBNAIL_ROUTE, renditions),
        Route("/healthz", Alive()),
        Route("/readyz", Ready(web.ledger, web.storage, web.queue, web.redis, web.identity)),
    ]
    if web.exposition is not None:
        table.append(Route("/metrics", Metrics(web.exposition, web.ledger, web.queue), {"GET": Scope.METRICS}))
    return table
