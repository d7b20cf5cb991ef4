"""Bulk work that a real child renders makes room for an upload: the child is killed, and nobody is blamed."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.cancellation import cancel
from shared.identity import check_storage
from shared.images import Image, Lane, Status, Work
from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.renditions import renditions_prefix
from shared.settings import Settings
from shared.settling import Settling
from shared.storage.disk import DiskStorage
from tests.ledgers import latest, queued
from tests.services import put_original
from tests.waiting import until
from tests.worker.pictures import encoded, photo
from worker.attempts import Attempts
from worker.consumer import Consumer
from worker.jobs import Jobs
from worker.pause import Pause
from worker.renderer.pool import Renderer
from worker.slots import Slots


@pytest.fixture
async def renderer(settings: Settings) -> AsyncIterator[Renderer]:
    renderer = Renderer(settings, 1, 10_000_000)
    await renderer.start()
    yield renderer
    await renderer.close()


@pytest.fixture
async def consuming(
    settings: Settings,
    ledger: Ledger,
    storage: DiskStorage,
    redis: Redis,
    queue: Queue,
    settling: Settling,
    renderer: Renderer,
) -> AsyncIterator[Consumer]:
    """A consumer of one slot that runs."""
    identity = await check_storage(ledger, storage, settings)
    pause = Pause()
    attempts = Attempts(ledger, storage, queue, settling, pause, "host:1", work_seconds=100.0)
    consumer = Consumer(
        Jobs(settings, identity, storage, renderer, attempts),
        redis=redis,
        queue=queue,
        ledger=ledger,
        attempts=attempts,
        slots=Slots(1),
        pause=pause,
        worker="host:1",
        is_filtered=True,
    )
    task = asyncio.create_task(consumer.run())
    yield consumer
    await cancel(task)


async def uploaded(ledger: Ledger, storage: DiskStorage, queue: Queue) -> Image:
    image = await queued(ledger)
    await put_original(storage, image, encoded(photo((640, 360)), "PNG").getvalue())
    await queue.enqueue(image)
    return image


async def is_done(ledger: Ledger, image: Image) -> bool:
    row = await latest(ledger, image)
    return (row.status, row.work, row.debts) == (Status.READY, None, ())


@pytest.mark.usefixtures("consuming")
async def test_an_upload_takes_the_place_of_bulk_work_which_is_done_later(
    ledger: Ledger, storage: DiskStorage, queue: Queue, renderer: Renderer
) -> None:
    bulk = await uploaded(ledger, storage, queue)
    await until(lambda: is_done(ledger, bulk))
    (child,) = renderer._children
    # It will take as long as the test lasts.
    os.kill(child.process.pid, signal.SIGSTOP)
    wanted = await ledger.request_renditions(await latest(ledger, bulk), Lane.BULK)
    assert wanted is not None
    await queue.enqueue(wanted)
    await until(lambda: child.is_taken)

    upload = await uploaded(ledger, storage, queue)
    await until(lambda: is_done(ledger, upload))

    assert child.process.returncode == -signal.SIGKILL
    await until(lambda: is_done(ledger, bulk))
    row = await latest(ledger, bulk)
    assert (row.attempt, row.losses, row.failures) == (3, 0, 0)
    assert {rendition.attempt for rendition in row.renditions.values()} == {3}
    assert await storage.folders(renditions_prefix(bulk.id)) == ["3"]


@pytest.mark.usefixtures("consuming")
async def test_bulk_work_goes_on_while_nothing_more_urgent_waits(
    ledger: Ledger, storage: DiskStorage, queue: Queue, renderer: Renderer
) -> None:
    bulk = await uploaded(ledger, storage, queue)
    await until(lambda: is_done(ledger, bulk))
    (child,) = renderer._children
    wanted = await ledger.request_renditions(await latest(ledger, bulk), Lane.BULK)
    assert wanted is not None
    assert wanted.work is Work.RENDITIONS

    await queue.enqueue(wanted)
    await until(lambda: is_done(ledger, bulk))

    assert (await latest(ledger, bulk)).attempt == 2
    assert renderer._children == {child}
