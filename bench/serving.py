"""What serving a picture costs: `python -m bench.serving [rounds]`, each way beside a bare falcon application.

The rival answers the same bytes and headers from memory, by uvicorn with the Procfile's own options, once with
uvicorn's protocol and once with ours; ratios are to the faster of the two. Our access line is on, as it is by default,
and goes to /dev/null. Beside the requests a second the CPU time of the web process is told, for each request: it is
what a core is worth, also where this program, which asks, is the slower of the two.
"""

from __future__ import annotations

import io
import json
import os
import select
import socket
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import falcon.asgi
from PIL import Image

from bench.figures import Bar, Figure, Runs, in_turns, ratio
from bench.service import Service, until
from parts import Part, free_port, read_procfile

#: Requests of a side in one round, and the connections that they come by.
REQUESTS = 3_000
CONNECTIONS = 16
MANY_CONNECTIONS = 256
#: Bytes of fewer requests where each answer is large.
_MOST_BYTES = 400_000_000

_ANSWER = "BENCH_SERVING_ANSWER"
#: Where the rival has the answer that it gives.
_PATH = "/picture.jpeg"

RIVALS = FALCON, FALCON_BEHIND_OURS = ("falcon, uvicorn's protocol", "falcon, our protocol")


def constant() -> falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]:
    """Return the rival: one resource that has its answer in memory."""
    folder = Path(os.environ[_ANSWER])
    headers = [(name, value) for name, value in json.loads((folder / "headers").read_text())]
    body = (folder / "body").read_bytes()

    class Constant:
        async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
            resp.set_headers(headers)
            resp.data = body

    app: falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response] = falcon.asgi.App()
    app.add_route(_PATH, Constant())
    return app


@dataclass
class Web:
    """A web process: ours or the rival."""

    part: Part
    port: int

    @property
    def cpu_seconds(self) -> float:
        """CPU time that it has had so far, all its threads', to the nanosecond where the system tells it so."""
        assert self.part.process is not None  # noqa: S101 - it was started
        tasks = Path(f"/proc/{self.part.process.pid}/task")
        try:
            return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
        except OSError:
            stat = (tasks.parent / "stat").read_text().rpartition(")")[2].split()
            return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def web_process(env: dict[str, str], **changes: str) -> Iterator[Web]:
    """Run the Procfile's web process for the block, `changes` made to its line, its log going nowhere."""
    port = free_port()
    line = read_procfile()["web"][-1]
    for old, new in changes.items():
        line = line.replace({"app": "api.asgi:application", "http": "--http api.connection:Connection"}[old], new)
    part = Part("web", ("/bin/sh", "-c", f"{line} >/dev/null"), env | {"PORT": str(port)}).start()

    def is_up() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(is_up)
        yield Web(part, port)
    finally:
        if part.process is not None:
            part.process.terminate()
            part.process.wait()


def request_for(path: str, *headers: str) -> bytes:
    # What a browser sends, in length.
    usual = ("Accept: image/avif,image/webp,*/*", "Accept-Encoding: gzip, deflate", "User-Agent: asgilook's benchmark")
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *usual, *headers, "", ""]).encode()


def drive(web: Web, requests: Sequence[bytes], count: int, status: int = 200, connections: int = CONNECTIONS) -> float:
    """Have `count` requests answered, each connection sending one of `requests` again and again; return the seconds."""
    buffer = bytearray(1 << 20)
    poll = select.epoll()
    clients: dict[int, socket.socket] = {}
    left: dict[int, int] = {}
    sends: dict[int, bytes] = {}
    expected = b"HTTP/1.1 %d" % status
    with ExitStack() as stack:
        stack.callback(poll.close)
        for number in range(connections):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", web.port)))
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            clients[client.fileno()], left[client.fileno()] = client, 0
            sends[client.fileno()] = requests[number % len(requests)]
            poll.register(client.fileno(), select.EPOLLIN)
        begun = time.perf_counter()
        for number, client in clients.items():
            client.sendall(sends[number])
        answered = 0
        while answered < count:
            for number, _ in poll.poll(30):
                client = clients[number]
                got = client.recv_into(buffer)
                if not got:
                    raise SystemExit("the web process hung up")
                if not left[number]:
                    if not buffer.startswith(expected):
                        raise SystemExit(f"not {status}: {bytes(buffer[:300])!r}")
                    end = buffer.find(b"\r\n\r\n", 0, got) + 4
                    at = buffer.find(b"content-length: ", 0, end)
                    length = int(buffer[at + 16 : buffer.find(b"\r", at)]) if at >= 0 and status != 304 else 0
                    left[number] = end + length
                left[number] -= got
                if not left[number]:
                    answered += 1
                    client.sendall(sends[number])
        return time.perf_counter() - begun


@dataclass
class Sides:
    """What is compared: for each, the CPU time and the whole time of a request, round by round, in microseconds."""

    measured: dict[str, Callable[[], float]] = field(default_factory=dict)
    wall: Runs = field(default_factory=dict)
    cpu: Runs = field(default_factory=dict)

    def add(
        self,
        name: str,
        web: Web,
        requests: Sequence[bytes],
        status: int = 200,
        connections: int = CONNECTIONS,
        count: int = REQUESTS,
    ) -> None:
        self.wall[name] = []

        def measure() -> float:
            before = web.cpu_seconds
            self.wall[name].append(1e6 * drive(web, requests, count, status, connections) / count)
            return 1e6 * (web.cpu_seconds - before) / count

        self.measured[name] = measure

    def run(self, rounds: int, what: str) -> None:
        self.cpu = in_turns(self.measured, rounds, what)
        for runs in self.wall.values():
            del runs[: len(runs) - rounds]  # the warm-up

    def figures(
        self, name: str, title: str, bar: Bar | None = None, rivals: Sequence[str] = RIVALS
    ) -> Iterator[Figure]:
        """Yield how a side compares to the faster of its rivals: by requests a second, and by CPU time."""
        for runs, by in ((self.wall, "requests a second"), (self.cpu, "CPU time")):
            rival = min(rivals, key=lambda each: statistics.median(runs[each]))
            shown = {each: runs[each] for each in (name, *rivals)}
            yield Figure(
                "serving", f"{title} / {rival}: {by}", ratio(runs, rival, name), "", bar, shown, "µs a request"
            )


def picture_of(service: Service, original: bytes, least: int, most: int) -> str:
    """Upload an original; return the path of one of its pictures that has so many bytes."""
    with closing(HTTPConnection("127.0.0.1", service.web_port, timeout=60)) as connection:
        connection.request("POST", "/images", original, {"Prefer": "wait=20"})
        answer = connection.getresponse()
        record = json.loads(answer.read())
        if answer.status != 201:
            raise SystemExit(f"an upload got {answer.status}")
        for path in (record["image"], *record["thumbnails"]):
            connection.request("HEAD", path)
            head = connection.getresponse()
            head.read()
            if least <= int(head.headers["Content-Length"]) <= most:
                return str(path)
    raise SystemExit(f"no picture of {least} to {most} bytes came of it")


def answer_to(port: int, path: str) -> tuple[list[tuple[str, str]], bytes]:
    """Return the headers that are not the server's own, and the body."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        own = ("date", "server", "content-length")
        return [(name, value) for name, value in answer.getheaders() if name.lower() not in own], body


def noise() -> bytes:
    """Return a picture that no encoder makes small."""
    file = io.BytesIO()
    Image.effect_noise((4400, 3400), 120).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()
