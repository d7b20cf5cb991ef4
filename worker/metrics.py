"""The worker's `/metrics`, on a port of its own."""

from __future__ import annotations

import asyncio
import hmac
import logging
from contextlib import suppress

from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.settings import Settings
from shared.telemetry.exposition import CONTENT_TYPE, Exposition

logger = logging.getLogger(__name__)

#: Seconds that a client has for its request. Also the seconds between two attempts to listen on the port.
_PATIENCE_SECONDS = 5.0
#: The most connections at once. More are closed, because each takes one of the files that a worker may open.
_MOST_CONNECTIONS = 16


class MetricsPort:
    """Answers only `GET /metrics`, over HTTP/1.1, with one request per connection."""

    def __init__(self, settings: Settings, exposition: Exposition, ledger: Ledger, queue: Queue) -> None:
        self._settings = settings
        self._exposition = exposition
        self._ledger = ledger
        self._queue = queue
        self._open = 0

    async def run(self) -> None:
        """Answer until cancelled. If the port is taken, retries every 5 s: the worker works without it."""
        host, port = self._settings.host, self._settings.metrics_port
        said = False
        while True:
            try:
                server = await asyncio.start_server(self._serve, host, port, limit=16 * 1024)
                break
            except OSError as exc:
                if not said:
                    logger.warning("metrics are not served yet", extra={"port": port, "reason": str(exc)})
                said = True
                await asyncio.sleep(_PATIENCE_SECONDS)
        async with server:
            await server.serve_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._open == _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._open += 1
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = await self._answer(head)
                writer.write(
                    f"HTTP/1.1 {status}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {len(body)}\r\n"
                    "Cache-Control: no-store\r\nConnection: close\r\n\r\n".encode()
                )
                writer.write(body)
                await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the client will scrape again
        finally:
            self._open -= 1
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    async def _answer(self, head: bytes) -> tuple[str, bytes]:
        request, *lines = head.split(b"\r\n")
        if request.split(b" ")[:2] != [b"GET", b"/metrics"]:
            return "404 Not Found", b"Only GET /metrics is here.\n"
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        token = self._settings.metrics_token
        given = headers.get(b"authorization", b"")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return "401 Unauthorized\r\nWWW-Authenticate: Bearer", b"ASGI_LOOK_METRICS_TOKEN is asked for.\n"
        return "200 OK", await self._exposition.text(self._ledger, self._queue)
