"""How fast a backlog is drained: `python -m bench.backlog [rounds]`, beside its renders alone in as many processes.

A service's ledger has 200 photographs queued when its worker starts. The time is that from the first claim to the last
`ready`. The rival renders the same originals into the same sizes with the same code, in plain processes that are warm
and have no limits. It has the same pages of memory (`worker.renderer.child.ENVIRONMENT`), and writes to the same file
system without fsync.

Telephones make photographs of 12 MP. Smaller ones come faster, so that the costs beside the pixels weigh more; a mix of
those is a second figure.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import uuid_utils

from bench.figures import ROUNDS, ROUNDS_THAT_COUNT, Figure, Runs, at_least, in_turns, ratio, rounds_asked_for, show
from bench.isolation import photograph
from bench.service import Service, run_service, until
from shared.images import Image, Original
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import worker_client
from shared.redis.queue import Queue
from shared.renditions import Size, ladder, original_key
from shared.settings import Settings
from shared.storage.disk import DiskStorage
from worker.child import opening, rendering
from worker.renderer.child import ENVIRONMENT
from worker.renderer.outputs import Output


@dataclass(frozen=True)
class Mix:
    """Photographs whose sizes alternate, so that every part of a backlog has some of each."""

    name: str
    sizes: tuple[Size, ...]
    photographs: int

    def each(self) -> Iterator[bytes]:
        """Yield each photograph's file."""
        for number in range(self.photographs):
            yield PICTURES[self.sizes[number % len(self.sizes)]]


TELEPHONES = Mix("photographs of 12 MP", ((4000, 3000),), 200)
#: Fewer photographs, to save time.
MIXED = Mix(
    "photographs of 3 to 12 MP, 5.2 on average",
    ((2048, 1536), (2592, 1944), (2048, 1536), (4000, 3000), (2592, 1944)),
    60,
)
SLOTS = 2
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

    def __init__(self, service: Service, folder: Path, mix: Mix) -> None:
        self._service = service
        self._mix = mix
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
            # Seldom, since each look costs time; the ledger has the time of the last `ready`.
            until(lambda: self._left() == 0, "the backlog is not drained", DRAINED_SECONDS, every=0.5)
            self.cpu.append(_cpu_of(worker.process.pid) if worker.process else {})
            with closing(sqlite3.connect(self._service.ledger_file)) as ledger:
                (began,) = ledger.execute("SELECT at FROM began").fetchone()
                (ended,) = ledger.execute("SELECT MAX(modified) FROM images").fetchone()
            until(lambda: self._left(settled=True) == 0, "what is owed is not paid")
        finally:
            self._service.stop_workers()
        return float(ended - began) * 1000

    async def _queue(self) -> None:
        with closing(sqlite3.connect(self._service.ledger_file)) as connection, connection:
            connection.execute("DELETE FROM images")
            connection.execute("DELETE FROM debts")
            connection.execute("DELETE FROM began")
        ledger = Ledger.connect(self._settings)
        storage = DiskStorage(self._settings.storage_path)
        redis = worker_client(self._settings.redis_url)
        breaker = CircuitBreaker(redis, WORKER_DEADLINE)
        name = (await ledger.identity()).name
        queue = Queue(redis, breaker, lambda: name)
        try:
            # Rows before jobs: then no worker runs while a row is added.
            images = [await self._add(ledger, storage, content) for content in self._mix.each()]
            for image in images:
                await queue.enqueue(image)
        finally:
            await breaker.close()
            await redis.aclose()
            await ledger.close()

    async def _add(self, ledger: Ledger, storage: DiskStorage, content: bytes) -> Image:
        image_id = str(uuid_utils.uuid7())
        draft = await storage.draft()
        await draft.write(content)
        await storage.keep({original_key(image_id): draft})
        await draft.discard()
        return await ledger.add(image_id, Original("image/jpeg", len(content), sha256(content).hexdigest()), None)

    def _left(self, settled: bool = False) -> int:
        owes = "id IN (SELECT image_id FROM debts)"
        undone = f"status != 'ready' OR {owes}" if settled else "status != 'ready'"
        with closing(sqlite3.connect(self._service.ledger_file, timeout=30)) as ledger:
            return int(ledger.execute(f"SELECT COUNT(*) FROM images WHERE {undone}").fetchone()[0])  # noqa: S608 - of ours


class Rival:
    """The same renders in plain processes. Each takes the next photograph when one is done."""

    def __init__(self, pool: Pool, folder: Path, mix: Mix) -> None:
        self._pool = pool
        self._folder = folder
        self._mix = mix
        self._turn = 0

    def render_all(self) -> float:
        """Return the milliseconds from the first begun to the last done."""
        self._turn += 1
        folder = self._folder / str(self._turn)
        originals = folder / "originals"
        originals.mkdir(parents=True)
        for number, content in enumerate(self._mix.each()):
            (originals / str(number)).write_bytes(content)
        # Files of the turn before are written back now, outside of the time.
        os.sync()
        work = [(originals / str(number), folder) for number in range(self._mix.photographs)]
        began = time.perf_counter()
        for _ in self._pool.imap_unordered(_render, work):
            pass
        # The files stay until the end. An ext4 without a journal skips recently deleted inodes one by one when it
        # makes a file (`recently_deleted`), which would slow the service's turn.
        return (time.perf_counter() - began) * 1000


def _render(work: tuple[Path, Path]) -> None:
    path, folder = work
    with ExitStack() as files:
        picture = opening.open_picture(files.enter_context(path.open("rb")), max_pixels=SETTINGS.max_pixels)
        outputs: dict[Output, Any] = {}
        for size in (picture.size, *ladder(picture.size, SETTINGS.min_thumb_size)):
            target = folder / f"{path.name}-{size[0]}x{size[1]}.jpeg"
            outputs[Output(target.name, "jpeg", size)] = files.enter_context(target.open("xb", buffering=0))
        rendering.render(picture, outputs, SETTINGS.background)


def _cpu_of(worker: int) -> dict[str, float]:
    """Return the CPU seconds of a worker and of its children so far."""
    tick = os.sysconf("SC_CLK_TCK")
    children = Path(f"/proc/{worker}/task/{worker}/children").read_text().split()
    return {"worker": _ticks(str(worker)) / tick, "children": sum(map(_ticks, children)) / tick}


def _ticks(pid: str) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for processes started in the block: glibc reads some before a program begins."""
    before = {name: os.environ.get(name) for name in more}
    os.environ.update(more)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    """Yield how fast a backlog is drained, beside its renders alone."""
    with ExitStack() as stack:
        here = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = here / "service"
        folder.mkdir()
        service = stack.enter_context(
            run_service(folder, ledger_script=_NOTE_CLAIMS, ASGI_LOOK_RENDER_SLOTS=str(SLOTS))
        )
        with environment(ENVIRONMENT):
            # Spawned: forked ones would inherit this process's modules, locks and pages.
            pool = stack.enter_context(multiprocessing.get_context("spawn").Pool(SLOTS))
        service.stop_workers()
        for mix in (TELEPHONES, MIXED):
            if rounds < ROUNDS_THAT_COUNT:
                mix = replace(mix, photographs=mix.photographs // 4)
            backlog, rival = Backlog(service, folder, mix), Rival(pool, here / f"rival-{mix.photographs}", mix)
            sides = {"backlog": backlog.drain, "renders alone": rival.render_all}
            yield _figure(mix, in_turns(sides, rounds, f"backlog of {mix.name}"), backlog.cpu[1:])


def _figure(mix: Mix, runs: Runs, cpu: list[dict[str, float]]) -> Figure:
    # Including start-up, which takes both a second together.
    spent = [sum(each[name] for each in cpu) / len(cpu) / mix.photographs * 1000 for name in ("worker", "children")]
    return Figure(
        "scale",
        f"a backlog of {mix.photographs} {mix.name}, drained by {SLOTS} slots: renders alone / ours",
        ratio(runs, "renders alone", "backlog"),
        bar=at_least(0.85),
        runs=runs,
        note=f"processor time for each, start-up included: worker {spent[0]:.1f} ms, its children {spent[1]:.1f} ms",
    )


PICTURES = (
    {size: photograph(size) for size in {*TELEPHONES.sizes, *MIXED.sizes}}
    if multiprocessing.parent_process() is None
    else {}
)

if __name__ == "__main__":
    show(figures(rounds_asked_for()))
