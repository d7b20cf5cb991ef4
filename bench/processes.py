"""CPU and memory of a running process, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from bench.service import Service
from tests.integration.service import command_of, descendants_of


@dataclass(frozen=True)
class Process:
    """A process and its name here."""

    name: str
    pid: int

    def cpu_seconds(self) -> float:
        """Return the CPU time of its living threads, to the nanosecond (schedstat)."""
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def wakeups(self) -> int:
        """Return how often its threads have waited and woken up."""
        lines = (task / "status" for task in Path(f"/proc/{self.pid}/task").iterdir())
        return sum(_number(file.read_text(), "voluntary_ctxt_switches:") for file in lines)

    def own_megabytes(self) -> float:
        """Return its share of memory; pages that several processes use are divided among them (PSS)."""
        return _number(Path(f"/proc/{self.pid}/smaps_rollup").read_text(), "Pss:") / 1024

    def resident_megabytes(self) -> float:
        """Return its resident memory."""
        return _number(self._status(), "VmRSS:") / 1024

    def peak_megabytes(self) -> float:
        """Return the peak of resident memory since `forget_peak`, by the kernel's own count."""
        return _number(self._status(), "VmHWM:") / 1024

    def forget_peak(self) -> None:
        """Reset the peak."""
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
    """Return the render children of all workers."""
    pids = [pid for worker in workers_of(service) for pid in descendants_of(worker.pid)]
    return [Process("child", pid) for pid in pids if "worker.child" in command_of(pid)]


def valkey_of(service: Service) -> Process:
    assert service.valkey.process is not None  # noqa: S101 - a service that is ready has one
    return Process("Valkey", service.valkey.process.pid)


def all_of(service: Service) -> list[Process]:
    return [web_of(service), *workers_of(service), *children_of(service), valkey_of(service)]


def _number(text: str, name: str) -> int:
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(name)))
