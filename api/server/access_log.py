"""Each request's line in the access log, its metrics, and its id in all logs."""

from __future__ import annotations

import itertools
import logging
import re
import secrets

from shared.telemetry import logs, metrics, tracing

_METHODS = {"GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"}
#: Characters of the longest address: an IPv4 address within an IPv6 one.
_MOST_ADDRESS = 45
_MOST_PATH = 200
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
#: An id that this process generates is this prefix and a number.
_PROCESS_ID = secrets.token_hex(10)
_numbers = itertools.count()

logger = logging.getLogger(__name__)


def request_id_of(given: bytes | None) -> str:
    """Return the request's own id if it has a safe form for logs, otherwise a new one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"{_PROCESS_ID}{next(_numbers):012x}"


def count(method: str, route: str, status: int | None, seconds: float, *, asks_to_wait: bool) -> None:
    """Count a request by its route's template. A status of None means that the client disconnected."""
    # A client could create any number of labels with invented methods.
    method = method if method in _METHODS else "other"
    tracing.answered(method, route, status)
    if metrics.REQUEST_SECONDS.is_on:
        metrics.REQUESTS.add(method, route, str(status or "client gone"))
        # The last label separates requests that asked to wait: they take long on purpose.
        metrics.REQUEST_SECONDS.observe(seconds, method, route, "yes" if asks_to_wait else "no")


def log(
    method: str, path: str, status: int | None, sent: int, seconds: float, client: str | None, cache: str | None
) -> None:
    """Write a request's line. `sent` is in bytes of body; `cache` is the value of X-ASGILook-Cache.

    The query is never logged, because it may be private.
    """
    if not logger.isEnabledFor(logging.INFO):
        return
    # A LogRecord and a JSON encoder would take a third of the time of a small answer.
    fields = (
        f'"method": {logs.quoted(method)}, "path": {logs.quoted(path[:_MOST_PATH])}, "status": {status or "null"}, '
        f'"bytes": {sent}, "milliseconds": {seconds * 1000:.1f}'
    )
    if client:
        fields += f', "client": {logs.quoted(client[:_MOST_ADDRESS])}'
    if cache is not None:
        fields += f', "cache": {logs.quoted(cache)}'
    logs.write(logger, "answered" if status else "client went away", fields)
