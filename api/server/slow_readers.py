"""Resets the connections of clients that read their answers too slowly."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import socket
import struct
import sys
import termios

from api.server.transport import AnswerTransport
from shared.settings import Settings
from shared.stalls import Deadline

#: Unsent bytes that the kernel may hold for one connection. Its default is several megabytes.
_UNSENT_IN_SYSTEM = 256 * 1024
#: Between two processes of one machine, for example this one and a proxy, TCP moves this many bytes at a time.
_LUMP = 64 * 1024
#: SO_LINGER: on, for 0 seconds.
_RESET = struct.pack("ii", 1, 0)

log = logging.getLogger(__name__)


class UnreadAnswers:
    """The answers that this process holds because their clients have not read them."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        #: The longest unread first.
        self._sizes: dict[Reader, int] = {}

    def add(self, reader: Reader, size: int) -> None:
        """Count an unread answer of `size` bytes. If all together are too large, hang up on the longest unread."""
        self._sizes[reader] = size
        while len(self._sizes) > 1 and sum(self._sizes.values()) > self._most_bytes:
            next(iter(self._sizes)).hang_up("others need the memory")

    def remove(self, reader: Reader) -> None:
        self._sizes.pop(reader, None)


class Reader:
    """The reading side of one connection's client."""

    def __init__(self, transport: AnswerTransport, settings: Settings, unread: UnreadAnswers) -> None:
        self._transport = transport
        self._patience = settings.download_stall_seconds
        self._least_bytes = settings.download_least_rate * self._patience - _LUMP
        self._unread = unread
        self._deadline = Deadline()
        #: At the last check: bytes that the client had read, and bytes that waited for it.
        self._read = 0
        self._waiting = 0
        self._socket = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the socket is not TCP's
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_SYSTEM)

    def watch(self) -> None:
        """Start to watch the client's pace, if unread bytes wait for it."""
        waiting = self._transport.get_write_buffer_size()
        if waiting and not self._deadline.is_set:
            self._look_again(waiting)

    def pause(self) -> None:
        """Count the answer that the client has not read."""
        self.watch()
        # The transport holds a whole piece in memory until its last byte is sent.
        self._unread.add(self, max(self._transport.get_write_buffer_size(), self._transport.last))

    def resume(self) -> None:
        """Count the answer no more: the client has read nearly all of it."""
        self._unread.remove(self)

    def stop(self) -> None:
        self._unread.remove(self)
        self._deadline.stop()

    def hang_up(self, reason: str) -> None:
        """Reset the connection. After a plain close, the kernel would go on sending what it holds."""
        log.info("hung up", extra={"reason": reason, "bytes": self._transport.get_write_buffer_size()})
        self._unread.remove(self)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def _look_again(self, waiting: int) -> None:
        self._read, self._waiting = self._count_read(waiting), waiting
        self._deadline.start(self._patience, self._judge)

    def _judge(self) -> None:
        waiting = self._transport.get_write_buffer_size()
        if not waiting:
            return
        if self._count_read(waiting) - self._read < max(1, min(self._waiting, self._least_bytes)):
            self.hang_up("the client does not read")
        else:
            self._look_again(waiting)

    def _count_read(self, waiting: int) -> int:
        # The kernel takes more bytes only after it has sent 128 KiB. A slow client may need longer for that than the
        # deadline. So the bytes in the kernel do not count as read.
        in_system = bytes(4)
        with contextlib.suppress(OSError):  # this system cannot report it
            in_system = fcntl.ioctl(self._socket.fileno(), termios.TIOCOUTQ, in_system)
        return self._transport.bytes - waiting - int.from_bytes(in_system, sys.byteorder)
