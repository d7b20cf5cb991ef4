"""Counting costs nothing until somebody asks for it; what waits is told as the ledger has it."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from shared.errors import LedgerUnavailable
from shared.ledger import Figures, Ledger
from shared.redis.queue import Queue
from shared.telemetry import exposition, metrics, tracing
from shared.telemetry.exposition import Exposition
from tests.ledgers import claimed, failed, let_pass, queued, ready


@pytest.fixture(autouse=True)
def for_this_test_only(counting: None) -> None:
    """Each test switches on for itself."""


async def told(exposition: Exposition, ledger: Ledger, queue: Queue) -> dict[tuple[str, ...], float]:
    """Return the values by their names and the values of their labels, those in order of the labels' names."""
    text = (await exposition.text(ledger, queue)).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.parametrize("process", ["api.app", "worker.__main__"])
def test_who_asks_for_no_metrics_does_not_even_load_their_library(process: str) -> None:
    code = f"import sys, {process}; print('prometheus_client' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


async def test_what_happens_before_metrics_are_asked_for_is_not_counted(ledger: Ledger, queue: Queue) -> None:
    metrics.CHILDREN_REPLACED.add()
    metrics.UPLOAD_BYTES.observe(1000)

    counted = await told(Exposition(), ledger, queue)

    assert counted["asgilook_children_replaced_total",] == 0
    assert counted["asgilook_upload_bytes_count",] == 0


async def test_what_is_known_to_happen_is_told_before_it_does(ledger: Ledger, queue: Queue) -> None:
    """Or its first time would be no increase to Prometheus, which saw nothing before."""
    counted = await told(Exposition(), ledger, queue)

    assert counted["asgilook_attempts_total", "lost", "ChildLost"] == 0
    assert counted["asgilook_attempts_total", "failed", "decoder-crashed"] == 0
    assert counted["asgilook_swept_total", "served", "lost"] == 0


class Part:
    """Something with operations."""

    async def work(self, outcome: str) -> str:
        if outcome == "trouble":
            raise LedgerUnavailable(outcome)
        return outcome


async def test_operations_are_timed_however_they_end(ledger: Ledger, queue: Queue) -> None:
    exposition = Exposition()
    part = tracing.traced(Part(), "part", metrics.LEDGER_SECONDS)

    assert await part.work("good") == "good"
    with pytest.raises(LedgerUnavailable):
        await part.work("trouble")

    assert (await told(exposition, ledger, queue))["asgilook_ledger_seconds_count", "work"] == 2


def test_operations_are_left_as_they_are_where_nobody_counts() -> None:
    part = tracing.traced(Part(), "part", metrics.LEDGER_SECONDS)

    assert vars(part) == {}


async def test_nothing_waits_in_an_empty_ledger(ledger: Ledger) -> None:
    await ready(ledger)
    await failed(ledger)

    assert await ledger.figures() == Figures(0, 0, 0.0)


async def test_the_oldest_waiting_image_tells_its_age(ledger: Ledger) -> None:
    oldest = await queued(ledger)
    await let_pass(ledger, 60, oldest.id)
    await queued(ledger)
    await let_pass(ledger, 3600, (await claimed(ledger)).id)

    waiting = await ledger.figures()

    assert (waiting.queued, waiting.processing) == (2, 1)
    assert 60 <= waiting.seconds < 3600


async def test_an_image_that_is_retried_waits_since_then(ledger: Ledger) -> None:
    """An old failure that a person retries is no reason to start more workers."""
    image = await failed(ledger)
    await let_pass(ledger, 86_400)
    await ledger.retry(image.id)

    assert (await ledger.figures()).seconds < 3600


async def test_what_cannot_be_told_now_is_left_out(
    ledger: Ledger, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A zero would say that nothing waits."""

    async def fail() -> Figures:
        raise LedgerUnavailable("locked")

    monkeypatch.setattr(ledger, "figures", fail)

    counted = await told(Exposition(), ledger, queue)

    assert ("asgilook_images_waiting",) not in counted
    assert counted["asgilook_workers_alive",] == 0


async def test_who_asks_while_the_ledger_is_silent_is_told_what_was_counted(
    ledger: Ledger, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That it is silent is among it."""
    monkeypatch.setattr(exposition, "_ASK_SECONDS", 0.05)
    speaks = asyncio.Event()

    async def wait() -> Figures:
        await speaks.wait()
        return Figures(queued=3, processing=0, seconds=1.0)

    monkeypatch.setattr(ledger, "figures", wait)
    asked = Exposition()

    async with asyncio.timeout(20):
        silent = [await told(asked, ledger, queue) for _ in range(3)]
        speaks.set()
        spoken = await told(asked, ledger, queue)

    assert [("asgilook_images_waiting",) in counted for counted in silent] == [False] * 3
    assert [counted["asgilook_workers_alive",] for counted in silent] == [0] * 3
    assert spoken["asgilook_images_waiting",] == 3


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where siblings have their folders."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(exposition, "_LOCKS", [])
    return tmp_path


def let_go() -> None:
    """Die, as far as others can tell."""
    for lock in exposition._LOCKS:
        os.close(lock)
    exposition._LOCKS.clear()


def test_siblings_share_a_folder_and_strangers_do_not(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, siblings = exposition._folder_of_siblings(), exposition._folder_of_siblings()
    monkeypatch.setattr(multiprocessing.current_process(), "authkey", b"another supervisor's")
    strangers = exposition._folder_of_siblings()

    assert ours == siblings != strangers
    assert sorted(folders.iterdir()) == sorted({ours, strangers})
    assert ours.stat().st_mode & 0o777 == 0o700
    let_go()


def test_the_folders_of_the_dead_are_removed_and_others_files_are_not(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = exposition._folder_of_siblings()
    (dead / "counter_1.db").write_bytes(b"\0")
    (folders / "asgilook-metrics-link").symlink_to(folders)
    (folders / "somebody's").write_bytes(b"\0")
    let_go()
    monkeypatch.setattr(multiprocessing.current_process(), "authkey", b"another supervisor's")

    ours = exposition._folder_of_siblings()

    assert sorted(folders.iterdir()) == sorted([ours, folders / "asgilook-metrics-link", folders / "somebody's"])
    let_go()
