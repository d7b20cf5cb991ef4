"""How fast a backlog is drained: `python -m bench.backlog [rounds]`, beside its renders alone in as many processes.

A service's ledger has 200 photographs queued when its worker starts. It takes from the first claim to the last `ready`.
The rival renders the same originals into the same sizes in plain processes, warm and under no limits, which write the
files and fsync nothing. Both write to the same file system.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from hashlib import sha256
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import uuid_utils

from bench.figures import ROUNDS, Figure, at_least, in_turns, ratio, rounds_asked_for, show
from bench.isolation import photograph
from bench.service import Service, run_service, until
from shared.connections import WORKER_DEADLINE, CircuitBreaker, worker_client
from shared.images import Image, Original, Size, ladder, original_key
from shared.ledger import Ledger
from shared.queue import Queue
from shared.settings import Settings
from shared.storage.disk import DiskStorage
from worker import rendering

PHOTOGRAPHS = 200
SLOTS = 2
#: As people upload them, 5.2 MP on average: one after the other, so that every part of the backlog has some of each.
SIZES: tuple[Size, ...] = ((2048, 1536), (2592, 1944), (2048, 1536), (4000, 3000), (2592, 1944))
DRAINED_SECONDS = 300.0
SETTINGS = Settings()

_NOTE_CLAIMS = """
CREATE TABLE began (at REAL);
CREATE TRIGGER note_claim AFTER UPDATE OF status ON images
WHEN NEW.status = 'processing' AND NOT EXISTS (SELECT 1 FROM began) BEGIN
    INSERT INTO began VALUES ((julianday('now') - 2440587.5) * 86400.0);
END;
"""


class Backlog:
    """A service, and the backlogs that its worker is started on."""

    def __init__(self, service: Service, folder: Path) -> None:
        self._service = service
        self._settings = Settings(
            storage_path=folder,
            database_url=f"sqlite:///{service.ledger_file}",
            redis_url=f"redis://127.0.0.1:{service.valkey_port}/0",
        )
        #: Seconds of processor time, by process, of each drain.
        self.cpu: list[dict[str, float]] = []

    def drain(self) -> float:
        """Queue photographs, start a worker, wait for the last; return the milliseconds since its first claim."""
        asyncio.run(self._queue())
        worker = self._service.workers[0].start()
        try:
            until(lambda: self._left() == 0, "the backlog is not drained", DRAINED_SECONDS)
            self.cpu.append(_cpu_of(worker.process.pid) if worker.process else {})
            with closing(sqlite3.connect(self._service.ledger_file)) as ledger:
                (began,) = ledger.execute("SELECT at FROM began").fetchone()
                (ended,) = ledger.execute("SELECT MAX(modified) FROM images").fetchone()
            until(lambda: self._left(settled=True) == 0, "what is owed is not paid")
        finally:
            if worker.process is not None:
                worker.process.terminate()
                worker.process.wait()
        return float(ended - began) * 1000

    async def _queue(self) -> None:
        with closing(sqlite3.connect(self._service.ledger_file)) as connection, connection:
            connection.execute("DELETE FROM images")
            connection.execute("DELETE FROM began")
        ledger = Ledger.connect(self._settings)
        storage = DiskStorage(self._settings.storage_path)
        redis = worker_client(self._settings.redis_url)
        breaker = CircuitBreaker(redis, WORKER_DEADLINE)
        name = (await ledger.identity()).name
        queue = Queue(redis, breaker, lambda: name)
        try:
            # All rows first: whoever adds the last has no worker beside it.
            images = [await self._add(ledger, storage, number) for number in range(PHOTOGRAPHS)]
            for image in images:
                await queue.enqueue(image)
        finally:
            await breaker.close()
            await redis.aclose()
            await ledger.close()

    async def _add(self, ledger: Ledger, storage: DiskStorage, number: int) -> Image:
        content = PICTURES[SIZES[number % len(SIZES)]]
        image_id = str(uuid_utils.uuid7())
        draft = await storage.draft()
        await draft.write(content)
        await storage.keep({original_key(image_id): draft})
        await draft.discard()
        return await ledger.add(image_id, Original("image/jpeg", len(content), sha256(content).hexdigest()), None)

    def _left(self, settled: bool = False) -> int:
        undone = "status != 'ready' OR owed IS NOT NULL" if settled else "status != 'ready'"
        with closing(sqlite3.connect(self._service.ledger_file, timeout=30)) as ledger:
            return int(ledger.execute(f"SELECT COUNT(*) FROM images WHERE {undone}").fetchone()[0])  # noqa: S608 - of ours


class Rival:
    """The same renders in plain processes, each of which takes the next photograph when it is done with one."""

    def __init__(self, pool: Pool, folder: Path) -> None:
        self._pool = pool
        self._folder = folder
        self._turn = 0

    def render_all(self) -> float:
        """Return the milliseconds from the first begun to the last done."""
        self._turn += 1
        folder = self._folder / str(self._turn)
        originals = folder / "originals"
        originals.mkdir(parents=True)
        for number in range(PHOTOGRAPHS):
            (originals / str(number)).write_bytes(PICTURES[SIZES[number % len(SIZES)]])
        # What was written for the turn before is not written back in this one's time.
        os.sync()
        work = [(originals / str(number), folder) for number in range(PHOTOGRAPHS)]
        began = time.perf_counter()
        for _ in self._pool.imap_unordered(_render, work):
            pass
        return (time.perf_counter() - began) * 1000


def _render(work: tuple[Path, Path]) -> None:
    path, folder = work
    with ExitStack() as files:
        picture = rendering.open_picture(files.enter_context(path.open("rb")), max_pixels=SETTINGS.max_pixels)
        outputs: dict[Size, Any] = {}
        for size in (picture.size, *ladder(picture.size, SETTINGS.min_thumb_size)):
            target = folder / f"{path.name}-{size[0]}x{size[1]}.jpeg"
            outputs[size] = files.enter_context(target.open("xb", buffering=0))
        rendering.render(picture, outputs, SETTINGS.background)


def _cpu_of(worker: int) -> dict[str, float]:
    """Return what a worker and its children have computed so far."""
    tick = os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return {"worker": _ticks(str(worker)) / tick, "children": sum(map(_ticks, children)) / tick}


def _ticks(pid: str) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    """Yield how fast a backlog is drained, beside its renders alone."""
    with tempfile.TemporaryDirectory() as here:
        folder = Path(here, "service")
        folder.mkdir()
        with (
            run_service(folder, ledger_script=_NOTE_CLAIMS, ASGI_LOOK_RENDER_SLOTS=str(SLOTS)) as service,
            # Forked, they would have what this process has loaded, and its threads' locks.
            multiprocessing.get_context("spawn").Pool(SLOTS) as pool,
        ):
            for worker in service.workers:
                assert worker.process is not None  # noqa: S101 - for mypy: it is ready
                worker.process.terminate()
                worker.process.wait()
            backlog = Backlog(service, folder)
            rival = Rival(pool, Path(here, "rival"))
            sides = {"backlog": backlog.drain, "renders alone": rival.render_all}
            runs = in_turns(sides, rounds, "backlog")
    spent = [sum(cpu[name] for cpu in backlog.cpu[1:]) / len(backlog.cpu[1:]) for name in ("worker", "children")]
    yield Figure(
        "scale",
        f"a backlog of {PHOTOGRAPHS} photographs drained by {SLOTS} slots: renders alone / ours",
        ratio(runs, "renders alone", "backlog"),
        bar=at_least(0.85),
        runs=runs,
        note=f"processor time of worker {spent[0]:.1f} s, of its children {spent[1]:.1f} s, start-up included",
    )


PICTURES = {size: photograph(size) for size in set(SIZES)} if multiprocessing.parent_process() is None else {}

if __name__ == "__main__":
    show(figures(rounds_asked_for()))
