"""Slots and pixels are measured against what the container may use, not what the machine has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from worker.capacity import (
    BYTES_PER_PIXEL,
    CHILD_RESERVE,
    LEAST_CHILD_MEMORY,
    WORKER_RESERVE,
    child_memory,
    pixel_budget,
    render_slots,
    usable_memory,
)

GIB = 1024**3

Machine = Callable[[dict[str, str]], Path]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """Make a root folder with these files in it, on a machine with 64 GiB."""

    def make(files: dict[str, str]) -> Path:
        for name, content in {"proc/meminfo": f"MemFree: 5 kB\nMemTotal: {64 * GIB // 1024} kB\n", **files}.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    return make


def test_without_cgroups_there_is_a_slot_a_core_and_all_memory(machine: Machine) -> None:
    root = machine({})

    assert render_slots(root, cores=8) == 8
    assert usable_memory(root) == 64 * GIB


@pytest.mark.parametrize(
    ("quota", "slots"),
    [("max 100000", 8), ("400000 100000", 4), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 8), ("1 0", 8)],
)
def test_the_quota_of_a_version_2_cgroup_bounds_the_slots(machine: Machine, quota: str, slots: int) -> None:
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota + "\n"})

    assert render_slots(root, cores=8) == slots


def test_the_limit_of_a_version_2_cgroup_and_of_those_above_bounds_the_memory(machine: Machine) -> None:
    root = machine(
        {
            "proc/self/cgroup": "0::/team/service\n",
            "sys/fs/cgroup/team/service/memory.max": "max\n",
            "sys/fs/cgroup/team/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/team/service/memory.high": f"{5 * GIB}\n",
        }
    )

    assert usable_memory(root) == 4 * GIB


def test_a_cgroup_above_our_view_is_not_looked_for_outside(machine: Machine) -> None:
    root = machine({"proc/self/cgroup": "0::/../../elsewhere\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"})

    assert usable_memory(root) == GIB


def test_little_memory_bounds_the_slots(machine: Machine) -> None:
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": str(GIB)})

    assert render_slots(root, cores=16) == 4
    assert render_slots(root, cores=1) == 1


def test_the_pixel_budget_leaves_the_worker_and_its_children_what_they_need(machine: Machine) -> None:
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{2 * GIB}\n"})

    pixels = pixel_budget(4, root)

    assert pixels * BYTES_PER_PIXEL <= 2 * GIB - WORKER_RESERVE - 4 * CHILD_RESERVE
    assert pixels > 50_000_000


def test_there_is_always_one_slot_and_a_pixel(machine: Machine) -> None:
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000000"})

    assert render_slots(root, cores=4) == 1
    assert pixel_budget(1, root) == 1


def test_this_machine_can_render() -> None:
    assert render_slots() >= 1
    assert pixel_budget(1) >= 1


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_a_child_may_take_what_the_others_do_not_keep(machine: Machine, slots: int) -> None:
    """More, and the kernel would pick a victim: the web process of the same container, say."""
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB}\n"})

    assert child_memory(slots, root) == GIB - WORKER_RESERVE - (slots - 1) * CHILD_RESERVE


def test_a_child_may_take_what_a_photograph_needs_however_small_the_machine(machine: Machine) -> None:
    root = machine({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": f"{GIB // 8}\n"})

    assert child_memory(1, root) == LEAST_CHILD_MEMORY
