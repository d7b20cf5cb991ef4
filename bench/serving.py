"""Requests a second and CPU of serving, beside a bare falcon application: `python -m bench.serving [rounds]`.

The rival answers the same bytes and headers from memory. It runs under uvicorn with the options of the Procfile, once
with uvicorn's protocol and once with ours; ratios are to the faster of the two. Our access log is on, as it is by
default, and goes to /dev/null. CPU is that of the web process: it counts where this program, the client, is the slower
of the two.
"""

from __future__ import annotations

import io
import json
import os
import select
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import falcon.asgi
from PIL import Image

from bench.figures import ROUNDS, Bar, Figure, Runs, at_least, in_turns, ratio, rounds_asked_for, show
from bench.isolation import photograph
from bench.processes import Process
from bench.service import Service, commands_of, end, run_service, until
from launch.processes import HERE, Part, free_port

#: Requests of a side in one round, and the connections that they come by.
REQUESTS = 10_000
CONNECTIONS = 16
MANY_CONNECTIONS = 256
#: Bytes of all answers of a side in one round: large pictures are asked for less often.
_MOST_BYTES = 400_000_000

_ANSWERS = "BENCH_SERVING_ANSWERS"

RIVALS = FALCON, FALCON_BEHIND_OURS = ("falcon, uvicorn's protocol", "falcon, our protocol")
#: The least and the most bytes of each picture. The largest is streamed: neither web nor Redis holds it.
THUMBNAIL, MEDIUM, LARGE, STREAMED = "thumbnail", "medium", "large", "streamed"
SIZES = {
    THUMBNAIL: (9_000, 20_000),
    MEDIUM: (150_000, 600_000),
    LARGE: (2_000_000, 5_000_000),
    STREAMED: (8_400_000, 30_000_000),
}
#: Where web holds nothing, each connection asks for another image's thumbnail: requests for one would share a read.
IMAGES = CONNECTIONS
#: A header of each answer that is a copy, from Redis or from memory.
_HIT = b"\r\nx-asgilook-cache: Hit\r\n"


def constant() -> falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response]:
    """Return the rival: a resource for each folder, with its answer in memory."""
    app: falcon.asgi.App[falcon.asgi.Request, falcon.asgi.Response] = falcon.asgi.App()
    for folder in Path(os.environ[_ANSWERS]).iterdir():
        app.add_route(f"/{folder.name}", Constant(folder))
    return app


class Constant:
    """A resource that always gives the same answer."""

    def __init__(self, folder: Path) -> None:
        self._headers = [(name, value) for name, value in json.loads((folder / "headers").read_text())]
        self._body = (folder / "body").read_bytes()

    async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
        resp.set_headers(self._headers)
        resp.data = self._body


@dataclass
class Web:
    """A web process: ours or the rival."""

    part: Part
    port: int

    @property
    def cpu_seconds(self) -> float:
        assert self.part.process is not None  # noqa: S101 - it was started
        return Process("web", self.part.process.pid).cpu_seconds()


@contextmanager
def web_process(env: dict[str, str], **changes: str) -> Iterator[Web]:
    """Run the Procfile's web process for the block, with another `app` or `http` protocol. Its log is dropped."""
    port = free_port()
    line = commands_of(HERE)["web"][-1]
    for old, new in changes.items():
        line = line.replace(
            {"app": "api.asgi:application", "http": "--http api.server.connection:Connection"}[old], new
        )
    part = Part("web", ("/bin/sh", "-c", f"{line} >/dev/null"), env | {"PORT": str(port)}).start()

    def is_up() -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    try:
        until(is_up)
        yield Web(part, port)
    finally:
        end([part])


def request_for(path: str, *headers: str) -> bytes:
    # As long as a browser's.
    usual = ("Accept: image/avif,image/webp,*/*", "Accept-Encoding: gzip, deflate", "User-Agent: asgilook's benchmark")
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: 127.0.0.1", *usual, *headers, "", ""]).encode()


def drive(
    port: int,
    requests: Sequence[bytes],
    count: int,
    status: int = 200,
    connections: int = CONNECTIONS,
    header: bytes = b"",
) -> float:
    """Send `count` requests and read the answers; return the seconds. Each connection repeats one of `requests`.

    Raises SystemExit unless every answer has this status and header.
    """
    buffer = bytearray(1 << 20)
    poll = select.epoll()
    clients: dict[int, socket.socket] = {}
    left: dict[int, int] = {}
    sends: dict[int, bytes] = {}
    expected = b"HTTP/1.1 %d" % status
    with ExitStack() as stack:
        stack.callback(poll.close)
        for number in range(connections):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
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
                    if header and buffer.find(header, 0, end) < 0:
                        raise SystemExit(f"not {header!r}: {bytes(buffer[:end])!r}")
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
    """The sides that are compared: the microseconds of CPU and of the clock for a request, in each round."""

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
        header: bytes = b"",
    ) -> None:
        self.wall[name] = []

        def measure() -> float:
            before = web.cpu_seconds
            self.wall[name].append(1e6 * drive(web.port, requests, count, status, connections, header) / count)
            return 1e6 * (web.cpu_seconds - before) / count

        self.measured[name] = measure

    def run(self, rounds: int, what: str) -> None:
        self.cpu = in_turns(self.measured, rounds, what)
        for runs in self.wall.values():
            del runs[: len(runs) - rounds]  # the warm-up

    def figures(self, name: str, title: str, bar: Bar | None = None) -> Iterator[Figure]:
        """Yield the cost of the faster rival divided by a side's, by requests a second and by CPU time."""
        group = name.partition(": ")[0]
        for runs, by in ((self.wall, "requests a second"), (self.cpu, "CPU time")):
            rivals = {rival: runs[f"{group}: {rival}"] for rival in RIVALS}
            fastest = min(rivals, key=lambda rival: statistics.median(rivals[rival]))
            shown = {"ours": runs[name], **rivals}
            value = ratio(shown, fastest, "ours")
            yield Figure("serving", f"{title} / {fastest}: {by}", value, "", bar, shown, "µs a request")


@dataclass
class Picture:
    """A picture's path, and the answer to a GET of it."""

    path: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def etag(self) -> str:
        return next(value for name, value in self.headers if name.lower() == "etag")


def picture_of(service: Service, original: bytes, kind: str) -> Picture:
    """Upload an original; return one of its pictures that has the size of this kind."""
    least, most = SIZES[kind]
    with closing(HTTPConnection("127.0.0.1", service.web_port, timeout=60)) as connection:
        connection.request("POST", "/images", original, {"Prefer": "wait=20"})
        answer = connection.getresponse()
        record = json.loads(answer.read())
        if answer.status != 201:
            raise SystemExit(f"an upload got {answer.status}")
        for path in (record["image"], *record["thumbnails"]):
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            if least <= len(body) <= most:
                # The server adds these itself.
                own = ("date", "server", "content-length")
                return Picture(path, [pair for pair in answer.getheaders() if pair[0].lower() not in own], body)
    raise SystemExit(f"no {kind} picture came of it")


def noise(size: tuple[int, int]) -> bytes:
    """Return a JPEG of noise, which compresses badly."""
    file = io.BytesIO()
    Image.effect_noise(size, 120).convert("RGB").save(file, "JPEG", quality=90)
    return file.getvalue()


@contextmanager
def sides() -> Iterator[Sides]:
    """Run all sides for the block."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "data").mkdir()
        service = stack.enter_context(run_service(folder / "data"))
        small = photograph((1200, 800))
        thumbnails = [picture_of(service, small, THUMBNAIL) for _ in range(IMAGES)]
        pictures = {
            THUMBNAIL: thumbnails[0],
            MEDIUM: picture_of(service, photograph((4200, 2800)), MEDIUM),
            LARGE: picture_of(service, noise((2400, 1800)), LARGE),
            STREAMED: picture_of(service, noise((4400, 3400)), STREAMED),
        }
        for kind, picture in pictures.items():
            (folder / "answers" / kind).mkdir(parents=True)
            (folder / "answers" / kind / "headers").write_text(json.dumps(picture.headers))
            (folder / "answers" / kind / "body").write_bytes(picture.body)

        env = {**service.env, "ASGI_LOOK_LOG_LEVEL": "INFO", _ANSWERS: str(folder / "answers")}
        factory = "--factory bench.serving:constant"
        no_memory = {"ASGI_LOOK_MEMORY_CACHE_BYTES": "0"}
        nowhere = f"redis://127.0.0.1:{free_port()}/0"
        falcon_alone = stack.enter_context(web_process(env, app=factory, http="--http httptools"))
        falcon_behind_ours = stack.enter_context(web_process(env, app=factory))
        ours = stack.enter_context(web_process(env))
        by_redis = stack.enter_context(web_process(env | no_memory))
        # Megabytes that come late open the circuit breaker for a moment: thumbnails have a process of their own.
        large_by_redis = stack.enter_context(web_process(env | no_memory))
        by_disk = stack.enter_context(web_process(env | no_memory | {"CACHE_REDIS_URL": nowhere}))

        compared = Sides()
        all_thumbnails = [request_for(picture.path) for picture in thumbnails]
        for kind, picture in pictures.items():
            count = min(REQUESTS, _MOST_BYTES // len(picture.body))
            own, rival = [request_for(picture.path)], [request_for(f"/{kind}")]
            many = all_thumbnails if kind == THUMBNAIL else own
            compared.add(f"{kind}: {FALCON}", falcon_alone, rival, count=count)
            compared.add(f"{kind}: {FALCON_BEHIND_OURS}", falcon_behind_ours, rival, count=count)
            if kind in (THUMBNAIL, MEDIUM):
                compared.add(f"{kind}: memory", ours, own, count=count)
            if kind != STREAMED:
                web, header = (by_redis, _HIT) if kind == THUMBNAIL else (large_by_redis, b"")
                drive(web.port, many, 2 * IMAGES)  # fills Redis
                compared.add(f"{kind}: Redis", web, many, count=count, header=header)
            compared.add(f"{kind}: disk", by_disk, many, count=count)
        held = f"If-None-Match: {thumbnails[0].etag}"
        compared.add(f"{THUMBNAIL}: 304", ours, [request_for(thumbnails[0].path, held)], 304)
        compared.add("many: memory", ours, [request_for(thumbnails[0].path)], connections=MANY_CONNECTIONS)
        compared.add(f"many: {FALCON}", falcon_alone, [request_for(f"/{THUMBNAIL}")], connections=MANY_CONNECTIONS)
        compared.add(
            f"many: {FALCON_BEHIND_OURS}",
            falcon_behind_ours,
            [request_for(f"/{THUMBNAIL}")],
            connections=MANY_CONNECTIONS,
        )
        records = [request_for(f"/images/{picture.path.split('/')[2]}") for picture in thumbnails]
        compared.add(f"{THUMBNAIL}: record", ours, records)
        compared.add(f"{THUMBNAIL}: list", ours, [request_for("/images?limit=20")], count=REQUESTS // 3)
        yield compared


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    """Yield every way to serve a picture beside the rival's."""
    with sides() as compared:
        compared.run(rounds, "serving")
    yield from compared.figures(f"{THUMBNAIL}: memory", "thumbnail from memory", at_least(0.9))
    yield from compared.figures(f"{THUMBNAIL}: Redis", "thumbnail from Redis", at_least(0.28))
    yield from compared.figures(f"{THUMBNAIL}: 304", "304 for a thumbnail", at_least(1.1))
    yield from compared.figures(f"{THUMBNAIL}: disk", "thumbnail from disk")
    yield from compared.figures("many: memory", f"the same from memory, {MANY_CONNECTIONS} connections")
    yield from compared.figures(f"{MEDIUM}: memory", "300 KB from memory")
    for kind, title in ((MEDIUM, "300 KB"), (LARGE, "3 MB")):
        yield from compared.figures(f"{kind}: disk", f"{title} from disk")
        yield from compared.figures(f"{kind}: Redis", f"{title} from Redis")
    yield from compared.figures(f"{STREAMED}: disk", "12 MB streamed from disk")
    yield from compared.figures(f"{THUMBNAIL}: record", "a record, from Redis")
    yield from compared.figures(f"{THUMBNAIL}: list", "a list of 20, from Redis")


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
