"""What the service takes of one machine: `python -m bench.footprint CHECKOUT [CHECKOUT …]`, in turns.

Each checkout's own ./run installs and starts it; only a port and a data folder are set. Measured are the packages and
megabytes of its .venv, the seconds from ./run to "ready", and the memory (PSS) of web, worker and the worker's
children, once ready and after an upload. To compare with an earlier revision:

    git worktree add ../before REVISION && .venv/bin/python -m bench.footprint ../before .
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from bench.isolation import photograph
from launch.processes import free_port

ROUNDS = 7


@dataclass
class Checkout:
    """A checkout and its figures."""

    folder: Path
    seconds: list[float] = field(default_factory=list)
    megabytes: dict[str, list[float]] = field(default_factory=dict)

    def note_memory(self, when: str, launcher: int) -> None:
        """Note the memory of each part (PSS)."""
        total: dict[str, float] = dict.fromkeys(("web", "worker", "children"), 0.0)
        for pid in _below(launcher):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            for part, words in (("web", "uvicorn"), ("children", "worker.child"), ("worker", "-m worker")):
                if words in command:
                    total[part] += _pss(pid)
                    break
        for part, megabytes in total.items():
            self.megabytes.setdefault(f"{part}, {when}", []).append(megabytes)


def _below(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield int(child)
            yield from _below(int(child))


def _pss(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


@contextmanager
def running(command: Sequence[str | Path], data: str, port: int) -> Iterator[subprocess.Popen[str]]:
    """Run a launcher, such as a checkout's ./run, for the block."""
    env = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    env |= {"PORT": str(port), "ASGI_LOOK_STORAGE_PATH": data}
    run = subprocess.Popen(  # noqa: S603 - the checkout's own
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        yield run
    finally:
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)


def await_ready(run: subprocess.Popen[str]) -> None:
    """Wait until the launcher says "ready". Raises SystemExit with its output if it ends before that."""
    said = []
    for line in run.stdout or ():
        if line.startswith("asgilook is ready"):
            return
        said.append(line)
    raise SystemExit(f"./run did not come up:\n{''.join(said)}")


def measure(checkout: Checkout, picture: bytes) -> None:
    """Start it once, upload a picture, and note time and memory."""
    with tempfile.TemporaryDirectory() as data:
        port = free_port()
        begun = time.monotonic()
        with running([checkout.folder / "run"], data, port) as run:
            await_ready(run)
            checkout.seconds.append(time.monotonic() - begun)
            checkout.note_memory("ready", run.pid)
            with closing(HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
                connection.request("POST", "/images", picture, {"Prefer": "wait=20"})
                answer = connection.getresponse()
                if answer.status != 201:
                    raise SystemExit(f"an upload got {answer.status}: {answer.read()!r}")
                path = json.load(answer)["image"]
                connection.request("GET", path)
                connection.getresponse().read()
            checkout.note_memory("after an upload", run.pid)


def _installed(checkout: Path) -> tuple[int, float]:
    packages = list((checkout / ".venv" / "lib").glob("python*/site-packages/*.dist-info"))
    taken = sum(path.lstat().st_blocks * 512 for path in (checkout / ".venv").rglob("*"))
    return len(packages), taken / 2**20


def main() -> None:
    checkouts = [Checkout(Path(name).resolve()) for name in sys.argv[1:]]
    if not checkouts:
        raise SystemExit(__doc__)
    picture = photograph((2048, 1536))
    for at in range(ROUNDS + 1):
        for checkout in checkouts:
            print(f"round {at} of {ROUNDS}: {checkout.folder}", file=sys.stderr)
            measure(checkout, picture)
    lines: dict[str, list[float]] = {}
    for checkout in checkouts:
        packages, megabytes = _installed(checkout.folder)
        lines.setdefault("packages", []).append(packages)
        lines.setdefault(".venv, MB", []).append(megabytes)
        # Without the first round, which installs and fills the system's caches.
        lines.setdefault("ready after, s", []).append(statistics.median(checkout.seconds[1:]))
        for what, values in checkout.megabytes.items():
            lines.setdefault(f"{what}, MB", []).append(statistics.median(values[1:]))
    print(f"medians of {ROUNDS} starts in turns; the ratio is to the first")
    for what, values in lines.items():
        print(f"{what:34}", *(f"{value:10.2f} ({value / values[0]:.2f})" for value in values))


if __name__ == "__main__":
    main()
