"""Behind a load balancer: whose address is logged, how long a connection may be idle, and how a web process ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.integration.evidence import files_of, lines_of
from tests.integration.faults import RawClient, let_request_pass, small_picture
from tests.integration.service import Deployed, Services, ended

pytestmark = pytest.mark.processes

GET = b"GET /healthz HTTP/1.1\r\nHost: test\r\n\r\n"
NAMED = "203.0.113.7"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A web process as it comes, which trusts who connects from its own machine; and one that trusts another."""
    with ended(tmp_path_factory.mktemp("proxy")) as services:
        service = services.deploy()
        service.start_web(FORWARDED_ALLOW_IPS="10.0.0.0/8", ASGI_LOOK_KEEP_ALIVE_SECONDS="0.5")
        service.until(lambda: service.is_ready(1), seconds=60, what="readiness")
        yield service


@pytest.mark.one_machine("its proxy is on web's machine, and another one's is not trusted")
@pytest.mark.parametrize(
    ("web", "forwarded", "logged"),
    [
        (0, None, "127.0.0.1"),
        (0, NAMED, NAMED),
        # The client made up the first; the proxy has added the second, whom it saw.
        (0, f"198.51.100.1, {NAMED}", NAMED),
        (0, f"{NAMED}, 127.0.0.1", NAMED),
        (0, "x" * 5000, "x" * 45),
        (1, NAMED, "127.0.0.1"),
        (1, f"{NAMED}, 10.1.2.3", "127.0.0.1"),
    ],
)
def test_whom_a_proxy_names_is_logged_only_if_the_proxy_is_trusted(
    service: Deployed, request: pytest.FixtureRequest, web: int, forwarded: str | None, logged: str
) -> None:
    name = f"test-{request.node.callspec.id.encode().hex()[:64]}"
    headers = {"X-Request-ID": name, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    if forwarded is not None:
        headers["X-Forwarded-For"] = forwarded

    answer = service.request("POST", "/images", small_picture(), headers, web=web)

    service.until(lambda: lines_of(service, request=name, logger="api.server.access_log"), what="the line")
    assert [line["client"] for line in lines_of(service, request=name, logger="api.server.access_log")] == [logged]
    # Nothing else is made of what is forwarded: addresses are relative.
    assert answer.headers["location"] == f"/images/{answer.json['id']}"
    assert b"evil" not in answer.body


def test_an_idle_connection_is_kept_for_as_long_as_is_set(service: Deployed) -> None:
    """The one that is kept for 75 seconds has been idle before the other, which is given up after half of one."""
    long, short = RawClient(service.ports[0]), RawClient(service.ports[1])
    with closing(long.socket), closing(short.socket):
        for client in (long, short):
            client.send(GET)
            assert client.answer().status == 200

        assert short.is_hung_up()

        long.send(GET)
        assert long.answer().status == 200


def post(picture: bytes) -> bytes:
    return b"POST /images HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(picture)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_web_process_told_twice_to_stop_ends_at_once(services: Services, number: int) -> None:
    """Its grace, and what a client may dawdle, are longer than the test may last."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS="3600", ASGI_LOOK_UPLOAD_STALL_SECONDS="3600")
    (web,) = service.webs
    dawdler = RawClient(service.ports[0])
    with closing(dawdler.socket):
        dawdler.send(post(small_picture()) + small_picture()[:70_000])
        service.until(lambda: any(path.startswith("drafts") for path in files_of(service)), what="a draft")
        web.send_signal(number)
        service.until(lambda: "Shutting down" in service.output, what="the first signal's being heard")

        let_request_pass()
        web.send_signal(number)
        answer = dawdler.answer()
        web.wait(20)

    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert answer.json["type"] == "urn:asgilook:problem:shutting-down"
    assert files_of(service) == []
    assert "Traceback" not in service.output, service.output


def test_a_web_process_told_to_stop_by_several_at_once_finishes_what_it_has_begun(services: Services) -> None:
    """Heroku signals every process, and perhaps more than once; a supervisor passes its signal on."""
    service = services.deploy(ASGI_LOOK_GRACE_SECONDS="3600")
    (web,) = service.webs
    client = RawClient(service.ports[0])
    with closing(client.socket):
        client.send(post(small_picture()) + small_picture()[:70_000])
        service.until(lambda: any(path.startswith("drafts") for path in files_of(service)), what="a draft")
        for _ in range(3):
            web.send_signal(signal.SIGTERM)
        service.until(lambda: "Shutting down" in service.output, what="the signal's being heard")

        client.send(small_picture()[70_000:])
        answer = client.answer()

    assert answer.status == 202
    assert web.wait(20) in (0, -signal.SIGTERM)
