"""How long a 202 takes: `python -m bench.uploads [rounds]`, for a photo of 3 MB, beside a bare copy of it to the disk.

One client uploads one after the other over one connection, while no worker runs. The rival writes the same bytes to a
new file on the same file system and fsyncs it. A stricter one also renames it and fsyncs its folder, without which the
file may be lost in a power cut. The time of a small upload is shown beside them.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path

from bench.figures import ROUNDS, Figure, at_most, in_turns, ratio, rounds_asked_for, show
from bench.photographs import encoded, mosaic
from bench.service import Service, run_service
from shared.renditions import Size

#: Uploads of each side in each round; their median counts.
UPLOADS = 20
PHOTO: Size = (4000, 3000)
#: Makes 3 MB, as a telephone's camera does.
QUALITY = 91


def photo() -> bytes:
    """Return a photograph of 12 MP and 3 MB."""
    return encoded(mosaic(PHOTO), quality=QUALITY)


def median_of(times: int, once: Callable[[], float]) -> float:
    return statistics.median(once() for _ in range(times)) * 1000


class Client:
    """Uploads over one connection."""

    def __init__(self, service: Service, body: bytes) -> None:
        self._connection = HTTPConnection("127.0.0.1", service.web_port, timeout=60)
        self._body = body

    def upload(self) -> float:
        """Upload once; return the seconds from the request's first byte to the answer's last."""
        began = time.perf_counter()
        self._connection.request("POST", "/images", self._body)
        answer = self._connection.getresponse()
        told = answer.read()
        seconds = time.perf_counter() - began
        if answer.status != 202:
            raise SystemExit(f"an upload got {answer.status}: {told!r}")
        return seconds

    def close(self) -> None:
        self._connection.close()


class Copies:
    """Bare copies to a folder."""

    def __init__(self, folder: Path, content: bytes) -> None:
        folder.mkdir()
        self._folder = folder
        self._content = content
        self._copies = 0

    def write(self) -> float:
        """Write a file and fsync it; return the seconds."""
        return self._write(in_place=False)

    def put(self) -> float:
        """Do the same, then rename it into place and fsync the folder; return the seconds."""
        return self._write(in_place=True)

    def _write(self, in_place: bool) -> float:
        self._copies += 1
        path = self._folder / f"{self._copies}.new"
        began = time.perf_counter()
        with path.open("xb", buffering=0) as file:
            rest = memoryview(self._content)
            while rest:
                rest = rest[file.write(rest) or 0 :]
            os.fsync(file.fileno())
        if in_place:
            path.rename(path.with_suffix(""))
            descriptor = os.open(self._folder, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        return time.perf_counter() - began


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    """Yield the time to a 202 beside that of a bare copy."""
    content = photo()
    with tempfile.TemporaryDirectory() as here:
        folder = Path(here, "service")
        folder.mkdir()
        with run_service(folder) as service:
            service.stop_workers()
            copies = Copies(Path(here, "copies"), content)
            with closing(Client(service, content)) as large, closing(Client(service, content[:8192])) as small:
                sides = {
                    "upload": lambda: median_of(UPLOADS, large.upload),
                    "copy": lambda: median_of(UPLOADS, copies.write),
                    "copy into place": lambda: median_of(UPLOADS, copies.put),
                    "upload of 8 KB": lambda: median_of(UPLOADS, small.upload),
                }
                runs = in_turns(sides, rounds, "uploads")
    yield Figure(
        "waiting",
        f"time to 202 for a photo of {len(content) / 1e6:.1f} MB / a bare copy with fsync",
        ratio(runs, "upload", "copy"),
        bar=at_most(2.5),
        runs=runs,
    )
    yield Figure(
        "waiting",
        "the same / a copy that survives a power cut (fsync, rename, fsync of the folder)",
        ratio(runs, "upload", "copy into place"),
    )


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
