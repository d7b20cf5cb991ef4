"""What is noted of each request that was answered: its line in the log, its counts, the id that it goes by."""

from __future__ import annotations

import itertools
import logging
import re
import secrets
from typing import Any

from shared.telemetry import logs, metrics, tracing

_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}
#: Characters of an address, be it IPv4's within IPv6.
_MOST_ADDRESS = 45
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
#: A request's own id, where its client gave none: this process's, and its number.
_PROCESS_ID = secrets.token_hex(10)
_numbers = itertools.count()

logger = logging.getLogger(__name__)


def request_id_of(given: bytes | None) -> str:
    """Return the id that a request goes by: the one that it came with, if that is fit for a log."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{_PROCESS_ID}{next(_numbers):012x}"


def count(method: str, route: str, status: int | None, seconds: float, *, asks_to_wait: bool) -> None:
    """Count a request by its route's template; without a status its client has gone."""
    # What a client makes up must not become a label.
    method = method if method in _METHODS else "other"
    tracing.answered(method, route, status)
    if metrics.REQUEST_SECONDS.is_on:
        metrics.REQUESTS.add(method, route, str(status or "client gone"))
        # Seconds that were asked for say nothing about us.
        metrics.REQUEST_SECONDS.observe(seconds, method, route, "yes" if asks_to_wait else "no")


def log(
    method: str, path: str, status: int | None, sent: int, seconds: float, client: str | None, cache: str | None
) -> None:
    """Write a request's line: `sent` bytes of body, and what X-ASGILook-Cache said."""
    if not logger.isEnabledFor(logging.INFO):
        return
    message = "answered" if status else "client went away"
    # Never the query: it may hold what its client takes for private.
    path = path[:200]
    milliseconds = round(seconds * 1000, 1)
    # Whoever connects; or whom X-Forwarded-For names, where the server trusts who connects to say so.
    client = client and client[:_MOST_ADDRESS]
    handler = logs.direct_handler(logger)
    if handler is not None:
        # Spelled out: any encoder, of a mapping, takes a tenth of what a small answer takes.
        fields = (
            f'"method": {logs.quoted(method)}, "path": {logs.quoted(path)}, "status": {status or "null"}, '
            f'"bytes": {sent}, "milliseconds": {milliseconds}'
        )
        if client:
            fields += f', "client": {logs.quoted(client)}'
        if cache is not None:
            fields += f', "cache": {logs.quoted(cache)}'
        handler.write(logger.name, message, fields)
        return
    extra: dict[str, Any] = {
        "method": method,
        "path": path,
        "status": status,
        "bytes": sent,
        "milliseconds": milliseconds,
    }
    if client:
        extra["client"] = client
    if cache is not None:
        extra["cache"] = cache
    logger.info(message, extra=extra)
