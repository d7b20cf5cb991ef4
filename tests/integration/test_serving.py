"""Pictures at hand, or in Redis, are answered without a task: nobody may tell by the answer, nor by the log."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from tests.integration.evidence import lines_of
from tests.integration.faults import RawClient, small_picture
from tests.integration.service import Deployed, ended

pytestmark = pytest.mark.processes

ORIGIN = "https://www.example.com"
#: A preference that means nothing: who has any is not answered at once.
OTHERWISE = "Prefer: handling=lenient"

REQUESTS = {
    "plain": [],
    "query": [],
    "origin": [f"Origin: {ORIGIN}"],
    "another origin": ["Origin: https://www.example.net"],
    "origins": ["Origin:", f"Origin: {ORIGIN}"],
    "held": ["If-None-Match: ETAG"],
    "held or not": ["If-None-Match: ETAG", 'If-None-Match: "other"'],
    "weakly held": ["If-None-Match: W/ETAG"],
    "not held": ['If-None-Match: "other"'],
    "part": ["Range: bytes=2-5"],
    "last": ["Connection: close"],
    "odd id": ["X-Request-ID: not fit for a log"],
    "proxy": ["X-Forwarded-For: 198.51.100.1, 203.0.113.7"],
    "proxies": ["X-Forwarded-For: 198.51.100.1", "X-Forwarded-For: 203.0.113.7"],
    "odd proxy": ["X-Forwarded-For: " + "x" * 300],
    "empty body": ["Content-Length: 0"],
}


@pytest.fixture(scope="module", params=["8388608", "0"], ids=["memory", "Redis"])
def service(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    with ended(tmp_path_factory.mktemp("serving")) as services:
        yield services.deploy(ASGI_LOOK_CORS_ORIGINS=ORIGIN, ASGI_LOOK_MEMORY_CACHE_BYTES=request.param)


@pytest.fixture(scope="module")
def path(service: Deployed) -> str:
    record = service.upload(small_picture(), wait=20)
    assert record.status == 201
    path = str(record.json["thumbnails"][0])
    # No answer waits for its copy in Redis.
    service.until(lambda: service.get(path).headers["x-asgilook-cache"] == "Hit", what="a copy")
    return path


def told(path: str, *headers: str, version: str = "1.1") -> bytes:
    return "\r\n".join([f"GET {path} HTTP/{version}", "Host: test", *headers, "", ""]).encode()


def raw_answers(client: RawClient, count: int) -> list[bytes]:
    """Return so many answers as they are on the wire, but for the time of day."""
    read = b""
    answers: list[bytes] = []
    while len(answers) < count:
        head, end, _ = read.partition(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)", head)
        whole = len(head + end) + (0 if length is None or head.startswith(b"HTTP/1.1 304 ") else int(length[1]))
        if end and len(read) >= whole:
            answers.append(re.sub(rb"date: [^\r]*", b"date: now", read[:whole]))
            read = read[whole:]
        else:
            some = client.socket.recv(65536)
            assert some, "hung up"
            read += some
    assert read == b""
    return answers


def answer_to(service: Deployed, request: bytes) -> tuple[bytes, bool]:
    """Return the answer, and whether the connection is kept."""
    client = RawClient(service.ports[0])
    with closing(client.socket):
        client.send(request)
        (answer,) = raw_answers(client, 1)
        if is_kept := b"\r\nconnection: close\r\n" not in answer:
            client.send(told("/healthz"))
            assert client.answer().status == 200
        else:
            assert client.is_hung_up()
        return answer, is_kept


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("what", REQUESTS)
def test_an_answer_at_once_is_the_one_that_falcon_or_the_stage_gives(
    service: Deployed, path: str, what: str, version: str
) -> None:
    etag = service.get(path).headers["etag"]
    headers = [header.replace("ETAG", etag) for header in REQUESTS[what]]
    if version == "1.0":
        headers = [header for header in headers if "Connection" not in header]
    asked = path + "?a=b" if what == "query" else path
    ids = [f"{what.replace(' ', '-')}-{version}-{way}" for way in ("at-once", "otherwise")]
    named = [[] if what == "odd id" else [f"X-Request-ID: {name}"] for name in ids]

    at_once = answer_to(service, told(asked, *named[0], *headers, version=version))
    otherwise = answer_to(service, told(asked, *named[1], *headers, OTHERWISE, version=version))

    assert at_once == otherwise
    assert at_once[1] is (version == "1.1" and what != "last")
    if what != "odd id":
        for name in ids:
            service.until(lambda name=name: lines_of(service, request=name), what="the lines")  # type: ignore[misc] # a default is no argument
        lines = [lines_of(service, request=name)[-1] for name in ids]
        told_apart = ("time", "request", "milliseconds")
        assert list(lines[0]) == list(lines[1])
        assert {k: v for k, v in lines[0].items() if k not in told_apart} == {
            k: v for k, v in lines[1].items() if k not in told_apart
        }


def test_what_is_said_of_a_connection_is_not_about_the_picture_that_it_was_answered(
    service: Deployed, path: str
) -> None:
    client = RawClient(service.ports[0])
    with closing(client.socket):
        client.send(told(path, "X-Request-ID: the-picture"))
        assert client.answer().status == 200
        client.send(b"nonsense\r\n\r\n")
        assert client.answer().status == 400
    service.until(lambda: lines_of(service, request="the-picture"), what="the picture's line")
    service.until(lambda: lines_of(service, message="refused"), what="the refusal's line")

    assert {line["message"] for line in lines_of(service, request="the-picture")} == {"answered"}


def test_pipelined_requests_are_answered_in_their_order(service: Deployed, path: str) -> None:
    record = f"/images/{path.split('/')[2]}"
    asked = [path, record, path, "/nothing", path, path]
    service.get(record)
    alone = [answer_to(service, told(each))[0] for each in asked]
    client = RawClient(service.ports[0])
    with closing(client.socket):
        client.send(b"".join(told(each) for each in asked))

        assert raw_answers(client, len(asked)) == alone


def test_a_request_that_comes_byte_by_byte_is_answered(service: Deployed, path: str) -> None:
    whole = service.get(path).body
    client = RawClient(service.ports[0])
    with closing(client.socket):
        for _ in range(2):
            for byte in told(path):
                client.send(bytes([byte]))
            answer = client.answer()

            assert (answer.status, answer.body) == (200, whole)


def test_who_asks_for_more_than_is_read_is_not_held_for(service: Deployed) -> None:
    """One answer is under way at a time: who sends thousands of requests and reads nothing fills no memory."""
    record = service.upload(small_picture(), wait=20).json
    client = RawClient(service.ports[0])
    before = resident(service)
    with closing(client.socket):
        client.socket.settimeout(2)
        try:
            for _ in range(300):
                client.send(told(record["image"]) * 100)
        except OSError:
            pass
        after = resident(service)

    assert after - before < 16 * 1024 * 1024


def resident(service: Deployed) -> int:
    with open(f"/proc/{service.webs[0].pid}/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_many_at_once_get_the_whole_picture_each(service: Deployed, path: str) -> None:
    whole = service.get(path).body

    with ThreadPoolExecutor(16) as pool:
        bodies = list(pool.map(lambda _: service.get(path).body, range(200)))

    assert set(bodies) == {whole}
