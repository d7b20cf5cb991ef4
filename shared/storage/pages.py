"""Reading small files without ever waiting for a disk: what the system has in memory, or nothing.

Linux only: a name is looked up among those that it knows already (`openat2` with RESOLVE_CACHED, since 5.12), and bytes
are taken from its page cache (`preadv2` with RWF_NOWAIT). A file system that cannot do so (NFS, most of FUSE) says so.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys

#: Bytes that are copied while everybody else waits: in less time than it takes to hand the work to a thread.
MOST_BYTES = 1024 * 1024

_OPENAT2 = 437
_AT_FDCWD = -100
_RESOLVE_CACHED = 0x20
_NOWAIT = getattr(os, "RWF_NOWAIT", 0)


class _How(ctypes.Structure):
    """The kernel's `struct open_how`."""

    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_HOW = _How(os.O_RDONLY | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" and _NOWAIT else None


def read_part(descriptor: int, first: int, length: int) -> bytes | None:
    """Return so many bytes of an open file, or None where they take waiting, or cannot be had so."""
    part = bytearray(length)
    try:
        got = os.preadv(descriptor, [part], first, _NOWAIT) if _NOWAIT else 0
    except OSError:
        return None
    return bytes(part) if got == length else None


class CachedPages:
    """Reads so below one folder, until its file system or the system turns out to be none that can."""

    def __init__(self) -> None:
        self._is_able = _LIBC is not None
        # One for all: to make it anew takes longer than to read. A byte more than there should be tells a longer file.
        self._buffer = bytearray(MOST_BYTES + 1)
        self._view = memoryview(self._buffer)

    def read(self, path: str, length: int) -> bytes | None:
        """Return a file of `length` bytes, or None where that takes waiting, or there is none of this length."""
        if not self._is_able or length > MOST_BYTES:
            return None
        descriptor = self._open(path)
        if descriptor < 0:
            return None
        try:
            got = os.preadv(descriptor, [self._view[: length + 1]], 0, _NOWAIT)
        except BlockingIOError:
            return None
        except OSError as exc:
            self._is_able = exc.errno != errno.EOPNOTSUPP
            return None
        finally:
            os.close(descriptor)
        return bytes(self._view[:length]) if got == length else None

    def _open(self, path: str) -> int:
        assert _LIBC is not None  # noqa: S101 - asked before
        descriptor: int = _LIBC.syscall(_OPENAT2, _AT_FDCWD, os.fsencode(path), ctypes.byref(_HOW), ctypes.sizeof(_HOW))
        # Not known to this kernel, or forbidden by a filter.
        if descriptor < 0 and ctypes.get_errno() in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            self._is_able = False
        return descriptor
