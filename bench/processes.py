"""What a running process uses, as the kernel tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.service import Service
from tests.integration.service import command_of, descendants_of


@dataclass(frozen=True)
class Process:
    """One process, and what it is called here."""

    name: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return what all of its threads that still live have computed, to the nanosecond: proc_schedstat."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def wakeups(self) -> int:
        """Return how often its threads have waited for something, and been woken."""
        lines = (task / "status" for task in Path(f"/proc/{self.pid}/task").iterdir())
        return sum(_number(file.read_text(), "voluntary_ctxt_switches:") for file in lines)

    def own_megabytes(self) -> float:
        """Return its share of the memory that it uses: what several use is divided among them (PSS)."""
        return _number(Path(f"/proc/{self.pid}/smaps_rollup").read_text(), "Pss:") / 1024

    def resident_megabytes(self) -> float:
        """Return what is in memory of it."""
        return _number(self._status(), "VmRSS:") / 1024

    def peak_megabytes(self) -> float:
        """Return the most that was in memory of it since `forget_peak`, as the kernel counts it at every page."""
        return _number(self._status(), "VmHWM:") / 1024

    def forget_peak(self) -> None:
        """Have the peak be what there is now."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def _status(self) -> str:
        return Path(f"/proc/{self.pid}/status").read_text()


def web_of(service: Service) -> Process:
    """Return a service's web process."""
    words = f"--port {service.web_port} "
    return Process("web", next(pid for pid in descendants_of(os.getpid()) if words in f"{command_of(pid)} "))


def workers_of(service: Service) -> list[Process]:
    return [Process("worker", part.process.pid) for part in service.workers if part.process is not None]


def children_of(service: Service) -> list[Process]:
    """Return the children that render, of all of its workers."""
    pids = [pid for worker in workers_of(service) for pid in descendants_of(worker.pid)]
    return [Process("child", pid) for pid in pids if "worker.child" in command_of(pid)]


def valkey_of(service: Service) -> Process:
    assert service.valkey.process is not None  # noqa: S101 - a service that is ready has one
    return Process("Valkey", service.valkey.process.pid)


def all_of(service: Service) -> list[Process]:
    return [web_of(service), *workers_of(service), *children_of(service), valkey_of(service)]


def _number(text: str, name: str) -> int:
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))
