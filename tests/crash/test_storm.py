"""Storms, short: each fault alone, and all of them mixed, under a steady stream of uploads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.disks import EXT4, Disk
from tests.crash.faults import Faults
from tests.crash.storm import Outcome, Plan, rage
from tests.integration.service import Services, is_apart

pytestmark = pytest.mark.processes


@pytest.fixture
def own_disk(mounting: None, tmp_path: Path) -> Iterator[Path]:
    """A small disk, which may be filled."""
    with Disk.make(tmp_path / "disk", EXT4, 1024**3).mounted(tmp_path / "mounted") as folder:
        yield folder


def storm(services: Services, plan: Plan, disk: Path | None = None) -> Outcome:
    data = None if disk is None else disk / "data"
    service = services.deploy(webs=2, workers=2, data=data, ASGI_LOOK_FREE_DISK_FLOOR="0")
    try:
        outcome = rage(service, plan, print)
    finally:
        service.stop()
        print(
            *(line for line in service.output.splitlines() if '"level": "ERROR"' in line or line[:1] != "{"), sep="\n"
        )
    print(dict(outcome.images), f"calm after {outcome.seconds_to_calm:.1f} s")
    return outcome


#: Of each lasting fault, how much shorter than in the long form it is: longer than a lease where that matters.
_SCALES = {"worker frozen": 0.75, "Valkey gone": 0.12, "Valkey frozen": 0.35, "ledger locked": 0.5, "disk full": 0.4}


@pytest.mark.parametrize("fault", [name for name in (*Faults.SUDDEN, *Faults.LASTING) if name != "disk full"])
def test_a_fault_alone_loses_nothing(services: Services, fault: str) -> None:
    plan = Plan(uploads=24, rate=6, sequences=[[fault]], seed=3, scale=_SCALES.get(fault, 1.0))

    outcome = storm(services, plan)

    assert [done.name for done in outcome.faults] == [fault]
    assert outcome.wrong == []


@pytest.mark.one_machine("what a machine's disk has no room for")
def test_a_full_disk_alone_loses_nothing(services: Services, own_disk: Path) -> None:
    plan = Plan(uploads=40, rate=6, sequences=[["disk full"]], seed=3, scale=_SCALES["disk full"])

    outcome = storm(services, plan, own_disk)

    assert outcome.wrong == []
    assert any(one.outcome == "507" for one in outcome.saw.tries)


def test_all_faults_at_once_lose_nothing(services: Services, own_disk: Path) -> None:
    # On machines of their own, services share no disk that could be full for them.
    lasting = [fault for fault in Faults.LASTING if not (is_apart() and fault == "disk full")]
    plan = Plan(uploads=90, rate=4, sequences=[[*Faults.SUDDEN, "kill worker"], lasting], seed=5, scale=0.1)

    outcome = storm(services, plan, own_disk)

    assert len(outcome.faults) == len(Faults.SUDDEN) + 1 + len(lasting)
    assert outcome.wrong == []
