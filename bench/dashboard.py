"""The dashboard filled by a real load: `python -m bench.dashboard [picture]`, four minutes; docs/dashboard.png is one.

Clients of every kind use a service (one web process, two workers), while workers are killed and Redis is away. A real
Prometheus scrapes it. It answers the queries of every panel in docs/grafana.json, and evaluates the alerts of
docs/alerts.yml with shortened times. A panel without data is printed, and makes the exit code 1.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from bench.panels import Event, Panel, draw, fill
from bench.prometheus import HURRY, Prometheus, run_prometheus
from bench.service import Service, run_service, until
from launch.processes import HERE, Part, free_port
from launch.valkey import is_valkey_up
from tests.corpus.formats import flat_jpeg, flat_png, with_frame_header
from tests.integration.service import children_of
from tests.worker.pictures import encoded, photo

#: Seconds of load after the last disturbance.
REST_SECONDS = 60.0

GOOD = {
    "JPEG": encoded(photo((1600, 1200)), "JPEG", quality=85).getvalue(),
    "a small JPEG": encoded(photo((640, 480)), "JPEG", quality=80).getvalue(),
    "PNG": encoded(photo((800, 600)), "PNG").getvalue(),
    "WebP": encoded(photo((1024, 768)), "WEBP", quality=80).getvalue(),
    "AVIF": encoded(photo((640, 480)), "AVIF", speed=10).getvalue(),
    "GIF": encoded(photo((480, 360)).convert("P"), "GIF").getvalue(),
    "TIFF": encoded(photo((800, 600)), "TIFF").getvalue(),
    "BMP": encoded(photo((320, 240)), "BMP").getvalue(),
}
HOSTILE = {
    "cut off": GOOD["JPEG"][: len(GOOD["JPEG"]) // 2],
    "a bomb": flat_png(20_000, 20_000, 1, 0),
    "a header that lies": with_frame_header(GOOD["a small JPEG"], width=65_500, height=65_500),
    "6000 scans": flat_jpeg(7000, 7000, scans=6000),
    "no picture": b"<html><script>alert(1)</script></html>",
    "empty": b"",
}


class Load:
    """Clients of a service, each a thread. The statuses of their answers are counted."""

    def __init__(self, service: Service) -> None:
        self.answers: Counter[str] = Counter()
        self._service = service
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._unfinished: deque[str] = deque(maxlen=300)
        self._ready: list[dict[str, Any]] = []
        self._failed: deque[str] = deque(maxlen=20)
        self._threads = [
            *(self._client(seconds, act, seed) for seed, (seconds, act) in enumerate(self._kinds())),
        ]

    def _kinds(self) -> list[tuple[float, Callable[[random.Random], None]]]:
        """Return what clients do, and the seconds between two times."""
        return [
            (0.7, self._upload),
            (0.9, self._upload),
            (1.5, self._upload_and_wait),
            (2.5, self._upload_hostile),
            (0.08, self._view_hot),
            (0.08, self._view_hot),
            (0.25, self._view_cold),
            (0.15, self._poll),
            (0.8, self._list),
            (2.0, self._delete),
            (9.0, self._retry),
            (2.0, self._stray),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _client(self, seconds: float, act: Callable[[random.Random], None], seed: int) -> threading.Thread:
        chance = random.Random(seed)  # noqa: S311 - no secret

        def use() -> None:
            while not self._stop.wait(seconds * chance.uniform(0.7, 1.3)):
                act(chance)

        return threading.Thread(target=use, daemon=True)

    def _send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """Return the JSON of an answer, or None."""
        try:
            with closing(HTTPConnection("127.0.0.1", self._service.web_port, timeout=60)) as connection:
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
        except (OSError, HTTPException) as exc:
            self.answers[f"{method} {type(exc).__name__}"] += 1
            return None
        self.answers[f"{method} {answer.status}"] += 1
        return json.loads(content) if answer.headers.get_content_type() == "application/json" else None

    def _take(self, record: Any) -> None:
        """Remember an image by its record."""
        with self._lock:
            if record["status"] == "ready":
                self._ready.append(record)
            elif record["status"] == "failed":
                self._failed.append(record["id"])
            else:
                self._unfinished.append(record["id"])

    def _upload(self, chance: random.Random) -> None:
        if record := self._send("POST", "/images", chance.choice(list(GOOD.values()))):
            self._take(record)

    def _upload_and_wait(self, chance: random.Random) -> None:
        if record := self._send("POST", "/images", chance.choice(list(GOOD.values())), Prefer="wait=10"):
            self._take(record)

    def _upload_hostile(self, chance: random.Random) -> None:
        if record := self._send("POST", "/images", chance.choice(list(HOSTILE.values()))):
            self._take(record)

    def _some_ready(self, chance: random.Random, newest: int | None = None) -> dict[str, Any] | None:
        with self._lock:
            among = self._ready if newest is None else self._ready[-newest:]
            return chance.choice(among) if among else None

    def _view_hot(self, chance: random.Random) -> None:
        if record := self._some_ready(chance, newest=12):
            self._send("GET", chance.choice([record["image"], *record["thumbnails"]]))

    def _view_cold(self, chance: random.Random) -> None:
        if record := self._some_ready(chance):
            self._send("GET", chance.choice([record["image"], *record["thumbnails"]]))

    def _poll(self, chance: random.Random) -> None:
        with self._lock:
            image_id = self._unfinished.popleft() if self._unfinished else None
        if image_id and (record := self._send("GET", f"/images/{image_id}")):
            self._take(record)

    def _list(self, chance: random.Random) -> None:
        self._send("GET", chance.choice(["/images?limit=20&order=desc", "/images?status=failed&limit=20", "/readyz"]))

    def _delete(self, chance: random.Random) -> None:
        if record := self._some_ready(chance):
            with self._lock:
                self._ready.remove(record)
            self._send("DELETE", f"/images/{record['id']}")

    def _retry(self, chance: random.Random) -> None:
        with self._lock:
            image_id = self._failed.popleft() if self._failed else None
        if image_id:
            self._send("POST", f"/images/{image_id}/retry")

    def _stray(self, chance: random.Random) -> None:
        self._send("GET", chance.choice(["/favicon.ico", "/images/0", "/.env", "/thumbnails/x"]))


class Troubles:
    """Disturb the service, at seconds after the load's start."""

    def __init__(self, service: Service, began: float) -> None:
        self.events: list[Event] = []
        self._service = service
        self._began = began

    def go_through(self) -> None:
        one, other = self._service.workers
        self._until(35)
        self._do("a worker is killed, and started again", [one], seconds=15)
        self._until(65)
        began = time.time()
        os.kill(children_of(_pid(other))[0], signal.SIGKILL)
        self.events.append(Event("a render child is killed", began, began + 1))
        self._until(80)
        self._do("Redis is away", [self._service.valkey], seconds=10)
        until(lambda: is_valkey_up(self._service.valkey_port, _pid(self._service.valkey)), "Valkey does not come back")
        self._until(110)
        self._do("both workers are dead", [one, other], seconds=85)
        self._until(195 + REST_SECONDS)

    def _do(self, name: str, parts: list[Part], seconds: float) -> None:
        """Kill these processes, and start them again after so many seconds."""
        began = time.time()
        for part in parts:
            os.kill(_pid(part), signal.SIGKILL)
            assert part.process is not None  # noqa: S101 - for mypy: it was just killed
            part.process.wait()
        self._sleep(seconds)
        for part in parts:
            part.start()
        self.events.append(Event(name, began, time.time()))

    def _until(self, seconds: float) -> None:
        self._sleep(self._began + seconds - time.time())

    @staticmethod
    def _sleep(seconds: float) -> None:
        time.sleep(max(0.0, seconds))


def _pid(part: Part) -> int:
    if part.process is None:
        raise SystemExit(f"{part.name} has not started")
    return part.process.pid


def tell_alerts(prometheus: Prometheus, began: float, ended: float) -> None:
    """Print which alerts were pending and firing, and when."""
    print(f"alerts, their times {HURRY} times shorter than in docs/alerts.yml:")
    for series in prometheus.query_range("ALERTS", began, ended):
        name, state = series.labels["alertname"], series.labels["alertstate"]
        print(f"  {name:18} {state:8} from {series.times[0] - began:4.0f} s to {series.times[-1] - began:4.0f} s")


def main() -> int:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "docs" / "dashboard.png"
    dashboard = json.loads((HERE / "docs" / "grafana.json").read_text())
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(tempfile.TemporaryDirectory())) for _ in range(2)]
        ports = [free_port(), free_port()]
        service = stack.enter_context(
            run_service(folders[0], metrics_ports=ports, ASGI_LOOK_LOG_LEVEL="ERROR", ASGI_LOOK_RENDER_CPU_SECONDS="2")
        )
        prometheus = stack.enter_context(run_prometheus(folders[1], [service.web_port, *ports]))
        until(lambda: prometheus.targets_up() == 3, "Prometheus does not reach all of the service")
        began = time.time()
        load, troubles = Load(service), Troubles(service, began)
        load.start()
        troubles.go_through()
        load.stop()
        ended = time.time()
        panels: list[Panel] = fill(dashboard, lambda query: prometheus.query_range(query, began, ended))
        draw(panels, troubles.events, began, ended, path)
        print("answers:", ", ".join(f"{number} {what}" for what, number in sorted(load.answers.items())))
        for event in troubles.events:
            print(f"{event.name}: from {event.began - began:.0f} s to {event.ended - began:.0f} s")
        tell_alerts(prometheus, began, ended)
        for series in prometheus.query_range("up", began, ended):
            misses = sum(value == 0 for value in series.values)
            print(f"{series.labels['instance']}: {misses} of {len(series.values)} scrapes failed")
    empty = [panel.title for panel in panels if not panel.is_row and not panel.lines]
    print(f"empty panels: {', '.join(empty) or 'none'}")
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
