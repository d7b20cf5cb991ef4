"""`python -m worker.child`: the process that decodes, one picture at a time. It is confined before it reads any file.

For each picture the parent sends two orders (`worker.renderer.protocol`):

- `open`, with the original's descriptor. The reply is the size and the format that the header names.
- `render`, with a descriptor for each output. The reply is the time that each stage took.
"""

from __future__ import annotations

import gc
import io
import os
import select
import socket
import sys
from collections.abc import Iterable
from contextlib import ExitStack

from PIL import Image

from shared.errors import RenderFailure, RenderOutOfMemory
from shared.formats import PILLOW_FORMATS
from worker.child import confinement, opening, rendering
from worker.child.encoders import ENCODERS
from worker.renderer.outputs import Output
from worker.renderer.protocol import HEADER, MAX_DESCRIPTORS, Message, length_of, pack, unpack

#: Seconds without a picture after which a child returns the last one's memory to the system.
IDLE_SECONDS = 1.0


def main(connection: socket.socket, parent: int, memory_bytes: int, file_bytes: int) -> None:
    """Serve pictures until the parent closes the connection or dies."""
    confinement.confine(parent, memory_bytes, file_bytes, 2 * MAX_DESCRIPTORS)
    try:
        with ExitStack() as files:
            specimens = [files.enter_context(_specimen(name)) for name in PILLOW_FORMATS if name in Image.SAVE]
            _warm_up(specimens)
            missing = confinement.filter_system_calls()[:500]
            # Decode once more: if the filter stops a decoder on this platform, the child fails here, not at an upload.
            _warm_up(specimens)
    except Exception as exc:
        _send(connection, {"ready": False, "reason": repr(exc.__cause__ or exc)[:500]})
        return
    gc.freeze()
    _send(connection, {"ready": True, "missing": missing})
    while True:
        reply = _serve(connection)
        _send(connection, reply)
        if reply.get("error") == RenderOutOfMemory.type:
            return  # the heap is not reliable after this: the parent starts another child
        # Pillow's objects have reference cycles, which may hold 200 MB.
        gc.collect()
        # Return memory only when idle: getting it again would take a fifth of the next picture's time.
        if not select.select([connection], [], [], IDLE_SECONDS)[0]:
            confinement.give_back_memory()


def _serve(connection: socket.socket) -> Message:
    with ExitStack() as files:
        message, (descriptor,) = _receive(connection)
        original = files.enter_context(_Original(descriptor))
        order = message["open"]
        confinement.limit_cpu(order["cpu_seconds"])
        try:
            # The descriptor shares its position with the parent's, so the position may be anywhere.
            original.seek(0)
            limits = {name: order[name] for name in ("max_pixels", "max_side")}
            picture = opening.open_picture(original, **limits)
            _send(connection, {"size": list(picture.size), "format": picture.format})
            message, descriptors = _receive(connection)
            order = message["render"]
            outputs = [Output(name, format, (width, height)) for name, format, width, height in order["outputs"]]
            scratches = [files.enter_context(open(descriptor, "wb", buffering=0)) for descriptor in descriptors]
            red, green, blue = order["background"]
            stages = rendering.render(picture, dict(zip(outputs, scratches, strict=True)), (red, green, blue))
            for scratch in scratches:
                scratch.truncate()
            return {"stages": stages}
        except (EOFError, ConnectionError):
            raise
        except Exception as exc:
            return _report(exc)


class _Original(io.BufferedReader):
    """The original, for decoders. A read of 2 GB because of a damaged header allocates at most the file's length."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(io.FileIO(descriptor))
        self._bytes = os.fstat(descriptor).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None else min(size, self._bytes))


def _report(exc: Exception) -> Message:
    if isinstance(exc, RenderFailure):
        cause = exc.__cause__
        return {"error": exc.type, "detail": exc.detail, "cause": repr(cause)[:500] if cause else ""}
    if isinstance(exc, MemoryError):
        return {"error": RenderOutOfMemory.type, "detail": "The picture needs more memory than a picture may take."}
    if isinstance(exc, OSError) and exc.errno is not None:
        return {"error": "storage", "detail": str(exc)[:500]}
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


def _specimen(name: str) -> _Original:
    """Return a small picture of a format, in a file with a descriptor like originals: libtiff reads from that."""
    file = io.BytesIO()
    # Pillow reads uncompressed TIFFs itself, without libtiff.
    options = {"compression": "tiff_adobe_deflate"} if name == "TIFF" else {}
    Image.linear_gradient("L").convert("RGB").resize((16, 16)).save(file, name, **options)
    descriptor = os.memfd_create(name)
    os.write(descriptor, file.getbuffer())
    return _Original(descriptor)


def _warm_up(specimens: Iterable[_Original]) -> None:
    """Render each specimen in every output format, so that all code is loaded."""
    outputs = [Output("", format, size) for format in ENCODERS for size in ((16, 16), (8, 8))]
    for specimen in specimens:
        specimen.seek(0)
        picture = opening.open_picture(specimen, max_pixels=256)
        rendering.render(picture, {output: io.BytesIO() for output in outputs}, (255, 255, 255))


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    try:
        main(socket.socket(fileno=arguments[0]), *arguments[1:])
    except (EOFError, ConnectionError):
        sys.exit(0)  # the parent closed the connection
