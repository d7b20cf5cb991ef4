"""Both kinds of work with real pictures, a real child, a real disk and a real ledger."""

from __future__ import annotations

import hashlib
import io
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from unittest.mock import ANY

import pytest
from PIL import Image as Pillow

from api.records import record_of
from shared.definitions import ENCODER_SETTINGS, definition_of
from shared.identity import check_storage
from shared.images import Image, Lane, Status
from shared.ledger import Identity, Ledger
from shared.redis.notices import Announcer
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache
from shared.renditions import FULL, Rendition, Size, attempt_prefix, original_key, rendition_key, renditions_prefix
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import Storage
from tests.ledgers import latest, queued
from tests.services import put, put_original
from tests.worker import toy_format
from tests.worker.pictures import encoded, photo
from worker.attempt import Attempt
from worker.attempts import Attempts
from worker.jobs import Jobs
from worker.pause import Pause
from worker.renderer.formats import FORMATS
from worker.renderer.pool import Renderer
from worker.renderer.session import RenderSession
from worker.slots import Slots


async def work(jobs: Jobs, image: Image) -> None:
    """Do the work that waits on an image, as arq would."""
    with Slots(1).reserve() as slot:
        slot.begin()
        await jobs.work(image.id, slot)


#: The digest of what a JPEG is made by.
JPEG = definition_of("jpeg", Settings().background)


@pytest.fixture
async def renderer(settings: Settings) -> AsyncIterator[Renderer]:
    renderer = Renderer(settings, 1, 10_000_000)
    await renderer.start()
    yield renderer
    await renderer.close()


@pytest.fixture
def attempts(ledger: Ledger, storage: Storage, queue: Queue, settling: Settling) -> Attempts:
    return Attempts(ledger, storage, queue, settling, Pause(), "host:1", work_seconds=100.0)


@pytest.fixture
async def identity(ledger: Ledger, storage: Storage, settings: Settings) -> Identity:
    """The ledger and the storage belong together."""
    return await check_storage(ledger, storage, settings)


@pytest.fixture
def jobs_down_to(
    settings: Settings, identity: Identity, storage: Storage, renderer: Renderer, attempts: Attempts
) -> Callable[[int], Jobs]:
    """Return jobs whose ladder ends at this side."""
    return lambda least: Jobs(replace(settings, min_thumb_size=least), identity, storage, renderer, attempts)


@pytest.fixture
def jobs(settings: Settings, jobs_down_to: Callable[[int], Jobs]) -> Jobs:
    return jobs_down_to(settings.min_thumb_size)


def tutorials_picture() -> bytes:
    return encoded(photo((640, 360)), "PNG").getvalue()


async def uploaded(ledger: Ledger, storage: Storage, content: bytes) -> Image:
    image = await queued(ledger)
    await put_original(storage, image, content)
    return image


async def converted(ledger: Ledger, storage: Storage, jobs: Jobs) -> Image:
    image = await uploaded(ledger, storage, tutorials_picture())
    await work(jobs, image)
    return await latest(ledger, image)


async def stored_pictures(storage: Storage, image: Image) -> dict[str, bytes]:
    """Return the published renditions, each as its row says that it is."""
    found = {}
    for name, rendition in image.renditions.items():
        content = await storage.read(rendition_key(image.id, rendition))
        assert (len(content), hashlib.sha256(content).hexdigest()) == (rendition.bytes, rendition.sha256)
        with Pillow.open(io.BytesIO(content)) as picture:
            assert (picture.format, picture.size) == ("JPEG", rendition.size)
        found[name] = content
    return found


async def test_an_upload_becomes_a_jpeg_and_its_ladder_of_thumbnails(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    image = await converted(ledger, storage, jobs)

    assert (image.status, image.size, image.work, image.debts) == (Status.READY, (640, 360), None, ())
    assert {(rendition.attempt, rendition.definition) for rendition in image.renditions.values()} == {(1, JPEG)}
    assert (await stored_pictures(storage, image)).keys() == {FULL, "320x180.jpeg", "160x90.jpeg"}
    assert await storage.read(original_key(image.id)) == tutorials_picture()
    assert await storage.sweep_drafts(-1) == 0


async def test_an_owner_is_billed_for_what_the_child_has_worked(
    ledger: Ledger, storage: Storage, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    billed: list[float] = []

    async def publish(attempt: Attempt, size: Size, renditions: Iterable[Rendition], *, seconds: float) -> None:
        billed.append(seconds)
        attempt.published = await ledger.publish(attempt.image, size, renditions, seconds=seconds)

    monkeypatch.setattr(Attempt, "publish", publish)
    monkeypatch.setattr(RenderSession, "seconds", 123.0)

    await converted(ledger, storage, jobs)

    assert billed == [123.0]


async def test_a_small_picture_has_no_thumbnails(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await uploaded(ledger, storage, encoded(photo((100, 60)), "WEBP").getvalue())

    await work(jobs, image)

    assert (await stored_pictures(storage, await latest(ledger, image))).keys() == {FULL}


async def test_what_is_no_picture_fails_with_its_reason_and_leaves_its_original_only(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    image = await uploaded(ledger, storage, tutorials_picture()[:5000])

    await work(jobs, image)

    row = await latest(ledger, image)
    assert (row.status, row.error_type, row.renditions) == (Status.FAILED, "unreadable-image", {})
    assert row.error_detail
    assert await storage.folders(renditions_prefix(image.id)) == []
    assert await storage.sweep_drafts(-1) == 0
    assert await storage.exists(original_key(image.id))


async def test_an_original_that_is_gone_is_our_loss(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await queued(ledger)

    await work(jobs, image)

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 1, 0)


async def test_a_storage_that_has_lost_all_it_held_is_trouble_and_costs_no_image_anything(
    ledger: Ledger, identity: Identity, storage: Storage, jobs: Jobs, attempts: Attempts
) -> None:
    """A disk that is not mounted looks like an empty folder: twenty losses would fail every image within minutes."""
    image = await queued(ledger)
    await storage.delete(f"markers/{identity.marker}")

    await work(jobs, image)

    row = await latest(ledger, image)
    assert (row.status, row.losses, row.failures) == (Status.QUEUED, 0, 0)
    assert attempts._pause.seconds_left > 0


async def test_a_job_that_is_run_twice_publishes_once(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await converted(ledger, storage, jobs)

    await work(jobs, image)

    assert await latest(ledger, image) == image


async def request(ledger: Ledger, image: Image, *wanted: str) -> Image:
    row = await ledger.request_renditions(image, Lane.DEMAND, wanted or None)
    assert row is not None
    return row


def attempts_of(image: Image) -> set[int]:
    return {rendition.attempt for rendition in image.renditions.values()}


async def test_a_missing_thumbnail_is_made_again_and_the_jpeg_stays_what_it_was(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    await storage.delete(f"{attempt_prefix(before.id, 1)}/320x180.jpeg")
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    assert (image.status, attempts_of(image), image.debts) == (Status.READY, {2}, ())
    assert (image.sequence, image.created, image.size) == (before.sequence, before.created, before.size)
    assert await stored_pictures(storage, image) == pictures
    assert await storage.folders(renditions_prefix(image.id)) == ["2"]


async def test_a_ladder_that_was_set_longer_is_made_of_the_original(
    ledger: Ledger, storage: Storage, jobs: Jobs, jobs_down_to: Callable[[int], Jobs]
) -> None:
    before = await converted(ledger, storage, jobs)
    longer = jobs_down_to(20)
    wanted = await request(ledger, before)

    await work(longer, wanted)

    image = await latest(ledger, before)
    pictures = await stored_pictures(storage, image)
    assert pictures.keys() == {FULL, "320x180.jpeg", "160x90.jpeg", "80x45.jpeg", "40x22.jpeg"}
    assert image.renditions[FULL].sha256 == before.renditions[FULL].sha256


async def test_a_lost_thumbnail_of_a_ladder_that_was_set_shorter_is_made_again(
    ledger: Ledger, storage: Storage, jobs: Jobs, jobs_down_to: Callable[[int], Jobs]
) -> None:
    """The row still names it: each request for it would have everything made again."""
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    await storage.delete(f"{attempt_prefix(before.id, 1)}/160x90.jpeg")
    shorter = jobs_down_to(100)

    await work(shorter, await request(ledger, before))

    image = await latest(ledger, before)
    assert attempts_of(image) == {2}
    assert await stored_pictures(storage, image) == pictures


async def test_where_originals_are_not_kept_thumbnails_are_made_of_the_stored_jpeg(
    ledger: Ledger, storage: Storage, jobs: Jobs, settling: Settling
) -> None:
    settling._keep_originals = ledger._keeps_originals = False
    before = await converted(ledger, storage, jobs)
    full = (await stored_pictures(storage, before))[FULL]
    kept = await storage.exists(original_key(before.id))
    await storage.delete(f"{attempt_prefix(before.id, 1)}/160x90.jpeg")
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    pictures = await stored_pictures(storage, image)
    assert not kept
    assert pictures.keys() == {FULL, "320x180.jpeg", "160x90.jpeg"}
    assert pictures[FULL] == full
    assert {file: rendition.attempt for file, rendition in image.renditions.items()} == {
        FULL: 1,
        "320x180.jpeg": 2,
        "160x90.jpeg": 2,
    }
    assert await storage.folders(renditions_prefix(image.id)) == ["1", "2"]
    assert [stored.key async for stored in storage.listing(attempt_prefix(image.id, 1))] == [
        f"{attempt_prefix(image.id, 1)}/{FULL}"
    ]


async def test_a_missing_jpeg_is_made_again_of_the_original(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    await storage.delete(f"{attempt_prefix(before.id, 1)}/{FULL}")
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    assert attempts_of(image) == {2}
    assert await stored_pictures(storage, image) == pictures


@pytest.mark.parametrize("torn", ["cut short", "altered"])
async def test_a_torn_jpeg_is_made_again_of_the_original(
    ledger: Ledger, storage: Storage, jobs: Jobs, torn: str
) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)
    full = pictures[FULL]
    await put(storage, f"{attempt_prefix(before.id, 1)}/{FULL}", full[:-9] + (b"" if torn == "cut short" else bytes(9)))
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    assert attempts_of(image) == {2}
    assert await stored_pictures(storage, image) == pictures


async def test_a_torn_jpeg_without_an_original_stays_what_it_is(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    """Made again of itself, it would pass for whole."""
    before = await converted(ledger, storage, jobs)
    torn = (await stored_pictures(storage, before))[FULL] + b"a byte too many"
    await put(storage, f"{attempt_prefix(before.id, 1)}/{FULL}", torn)
    await storage.delete(original_key(before.id))
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    assert (image.attempt, image.work, image.renditions[FULL]) == (2, None, before.renditions[FULL])
    assert await storage.read(f"{attempt_prefix(before.id, 1)}/{FULL}") == torn


# A format that is added


@pytest.fixture
async def toy_renderer(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Renderer]:
    """A renderer that knows a second format."""
    monkeypatch.setitem(FORMATS, "toy", toy_format.TOY)
    monkeypatch.setitem(ENCODER_SETTINGS, "toy", toy_format.SETTINGS)
    renderer = Renderer(settings, 1, 10_000_000, command=(sys.executable, "-m", "tests.worker.toy_format", ""))
    await renderer.start()
    yield renderer
    await renderer.close()


@pytest.fixture
def toy_jobs(
    settings: Settings, identity: Identity, storage: Storage, toy_renderer: Renderer, attempts: Attempts
) -> Jobs:
    return Jobs(settings, identity, storage, toy_renderer, attempts)


async def files_of(storage: Storage, image: Image) -> dict[str, float]:
    """Return the image's files, each with its time."""
    return {stored.key: stored.changed async for stored in storage.listing(renditions_prefix(image.id))}


@pytest.mark.parametrize("has_original", [True, False])
@pytest.mark.parametrize(("file", "size"), [("320x180.toy", (320, 180)), ("image.toy", (640, 360))])
async def test_a_format_that_is_added_to_a_ready_image_is_one_file_and_tells_clients_nothing(
    ledger: Ledger,
    storage: Storage,
    toy_jobs: Jobs,
    monkeypatch: pytest.MonkeyPatch,
    has_original: bool,
    file: str,
    size: tuple[int, int],
) -> None:
    before = await converted(ledger, storage, toy_jobs)
    if not has_original:
        await storage.delete(original_key(before.id))
    record, files, listed = record_of(before), await files_of(storage, before), await ledger.list_ready(None, 9, False)
    wanted = await request(ledger, before, file)
    told: list[str] = []
    for owner, name in ((Settling, "settle"), (ResponseCache, "change_tokens"), (Announcer, "announce")):
        monkeypatch.setattr(owner, name, lambda *_, name=name: told.append(name))

    await work(toy_jobs, wanted)

    image = await latest(ledger, before)
    added = image.renditions[file]
    assert image == replace(before, attempt=2, renditions={**before.renditions, file: added})
    assert (added.size, added.attempt, added.definition) == (size, 2, definition_of("toy", Settings().background))
    assert toy_format.size_of(await storage.read(rendition_key(image.id, added))) == size
    assert await files_of(storage, image) == {**files, rendition_key(image.id, added): ANY}
    assert told == []
    assert record_of(image) == record
    assert [record_of(one) for one in await ledger.list_ready(None, 9, False)] == [record_of(one) for one in listed]


async def test_a_file_that_is_made_again_leaves_the_others_where_they_are(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    pictures = await stored_pictures(storage, before)

    await work(jobs, await request(ledger, before, "160x90.jpeg"))

    image = await latest(ledger, before)
    assert {file: rendition.attempt for file, rendition in image.renditions.items()} == {
        FULL: 1,
        "320x180.jpeg": 1,
        "160x90.jpeg": 2,
    }
    assert await stored_pictures(storage, image) == pictures
    assert await files_of(storage, image) == {rendition_key(image.id, one): ANY for one in image.renditions.values()}
    assert image.debts == ()


async def test_an_original_that_has_become_another_picture_publishes_nothing(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    await put(storage, original_key(before.id), encoded(photo((64, 64)), "PNG").getvalue())
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    assert (image.status, image.work, attempts_of(image), image.debts) == (Status.READY, None, {1}, ())
    assert image.paused_until is not None
    await stored_pictures(storage, image)


async def test_thumbnails_of_an_image_without_any_source_are_lost_and_it_stays_ready(
    ledger: Ledger, storage: Storage, jobs: Jobs
) -> None:
    before = await converted(ledger, storage, jobs)
    await storage.delete(f"{attempt_prefix(before.id, 1)}/{FULL}")
    await storage.delete(original_key(before.id))
    wanted = await request(ledger, before)

    await work(jobs, wanted)

    image = await latest(ledger, before)
    assert (image.status, attempts_of(image), image.losses) == (Status.READY, {1}, 1)


async def test_a_retry_of_a_failed_image_converts_it(ledger: Ledger, storage: Storage, jobs: Jobs) -> None:
    image = await uploaded(ledger, storage, tutorials_picture()[:5000])
    await work(jobs, image)
    await put_original(storage, image, tutorials_picture())
    assert await ledger.retry(image.id) is not None

    await work(jobs, image)

    row = await latest(ledger, image)
    assert (row.status, attempts_of(row), row.error_type) == (Status.READY, {2}, None)
    await stored_pictures(storage, row)
