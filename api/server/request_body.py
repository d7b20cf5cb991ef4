"""A request's body as the application receives it: its least rate, and how much of an unread one is dropped."""

from __future__ import annotations

import asyncio
import contextlib

from api.server.asgi_types import Event, Receive
from shared.errors import TruncatedUpload, UploadRefused
from shared.settings import Settings
from shared.stalls import timeout

#: Limits for dropping an unread body before the connection is closed.
LINGER_BYTES = 256 * 1024
LINGER_SECONDS = 1.0


class ClientDisconnected(TruncatedUpload):
    """The client disconnected before the end of the body that it had announced."""


class UploadStalled(UploadRefused):
    """The body stopped arriving or arrives too slowly. The message may be shown to the client."""


class RequestBody:
    """The receiving side of a request.

    The first event is empty and does not ask the server, so that the server sends no `100 Continue` before the
    application reads the body. A body that ends early raises ClientDisconnected, one that stalls or is slower than
    ASGI_LOOK_UPLOAD_LEAST_RATE raises UploadStalled.
    """

    def __init__(self, receive: Receive, settings: Settings, *, announced: bool) -> None:
        self._receive = receive
        self._patience = settings.upload_stall_seconds
        self._least_rate = settings.upload_least_rate
        self._opened = False
        #: Bytes received and seconds waited since the rate was last judged.
        self._received = 0
        self._waited = 0.0
        #: Whether a part of the body has not been received.
        self.unread = announced
        self.client_gone = False

    async def receive(self) -> Event:
        if not self._opened:
            self._opened = True
            return {"type": "http.request", "body": b"", "more_body": self.unread}
        if self.unread:
            return await self._receive_in_time()
        # The server also sends an event for the end of an empty body.
        while (event := await self._receive())["type"] != "http.disconnect":
            pass
        return event

    async def drop_some(self) -> None:
        """Read and drop the rest of the body, up to LINGER_BYTES and LINGER_SECONDS. A cancellation is not raised."""
        dropped = 0
        with contextlib.suppress(TimeoutError, asyncio.CancelledError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self.unread and dropped < LINGER_BYTES:
                    event = await self._receive()
                    dropped += len(event.get("body", b""))
                    self.unread = event.get("more_body", False)

    async def _receive_in_time(self) -> Event:
        try:
            async with timeout(self._patience) as deadline:
                event = await self._receive()
        except TimeoutError:
            raise UploadStalled(f"Nothing came for {self._patience:g} seconds.") from None
        self._waited += deadline.elapsed
        if event["type"] == "http.disconnect":
            self.client_gone = True
            raise ClientDisconnected("the client went away in the middle of its upload")
        self._received += len(event.get("body", b""))
        self.unread = event.get("more_body", False)
        # Only the time spent waiting for the client counts, not the time that our storage takes.
        if self.unread and self._waited >= self._patience:
            if self._received < self._least_rate * self._waited:
                raise UploadStalled(f"Only {self._received} bytes came in {self._waited:.1f} seconds.")
            # Count anew: a fast beginning must not compensate for a slow end.
            self._received, self._waited = 0, 0.0
        return event
