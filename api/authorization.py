"""The one function that authorizes every request, on both ways to answer."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from falcon.asgi import Request, Response

from api import urls
from api.problems import Problem
from api.server.asgi_types import Headers
from shared.settings import Settings


class Scope(StrEnum):
    """What a token may do."""

    WRITE = "images:write"
    DELETE = "images:delete"
    METRICS = "metrics"


class Authorization:
    """Decides by one table: `{"POST /images": Scope.WRITE}`. A route that is not in the table is public."""

    def __init__(self, settings: Settings, scopes: Mapping[str, Scope]) -> None:
        self._scopes = scopes
        tokens = {
            Scope.WRITE: settings.write_token,
            Scope.DELETE: settings.write_token,
            Scope.METRICS: settings.metrics_token,
        }
        self._tokens = {scope: token.encode() for scope, token in tokens.items() if token is not None}

    def authorize(self, route: str, image_id: str | None, query: str, headers: Headers) -> None:
        """Raise Problem unless the headers hold the token that `route` needs.

        `route` is a method and a template, such as "GET /images".
        """
        scope = self._scopes.get(route)
        token = None if scope is None else self._tokens.get(scope)
        if token is None:
            return
        given = b",".join([value for name, value in headers if name == b"authorization"])
        scheme, _, credentials = given.partition(b" ")
        if scheme.lower() != b"bearer":
            raise Problem("missing-token", headers={"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(credentials.strip(), token):
            raise Problem("wrong-token", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


class AuthorizationMiddleware:
    """Falcon middleware that authorizes each request with a route, and stores the route for the guard's metrics."""

    def __init__(self, authorization: Authorization) -> None:
        self._authorization = authorization

    async def process_resource(self, req: Request, resp: Response, resource: Any, params: dict[str, Any]) -> None:
        template = urls.readable(req.uri_template)
        req.scope["asgilook.route"] = template
        method = "GET" if req.method == "HEAD" else req.method
        self._authorization.authorize(
            f"{method} {template}", params.get("image_id"), req.query_string, req.scope["headers"]
        )
