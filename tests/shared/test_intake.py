"""Taking an upload in, whatever way it came: durable and committed, or refused by a named error without a trace."""

from __future__ import annotations

import asyncio
import hashlib
import struct
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import pytest

from shared.errors import (
    DigestMismatch,
    DiskAtFloor,
    EmptyUpload,
    LedgerUnavailable,
    NothingCommitted,
    StorageFull,
    StorageUnavailable,
    TooManyWaiting,
    TruncatedUpload,
    UnknownFormat,
    UploadRefused,
    UploadTooLarge,
)
from shared.images import Image, Original, Status
from shared.intake import Content, Intake, recognise
from shared.ledger import Ledger
from shared.ledger.engine import create_engine
from shared.renditions import original_key
from shared.settings import Settings
from shared.storage import Draft
from shared.storage.disk import DiskStorage
from shared.storage.disk_draft import DiskDraft
from tests.ledgers import new_id

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20
LIMIT = 8 * 1024
FIRST_ID = "01890a5d-ac96-774b-bcce-b302099a8057"

PICTURES = {
    "image/jpeg": JPEG,
    "image/png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "image/gif": b"GIF89a" + bytes(100),
    "image/webp": b"RIFF\x64\0\0\0WEBPVP8 " + bytes(100),
    "image/tiff": b"II*\0" + bytes(100),
    "image/bmp": b"BM" + struct.pack("<IIII", 200, 0, 54, 40) + bytes(182),
    "image/avif": struct.pack(">I", 20) + b"ftypavif\0\0\0\0mif1" + bytes(100),
}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return replace(settings, free_disk_floor=0)


@pytest.fixture
def intake(settings: Settings, ledger: Ledger, storage: DiskStorage) -> Intake:
    return Intake(settings, ledger, storage, new_id)


async def pieces(*parts: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield the parts, each in pieces of `size`, and an empty part as it is."""
    for part in parts:
        for at in range(0, max(len(part), 1), size):
            yield part[at : at + size]


def content_of(*parts: bytes, size: int = 1000, **options: Any) -> Content:
    return Content(pieces(*parts, size=size), LIMIT, **options)


class Sender:
    """Sends a content's pieces, and counts those that were read."""

    def __init__(self, *pieces: bytes, error: Exception | None = None) -> None:
        self._pieces = pieces
        self._error = error
        self.read = 0

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.read += 1
            yield piece
        if self._error is not None:
            raise self._error


async def kept(storage: DiskStorage, *kinds: str) -> list[str]:
    """Return the keys of every original and draft, or only of these kinds."""
    return [stored.key for kind in kinds or ("originals", "drafts") async for stored in storage.listing(kind)]


async def rows(ledger: Ledger) -> list[str]:
    return [image.id for image in await ledger.list_with_status(Status.QUEUED, None, 100, False)]


async def traces(ledger: Ledger, storage: DiskStorage) -> list[str]:
    return [*await rows(ledger), *await kept(storage)]


# Received


async def test_what_was_received_is_stored_and_committed(intake: Intake, ledger: Ledger, storage: DiskStorage) -> None:
    """Promise 1: the original is durable, and its row is committed."""
    image = await intake.receive(content_of(JPEG), request="request-17", owner="owner-3")

    assert image == await ledger.get(image.id)
    assert (image.status, image.request, image.owner) == (Status.QUEUED, "request-17", "owner-3")
    assert image.original == Original("image/jpeg", len(JPEG), hashlib.sha256(JPEG).hexdigest())
    assert await storage.read(original_key(image.id)) == JPEG
    assert await kept(storage, "drafts") == []


async def test_the_same_bytes_twice_are_two_images(intake: Intake, storage: DiskStorage) -> None:
    first, second = [await intake.receive(content_of(JPEG)) for _ in range(2)]

    assert first.id != second.id
    assert len(await kept(storage, "originals")) == 2


@pytest.mark.parametrize("media_type", PICTURES)
async def test_every_format_is_told_by_its_first_bytes(intake: Intake, media_type: str) -> None:
    image = await intake.receive(content_of(PICTURES[media_type]))

    assert image.original.type == media_type


async def test_a_picture_shorter_than_a_signature_is_taken(intake: Intake) -> None:
    image = await intake.receive(content_of(b"GIF89a\x01\0"))

    assert image.original == Original("image/gif", 8, hashlib.sha256(b"GIF89a\x01\0").hexdigest())


@pytest.mark.parametrize("size", [1, 3, 63, 64, 65, 4096])
async def test_a_file_is_put_together_from_its_pieces(intake: Intake, storage: DiskStorage, size: int) -> None:
    image = await intake.receive(content_of(JPEG[:700], size=size))

    assert await storage.read(original_key(image.id)) == JPEG[:700]


async def test_an_empty_piece_does_not_end_a_file(intake: Intake, storage: DiskStorage) -> None:
    image = await intake.receive(content_of(b"", JPEG[:10], b"", JPEG[10:100], b"", JPEG[100:]))

    assert await storage.read(original_key(image.id)) == JPEG


async def test_a_file_of_exactly_the_limit_is_taken(intake: Intake) -> None:
    image = await intake.receive(content_of(JPEG, bytes(LIMIT - len(JPEG)), length=LIMIT))

    assert image.original.bytes == LIMIT


async def file_in(content: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yield the second piece of a content only."""
    chunks = aiter(content)
    await anext(chunks)
    yield await anext(chunks)


async def test_of_a_content_around_a_file_only_the_file_is_stored(intake: Intake, storage: DiskStorage) -> None:
    content = Content(Sender(b"begin", JPEG, b"end"), len(JPEG), around=8)

    image = await intake.receive(content, file_in(content))

    assert await storage.read(original_key(image.id)) == JPEG


async def test_the_digest_is_of_all_that_was_sent_and_not_of_the_file_in_it(intake: Intake) -> None:
    """RFC 9530: a form's digest is of the form, with what follows its end."""
    digest = hashlib.sha256(b"begin" + JPEG + b"end").digest()
    content = Content(Sender(b"begin", JPEG, b"end"), LIMIT, digests={"sha-256": digest})

    image = await intake.receive(content, file_in(content))

    assert image.original.sha256 == hashlib.sha256(JPEG).hexdigest()


# Refused

DIGESTS = {"sha-512": hashlib.sha512(JPEG).digest(), "sha-256": hashlib.sha256(JPEG).digest()}
REFUSED: dict[str, tuple[Sender, dict[str, Any], type[UploadRefused]]] = {
    "nothing": (Sender(), {}, EmptyUpload),
    "empty pieces": (Sender(b"", b""), {}, EmptyUpload),
    "no known format": (Sender(b"Dear all, " * 9), {}, UnknownFormat),
    "half a signature": (Sender(b"\xff\xd8"), {}, UnknownFormat),
    "one byte too many": (Sender(JPEG, bytes(LIMIT + 1 - len(JPEG))), {}, UploadTooLarge),
    "a file past the limit in a content within its own": (
        Sender(JPEG, bytes(LIMIT)),
        {"around": 9 * LIMIT},
        UploadTooLarge,
    ),
    "less than was announced": (Sender(JPEG), {"length": len(JPEG) + 1}, TruncatedUpload),
    "cut short": (Sender(JPEG, error=TruncatedUpload("the client went away")), {}, TruncatedUpload),
    "another digest": (Sender(JPEG + b"\0"), {"digests": DIGESTS}, DigestMismatch),
    "one wrong digest of two": (Sender(JPEG), {"digests": DIGESTS | {"sha-256": bytes(32)}}, DigestMismatch),
}


@pytest.mark.parametrize(("sender", "options", "error"), REFUSED.values(), ids=REFUSED)
async def test_a_bad_upload_is_refused_by_name_and_leaves_nothing(
    intake: Intake,
    ledger: Ledger,
    storage: DiskStorage,
    sender: Sender,
    options: dict[str, Any],
    error: type[UploadRefused],
) -> None:
    with pytest.raises(error):
        await intake.receive(Content(sender, LIMIT, **options))

    assert await traces(ledger, storage) == []


async def test_what_comes_around_a_file_is_limited_as_well(
    intake: Intake, ledger: Ledger, storage: DiskStorage
) -> None:
    content = Content(Sender(b"begin", JPEG, b"end"), len(JPEG), around=7)

    with pytest.raises(UploadTooLarge):
        await intake.receive(content, file_in(content))

    assert await traces(ledger, storage) == []


async def test_an_announced_length_past_the_limit_is_refused_before_anything_is_read() -> None:
    sender = Sender(JPEG)

    with pytest.raises(UploadTooLarge, match=r"At most 8,192 bytes are taken\."):
        Content(sender, LIMIT, length=LIMIT + 1)

    assert sender.read == 0


async def test_what_is_no_picture_is_refused_by_its_first_bytes(intake: Intake) -> None:
    sender = Sender(b"Dear all, ", b"how are you? " * 9, b"I am fine.")

    with pytest.raises(UnknownFormat):
        await intake.receive(Content(sender, LIMIT))

    assert sender.read == 2


@pytest.mark.parametrize(("head", "error"), [(b"", EmptyUpload), (b"Dear all,", UnknownFormat)])
def test_first_bytes_that_tell_no_format_are_refused(head: bytes, error: type[UploadRefused]) -> None:
    with pytest.raises(error):
        recognise(head)


async def test_an_upload_that_is_cancelled_before_it_is_complete_leaves_nothing(
    intake: Intake, ledger: Ledger, storage: DiskStorage
) -> None:
    has_begun = asyncio.Event()

    async def hang() -> AsyncIterator[bytes]:
        yield JPEG
        has_begun.set()
        await asyncio.Event().wait()

    receiving = asyncio.create_task(intake.receive(Content(hang(), LIMIT)))
    await has_begun.wait()
    receiving.cancel()

    with pytest.raises(asyncio.CancelledError):
        await receiving
    assert await traces(ledger, storage) == []


# Room


class StorageOf1000Bytes(DiskStorage):
    async def free_bytes(self) -> int:
        return 1000


async def test_an_upload_counts_against_the_floor_before_it_is_read(settings: Settings, ledger: Ledger) -> None:
    """The floor is what must stay free, not what must be free before."""
    settings = replace(settings, free_disk_floor=400)
    intake = Intake(settings, ledger, StorageOf1000Bytes(settings.storage_path), new_id)
    sender = Sender(JPEG[:601])

    await intake.require_room(600)
    with pytest.raises(DiskAtFloor):
        await intake.receive(Content(sender, LIMIT, length=601))

    assert sender.read == 0


@pytest.mark.parametrize(("length", "fits"), [(200, 3), (None, 1)], ids=["announced", "unknown"])
async def test_uploads_under_way_count_against_the_floor(
    settings: Settings, ledger: Ledger, storage: DiskStorage, length: int | None, fits: int
) -> None:
    """Twenty uploads of 48 MB that begin together would otherwise each see the same room."""
    intake = Intake(replace(settings, free_disk_floor=400), ledger, StorageOf1000Bytes(settings.storage_path), new_id)
    have_begun, may_end = asyncio.Semaphore(0), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        have_begun.release()
        await may_end.wait()
        yield JPEG[:200]

    def receiving() -> asyncio.Task[Image]:
        return asyncio.create_task(intake.receive(Content(slowly(), 600, length=length)))

    under_way = []
    for _ in range(fits):
        under_way.append(receiving())
        async with asyncio.timeout(15):
            await have_begun.acquire()
    with pytest.raises(DiskAtFloor):
        async with asyncio.timeout(15):
            await receiving()
    may_end.set()
    await asyncio.gather(*under_way)

    assert (await receiving()).original.bytes == 200


class Clock:
    """Shows the time that it is set to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_past_the_queues_limit_uploads_are_refused_until_it_is_shorter(
    settings: Settings, ledger: Ledger, storage: DiskStorage
) -> None:
    """The queue is counted once a second: a worker that takes an image makes room for the next second."""
    clock = Clock()
    intake = Intake(replace(settings, max_waiting=2), ledger, storage, new_id, clock)
    first, _ = [await intake.receive(content_of(JPEG)) for _ in range(2)]
    await ledger.claim(first.id, "a worker")

    clock.now = 0.9
    with pytest.raises(TooManyWaiting):
        await intake.receive(content_of(JPEG))
    clock.now = 1.0

    assert (await intake.receive(content_of(JPEG))).status is Status.QUEUED


# Committed


async def test_a_draft_that_came_by_another_way_becomes_an_image(intake: Intake, storage: DiskStorage) -> None:
    draft = await storage.draft()
    await draft.write(JPEG)

    image = await intake.commit(draft, recognise(JPEG))

    assert image.original == Original("image/jpeg", len(JPEG), hashlib.sha256(JPEG).hexdigest())
    assert await storage.read(original_key(image.id)) == JPEG


class SlowStorage(DiskStorage):
    """Keeps nothing before it may."""

    has_begun: asyncio.Event
    may_go_on: asyncio.Event

    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        self.has_begun.set()
        await self.may_go_on.wait()
        await super().keep(drafts)


async def test_a_complete_upload_that_is_cancelled_is_committed_all_the_same(
    settings: Settings, ledger: Ledger, storage: DiskStorage
) -> None:
    slow = SlowStorage(settings.storage_path)
    slow.has_begun, slow.may_go_on = asyncio.Event(), asyncio.Event()
    intake = Intake(settings, ledger, slow, lambda: FIRST_ID)

    receiving = asyncio.create_task(intake.receive(content_of(JPEG)))
    await slow.has_begun.wait()
    receiving.cancel()
    slow.may_go_on.set()

    assert (await receiving).id == FIRST_ID
    assert await rows(ledger) == [FIRST_ID]
    assert await storage.read(original_key(FIRST_ID)) == JPEG
    assert await kept(storage, "drafts") == []


class ForgetfulLedger(Ledger):
    """Commits, then loses the connection before it can say so."""

    async def add(self, *args: Any, **options: Any) -> Image:
        await super().add(*args, **options)
        raise LedgerUnavailable("the connection was lost")


class LosingLedger(Ledger):
    """Loses its connection before a commit arrives."""

    async def add(self, *args: Any, **options: Any) -> Image:
        raise LedgerUnavailable("the connection was lost")


class BlindLedger(LosingLedger):
    """Lost its connection at a commit, and has not found it again."""

    async def get(self, image_id: str) -> Image | None:
        raise LedgerUnavailable("the connection cannot be made")


class AbsentLedger(BlindLedger):
    """Cannot be reached at all."""

    async def add(self, *args: Any, **options: Any) -> Image:
        raise NothingCommitted("the connection cannot be made")


async def test_a_commit_that_went_through_unheard_is_found(
    settings: Settings, ledger: Ledger, storage: DiskStorage
) -> None:
    """After an unknown commit nothing is deleted before the row was read again."""
    forgetful = ForgetfulLedger(create_engine(settings))

    image = await Intake(settings, forgetful, storage, lambda: FIRST_ID).receive(content_of(JPEG))

    await forgetful.close()
    assert (image.id, image.status) == (FIRST_ID, Status.QUEUED)
    assert await storage.read(original_key(FIRST_ID)) == JPEG
    assert await rows(ledger) == [FIRST_ID]


async def test_an_original_whose_commit_certainly_failed_goes(
    settings: Settings, ledger: Ledger, storage: DiskStorage
) -> None:
    losing = LosingLedger(create_engine(settings))

    with pytest.raises(LedgerUnavailable):
        await Intake(settings, losing, storage, new_id).receive(content_of(JPEG))

    await losing.close()
    assert await traces(ledger, storage) == []


async def test_an_original_whose_commit_was_never_sent_goes_though_nobody_can_read_the_row(
    settings: Settings, storage: DiskStorage
) -> None:
    """While a database is away for an hour, every refused upload would leave its original."""
    absent = AbsentLedger(create_engine(settings))

    with pytest.raises(NothingCommitted):
        await Intake(settings, absent, storage, new_id).receive(content_of(JPEG))

    await absent.close()
    assert await kept(storage) == []


async def test_an_original_whose_commit_is_unknown_stays(settings: Settings, storage: DiskStorage) -> None:
    """A row without its original could never be rendered; an original without a row is some bytes too many."""
    blind = BlindLedger(create_engine(settings))

    with pytest.raises(LedgerUnavailable):
        await Intake(settings, blind, storage, lambda: FIRST_ID).receive(content_of(JPEG))

    await blind.close()
    assert await kept(storage) == [original_key(FIRST_ID)]


class FullDraft:
    """Finds the disk full at its second piece."""

    def __init__(self, draft: DiskDraft) -> None:
        self._draft = draft
        self._written = 0
        self.discard, self.digest, self.fileno = draft.discard, draft.digest, draft.fileno

    async def write(self, chunk: bytes) -> None:
        self._written += 1
        if self._written == 2:
            raise StorageFull("No space left on device")
        await self._draft.write(chunk)


class FullStorage(DiskStorage):
    async def draft(self) -> FullDraft:  # type: ignore[override] # any Draft will do
        return FullDraft(await super().draft())


class FailingStorage(DiskStorage):
    async def keep(self, drafts: Mapping[str, Draft]) -> None:
        await super().keep(drafts)
        raise StorageUnavailable("Input/output error")


@pytest.mark.parametrize(("failing", "error"), [(FullStorage, StorageFull), (FailingStorage, StorageUnavailable)])
async def test_a_storage_that_fails_at_an_upload_keeps_nothing_of_it(
    settings: Settings, ledger: Ledger, storage: DiskStorage, failing: type[DiskStorage], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await Intake(settings, ledger, failing(settings.storage_path), new_id).receive(content_of(JPEG))

    assert await traces(ledger, storage) == []
