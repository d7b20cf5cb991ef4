"""What a process answers at /metrics: all that was counted, and what waits in the ledger at this moment.

prometheus_client is imported here only, and only where metrics are asked for.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import multiprocessing
import os
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from shared.errors import AsgilookError
from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.telemetry import metrics

T = TypeVar("T")

#: Prometheus' text format.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Seconds until ledger and Redis must have told what is waiting: who scrapes waits for ten, and wants the rest as well.
_ASK_SECONDS = 2.0

_FOLDERS = "asgilook-metrics-"
#: What stands in the place of a process id in the name of the file of all that have died.
_DEAD = "dead"
#: Locks that this process keeps as long as it lives.
_LOCKS: list[int] = []


class Exposition:
    """Everything that is counted, as text. Making one switches the counting on, for good."""

    def __init__(self) -> None:
        # Where there are siblings, each counts into files of its own, and whoever is asked adds all of them up.
        folder = _folder_of_siblings() if multiprocessing.parent_process() else None
        os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
        if folder is not None:
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)  # read by the import
        import prometheus_client
        from prometheus_client.multiprocess import MultiProcessCollector

        self._asking: dict[str, asyncio.Future[Any]] = {}
        self._prometheus = prometheus_client
        self._folder = folder
        self._registry = prometheus_client.CollectorRegistry()
        metrics.switch_on(prometheus_client, prometheus_client.CollectorRegistry() if folder else self._registry)
        if folder is not None:
            _add_up_the_dead(folder)
            MultiProcessCollector(self._registry)  # type: ignore[no-untyped-call]
        else:
            prometheus_client.ProcessCollector(registry=self._registry)

    async def text(self, ledger: Ledger, queue: Queue) -> bytes:
        """Return all of it. What cannot be told at this moment is left out."""
        gauges = _Gauges()
        waiting, workers = await asyncio.gather(
            self._asked("waiting", ledger.waiting), self._asked("workers", queue.workers_alive)
        )
        if waiting is not None:
            gauges.add("asgilook_images_waiting", "Images that are queued.", waiting.queued)
            gauges.add("asgilook_images_processing", "Images in an attempt's hands.", waiting.processing)
            gauges.add("asgilook_oldest_waiting_seconds", "Seconds that the oldest queued one waits.", waiting.seconds)
        if workers is not None:
            gauges.add("asgilook_workers_alive", "Workers whose loop turns.", len(workers))
        with _locked(self._folder, fcntl.LOCK_SH) if self._folder else nullcontext():
            counted: bytes = self._prometheus.generate_latest(self._registry)
        return counted + self._prometheus.generate_latest(gauges)

    async def _asked(self, what: str, ask: Callable[[], Awaitable[T]]) -> T | None:
        """Return the answer, or None where there is none now. What takes longer goes on, and is not asked twice."""
        asking = self._asking.get(what)
        if asking is None:
            asking = self._asking[what] = asyncio.ensure_future(ask())
            asking.add_done_callback(lambda done: self._answered(what, done))
        await asyncio.wait([asking], timeout=_ASK_SECONDS)
        with suppress(AsgilookError):
            return asking.result() if asking.done() else None
        return None

    def _answered(self, what: str, done: asyncio.Future[Any]) -> None:
        del self._asking[what]
        if not done.cancelled():
            done.exception()  # seen: there may be nobody left who waits for it


class _Gauges:
    """What prometheus_client takes for a registry: values of this moment."""

    def __init__(self) -> None:
        self._families: list[Any] = []

    def add(self, name: str, what: str, value: float) -> None:
        from prometheus_client.core import GaugeMetricFamily

        self._families.append(GaugeMetricFamily(name, what, value))

    def collect(self) -> Iterator[Any]:
        yield from self._families


def _folder_of_siblings() -> Path:
    """Return the folder of the web processes that one supervisor has started; those of the dead are removed.

    All of them, and nobody else, know their supervisor's key. Who lives holds a lock.
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
        os.close(lock)  # somebody took it for a dead one's between the two
    _LOCKS.append(lock)
    for other in folder.parent.glob(f"{_FOLDERS}*"):
        if other != folder:
            _remove_if_dead(other)
    return folder


def _add_up_the_dead(folder: Path) -> None:
    """Put what siblings that have died counted into one file of each kind, or there would be more at each restart."""
    from prometheus_client.mmap_dict import MmapedDict

    with _locked(folder, fcntl.LOCK_EX):
        for kind in ("counter", "histogram"):
            dead = [path for path in folder.glob(f"{kind}_*.db") if not _is_alive(path.stem.partition("_")[2])]
            total, added = folder / f"{kind}_{_DEAD}.db", folder / f"{kind}.new"
            if dead in ([], [total]):
                continue
            sums: defaultdict[str, float] = defaultdict(float)
            for path in dead:
                for key, value, _, _ in MmapedDict.read_all_values_from_file(path):  # type: ignore[no-untyped-call]
                    sums[key] += value
            added.unlink(missing_ok=True)
            file = MmapedDict(added)  # type: ignore[no-untyped-call]
            for key, value in sums.items():
                file.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
            file.close()  # type: ignore[no-untyped-call]
            added.replace(total)
            for path in dead:
                if path != total:
                    path.unlink()


def _is_alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        pass  # somebody else's by now: its file waits for another time
    return True


@contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Keep the others from reading while one adds up, or they would count twice what is in both files."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, how)
        yield


def _remove_if_dead(folder: Path) -> None:
    with suppress(OSError):
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
