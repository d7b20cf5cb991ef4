"""The process that decodes: `python -m worker.child`, confined before it reads anything, one picture at a time.

It is told two things for each picture, as `worker.frames`: `open`, with the original's descriptor, which it answers
with the header's size and format, and `render`, with a descriptor for each size, answered with the stages' times.
"""

from __future__ import annotations

import ctypes
import gc
import io
import math
import os
import resource
import select
import signal
import socket
import sys
from contextlib import ExitStack

from PIL import Image

from shared.errors import RenderFailure, RenderOutOfMemory
from shared.formats import PILLOW_FORMATS
from shared.images import Size
from worker import rendering
from worker.frames import HEADER, MAX_DESCRIPTORS, Message, length_of, pack, unpack

# <linux/prctl.h>, <linux/sched.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000

#: After so long without a picture, a child gives back the memory of the last.
IDLE_SECONDS = 1.0

_NICENESS = 5

_libc = ctypes.CDLL(None, use_errno=True)


def main(connection: socket.socket, parent: int, memory_bytes: int, file_bytes: int) -> None:
    """Serve pictures until the parent hangs up or dies."""
    _confine(parent, memory_bytes, file_bytes)
    _warm_up()
    # A system-call filter has its place here: from now on nothing is imported and no thread started.
    gc.freeze()
    _send(connection, {"ready": True})
    while True:
        reply = _serve(connection)
        _send(connection, reply)
        if reply.get("error") == RenderOutOfMemory.type:
            return  # what is left of the heap is anyone's guess: the parent starts another child
        # Pillow's objects refer to each other in circles, and one of them may hold 200 MB.
        gc.collect()
        # Memory given back costs the next picture a fifth of its time: it is given back when none comes.
        if not select.select([connection], [], [], IDLE_SECONDS)[0]:
            _libc.malloc_trim(0)


def _serve(connection: socket.socket) -> Message:
    with ExitStack() as files:
        message, (descriptor,) = _receive(connection)
        original = files.enter_context(open(descriptor, "rb"))
        order = message["open"]
        _limit_cpu(order["cpu_seconds"])
        try:
            # Parent and child share one position in the file.
            original.seek(0)
            picture = rendering.open_picture(original, max_pixels=order["max_pixels"])
            _send(connection, {"size": list(picture.size), "format": picture.format})
            message, descriptors = _receive(connection)
            order = message["render"]
            sizes: list[Size] = [(width, height) for width, height in order["sizes"]]
            scratches = [files.enter_context(open(descriptor, "wb", buffering=0)) for descriptor in descriptors]
            red, green, blue = order["background"]
            stages = rendering.render(picture, dict(zip(sizes, scratches, strict=True)), (red, green, blue))
            for scratch in scratches:
                scratch.truncate()
            return {"stages": stages}
        except (EOFError, ConnectionError):
            raise
        except Exception as exc:
            return _report(exc)


def _report(exc: Exception) -> Message:
    if isinstance(exc, RenderFailure):
        cause = exc.__cause__
        return {"error": exc.type, "detail": exc.detail, "cause": repr(cause)[:500] if cause else ""}
    if isinstance(exc, MemoryError):
        return {"error": RenderOutOfMemory.type, "detail": "The picture needs more memory than a picture may take."}
    if isinstance(exc, OSError) and exc.errno is not None:
        return {"error": "storage", "errno": exc.errno, "detail": str(exc)[:500]}
    return {"error": "internal", "detail": repr(exc)[:500]}


def _send(connection: socket.socket, message: Message) -> None:
    connection.sendall(pack(message))


def _receive(connection: socket.socket) -> tuple[Message, list[int]]:
    descriptors: list[int] = []

    def read(count: int) -> bytes:
        data = b""
        while len(data) < count:
            part, received, *_ = socket.recv_fds(connection, count - len(data), MAX_DESCRIPTORS)
            descriptors.extend(received)
            if not part:
                raise EOFError
            data += part
        return data

    return unpack(read(length_of(read(HEADER.size)))), descriptors


def _confine(parent: int, memory_bytes: int, file_bytes: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        # The worker is told to stop, and lets its children finish; they end when it closes or kills them.
        signal.signal(number, signal.SIG_IGN)
    # Who uploads, reads or is told waits for web, worker and Redis: on a busy machine they go first.
    os.nice(_NICENESS)
    # Without privileges a network namespace takes a user namespace. Either may be refused: then the other limits stand.
    if _libc.unshare(_CLONE_NEWNET) != 0:
        _libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(0)  # it died before the line above
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_FSIZE, file_bytes)
    _limit(resource.RLIMIT_NOFILE, 2 * MAX_DESCRIPTORS)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(kind, (value, value))


def _limit_cpu(seconds: int) -> None:
    # The kernel counts from the process's start, in whole seconds; SIGXCPU comes at the soft limit.
    usage = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(usage.ru_utime + usage.ru_stime) + seconds
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _warm_up() -> None:
    """Take one small picture of every format all the way, so that all code is loaded."""
    for name in PILLOW_FORMATS:
        if name in Image.SAVE:
            file = io.BytesIO()
            Image.linear_gradient("L").convert("RGB").resize((16, 16)).save(file, name)
            picture = rendering.open_picture(file, max_pixels=256)
            rendering.render(picture, {(16, 16): io.BytesIO(), (8, 8): io.BytesIO()}, (255, 255, 255))


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    try:
        main(socket.socket(fileno=arguments[0]), *arguments[1:])
    except (EOFError, ConnectionError):
        sys.exit(0)  # the parent hung up
