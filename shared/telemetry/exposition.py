"""The text of `/metrics`: all counts, and how much work waits in the ledger at this moment.

prometheus_client is imported only here, and only if metrics are switched on. Several web processes of one supervisor
use its multiprocess mode: each process counts into its own files in a shared folder, and any process answers for all.
The files of an ended process stay, as the library documents, because their counts are still included. After the
supervisor has ended, the processes of another one remove the folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar

from shared.cancellation import within
from shared.errors import AsgilookError
from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.telemetry import metrics

T = TypeVar("T")

#: Prometheus' text format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Seconds that ledger and Redis have for their figures. Prometheus waits only ten seconds for all figures.
_ASK_SECONDS = 2.0

_FOLDERS = "asgilook-metrics-"
#: Locks on the folder, held until this process ends.
_LOCKS: list[int] = []


class Exposition:
    """All counts as text. Making an Exposition switches counting on until the process ends."""

    def __init__(self) -> None:
        folder = _folder_of_siblings() if multiprocessing.parent_process() else None
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # read by the import
        import prometheus_client
        from prometheus_client.multiprocess import MultiProcessCollector

        self._prometheus = prometheus_client
        self._registry = prometheus_client.CollectorRegistry()
        metrics.switch_on(prometheus_client, prometheus_client.CollectorRegistry() if folder else self._registry)
        if folder is not None:
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        else:
            prometheus_client.ProcessCollector(registry=self._registry)

    async def text(self, ledger: Ledger, queue: Queue) -> bytes:
        """Return all counts and figures. Figures that ledger or Redis do not return in time are left out."""
        waiting, workers = await asyncio.gather(_asked(ledger.figures()), _asked(queue.workers_alive()))
        gauges = []
        if waiting is not None:
            gauges = [
                _gauge("asgilook_images_waiting", "Images that are queued.", waiting.queued),
                _gauge("asgilook_images_processing", "Images that an attempt holds.", waiting.processing),
                _gauge("asgilook_oldest_waiting_seconds", "Seconds that the oldest queued one waits.", waiting.seconds),
            ]
        if workers is not None:
            gauges.append(_gauge("asgilook_workers_alive", "Workers whose loop turns.", len(workers)))
        counted: bytes = self._prometheus.generate_latest(self._registry)
        # The library needs only the method `collect` of a registry.
        return counted + self._prometheus.generate_latest(SimpleNamespace(collect=lambda: gauges))


async def _asked(figures: Awaitable[T]) -> T | None:
    with suppress(AsgilookError, TimeoutError):
        return await within(_ASK_SECONDS, figures)
    return None


def _gauge(name: str, what: str, value: float) -> Any:
    from prometheus_client.core import GaugeMetricFamily

    return GaugeMetricFamily(name, what, value)


def _folder_of_siblings() -> Path:
    """Return the folder that the web processes of this supervisor share. Removes the folders of ended supervisors.

    The name comes from multiprocessing's key, which only these processes know. Each process locks the folder while it
    lives.
    """
    family = hashlib.sha256(multiprocessing.current_process().authkey).hexdigest()[:32]
    folder = Path(tempfile.gettempdir()) / f"{_FOLDERS}{family}"
    while True:
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        fcntl.flock(lock, fcntl.LOCK_SH)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.stat(folder), os.fstat(lock)):
                break
        os.close(lock)  # another process removed the folder before the lock was taken
    _LOCKS.append(lock)
    for other in folder.parent.glob(f"{_FOLDERS}*"):
        if other != folder:
            _remove_if_dead(other)
    return folder


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
