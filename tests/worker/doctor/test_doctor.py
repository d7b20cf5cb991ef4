"""The doctor over a real disk and a real ledger: what is wrong is told without a change, and mended when asked to."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import uuid_utils

from launch.processes import HERE
from shared.errors import StorageUnavailable
from shared.identity import check_storage
from shared.images import Image, Lane, Original, Status, Work
from shared.ledger import Identity, Ledger
from shared.renditions import FULL, Rendition, attempt_prefix, original_key, rendition_key
from shared.settings import Settings
from shared.storage import Storage, Stored
from shared.storage.disk import DiskStorage
from tests.databases import on_both_databases
from tests.ledgers import SIZE, latest, new_id, settled
from tests.services import put
from worker.doctor import __main__ as command
from worker.doctor.diagnosis import Kind
from worker.doctor.doctor import Doctor
from worker.doctor.report import Report

#: Two hours: more than what counts as young.
LONG = 7200.0

CONTENT = b"the original"
PICTURES = {FULL: b"the JPEG", "320x180.jpeg": b"half of it", "160x90.jpeg": b"a quarter"}
SIZES = {FULL: SIZE, "320x180.jpeg": (320, 180), "160x90.jpeg": (160, 90)}


@pytest.fixture(autouse=True)
async def identity(ledger: Ledger, storage: DiskStorage, settings: Settings) -> Identity:
    """The ledger and the storage belong together."""
    return await check_storage(ledger, storage, settings)


def old_id(seconds: float = LONG) -> str:
    """Return an id as uploads got it so long ago."""
    return str(uuid_utils.uuid7(nanoseconds=int((time.time() - seconds) * 1e9)))


async def put_old(storage: DiskStorage, key: str, content: bytes = b"x", seconds: float = LONG) -> str:
    """Keep `content` as if that had been so long ago; return the key."""
    await put(storage, key, content)
    os.utime(storage._path(key), (time.time() - seconds,) * 2)
    return key


def digest_of(content: bytes) -> tuple[int, str]:
    return len(content), hashlib.sha256(content).hexdigest()


async def uploaded(ledger: Ledger, storage: DiskStorage) -> Image:
    """Return a queued image of two hours ago."""
    image_id = old_id()
    await put_old(storage, original_key(image_id), CONTENT)
    return await ledger.add(image_id, Original("image/png", *digest_of(CONTENT)), None)


async def at_work(ledger: Ledger, storage: DiskStorage) -> Image:
    """Return an image whose attempt has stored its renditions, and has not published them yet."""
    image = await ledger.claim((await uploaded(ledger, storage)).id, "host:1")
    assert image is not None
    for name, content in PICTURES.items():
        await put_old(storage, key_at(image, image.attempt, name), content)
    return image


def renditions_of(attempt: Image) -> list[Rendition]:
    return [
        Rendition(name, SIZES[name], *digest_of(content), attempt.attempt, "0123abcd")
        for name, content in PICTURES.items()
    ]


async def ready(ledger: Ledger, storage: DiskStorage) -> Image:
    """Return a ready image whose files are what its row says, and which owes nothing."""
    attempt = await at_work(ledger, storage)
    image = await ledger.publish(attempt, SIZE, renditions_of(attempt), seconds=0.1)
    assert image is not None
    return await settled(ledger, image)


async def failed(ledger: Ledger, storage: DiskStorage) -> Image:
    """Return a failed image that owes nothing."""
    attempt = await ledger.claim((await uploaded(ledger, storage)).id, "host:1")
    assert attempt is not None
    image = await ledger.fail(attempt, "unreadable-image", "This is no picture.")
    assert image is not None
    return await settled(ledger, image)


async def made_again(
    ledger: Ledger, storage: DiskStorage, image: Image, names: Sequence[str] = tuple(PICTURES)
) -> Image:
    """Return a ready image after another attempt has made these renditions, with what it owes."""
    wanted = await ledger.request_renditions(image, Lane.DEMAND, names)
    assert wanted is not None
    attempt = await ledger.claim(wanted.id, "host:1")
    assert attempt is not None
    for name in names:
        await put_old(storage, key_at(attempt, attempt.attempt, name), PICTURES[name])
    published = await ledger.publish(
        attempt, SIZE, [one for one in renditions_of(attempt) if one.file in names], seconds=0.1
    )
    assert published is not None
    return published


def key_of(image: Image, name: str = FULL) -> str:
    """Return the key of a rendition that the row names."""
    return rendition_key(image.id, image.renditions[name])


def key_at(image: Image | str, attempt: int, name: str = FULL) -> str:
    """Return the key of a file in an attempt's folder, which the row may not name."""
    return f"{attempt_prefix(image if isinstance(image, str) else image.id, attempt)}/{name}"


@dataclass(frozen=True)
class Examined:
    """What one run of the doctor came to: how many of each kind are wrong, and what it printed."""

    code: int
    counts: dict[Kind, int]
    out: str


Examine = Callable[..., Awaitable[Examined]]


@pytest.fixture
def examine(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Examine:
    """Run the doctor as its command does."""

    async def run(*, mend: bool = False, digests: bool = False, keep_originals: bool = True) -> Examined:
        capsys.readouterr()
        kept = replace(settings, keep_originals=keep_originals)
        code = await command.run(kept, digests=digests, mend=mend)
        out = capsys.readouterr().out
        table = out.partition("what is wrong")[2].splitlines()
        counts = {
            kind: int(line.removeprefix(kind).split()[0].replace(",", ""))
            for line in table
            for kind in Kind
            if line.startswith(f"{kind}  ")
        }
        return Examined(code, counts, out)

    return run


async def everything(ledger: Ledger, storage: DiskStorage) -> object:
    """Return all rows, and all files with their lengths and times."""
    listed = [
        [stored async for stored in storage.listing(kind)] for kind in ("originals", "renditions", "drafts", "markers")
    ]
    return await ledger.list_all(None, 1000), listed


# Nothing wrong


async def test_where_nothing_is_wrong_it_says_so(ledger: Ledger, storage: DiskStorage, examine: Examine) -> None:
    for arrange in (uploaded, at_work, ready, failed):
        await arrange(ledger, storage)
    assert await ledger.delete((await ready(ledger, storage)).id) is not None

    examined = await examine(digests=True)

    assert (examined.code, examined.counts) == (0, {})
    assert "Looked at 5 rows and 14 files" in examined.out
    assert "Nothing is wrong." in examined.out


async def test_an_empty_service_is_well(examine: Examine) -> None:
    assert (await examine()).code == 0


# What is stored and nobody's


async def original_without_row(ledger: Ledger, storage: DiskStorage) -> str:
    return await put_old(storage, original_key(old_id()))


async def renditions_without_row(ledger: Ledger, storage: DiskStorage) -> str:
    image_id = old_id()
    await put_old(storage, key_at(image_id, 1, "320x180.jpeg"))
    return await put_old(storage, key_at(image_id, 2))


async def superseded_attempt(ledger: Ledger, storage: DiskStorage) -> str:
    image = await ready(ledger, storage)
    await settled(ledger, await made_again(ledger, storage, image))
    return key_of(image)


async def attempt_of_a_failed_image(ledger: Ledger, storage: DiskStorage) -> str:
    return await put_old(storage, key_at(await failed(ledger, storage), 1))


async def attempt_that_the_ledger_knows_nothing_of(ledger: Ledger, storage: DiskStorage) -> str:
    return await put_old(storage, key_at(await ready(ledger, storage), 7))


async def superseded_file(ledger: Ledger, storage: DiskStorage) -> str:
    image = await ready(ledger, storage)
    await settled(ledger, await made_again(ledger, storage, image, ["320x180.jpeg"]))
    return key_of(image, "320x180.jpeg")


async def file_that_the_row_never_named(ledger: Ledger, storage: DiskStorage) -> str:
    return await put_old(storage, key_at(await ready(ledger, storage), 1, "80x45.jpeg"))


async def folder_that_is_no_attempt(ledger: Ledger, storage: DiskStorage) -> str:
    return await put_old(storage, f"renditions/{(await ready(ledger, storage)).id}/copy of 1/{FULL}")


NOBODYS = {
    original_without_row: Kind.ORIGINAL_WITHOUT_ROW,
    renditions_without_row: Kind.RENDITIONS_WITHOUT_ROW,
    superseded_attempt: Kind.STALE_ATTEMPT,
    attempt_of_a_failed_image: Kind.STALE_ATTEMPT,
    attempt_that_the_ledger_knows_nothing_of: Kind.STALE_ATTEMPT,
    folder_that_is_no_attempt: Kind.STALE_ATTEMPT,
    superseded_file: Kind.STALE_FILE,
    file_that_the_row_never_named: Kind.STALE_FILE,
}


@on_both_databases
@pytest.mark.parametrize(("arrange", "kind"), NOBODYS.items(), ids=[arrange.__name__ for arrange in NOBODYS])
async def test_what_is_nobodys_is_told_first_and_removed_when_asked_to(
    ledger: Ledger,
    storage: DiskStorage,
    examine: Examine,
    arrange: Callable[[Ledger, DiskStorage], Awaitable[str]],
    kind: Kind,
) -> None:
    bystanders = [await uploaded(ledger, storage), await ready(ledger, storage), await failed(ledger, storage)]
    key = await arrange(ledger, storage)
    before = await everything(ledger, storage)

    told = await examine()

    assert (told.code, told.counts) == (1, {kind: 1})
    assert f"\n{kind}" in f"\n{told.out}"
    assert key.split("/")[1] in told.out
    assert "Nothing was changed." in told.out
    assert await everything(ledger, storage) == before

    mended = await examine(mend=True)

    assert (mended.code, mended.counts) == (0, {kind: 1})
    assert "removed" in mended.out
    assert not await storage.exists(key)
    again = await examine(digests=True)
    assert (again.code, again.counts) == (0, {})
    for image in bystanders:
        assert await latest(ledger, image) == image
        assert await storage.read(original_key(image.id)) == CONTENT
    for image in await ledger.list_ready(None, 10, newest_first=False):
        assert [await storage.read(key_of(image, name)) for name in PICTURES] == [*PICTURES.values()]
        assert image.debts == ()


async def test_a_young_original_is_an_upload_in_flight_by_its_file_and_by_its_id(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    """The row comes after the original. A copy of a file may keep its time, and a web process's clock may be wrong."""
    keys = [original_key(old_id()), await put_old(storage, original_key(old_id(seconds=60)))]
    await put(storage, keys[0], b"x")

    examined = await examine(mend=True)

    assert (examined.code, examined.counts) == (0, {})
    assert all([await storage.exists(key) for key in keys])


async def test_young_drafts_and_attempts_are_left_alone(ledger: Ledger, storage: DiskStorage, examine: Examine) -> None:
    image = await ready(ledger, storage)
    keys = [key_at(image, 2), key_at(image, 1, "80x45.jpeg"), key_at(image_id := old_id(), 1, "320x180.jpeg")]
    for key in keys:
        await put(storage, key, b"x")
    keys.append(await put_old(storage, key_at(image_id, 1)))
    draft = await storage.draft()

    examined = await examine(mend=True)

    assert (examined.code, examined.counts) == (0, {})
    assert all([await storage.exists(key) for key in [*keys, f"drafts/{draft.path.name}"]])
    await draft.discard()


async def test_attempts_are_left_to_an_image_that_is_at_work_or_owes_leftovers(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    """Publishing, failing and giving up all end in the removal of the other attempts."""
    unfinished = await at_work(ledger, storage)
    wanting = await ready(ledger, storage)
    assert await ledger.request_renditions(wanting, Lane.DEMAND) is not None
    owing = await made_again(ledger, storage, await ready(ledger, storage))
    deleting = await ready(ledger, storage)
    assert await ledger.delete(deleting.id) is not None
    keys = [await put_old(storage, key_at(image, 5)) for image in (unfinished, wanting, owing, deleting)]

    examined = await examine(mend=True)

    assert (examined.code, examined.counts) == (0, {})
    assert all([await storage.exists(key) for key in keys])


class Stirring(DiskStorage):
    """A disk on which something happens at the end of a listing."""

    def stir(self, prefix: str, happening: Callable[[], Awaitable[object]]) -> None:
        """Have `happening` awaited once, after what is at or below `prefix` has been listed."""
        self._at, self._happening = prefix, happening

    async def listing(self, prefix: str) -> AsyncIterator[Stored]:
        async for stored in super().listing(prefix):
            yield stored
        if prefix == self._at:
            self._at = ""
            await self._happening()


@pytest.fixture
async def storage(settings: Settings) -> Stirring:
    storage = Stirring(settings.storage_path)
    storage.stir("", lambda: storage.prepare())
    await storage.prepare()
    return storage


async def examined_here(
    settings: Settings, ledger: Ledger, storage: Storage, identity: Identity, *, mend: bool = True
) -> dict[Kind, int]:
    report = Report(mend)
    await Doctor(ledger, storage, identity, report, keep_originals=settings.keep_originals, mend=mend).examine()
    return dict(report.found)


@on_both_databases
@pytest.mark.parametrize("stage", ["originals", "second look"])
async def test_an_original_whose_row_comes_meanwhile_is_left_alone(
    settings: Settings, ledger: Ledger, storage: Stirring, identity: Identity, stage: str
) -> None:
    """However old it looks: the ledger is asked again before anything is removed."""
    image_id = old_id()
    key = await put_old(storage, original_key(image_id), CONTENT)
    original = Original("image/png", *digest_of(CONTENT))
    storage.stir(key if stage == "second look" else stage, lambda: ledger.add(image_id, original, None))

    found = await examined_here(settings, ledger, storage, identity)

    assert found == {}
    assert await storage.read(key) == CONTENT


@pytest.mark.parametrize("stage", ["originals", "renditions", "second look"])
async def test_an_image_that_is_published_anew_under_the_doctors_eyes_is_well(
    settings: Settings, ledger: Ledger, storage: Stirring, identity: Identity, stage: str
) -> None:
    """Its old folder goes between two looks, of which one sees the row and one the files."""
    image = await ready(ledger, storage)
    await storage.delete(key_of(image))

    async def publish_again() -> None:
        row = await made_again(ledger, storage, image)
        await storage.delete_folder(f"renditions/{image.id}/1")
        await settled(ledger, row)

    storage.stir(f"renditions/{image.id}" if stage == "second look" else stage, publish_again)

    found = await examined_here(settings, ledger, storage, identity)

    assert found == {}
    row = await latest(ledger, image)
    assert row.has_published(2)
    assert await storage.read(key_of(row)) == PICTURES[FULL]


class Busy(DiskStorage):
    """A disk to which originals come as fast as they are looked at."""

    async def listing(self, prefix: str) -> AsyncIterator[Stored]:
        async for stored in super().listing(prefix):
            yield stored
        while prefix == "originals":
            await asyncio.sleep(0)
            yield Stored(original_key(new_id()), 1, time.time())


async def test_it_comes_to_an_end_though_uploads_come_faster_than_it_looks(
    settings: Settings, ledger: Ledger, storage: DiskStorage, identity: Identity
) -> None:
    orphan = old_id()
    await put_old(storage, original_key(orphan))

    async with asyncio.timeout(60):
        found = await examined_here(settings, ledger, Busy(settings.storage_path), identity, mend=False)

    assert found == {Kind.ORIGINAL_WITHOUT_ROW: 1}


async def test_a_retry_meanwhile_keeps_the_attempts_of_a_failed_image(
    settings: Settings, ledger: Ledger, storage: Stirring, identity: Identity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last look and the removal there is still the ledger's guard: an image at work is left alone."""
    image = await failed(ledger, storage)
    key = await put_old(storage, key_at(image, 2))
    real = ledger.owe_leftovers

    async def owe_leftovers(row: Image, attempt: int) -> Image | None:
        assert await ledger.retry(image.id) is not None
        assert await ledger.claim(image.id, "host:1") is not None
        return await real(row, attempt)

    monkeypatch.setattr(ledger, "owe_leftovers", owe_leftovers)

    found = await examined_here(settings, ledger, storage, identity)

    assert found == {Kind.STALE_ATTEMPT: 1}
    assert await storage.exists(key)


async def test_a_storage_that_goes_while_it_is_walked_is_no_loss_of_all_images(
    settings: Settings, ledger: Ledger, storage: Stirring, identity: Identity
) -> None:
    """A disk that is not mounted any more looks like an empty folder."""
    image = await ready(ledger, storage)

    async def unmount() -> None:
        await storage.delete(f"markers/{identity.marker}")
        await storage.delete_folder(f"renditions/{image.id}")

    storage.stir("originals", unmount)

    with pytest.raises(StorageUnavailable):
        await examined_here(settings, ledger, storage, identity)

    assert await latest(ledger, image) == image


# What the ledger names


async def cut_short(storage: DiskStorage, key: str) -> None:
    await put_old(storage, key, (await storage.read(key))[:-1])


async def altered(storage: DiskStorage, key: str) -> None:
    await put_old(storage, key, (await storage.read(key))[:-1] + b"?")


@pytest.mark.parametrize("name", PICTURES)
@on_both_databases
@pytest.mark.parametrize("damage", [DiskStorage.delete, cut_short, altered])
async def test_a_rendition_that_is_gone_or_torn_is_told_first_and_made_again_when_asked_to(
    ledger: Ledger,
    storage: DiskStorage,
    examine: Examine,
    name: str,
    damage: Callable[[DiskStorage, str], Awaitable[None]],
) -> None:
    image = await ready(ledger, storage)
    await damage(storage, key_of(image, name))
    before = await everything(ledger, storage)
    digests = damage is altered

    told = await examine(digests=digests)

    assert (told.code, told.counts) == (1, {Kind.RENDITION_BROKEN: 1})
    assert key_of(image, name) in told.out
    assert await everything(ledger, storage) == before

    mended = await examine(mend=True, digests=digests)

    assert (mended.code, mended.counts) == (0, {Kind.RENDITION_BROKEN: 1})
    assert "will be made again" in mended.out
    row = await latest(ledger, image)
    assert (row.status, row.work, row.lane) == (Status.READY, Work.RENDITIONS, Lane.BULK)
    assert [waiting.id for waiting in await ledger.waiting(10)] == [image.id]
    again = await examine(digests=digests)
    assert (again.code, again.counts) == (1, {Kind.RENDITION_BROKEN: 1})
    while_at_it = await examine(mend=True, digests=digests)
    assert (while_at_it.code, "is asked for already" in while_at_it.out) == (0, True)
    assert await latest(ledger, image) == row


async def test_only_digests_tell_an_altered_file_of_the_same_length(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    image = await ready(ledger, storage)
    await altered(storage, key_of(image))
    await altered(storage, original_key((await failed(ledger, storage)).id))

    assert (await examine()).counts == {}
    assert (await examine(digests=True)).counts == {Kind.RENDITION_BROKEN: 1, Kind.ORIGINAL_TORN: 1}


async def test_a_thumbnail_is_made_again_of_the_jpeg_where_there_is_no_original(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    image = await ready(ledger, storage)
    await storage.delete(original_key(image.id))
    await storage.delete(key_of(image, "320x180.jpeg"))

    examined = await examine(mend=True, keep_originals=False)

    assert (examined.code, examined.counts) == (0, {Kind.RENDITION_BROKEN: 1})
    assert (await latest(ledger, image)).work is Work.RENDITIONS


@pytest.mark.parametrize("source", ["missing", "cut short", "altered"])
async def test_what_has_no_whole_source_is_beyond_mending_and_stays_as_it_is(
    ledger: Ledger, storage: DiskStorage, examine: Examine, source: str
) -> None:
    """The torn JPEG is the best there is. Made of an altered original, another would be wrong and pass for whole."""
    image = await ready(ledger, storage)
    await cut_short(storage, key_of(image))
    await storage.delete(key_of(image, "160x90.jpeg"))
    if source == "missing":
        await storage.delete(original_key(image.id))
    else:
        await (cut_short if source == "cut short" else altered)(storage, original_key(image.id))
    before = await everything(ledger, storage)

    for mend in (False, True):
        examined = await examine(mend=mend, digests=True)

        assert examined.code == 1
        assert examined.counts[Kind.BEYOND_MENDING] == 2
        assert examined.counts.keys().isdisjoint({Kind.RENDITION_BROKEN})
        assert await everything(ledger, storage) == before


async def test_an_altered_source_is_found_before_anything_is_made_of_it(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    image = await ready(ledger, storage)
    await storage.delete(key_of(image, "160x90.jpeg"))
    await altered(storage, original_key(image.id))

    examined = await examine(mend=True)

    assert (examined.code, examined.counts) == (1, {Kind.RENDITION_BROKEN: 1})
    assert "has another digest" in examined.out
    assert await latest(ledger, image) == image


async def test_renditions_that_were_given_up_a_moment_ago_are_not_asked_for_now(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    image = await ready(ledger, storage)
    wanted = await ledger.request_renditions(image, Lane.DEMAND)
    assert wanted is not None
    attempt = await ledger.claim(wanted.id, "host:1")
    assert attempt is not None
    assert await ledger.give_up(attempt) is not None
    await storage.delete(key_of(image))

    examined = await examine(mend=True)

    assert (examined.code, examined.counts) == (1, {Kind.RENDITION_BROKEN: 1})
    assert "left: the image is at work" in examined.out


async def test_of_one_image_what_is_stale_is_removed_and_what_is_broken_is_made_again(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    image = await ready(ledger, storage)
    stale = [await put_old(storage, key) for key in (key_at(image, 7), key_at(image, 1, "80x45.jpeg"))]
    await storage.delete(key_of(image))

    examined = await examine(mend=True)

    counts = {Kind.STALE_ATTEMPT: 1, Kind.STALE_FILE: 1, Kind.RENDITION_BROKEN: 1}
    assert (examined.code, examined.counts) == (0, counts)
    assert [await storage.exists(key) for key in stale] == [False, False]
    assert (await latest(ledger, image)).work is Work.RENDITIONS


@on_both_databases
async def test_one_run_asks_for_no_more_than_the_workers_do_in_a_while(
    ledger: Ledger, storage: DiskStorage, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.doctor.doctor.MOST_ASKED_FOR", 2)
    images = [await ready(ledger, storage) for _ in range(3)]
    for image in images:
        for name in PICTURES:
            await storage.delete(key_of(image, name))

    first, second = await examine(mend=True), await examine(mend=True)

    assert (first.code, first.counts) == (1, {Kind.RENDITION_BROKEN: 9})
    assert "run again later" in first.out
    assert (second.code, second.counts) == (0, {Kind.RENDITION_BROKEN: 9})
    assert {(await latest(ledger, image)).work for image in images} == {Work.RENDITIONS}


@pytest.mark.parametrize(
    ("arrange", "kind", "code"),
    [
        (uploaded, Kind.ORIGINAL_MISSING, 1),
        (at_work, Kind.ORIGINAL_MISSING, 1),
        (failed, Kind.ORIGINAL_MISSING, 1),
        (ready, Kind.READY_WITHOUT_ORIGINAL, 0),
    ],
)
async def test_an_original_that_is_gone_is_told_and_left_to_its_image(
    ledger: Ledger,
    storage: DiskStorage,
    examine: Examine,
    arrange: Callable[[Ledger, DiskStorage], Awaitable[Image]],
    kind: Kind,
    code: int,
) -> None:
    """A ready image may have been uploaded while originals were not kept: that alone is nothing to be mended."""
    image = await arrange(ledger, storage)
    await storage.delete(original_key(image.id))
    before = await everything(ledger, storage)

    for mend in (False, True):
        examined = await examine(mend=mend)

        assert (examined.code, examined.counts) == (code, {kind: 1})
        assert await everything(ledger, storage) == before


@pytest.mark.parametrize("arrange", [uploaded, at_work, failed, ready])
async def test_an_original_that_is_torn_is_told(
    ledger: Ledger,
    storage: DiskStorage,
    examine: Examine,
    arrange: Callable[[Ledger, DiskStorage], Awaitable[Image]],
) -> None:
    image = await arrange(ledger, storage)
    await cut_short(storage, original_key(image.id))

    examined = await examine(mend=True)

    assert (examined.code, examined.counts) == (1, {Kind.ORIGINAL_TORN: 1})
    assert "11 bytes, not 12" in examined.out


async def test_originals_that_are_not_to_be_kept_may_be_there_or_not(
    ledger: Ledger, storage: DiskStorage, examine: Examine
) -> None:
    """Who has just set them to be not kept may think better of it."""
    gone = await ready(ledger, storage)
    await storage.delete(original_key(gone.id))
    kept = await ready(ledger, storage)

    examined = await examine(mend=True, keep_originals=False)

    assert (examined.code, examined.counts) == (0, {})
    assert await storage.exists(original_key(kept.id))


# How it is told


@on_both_databases
async def test_all_are_counted_and_some_are_listed(
    ledger: Ledger, storage: DiskStorage, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows come in pages, files in folders, and both are walked side by side: none is missed, and none told twice."""
    monkeypatch.setattr("worker.doctor.doctor._PAGE", 2)
    orphans, torn = [], []
    for number in range(12):
        image_id = old_id(LONG + 100 * number)
        if number % 3 == 0:
            orphans.append(await put_old(storage, original_key(image_id)))
            await put_old(storage, key_at(image_id, 1))
        else:
            image = await ready(ledger, storage)
            torn.append(key_of(image))
            await cut_short(storage, torn[-1])

    everything_told = await examine()
    monkeypatch.setattr("worker.doctor.report._MOST_LINES", 3)
    some = await examine()

    counts = {Kind.ORIGINAL_WITHOUT_ROW: 4, Kind.RENDITIONS_WITHOUT_ROW: 4, Kind.RENDITION_BROKEN: 8}
    assert everything_told.counts == some.counts == counts
    assert [everything_told.out.count(key) for key in [*orphans, *torn]] == [1] * 12
    assert sum(some.out.count(key) for key in orphans) == sum(some.out.count(key) for key in torn) == 3
    assert some.out.count("and more") == 3
    assert "do not mend then" in some.out


# As a process


def started(env: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the checkout with nothing but `env` in its environment."""
    return subprocess.run(command, cwd=HERE, env=env, capture_output=True, text=True, timeout=60)


def test_where_it_cannot_tell_it_says_why_in_one_line_and_makes_nothing(
    settings: Settings, migrated_ledger: Path, tmp_path: Path
) -> None:
    empty, elsewhere = tmp_path / "empty", tmp_path / "elsewhere"
    empty.mkdir()
    ledger = migrated_ledger.read_bytes()

    def told(**env: str) -> str:
        run = started(env, sys.executable, "-m", "worker.doctor", "--mend")
        assert (run.returncode, run.stdout, run.stderr.count("\n")) == (2, "", 1), run
        assert run.stderr.startswith("asgilook: what is wrong cannot be told: ")
        return run.stderr

    assert "unable to open" in told(ASGI_LOOK_STORAGE_PATH=str(empty))
    assert "do not match" in told(ASGI_LOOK_STORAGE_PATH=str(empty), DATABASE_URL=settings.database_url)
    assert "do not match" in told(ASGI_LOOK_STORAGE_PATH=str(elsewhere), DATABASE_URL=settings.database_url)
    unused = f"sqlite:///{migrated_ledger}"
    assert "no storage yet" in told(ASGI_LOOK_STORAGE_PATH=str(settings.storage_path), DATABASE_URL=unused)
    assert "ASGI_LOOK_MIN_THUMB_SIZE" in told(ASGI_LOOK_MIN_THUMB_SIZE="small")
    assert (list(empty.iterdir()), elsewhere.exists()) == ([], False)
    assert migrated_ledger.read_bytes() == ledger


@on_both_databases
async def test_a_reader_who_has_seen_enough_is_no_error(settings: Settings, storage: DiskStorage) -> None:
    for _ in range(3):
        await put_old(storage, original_key(old_id()))
    program = f"{sys.executable} -m worker.doctor | true; exit ${{PIPESTATUS[0]}}"

    env = {"ASGI_LOOK_STORAGE_PATH": str(settings.storage_path), "DATABASE_URL": settings.database_url}

    run = started({**os.environ, **env}, "bash", "-c", program)

    assert (run.returncode, run.stdout, run.stderr) == (1, "", "")
