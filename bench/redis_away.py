"""What an unavailable Redis costs a request: `python -m bench.redis_away [freezes]`, on a service of its own.

Valkey is stopped (SIGSTOP): it accepts connections and commands, and does not answer. The first request runs into the
deadline; then the circuit breaker is open. Each kind of request is the first one of as many freezes.
"""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from PIL import Image

from bench.service import Service, run_service, until
from launch.processes import Part

FREEZES = 25
#: Requests for each freeze while Redis answers, and while the breaker is open.
OTHERS = 10

SITUATIONS = WELL, FIRST, ALONE = ("Redis well", "first after it froze", "while it is left alone")


@dataclass(frozen=True)
class Request:
    """A kind of request, and the status of its answer."""

    name: str
    method: str
    path: str
    body: bytes | None
    status: int

    def send(self, connection: HTTPConnection) -> tuple[float, bytes]:
        """Return the seconds until the answer was complete, and its body."""
        begun = time.perf_counter()
        connection.request(self.method, self.path, self.body)
        answer = connection.getresponse()
        body = answer.read()
        seconds = time.perf_counter() - begun
        if answer.status != self.status:
            raise SystemExit(f"{self.method} {self.path} got {answer.status}: {body!r}")
        return seconds, body


def requests_for(record: dict[str, Any], picture: bytes) -> list[Request]:
    """Return the kinds of requests, for an image that is ready."""
    return [
        Request("record", "GET", f"/images/{record['id']}", None, 200),
        Request("list", "GET", "/images?limit=20", None, 200),
        Request("thumbnail", "GET", record["thumbnails"][0], None, 200),
        Request("upload", "POST", "/images", picture, 202),
    ]


@contextmanager
def frozen(valkey: Part) -> Iterator[None]:
    """Keep Valkey stopped for the block."""
    if valkey.process is None:
        raise SystemExit("Valkey has not started")
    os.kill(valkey.process.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, valkey.process.pid, os.WSTOPPED | os.WNOWAIT)
    try:
        yield
    finally:
        os.kill(valkey.process.pid, signal.SIGCONT)


def rest(service: Service, connection: HTTPConnection) -> None:
    """Wait until all images are finished and the breaker is closed."""
    lists = [Request("", "GET", f"/images?status={status}", None, 200) for status in ("queued", "processing")]

    def is_at_rest() -> bool:
        return service.is_ready() and all(json.loads(request.send(connection)[1]) == [] for request in lists)

    until(is_at_rest, "the service does not come to rest")


def measure(service: Service, freezes: int, picture: bytes) -> dict[tuple[str, str], list[float]]:
    """Return the seconds of each kind of request in each situation."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    with closing(HTTPConnection("127.0.0.1", service.web_port, timeout=30)) as connection:
        connection.request("POST", "/images", picture, {"Prefer": "wait=20"})
        kinds = requests_for(json.load(connection.getresponse()), picture)
        for kind in kinds * freezes:
            rest(service, connection)
            found[kind.name, WELL] += [kind.send(connection)[0] for _ in range(OTHERS)]
            rest(service, connection)
            with frozen(service.valkey):
                found[kind.name, FIRST].append(kind.send(connection)[0])
                found[kind.name, ALONE] += [kind.send(connection)[0] for _ in range(OTHERS)]
    return found


def main() -> None:
    freezes = int(sys.argv[1]) if len(sys.argv) > 1 else FREEZES
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((160, 128)).save(file, "JPEG")
    with tempfile.TemporaryDirectory() as folder, run_service(Path(folder), ASGI_LOOK_LOG_LEVEL="ERROR") as service:
        found = measure(service, freezes, file.getvalue())
    print(f"{'milliseconds':12}" + "".join(f"{situation:>28}" for situation in SITUATIONS))
    for name in dict.fromkeys(name for name, _ in found):
        figures = ([1000 * second for second in found[name, situation]] for situation in SITUATIONS)
        cells = (f"median {statistics.median(each):5.1f}, worst {max(each):5.1f}" for each in figures)
        print(f"{name:12}" + "".join(f"{cell:>28}" for cell in cells))
    print(f"({freezes} freezes for each kind of request, {OTHERS} other requests before and in each)")


if __name__ == "__main__":
    main()
