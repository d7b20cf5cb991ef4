"""How much this machine or container can render at once: slots from its cores, pixels from its memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

#: The most bytes of memory for each pixel. Measured with a WebP of 50 MP with alpha: its decoder holds three copies.
BYTES_PER_PIXEL = 18
#: Memory for the worker itself, its buffers, and other processes in the container.
WORKER_RESERVE = 192 * 1024 * 1024
#: Memory that an idle child keeps.
CHILD_RESERVE = 96 * 1024 * 1024
#: With less, a child cannot render a photograph from a phone.
LEAST_CHILD_MEMORY = 256 * 1024 * 1024


def render_slots(root: Path = Path("/"), *, cores: int | None = None) -> int:
    """Return the default number of slots: one per core, fewer if the CPU quota or the memory is smaller."""
    cores = cores if cores is not None else len(os.sched_getaffinity(0))
    quota = min(_cpu_quotas(root), default=float(cores))
    room = (usable_memory(root) - WORKER_RESERVE) // (2 * CHILD_RESERVE)
    return max(1, min(cores, int(quota), room))


def pixel_budget(slots: int, root: Path = Path("/")) -> int:
    """Return how many pixels may be decoded at once. A picture with more pixels is rendered alone."""
    return max(1, (usable_memory(root) - WORKER_RESERVE - slots * CHILD_RESERVE) // BYTES_PER_PIXEL)


def child_memory(slots: int, root: Path = Path("/")) -> int:
    """Return the most bytes that a child may take: all that the worker and the other, idle children leave.

    A picture that needs more fails alone, with a reason. If the machine's memory ran out, the kernel would kill a
    process of its choice.
    """
    return max(LEAST_CHILD_MEMORY, usable_memory(root) - WORKER_RESERVE - (slots - 1) * CHILD_RESERVE)


def usable_memory(root: Path = Path("/")) -> int:
    """Return the bytes of memory that the machine has or the cgroup allows, whichever is less."""
    return min((_physical_memory(root), *_memory_limits(root)))


def _physical_memory(root: Path) -> int:
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 1024**3  # a guess for a system without /proc


def _memory_limits(root: Path) -> Iterator[int]:
    for folder in _cgroups(root):
        for name in ("memory.max", "memory.high"):
            if (text := _read(folder / name).strip()).isdecimal():
                yield int(text)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for folder in _cgroups(root):
        # "150000 100000", or "max 100000" without a limit.
        match _read(folder / "cpu.max").split():
            case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period):
                yield int(quota) / int(period)


def _cgroups(root: Path) -> Iterator[Path]:
    """Yield the folders of this process's cgroup (version 2) and of its parents. The limits of all of them apply."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            # In a container this may be a path of the host, which is not visible here. Then only the root is read.
            inside = PurePosixPath(path.lstrip("/"))
            folders = (folder for folder in (inside, *inside.parents) if ".." not in folder.parts)
            yield from (root / "sys/fs/cgroup" / folder for folder in folders)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
