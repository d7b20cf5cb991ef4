"""The machine: cores, kernel, versions; and how busy other processes keep it."""

from __future__ import annotations

import os
import platform
import resource
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import features

#: Cores that others may use before a measurement is called disturbed.
MOST_OTHERS = 0.1

_TICKS = os.sysconf("SC_CLK_TCK")


def facts() -> dict[str, str]:
    """Return what figures depend on, as text."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU": _cpu(),
        "memory": f"{memory:.0f} GB",
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        "Pillow": features.version("pil") or "?",
        "libjpeg-turbo": features.version("libjpeg_turbo") or "none",
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@dataclass
class Others:
    """Measures how many cores processes other than this one and its children use.

    A child's CPU counts as ours once the child has been waited for.
    """

    began: float
    all_seconds: float
    our_seconds: float

    @classmethod
    def watch(cls) -> Others:
        return cls(time.monotonic(), _seconds_of_all(), _seconds_of_ours())

    def cores(self) -> float:
        """Return the mean since `watch`."""
        used = (_seconds_of_all() - self.all_seconds) - (_seconds_of_ours() - self.our_seconds)
        return max(0.0, used / max(time.monotonic() - self.began, 1e-9))


def busy_cores(seconds: float = 2.0) -> float:
    """Return how many cores are busy while this process waits."""
    others = Others.watch()
    time.sleep(seconds)  # the time over which CPU is counted
    return others.cores()


def _seconds_of_all() -> float:
    # user, nice, system, idle, iowait, irq, softirq, steal: proc_stat(5). Stolen time counts as others' work.
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def _seconds_of_ours() -> float:
    usages = [resource.getrusage(processes) for processes in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)
