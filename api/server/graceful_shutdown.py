"""A second SIGTERM or SIGINT ends a web process at once. Its clients get the same answers as at the grace's end."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from types import FrameType
from typing import Any

from uvicorn.server import HANDLED_SIGNALS, Server

from api.server.request_body import LINGER_SECONDS
from shared.shutdown_signals import Requests


class EndAtOnce:
    """Falcon middleware that takes over the server's signals: uvicorn itself ignores a second SIGTERM."""

    async def process_startup(self, scope: Mapping[str, Any], event: Mapping[str, Any]) -> None:
        server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        # Tests may run without a server.
        if isinstance(server, Server):
            listen(server)


def listen(server: Server) -> None:
    """Replace the server's signal handlers."""
    loop = asyncio.get_running_loop()
    requests = Requests()

    def hear(number: int, frame: FrameType | None) -> None:
        request = requests.hear()
        if request == 1:
            server.handle_exit(number, frame)
        elif request == 2:
            loop.call_soon_threadsafe(end_at_once)

    def end_at_once() -> None:
        for task in server.server_state.tasks:
            task.cancel()
        loop.call_later(LINGER_SECONDS, abort_connections)

    def abort_connections() -> None:
        # The server would wait for clients that neither read nor send.
        for connection in list(server.server_state.connections):
            connection.transport.abort()

    for number in HANDLED_SIGNALS:
        signal.signal(number, hear)
