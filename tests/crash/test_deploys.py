"""Deploys: web processes and workers are told to stop, one after another, and nobody who retries notices.

The 25 seconds are the contract's: 20 of grace, which is the default, and the rest to end.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from PIL import Image

from tests.crash.journal import claims_of, hand_backs_of, keep_journal, losses_in
from tests.crash.retrying import Clients, ids_in_list
from tests.integration.evidence import files_of, lines_of, original_of, row_of, rows_of, status_of
from tests.integration.faults import RawClient, begin_render, frozen, small_picture
from tests.integration.service import Deployed, Services, children_of, descendants_of, host_of
from tests.worker.pictures import encoded

pytestmark = pytest.mark.processes

GRACE = "20"
BOUND_SECONDS = 25.0


def ended_within(process: subprocess.Popen[bytes], told_at: float) -> int:
    """Return a process's exit code, once it has ended within the bound."""
    code = process.wait(told_at + BOUND_SECONDS - time.monotonic())
    print(f"it ended {time.monotonic() - told_at:.1f} s after SIGTERM, with code {code}")
    return code


# --- A web process -------------------------------------------------------------------------------------------


class OtherClients:
    """Clients that a process has at the moment at which it is told to stop; they leave with the block."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._clients: list[RawClient] = []

    def connect(self, said: bytes) -> RawClient:
        """Return a new client that has said this much."""
        client = RawClient(self._port)
        self._clients.append(client)
        client.send(said)
        return client

    def leave(self) -> None:
        for client in self._clients:
            client.socket.close()


@contextmanager
def clients_of(port: int) -> Iterator[OtherClients]:
    clients = OtherClients(port)
    try:
        yield clients
    finally:
        clients.leave()


def post(length: int, more: bytes = b"") -> bytes:
    return b"POST /images HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n%s\r\n" % (length, more)


def is_refused(port: int) -> bool:
    try:
        socket.create_connection((host_of(port), port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def send_at_leisure(client: RawClient, body: bytes, pieces: int) -> None:
    """Send a body as somebody with a slow line does."""
    size = -(-len(body) // pieces)
    for start in range(0, len(body), size):
        time.sleep(0.2)  # that is how slow the line is
        client.send(body[start : start + size])


def send_for_ever(client: RawClient) -> None:
    """Send a body that has no end, faster than the least rate, until the server has enough of it."""
    with suppress(OSError):
        while True:
            send_at_leisure(client, b"1000\r\n" + bytes(4096) + b"\r\n", pieces=1)


def large_noise() -> bytes:
    """Return a picture whose JPEG fits into no socket's buffers."""
    pixels = np.random.default_rng(1).integers(0, 256, (3000, 3000, 3), np.uint8)
    return encoded(Image.fromarray(pixels), "JPEG", quality=70).getvalue()


def end_worker(service: Deployed) -> None:
    """End the service's one worker: from here on, who waits for a picture waits in vain."""
    (worker,) = service.workers
    worker.terminate()
    assert worker.wait(30) == 0


def test_a_web_process_told_to_stop_ends_in_time_whatever_its_clients_do(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS=GRACE)
    (web,), (port,), picture = service.webs, service.ports, small_picture()
    large = service.upload(large_noise(), wait=20).json
    end_worker(service)
    with clients_of(port) as clients:
        slow = clients.connect(post(len(picture)) + picture[:1000])
        waiting = clients.connect(post(len(picture), b"Prefer: wait=20\r\n") + picture[:1000])
        stalled = clients.connect(post(len(picture)) + picture[: len(picture) // 2])
        stalled_in_headers = clients.connect(post(len(picture))[:30])
        endless = clients.connect(b"POST /images HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n")
        endless.send(b"%x\r\n%s\r\n" % (1000, picture[:1000]))
        sending = threading.Thread(target=send_for_ever, args=[endless])
        sending.start()
        idle = clients.connect(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        assert idle.answer().status == 200
        clients.connect(f"GET {large['image']} HTTP/1.1\r\nHost: test\r\n\r\n".encode())  # who never reads the answer
        service.until(lambda: sum(path.startswith("drafts") for path in files_of(service)) == 4, what="four drafts")

        web.terminate()
        told_at = time.monotonic()

        service.until(lambda: is_refused(port), what="new connections' refusal")
        assert idle.is_hung_up()
        assert stalled_in_headers.is_hung_up()
        send_at_leisure(slow, picture[1000:], pieces=10)
        finished = slow.answer()
        # From now on: it is still waiting when the grace is over.
        waiting.send(picture[1000:])
        assert (finished.status, finished.headers["connection"]) == (202, "close")
        assert stalled.answer().status == 408
        acknowledged = waiting.answer()
        assert (acknowledged.status, acknowledged.json["status"]) == (202, "queued")
        cut_off = endless.answer()
        assert (cut_off.status, cut_off.headers["retry-after"]) == (503, "1")
        # By the signal itself, as uvicorn does once it has ended in peace.
        assert ended_within(web, told_at) in (0, -signal.SIGTERM)
        sending.join()

    assert "Traceback" not in service.output
    image_ids = [str(record["id"]) for record in (large, finished.json, acknowledged.json)]
    assert sorted(rows_of(service)) == sorted(image_ids)
    stored = [path for path in files_of(service) if not path.startswith("renditions")]
    assert stored == sorted(str(original_of(service, name).relative_to(service.data)) for name in image_ids)


def test_two_web_processes_behind_one_port_end_in_time_with_their_supervisor(services: Services) -> None:
    """The port is the supervisor's, who holds it to the end: who connects meanwhile is refused by then, not before."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS=GRACE, WEB_CONCURRENCY="2")
    (supervisor,), (port,), picture = service.webs, service.ports, small_picture()
    started = descendants_of(supervisor.pid)
    with clients_of(port) as clients:
        # More than one each, so that both have some.
        for _ in range(6):
            clients.connect(post(len(picture)) + picture[:1000])
        slow = clients.connect(post(len(picture)) + picture[:1000])
        service.until(lambda: sum(path.startswith("drafts") for path in files_of(service)) == 7, what="seven drafts")

        supervisor.terminate()
        told_at = time.monotonic()

        service.until(lambda: service.output.count("Shutting down") == 2, what="both processes' notice of it")
        late = clients.connect(b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n")
        send_at_leisure(slow, picture[1000:], pieces=10)
        finished = slow.answer()
        assert ended_within(supervisor, told_at) == 0
        assert late.is_hung_up()

    assert finished.status == 202
    # Python's own resource tracker ends once it hears that its supervisor has.
    service.until(lambda: not set(started) & set(services.processes()), what="the end of all that it started")
    assert "Traceback" not in service.output
    assert files_of(service, finished.json["id"]) != []
    assert [path for path in files_of(service) if path.startswith("drafts")] == []


# --- A worker ------------------------------------------------------------------------------------------------


def test_a_worker_told_to_stop_takes_nothing_new_and_hands_back_what_it_cannot_finish(services: Services) -> None:
    """Its children are frozen, so that it has two images in its hands; one of them goes on within the grace."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS=GRACE, ASGI_LOOK_RENDER_SLOTS="2")
    keep_journal(service)
    (stopped,) = service.workers
    children = children_of(stopped.pid)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    both = [str(service.upload(small_picture()).json["id"]) for _ in children]
    service.until(lambda: all(status_of(service, image_id) == "processing" for image_id in both), what="both claims")

    stopped.terminate()
    told_at = time.monotonic()
    service.until(lambda: lines_of(service, message="the worker takes nothing new"))
    os.kill(children[0], signal.SIGCONT)
    service.until(lambda: any(status_of(service, image_id) == "ready" for image_id in both), what="one that is done")
    # It has a slot free now.
    new = str(service.upload(small_picture()).json["id"])
    other = service.start_worker()

    assert ended_within(stopped, told_at) == 0
    service.until(lambda: all(status_of(service, image_id) == "ready" for image_id in [*both, new]))
    (done,) = (image_id for image_id in both if row_of(service, image_id)["published"] == 1)
    (handed_back,) = (image_id for image_id in both if image_id != done)
    assert [claim.worker for claim in claims_of(service, done)] == [stopped.pid]
    assert [claim.worker for claim in claims_of(service, new)] == [other.pid]
    first, second = claims_of(service, handed_back)
    assert (first.worker, second.worker) == (stopped.pid, other.pid)
    (at,) = hand_backs_of(service, handed_back)
    print(f"what was handed back was claimed {second.at - at:.2f} s later")
    assert losses_in(service) == []
    assert "Traceback" not in service.output


def test_web_and_worker_told_to_stop_end_in_time_though_redis_answers_nothing(services: Services) -> None:
    """The worker has an image that it cannot finish; it is handed back in the ledger alone."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS=GRACE, ASGI_LOOK_RENDER_SLOTS="1")
    keep_journal(service)
    (web,), (worker,) = service.webs, service.workers
    (child,) = children_of(worker.pid)
    os.kill(child, signal.SIGSTOP)
    image_id = begin_render(service, small_picture())

    with frozen(service.valkey):
        for process in (web, worker):
            process.terminate()
        told_at = time.monotonic()
        codes = [ended_within(process, told_at) for process in (web, worker)]

    assert codes[0] in (0, -signal.SIGTERM)
    assert codes[1] == 0
    assert row_of(service, image_id)["status"] == "queued"
    assert losses_in(service) == []
    assert "Traceback" not in service.output


# --- All of them, one after another --------------------------------------------------------------------------


def test_a_rolling_restart_under_load_fails_nothing_that_a_retrying_client_would_notice(services: Services) -> None:
    service = services.deploy(webs=2, workers=2, ASGI_LOOK_GRACE_SECONDS=GRACE)
    keep_journal(service)

    with Clients(service, uploaders=3, readers=2) as clients:
        for _ in range(2):
            for number, web in enumerate(service.webs):
                web.terminate()
                assert web.wait(BOUND_SECONDS) in (0, -signal.SIGTERM)
                service.start_web_again(number)
                service.until(lambda number=number: service.is_ready(number), what="its readiness")  # type: ignore[misc] # a default is no argument
            for number, worker in enumerate(service.workers):
                worker.terminate()
                assert worker.wait(BOUND_SECONDS) == 0
                pid = service.start_worker_again(number).pid
                service.until(lambda pid=pid: is_working(service, pid), what="its readiness")  # type: ignore[misc] # a default is no argument

    print(clients.summary)
    assert clients.surprises == []
    assert len(clients.acknowledged) > 50
    rows = rows_of(service)
    # Also, what was received was acknowledged: no upload was cut off between its commit and its answer.
    assert sorted(rows) == sorted(clients.acknowledged)
    service.until(lambda: {row["status"] for row in rows_of(service).values()} == {"ready"}, what="every readiness")
    assert sorted(ids_in_list(service)) == sorted(clients.acknowledged)
    assert losses_in(service) == []
    assert "Traceback" not in service.output


def is_working(service: Deployed, pid: int) -> bool:
    name = f"{socket.gethostname()}:{pid}"
    return bool(lines_of(service, message="the worker is ready", worker=name)) and service.is_ready()
