"""How tests trouble a service: clients that misbehave, processes that freeze, pictures that take their time."""

from __future__ import annotations

import functools
import http.client
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image

from shared.shutdown_signals import ONE_REQUEST_SECONDS
from tests.integration.evidence import is_at_rest, row_of, rows_of, status_of
from tests.integration.service import Deployed, Response, Service, host_of, until
from tests.worker.pictures import encoded, photo, swapping_profile


@functools.cache
def small_picture() -> bytes:
    """Return the tutorial's picture: 640 x 360."""
    return encoded(photo((640, 360)), "PNG").getvalue()


@functools.cache
def slow_picture() -> bytes:
    """Return a small file that takes more than a second to render: 25 MP, progressive, other colours, odd sides."""
    width, height = 5001, 4999
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return encoded(Image.fromarray(pixels), "JPEG", progressive=True, icc_profile=swapping_profile()).getvalue()


def begin_render(service: Service, picture: bytes | None = None) -> str:
    """Upload a picture that takes its time; return the image's id when it is being rendered."""
    answer = service.upload(picture or slow_picture())
    assert answer.status == 202, answer
    image_id = str(answer.json["id"])
    service.until(lambda: status_of(service, image_id) != "queued", what="a claim")
    assert status_of(service, image_id) == "processing"
    return image_id


def worker_of(service: Deployed, image_id: str) -> subprocess.Popen[bytes]:
    """Return the worker that has claimed an image."""
    pid = int(row_of(service, image_id)["worker"].rpartition(":")[2])
    (worker,) = (worker for worker in service.workers if worker.pid == pid)
    return worker


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Stop a process of ours where it stands; return when it does."""
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)


def thaw(process: subprocess.Popen[bytes]) -> None:
    """Let a frozen process go on."""
    process.send_signal(signal.SIGCONT)


def let_request_pass() -> None:
    """Return when a signal would be heard as another request to end, by whoever has heard the one before."""
    heard = time.monotonic()
    until(lambda: time.monotonic() - heard > ONE_REQUEST_SECONDS)


@contextmanager
def frozen(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Keep a process frozen for the block."""
    freeze(process)
    try:
        yield
    finally:
        thaw(process)


@contextmanager
def frozen_worker(service: Deployed) -> Iterator[None]:
    """Keep the service's one worker frozen for the block, in a moment in which it has nothing to do."""
    # One that is frozen between BEGIN and COMMIT keeps SQLite's one write lock.
    service.until(lambda: all(map(is_at_rest, rows_of(service).values())), what="the worker's leisure")
    with frozen(service.workers[0]):
        yield


class RawClient:
    """A client that says exactly what it is told to, and leaves as it likes."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection((host_of(port), port), timeout=30)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> Response:
        """Read the next answer to its end."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        return Response(
            response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        )

    def is_hung_up(self) -> bool:
        """Read what is still to come; tell whether the server has closed the connection by then."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def finish(self) -> None:
        """Leave in peace: FIN."""
        self.socket.close()

    def reset(self) -> None:
        """Leave with a bang: RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
