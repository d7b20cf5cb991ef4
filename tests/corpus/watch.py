"""Looks at a service's processes five times a second: what memory each has taken, and what the machine does besides."""

from __future__ import annotations

import bisect
import os
import threading
import time
from collections import defaultdict
from pathlib import Path
from typing import Self

from tests.integration.service import Deployed

_EVERY_SECONDS = 0.2
_TICK = os.sysconf("SC_CLK_TCK")
_KINDS = ("web", "worker", "child")


class Watch:
    """From `with` to its end; `peaks` has the most memory of every process, in bytes, by its kind and its pid."""

    def __init__(self, service: Deployed) -> None:
        self.peaks: dict[str, dict[int, int]] = {kind: {} for kind in _KINDS}
        self._roots = {web.pid: "web" for web in service.webs} | {worker.pid: "worker" for worker in service.workers}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)
        self._times: list[float] = []
        self._foreign: list[float] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def foreign_seconds(self, began: float, ended: float) -> float:
        """Return the processor time that others than this test and its service took between two moments."""
        if not self._times:
            return 0.0
        first = max(bisect.bisect_right(self._times, began) - 1, 0)
        last = min(bisect.bisect_left(self._times, ended), len(self._times) - 1)
        return max(0.0, self._foreign[last] - self._foreign[first])

    def _look_on(self) -> None:
        while not self._over.wait(_EVERY_SECONDS):
            self._look()

    def _look(self) -> None:
        whole, parents, spent = _machine_seconds(), {}, {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and (fields := _stat_of(int(entry))):
                parents[int(entry)] = int(fields[1])
                # What it spent, and what those of its children spent that have ended.
                spent[int(entry)] = sum(int(field) for field in fields[11:15]) / _TICK
        children = defaultdict(list)
        for pid, parent in parents.items():
            children[parent].append(pid)
        ours, to_visit = 0.0, [(os.getpid(), "")]
        while to_visit:
            pid, kind = to_visit.pop()
            ours += spent.get(pid, 0.0)
            for child in children[pid]:
                below = "child" if kind == "worker" else kind
                to_visit.append((child, self._roots.get(child, below)))
            if kind:
                self.peaks[kind][pid] = max(self.peaks[kind].get(pid, 0), _peak_memory(pid))
        self._times.append(time.time())
        self._foreign.append(whole - ours)


def _machine_seconds() -> float:
    """Return what all processors together have been busy with since the machine started."""
    user, nice, system, _, _, irq, softirq, steal = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    return sum(int(field) for field in (user, nice, system, irq, softirq, steal)) / _TICK


def _stat_of(pid: int) -> list[str]:
    """Return what the kernel says about a process behind its name: its state, its parent, and so on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def _peak_memory(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
