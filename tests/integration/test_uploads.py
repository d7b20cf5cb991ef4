"""Uploads over real sockets: many large ones at once, those that break off, stall or are refused; a server's end."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from tests.integration.evidence import files_of, holdings_of, lines_of, row_of, rows_of
from tests.integration.faults import RawClient, small_picture
from tests.integration.service import Deployed, Services, descendants_of, ended
from tests.worker.pictures import encoded, photo

pytestmark = pytest.mark.processes

LIMIT = 2_000_000


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A service of little patience, which takes small uploads only."""
    with ended(tmp_path_factory.mktemp("impatient")) as services:
        yield services.deploy(ASGI_LOOK_UPLOAD_STALL_SECONDS="1", ASGI_LOOK_MAX_UPLOAD_BYTES=str(LIMIT))


@pytest.fixture
def client(service: Deployed) -> Iterator[RawClient]:
    client = RawClient(service.ports[0])
    with closing(client.socket):
        yield client


def with_length(body: bytes) -> tuple[bytes, bytes]:
    return b"Content-Type: image/png\r\nContent-Length: %d\r\n" % len(body), body


def chunked(body: bytes) -> tuple[bytes, bytes]:
    halves = body[: len(body) // 2], body[len(body) // 2 :]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(half), half) for half in halves)
    return b"Content-Type: image/png\r\nTransfer-Encoding: chunked\r\n", chunks + b"0\r\n\r\n"


def multipart(body: bytes) -> tuple[bytes, bytes]:
    head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
    form = head + body + b"\r\n--edge--\r\n"
    return b"Content-Type: multipart/form-data; boundary=edge\r\nContent-Length: %d\r\n" % len(form), form


def request(headers: bytes, *, name: str = "raw", more: bytes = b"") -> bytes:
    return b"POST /images HTTP/1.1\r\nHost: test\r\nX-Request-ID: %s\r\n%s%s\r\n" % (name.encode(), headers, more)


FRAMINGS = [with_length, chunked, multipart]
#: A number of bytes, a part of all, or so many bytes before the end; the last five of a chunked body are its end.
CUTS = [0, 1, 200, *(tenth / 10 for tenth in range(1, 10)), -6, -1]
Framing = Callable[[bytes], tuple[bytes, bytes]]


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_whole_upload_is_taken_however_it_is_framed(service: Deployed, client: RawClient, framing: Framing) -> None:
    headers, body = framing(small_picture())

    client.send(request(headers, more=b"Prefer: wait=20\r\n") + body)

    assert client.answer().status == 201


@pytest.mark.parametrize("leave", [RawClient.finish, RawClient.reset], ids=["fin", "rst"])
@pytest.mark.parametrize("cut", CUTS, ids=str)
@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_upload_that_breaks_off_leaves_nothing_behind(
    service: Deployed, client: RawClient, framing: Framing, cut: float, leave: Callable[[RawClient], None]
) -> None:
    headers, body = framing(small_picture())
    sent = body[: int(len(body) * cut) if isinstance(cut, float) else cut]
    name = f"{framing.__name__}.{cut}.{leave.__name__}"
    before = holdings_of(service)

    client.send(request(headers, name=name) + sent)
    leave(client)

    service.until(lambda: lines_of(service, logger="api.server.access_log", request=name), what="the request's end")
    assert holdings_of(service) == before
    (line,) = lines_of(service, request=name)
    assert line["message"] == "client went away"


@pytest.mark.parametrize("framing", FRAMINGS)
def test_an_upload_that_stalls_is_ended(service: Deployed, client: RawClient, framing: Framing) -> None:
    headers, body = framing(small_picture())
    before = holdings_of(service)

    client.send(request(headers) + body[: len(body) // 2])
    answer = client.answer()

    assert answer.status == 408
    assert answer.json["type"] == "urn:asgilook:problem:upload-stalled"
    assert client.is_hung_up()
    assert holdings_of(service) == before


def test_an_upload_announced_past_the_limit_is_refused_before_a_byte_of_it_was_sent(
    service: Deployed, client: RawClient
) -> None:
    before = holdings_of(service)

    client.send(request(b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n"))
    answer = client.answer()

    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert client.is_hung_up()
    assert holdings_of(service) == before


def test_an_upload_that_grows_past_the_limit_is_refused_without_reading_the_rest(
    service: Deployed, client: RawClient
) -> None:
    """It would go on for ever: the answer, and the end of the connection, can only come while it is being sent."""
    before = holdings_of(service)
    chunk = b"10000\r\n" + small_picture()[:64].ljust(65536, b"\0") + b"\r\n"
    client.send(request(b"Transfer-Encoding: chunked\r\n"))
    client.socket.setblocking(False)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
    accepted, answer = 0, b""

    def refused() -> bool:
        nonlocal accepted, answer
        try:
            answer += client.socket.recv(65536)
        except BlockingIOError:
            with suppress(BlockingIOError):
                accepted += client.socket.send(chunk)
        return b"\r\n\r\n" in answer

    service.until(refused, what="the refusal")

    assert answer.startswith(b"HTTP/1.1 413 ")
    client.socket.settimeout(30)
    assert client.is_hung_up()
    (line,) = lines_of(service, status=413, request="raw")[-1:]
    assert line["bytes"] > 0
    assert accepted < LIMIT + 16_000_000
    assert holdings_of(service) == before


def test_a_client_that_asks_first_is_told_to_go_on(service: Deployed, client: RawClient) -> None:
    headers, body = with_length(small_picture())
    client.send(request(headers, more=b"Expect: 100-continue\r\nPrefer: wait=20\r\n"))

    go_on = client.socket.recv(65536)
    client.send(body)

    assert go_on == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.answer().status == 201


@pytest.mark.parametrize("headers", [b"Content-Encoding: gzip\r\n", b"Content-Digest: nonsense\r\n"])
def test_a_client_that_asks_first_is_refused_without_being_told_to_go_on(
    service: Deployed, client: RawClient, headers: bytes
) -> None:
    client.send(request(b"Content-Length: 1000\r\nExpect: 100-continue\r\n", more=headers))

    answer = client.socket.recv(65536)

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 415 "))


@pytest.mark.one_machine("a put into an object store takes up to 20 MB while it lasts")
def test_memory_does_not_grow_with_what_is_uploaded(services: Services) -> None:
    service = services.deploy()
    (web,) = service.webs
    picture = encoded(photo((4000, 4000)), "BMP").getvalue()
    assert len(picture) > 48_000_000
    memory = Path(f"/proc/{web.pid}/status")
    # The peak so far was its start's.
    Path(f"/proc/{web.pid}/clear_refs").write_text("5")
    before = kilobytes(memory, "VmRSS")

    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(service.upload, [picture] * 5))

    assert [answer.status for answer in answers] == [202] * 5
    grown = kilobytes(memory, "VmHWM") - before
    print(f"five uploads of 48 MB: {grown} kB more")
    assert grown < 32 * 1024
    image_ids = [answer.json["id"] for answer in answers]
    service.until(lambda: all(row_of(service, image_id)["status"] == "ready" for image_id in image_ids), seconds=60)


def kilobytes(status: Path, name: str) -> int:
    (line,) = (line for line in status.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1])


def test_requests_in_flight_are_finished_after_sigterm(services: Services) -> None:
    """An upload half sent, and one that is waited for."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS="60")
    headers, body = with_length(small_picture())
    uploading = RawClient(service.ports[0])
    waiting = RawClient(service.ports[0])
    with closing(uploading.socket), closing(waiting.socket):
        service.workers[0].send_signal(signal.SIGSTOP)
        waiting.send(request(headers, more=b"Prefer: wait=20\r\n") + body)
        uploading.send(request(headers) + body[:5000])
        service.until(lambda: rows_of(service) and any("drafts" in path for path in files_of(service)))

        service.webs[0].terminate()
        service.until(lambda: "Shutting down" in service.output, what="the web process's notice of it")
        uploading.send(body[5000:])
        service.workers[0].send_signal(signal.SIGCONT)

        assert uploading.answer().status == 202
        assert waiting.answer().status == 201
    service.webs[0].wait(20)
    service.until(lambda: [row["status"] for row in rows_of(service).values()] == ["ready", "ready"])
    assert "Traceback" not in service.output


def test_two_web_processes_serve_one_port_and_die_with_their_supervisor(services: Services) -> None:
    service = services.deploy(WEB_CONCURRENCY="2")
    (supervisor,) = service.webs
    started = set(descendants_of(supervisor.pid))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: service.upload(small_picture(), wait=20), range(8)))
    assert [answer.status for answer in answers] == [201] * 8
    assert len(started) >= 2

    os.kill(supervisor.pid, signal.SIGKILL)
    supervisor.wait()

    service.until(lambda: not started & set(services.processes()), seconds=10, what="their end")
