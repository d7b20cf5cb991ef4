"""The connection's transport, which counts what is written and sends a head together with its body."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

_HEAD = b"HTTP/1.1 "


class AnswerTransport:
    """A transport to which uvicorn writes answers.

    uvicorn writes an answer's head and its body separately, which would take two system calls and two packets. The head
    is held until something follows, or at most until the next turn of the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._call_soon = loop.call_soon
        self._head = b""
        #: Bytes written in all, and in the last write.
        self.bytes = 0
        self.last = 0
        # Each request needs these, so they are stored here: __getattr__ is slower.
        self._writelines = transport.writelines
        self.is_closing = transport.is_closing
        self.get_write_buffer_size = transport.get_write_buffer_size

    def write(self, data: bytes) -> None:
        # A piece of a body that begins like a head is also held for a turn. That does no harm.
        if data.startswith(_HEAD) and not self._head:
            self._head = data
            self._call_soon(self.flush)
        else:
            self.writelines((data,))

    def writelines(self, pieces: Sequence[bytes]) -> None:
        """Write all pieces in one system call, with a held head first."""
        if self._head:
            pieces = (self._head, *pieces)
            self._head = b""
        self.last = sum(map(len, pieces))
        self.bytes += self.last
        self._writelines(pieces)

    def flush(self) -> None:
        """Write the held head, if there is one."""
        if self._head and not self.is_closing():
            self.writelines(())

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def write_eof(self) -> None:
        self.flush()
        self._transport.write_eof()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
