"""The two jobs with real pictures, a real child, a real disk and a real ledger."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image as Pillow

from shared.identity import check_storage
from shared.images import FULL, Image, Owed, Status, original_key, rendition_key, renditions_prefix
from shared.ledger import Identity, Ledger
from shared.redis.circuit_breaker import CircuitBreaker
from shared.redis.queue import CONVERT_IMAGE, MAKE_THUMBNAILS, Queue
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import Storage
from tests.ledgers import latest, queued
from tests.services import put, put_original
from tests.worker.pictures import encoded, photo
from worker.attempts import Attempts
from worker.jobs import Jobs
from worker.pause import Pause
from worker.renderer.pool import Renderer
from worker.slots import Slots


def ctx() -> dict[str, Any]:
    """What a consumer hands to a job: a slot."""
    return {"slot": Slots(1).take()}


@pytest.fixture
async def renderer(settings: Settings) -> AsyncIterator[Renderer]:
    renderer = Renderer(settings, 1, 10_000_000)
    await renderer.start()
    yield renderer
    await renderer.close()


@pytest.fixture
def attempts(ledger: Ledger, storage: Storage, queue: Queue, settling: Settling) -> Attempts:
    return Attempts(ledger, storage, queue, settling, Pause(), "host:1")


@pytest.fixture
async def identity(ledger: Ledger, storage: Storage, settings: Settings) -> Identity:
    """The ledger and the storage belong together."""
    return await check_storage(ledger, storage, settings)


@pytest.fixture
def jobs(
    settings: Settings, ledger: Ledger, identity: Identity, storage: Storage, renderer: Renderer, attempts: Attempts
) -> Jobs:
    return Jobs(settings, ledger, identity, storage, renderer, attempts)


def tutorials_picture() -> bytes:
    return encoded(photo((640, 360)), "PNG").getvalue()


async def uploaded(ledger: Ledger, storage: Storage, content: bytes) -> Image:
    image = await queued(ledger)
    await put_original(storage, image, content)
    return image


async def converted(ledger: Ledger, storage: Storage, jobs: Jobs) -> Image:
    image = await uploaded(ledger, storage, tutorials_picture())
    await jobs.convert_image(ctx(), image.id)
    return await latest(ledger, image)


async def stored_pictures(storage: Storage, image: Image) -> dict[str, bytes]:
    """Return the published renditions, each as the record says that it is."""
    assert image.published is not None
    found = {}
    for name, rendition in image.renditions.items():
        content = await storage.read(rendition_key(image.id, image.published, name))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (rendition.bytes, rendition.sha256)
        with Pillow.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("JPEG", rendition.size)
        found[name] = content
    return found


def test_the_jobs_are_registered_under_the_names_by_which_they_are_enqueued(settings: Settings) -> None:
    """A name that differs is an arq job that fails, and an image that waits for its next wake-up for ever."""
    anything: Any = None
    jobs = Jobs(settings, *[anything] * 5)

    functions = {function.name: function for function in jobs.functions}

    assert functions.keys() == {CONVERT_IMAGE, MAKE_THUMBNAILS}
    assert functions[CONVERT_IMAGE].coroutine == jobs.convert_image
    assert functions[MAKE_THUMBNAILS].coroutine == jobs.make_thumbnails
    assert {function.max_tries for function in functions.values()} == {1}


async def test_an_upload_becomes_a_jpeg_and_its_ladder_of_thumbnails(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    image = await converted(ledger, storage, jobs)

    assert (image.status, image.size, image.published, image.owed) == (Status.READY, (640, 360), 1, None)
    assert (await stored_pictures(storage, image)).keys() == {FULL, "320x180.jpeg", "160x90.jpeg"}
    assert await storage.read(original_key(image.id)) == tutorials_picture()
    assert await storage.sweep_drafts(-1) == 0


async def test_a_small_picture_has_no_thumbnails(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await uploaded(ledger, storage, encoded(photo((100, 60)), "WEBP").getvalue())

    await jobs.convert_image(ctx(), image.id)

    assert (await stored_pictures(storage, await latest(ledger, image))).keys() == {FULL}


async def test_what_is_no_picture_fails_with_its_reason_and_leaves_its_original_only(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    image = await uploaded(ledger, storage, tutorials_picture()[:5000])

    await jobs.convert_image(ctx(), image.id)

    row = await latest(ledger, image)
    assert (row.status, row.error_type, row.renditions) == (Status.FAILED, "unreadable-image", {})
    assert row.error_detail
    assert await storage.folders(renditions_prefix(image.id)) == []
    assert await storage.sweep_drafts(-1) == 0
    assert await storage.exists(original_key(image.id))


async def test_an_original_that_is_gone_is_our_loss(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await queued(ledger)

    await jobs.convert_image(ctx(), image.id)

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 1, 0)


async def test_a_storage_that_has_lost_all_it_held_is_trouble_and_costs_no_image_anything(
    ledger: Ledger, identity: Identity, storage: Storage, jobs: Jobs, attempts: Attempts
) -> None:
    """A disk that is not mounted looks like an empty folder: twenty losses would fail every image within minutes."""
    image = await queued(ledger)
    await storage.delete(f"markers/{identity.marker}")

    await jobs.convert_image(ctx(), image.id)

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 0, 0)
    assert attempts._pause.seconds_left > 0


async def test_a_job_that_is_run_twice_publishes_once(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await converted(ledger, storage, jobs)

    await jobs.convert_image(ctx(), image.id)

    assert await latest(ledger, image) == image


async def request(ledger: Ledger, image: Image) -> Image:
    row = await ledger.request_thumbnails(image.id)
    assert row is not None
    return row


async def test_a_missing_thumbnail_is_made_again_and_the_jpeg_stays_what_it_was(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    await storage.delete(rendition_key(before.id, 1, "320x180.jpeg"))
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    assert (image.status, image.published, image.owed) == (Status.READY, 2, None)
    assert (image.sequence, image.created, image.size) == (before.sequence, before.created, before.size)
    assert image.renditions[FULL] == before.renditions[FULL]
    assert await stored_pictures(storage, image) == pictures
    assert await storage.folders(renditions_prefix(image.id)) == ["2"]


async def test_a_ladder_that_was_set_longer_is_made_of_the_original(
    settings: Settings,
    ledger: Ledger,
    identity: Identity,
    storage: Storage,
    jobs: Jobs,
    renderer: Renderer,
    attempts: Attempts,
) -> None:
    before = await converted(ledger, storage, jobs)
    longer = Jobs(replace(settings, min_thumb_size=20), ledger, identity, storage, renderer, attempts)
    wanted = await request(ledger, before)

    await longer.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    pictures = await stored_pictures(storage, image)
    assert pictures.keys() == {FULL, "320x180.jpeg", "160x90.jpeg", "80x45.jpeg", "40x22.jpeg"}
    assert image.renditions[FULL] == before.renditions[FULL]


async def test_where_originals_are_not_kept_thumbnails_are_made_of_the_stored_jpeg(
    ledger: Ledger, storage: Storage, jobs: Jobs, settling: Settling, breaker: CircuitBreaker
) -> None:
    settling._keep_originals = False
    before = await converted(ledger, storage, jobs)
    full = (await stored_pictures(storage, before))[FULL]
    kept = await storage.exists(original_key(before.id))
    await storage.delete(rendition_key(before.id, 1, "160x90.jpeg"))
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    pictures = await stored_pictures(storage, image)
    assert not kept
    assert pictures.keys() == {FULL, "320x180.jpeg", "160x90.jpeg"}
    assert pictures[FULL] == full


async def test_a_missing_jpeg_is_made_again_of_the_original(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    await storage.delete(rendition_key(before.id, 1, FULL))
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    assert image.published == 2
    assert await stored_pictures(storage, image) == pictures


@pytest.mark.parametrize("torn", ["cut short", "altered"])
async def test_a_torn_jpeg_is_made_again_of_the_original(
    ledger: Ledger, storage: Storage, jobs: Jobs, torn: str
) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    full = pictures[FULL]
    await put(storage, rendition_key(before.id, 1, FULL), full[:-9] + (b"" if torn == "cut short" else bytes(9)))
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    assert image.published == 2
    assert await stored_pictures(storage, image) == pictures


async def test_a_torn_jpeg_without_an_original_stays_what_it_is(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    """Made again of itself, it would pass for whole."""
    before = await converted(ledger, storage, jobs)
    torn = (await stored_pictures(storage, before))[FULL] + b"a byte too many"
    await put(storage, rendition_key(before.id, 1, FULL), torn)
    await storage.delete(original_key(before.id))
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    assert (image.published, image.renditions[FULL]) == (2, before.renditions[FULL])
    assert await storage.read(rendition_key(before.id, 2, FULL)) == torn


async def test_an_original_that_has_become_another_picture_publishes_nothing(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    await put(storage, original_key(before.id), encoded(photo((64, 64)), "PNG").getvalue())
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    assert (image.status, image.published, image.owed) == (Status.READY, 1, Owed.LEFTOVERS)
    await stored_pictures(storage, image)


async def test_thumbnails_of_an_image_without_any_source_are_lost_and_it_stays_ready(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    await storage.delete(rendition_key(before.id, 1, FULL))
    await storage.delete(original_key(before.id))
    wanted = await request(ledger, before)

    await jobs.make_thumbnails(ctx(), wanted.id, wanted.wake)

    image = await latest(ledger, before)
    assert (image.status, image.published, image.losses) == (Status.READY, 1, 1)


async def test_a_retry_of_a_failed_image_converts_it(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await uploaded(ledger, storage, tutorials_picture()[:5000])
    await jobs.convert_image(ctx(), image.id)
    await put_original(storage, image, tutorials_picture())
    assert await ledger.retry(image.id) is not None

    await jobs.convert_image(ctx(), image.id)

    row = await latest(ledger, image)
    assert (row.status, row.published, row.error_type) == (Status.READY, 2, None)
    await stored_pictures(storage, row)
