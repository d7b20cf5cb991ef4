"""What a machine of so much memory renders: `python -m bench.memory [MiB ...]`, as root, since it makes cgroups.

For each limit a service (Valkey, web, a worker with its default slots) runs in a cgroup of that limit without swap, and
large pictures of each kind are uploaded at once. Each must end ready, or failed with a reason that names memory; the
kernel must not kill a process. ASGI_LOOK_RENDER_SLOTS sets another number of slots.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

from PIL import Image

from bench.service import run_service
from shared.renditions import Size

LIMITS = (512, 1024, 2048)
#: Seconds that a picture may take to end.
PATIENCE = 300.0

_ROOT = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cgroup:
    """A memory cgroup, of version 1 or 2."""

    folder: Path
    is_version_1: bool

    @classmethod
    def make(cls, limit: int) -> Cgroup:
        """Make one of `limit` bytes. Raises OSError without the permission."""
        is_version_1 = (_ROOT / "memory").is_dir()
        folder = (_ROOT / "memory" if is_version_1 else _ROOT) / f"asgilook-{os.getpid()}-{limit}"
        folder.mkdir()
        made = cls(folder, is_version_1)
        (folder / ("memory.limit_in_bytes" if is_version_1 else "memory.max")).write_text(str(limit))
        (folder / ("memory.swappiness" if is_version_1 else "memory.swap.max")).write_text("0")
        return made

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Put processes that start in the block into this cgroup."""
        before = self._current()
        (self.folder / "cgroup.procs").write_text("0")
        try:
            yield
        finally:
            (before / "cgroup.procs").write_text("0")

    def peak(self) -> int:
        """Return the peak in bytes, cached files included."""
        return int((self.folder / ("memory.max_usage_in_bytes" if self.is_version_1 else "memory.peak")).read_text())

    def children(self) -> int:
        """Return the number of render children, which is that of slots."""
        pids = (self.folder / "cgroup.procs").read_text().split()
        return sum(b"worker.child" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)

    def kills(self) -> int:
        """Return how often the kernel has killed a process for want of memory."""
        text = (self.folder / ("memory.oom_control" if self.is_version_1 else "memory.events")).read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("oom_kill ")))

    def _current(self) -> Path:
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == ("memory" if self.is_version_1 else ""):
                return (_ROOT / "memory" if self.is_version_1 else _ROOT) / path.lstrip("/")
        raise SystemExit("this process is in no memory cgroup")


def picture(size: Size, mode: str, format: str, **options: object) -> bytes:
    """Return a picture of gradients, a small file that takes as much memory to decode as any."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    bands = [across, down, across, down]
    image = Image.merge(mode, bands[: len(mode)]) if mode != "L" else across
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


MP12, MP24, MP50 = (4000, 3000), (6000, 4000), (8000, 6250)
KINDS: dict[str, Callable[[], bytes]] = {
    "JPEG, 12 MP": lambda: picture(MP12, "RGB", "JPEG"),
    "JPEG, 24 MP": lambda: picture(MP24, "RGB", "JPEG"),
    "JPEG, 50 MP": lambda: picture(MP50, "RGB", "JPEG"),
    "progressive JPEG, 24 MP": lambda: picture(MP24, "RGB", "JPEG", progressive=True),
    "CMYK JPEG, 24 MP": lambda: picture(MP24, "CMYK", "JPEG"),
    "PNG, 12 MP": lambda: picture(MP12, "RGB", "PNG", compress_level=1),
    "PNG with alpha, 24 MP": lambda: picture(MP24, "RGBA", "PNG", compress_level=1),
    "PNG with alpha, 50 MP": lambda: picture(MP50, "RGBA", "PNG", compress_level=1),
    "WebP, 12 MP": lambda: picture(MP12, "RGB", "WEBP", method=0),
    "WebP with alpha, 50 MP": lambda: picture(MP50, "RGBA", "WEBP", method=0),
    "AVIF, 12 MP": lambda: picture(MP12, "RGB", "AVIF", speed=10),
    "TIFF, 24 MP": lambda: picture(MP24, "RGB", "TIFF", compression="tiff_lzw"),
}


def outcome(port: int, image_id: str) -> str:
    """Wait until an image is ready or failed; return its status or reason."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request("GET", f"/images/{image_id}", headers={"Prefer": "wait=20"})
            record = json.load(connection.getresponse())
        if record["status"] in ("ready", "failed"):
            error = record["error"]
            return str(error["type"].rpartition(":")[2] if error else "ready")
    return "neither ready nor failed"


def measure(limit: int, pictures: dict[str, bytes]) -> dict[str, str]:
    """Upload all pictures at once to a service of `limit` bytes; print its peak, return each one's end."""
    cgroup = Cgroup.make(limit)
    try:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            with cgroup.entered():
                service = stack.enter_context(run_service(folder, ASGI_LOOK_LOG_LEVEL="ERROR"))
            # This process with its pictures and clients is outside of the cgroup again.
            slots = cgroup.children()
            image_ids = {name: service.upload(content) for name, content in pictures.items()}
            ends = {name: outcome(service.web_port, image_id) for name, image_id in image_ids.items()}
        print(
            f"{limit >> 20} MiB, {slots} slots: at most {cgroup.peak() >> 20} MiB used, cached files included; "
            f"{cgroup.kills()} processes killed by the kernel",
            flush=True,
        )
        return ends
    finally:
        cgroup.folder.rmdir()


def main() -> None:
    limits = [int(argument) << 20 for argument in sys.argv[1:]] or [limit << 20 for limit in LIMITS]
    pictures = {}
    for name, make in KINDS.items():
        if sys.stderr.isatty():
            print(f"\rmaking {name:<30}", end="", file=sys.stderr)
        pictures[name] = make()
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    try:
        ends = {limit: measure(limit, pictures) for limit in limits}
    except PermissionError as exc:
        raise SystemExit(f"a memory cgroup cannot be made here: {exc}") from exc
    print(f"| {'picture':<24} |", *(f"{limit >> 20} MiB |" for limit in limits))
    print(f"|{'-' * 26}|", *("---|" for _ in limits), sep="")
    for name in pictures:
        print(f"| {name:<24} |", *(f"{ends[limit][name]} |" for limit in limits))


if __name__ == "__main__":
    main()
