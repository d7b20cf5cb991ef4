"""How much web's memory grows: under 20 uploads of 48 MB at once, and over 100,000 requests of every kind.

`python -m bench.web_memory [rounds]`, each on a service of its own. Memory is what is resident: the kernel's peak since
the uploads began (VmHWM, after clear_refs), less what there was just before. A warm-up comes first, so that code,
buffers and caches that stay for good do not count.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from bench.clients import Client, at_once
from bench.figures import ROUNDS, ROUNDS_THAT_COUNT, Figure, at_most, progress, rounds_asked_for, show
from bench.isolation import photograph
from bench.processes import web_of
from bench.service import Service, run_service, until

MOST_MEGABYTES = 16.0
UPLOADS = 20
UPLOAD_BYTES = 48 * 1_000_000
REQUESTS = 100_000
#: Requests before those that count.
WARM_UP = 5_000
#: Requests at a time.
CLIENTS = 4
IMAGES = 20


@dataclass(frozen=True)
class Ask:
    """A request and the status that it must get."""

    path: str
    status: int
    headers: dict[str, str]


def under_uploads(service: Service) -> tuple[float, float, float]:
    """Return web's megabytes before the uploads, the peak, and after them."""
    # Its first bytes are a JPEG's. The rest is not, which only the worker finds out.
    body = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00" + bytes(range(256)) * (UPLOAD_BYTES // 256)
    web = web_of(service)
    for _ in range(3):
        service.upload(body[: UPLOAD_BYTES // 8])
    at_once(lambda: service.upload(body[:1_000_000]), UPLOADS)
    before = web.resident_megabytes()
    web.forget_peak()
    at_once(lambda: service.upload(body), UPLOADS)
    peak = web.peak_megabytes()
    return before, peak, web.resident_megabytes()


def growth_by_requests(folder: Path, requests: int) -> list[float]:
    """Return web's growth in megabytes since the warm-up: after each tenth of the requests, and the peak."""
    with run_service(folder, ASGI_LOOK_LOG_LEVEL="ERROR") as service:
        web = web_of(service)
        asks = mix(service, [photograph((1200, 800)), photograph((640, 480))])
        ask_all(service, asks, WARM_UP)
        before = web.resident_megabytes()
        web.forget_peak()
        grown = []
        for tenth in range(1, 11):
            progress(f"web after {requests * tenth // 10:,} requests")
            ask_all(service, asks, requests // 10)
            grown.append(web.resident_megabytes() - before)
        progress("")
        return [*grown, web.peak_megabytes() - before]


def mix(service: Service, pictures: Sequence[bytes]) -> list[Ask]:
    """Upload images; return requests of every kind for them, mostly pictures and thumbnails."""
    ids = [service.upload(pictures[number % len(pictures)]) for number in range(IMAGES)]
    with closing(Client(service.web_port)) as client:
        records = []
        for image_id in ids:
            until(lambda image_id=image_id: json.loads(client.get(f"/images/{image_id}")[0])["status"] == "ready")  # type: ignore[misc] # a default is no argument
            records.append(json.loads(client.get(f"/images/{image_id}")[0]))
        asks = []
        for record in records:
            asks += [Ask(path, 200, {}) for path in record["thumbnails"]] * 3
            asks += [Ask(path, 304, {"If-None-Match": client.get(path)[1]}) for path in record["thumbnails"]]
            asks += [Ask(record["image"], 200, {}), Ask(f"/images/{record['id']}", 200, {})]
        missing = [path.replace("/images/", "/images/0") for path in (record["image"] for record in records)]
        asks += [Ask(path, 404, {}) for path in missing[:5]]
        lists = [f"/images?limit={limit}" for limit in (5, 10, 20)] + ["/images?order=desc", "/images?status=failed"]
        asks += [Ask(path, 200, {}) for path in lists]
    # Strides of a prime, so that kinds alternate and clients ask for different things.
    return [asks[number * 7919 % len(asks)] for number in range(len(asks))]


def ask_all(service: Service, asks: Sequence[Ask], count: int) -> None:
    """Send so many requests, several at a time. Raises SystemExit for an answer with another status."""
    starts = iter(range(CLIENTS))

    def ask() -> None:
        at = next(starts) * len(asks) // CLIENTS
        with closing(Client(service.web_port)) as client:
            for number in range(count // CLIENTS):
                one = asks[(at + number) % len(asks)]
                client.get(one.path, one.status, one.headers)

    at_once(ask, CLIENTS)


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    requests = REQUESTS if rounds >= ROUNDS_THAT_COUNT else REQUESTS // 10
    peaks, stayed = [], []
    for number in range(min(rounds, 3)):
        progress(f"{UPLOADS} uploads at once: {number + 1} of {min(rounds, 3)}")
        with tempfile.TemporaryDirectory() as folder, run_service(Path(folder), ASGI_LOOK_LOG_LEVEL="ERROR") as service:
            before, peak, after = under_uploads(service)
            peaks.append(peak - before)
            stayed.append(after - before)
    progress("")
    yield Figure(
        "scale",
        f"web's memory under {UPLOADS} uploads of {UPLOAD_BYTES // 1_000_000} MB at once: growth",
        max(peaks),
        "MB",
        at_most(MOST_MEGABYTES),
        {"peak": peaks, "stayed": stayed},
        "MB",
        "the worst of these services, each new",
    )
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        *grown, peak = growth_by_requests(Path(folder), requests)
    yield Figure(
        "scale",
        f"web's memory after {requests:,} requests: growth",
        grown[-1],
        "MB",
        at_most(MOST_MEGABYTES),
        note=f"peak {peak:.1f} MB; after each tenth {', '.join(f'{value:.1f}' for value in grown)}; "
        f"{time.monotonic() - began:.0f} s with {CLIENTS} clients",
    )


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
