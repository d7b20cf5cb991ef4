"""What every storage promises its callers. A new backend joins by a function in `BACKENDS`."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from shared.errors import NoSuchKey, StorageConflict, TooManyPieces
from shared.renditions import original_key
from shared.storage import Storage
from shared.storage.disk import DiskStorage
from shared.storage.files import PIECE_BYTES
from shared.storage.objects import ObjectStorage
from shared.storage.resumable import ENOUGH_BYTES, ResumableDraft, sweep_resumable_drafts
from tests.ledgers import new_id
from tests.objects import ObjectServer, environment, new_prefix
from tests.services import put

Processes = Callable[[], Storage]


def on_disk(request: pytest.FixtureRequest, folder: Path) -> Processes:
    return lambda: DiskStorage(folder)


def in_object_store(request: pytest.FixtureRequest, folder: Path) -> Processes:
    server: ObjectServer = request.getfixturevalue("object_server")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in environment(server.address).items():
        monkeypatch.setenv(name, value)
    url, machines = new_prefix(), itertools.count()
    # Each on a machine of its own.
    return lambda: ObjectStorage(url, folder / str(next(machines)))


#: Each function returns another one, which opens the same storage as one more process does.
BACKENDS: dict[str, Callable[[pytest.FixtureRequest, Path], Processes]] = {
    "disk": on_disk,
    "objects": in_object_store,
}


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
def processes(request: pytest.FixtureRequest, tmp_path: Path) -> Processes:
    make: Callable[[pytest.FixtureRequest, Path], Processes] = request.param
    return make(request, tmp_path / "storage")


async def opened(processes: Processes) -> Storage:
    storage = processes()
    await storage.prepare()
    return storage


@pytest.fixture
async def storage(processes: Processes) -> Storage:
    return await opened(processes)


async def streamed(storage: Storage, key: str, first: int, last: int) -> bytes:
    return b"".join([piece async for piece in storage.stream(key, first, last)])


class TestStorage:
    """The contract."""

    async def test_what_was_kept_is_read_back(self, storage: Storage) -> None:
        key = original_key(new_id())

        await put(storage, key, b"the original")

        assert await storage.read(key) == b"the original"
        assert await storage.exists(key)

    async def test_drafts_are_kept_together_each_under_its_key(self, storage: Storage) -> None:
        image_id = new_id()
        drafts = {}
        for name in ("image.jpeg", "320x180.jpeg", "160x90.jpeg"):
            draft = drafts[f"renditions/{image_id}/1/{name}"] = await storage.draft()
            await draft.write(name.encode())

        await storage.keep(drafts)

        for key, draft in drafts.items():
            await draft.discard()
            assert (await storage.read(key)).decode() == key.rpartition("/")[2]

    async def test_keeping_again_replaces_what_was_there(self, storage: Storage) -> None:
        key = original_key(new_id())
        await put(storage, key, b"first, and longer")

        await put(storage, key, b"second")

        assert await storage.read(key) == b"second"

    async def test_what_is_kept_as_new_replaces_nothing(self, storage: Storage) -> None:
        first, second = await storage.draft(), await storage.draft()
        await first.write(b"first")
        await second.write(b"second")

        await storage.keep_new("markers/0a1b2c", first)
        with pytest.raises(StorageConflict):
            await storage.keep_new("markers/0a1b2c", second)

        assert await storage.read("markers/0a1b2c") == b"first"
        await first.discard()
        await second.discard()
        assert await storage.read("markers/0a1b2c") == b"first"
        assert await storage.sweep_drafts(-1) == 0

    async def test_an_empty_draft_is_kept_as_well(self, storage: Storage) -> None:
        await put(storage, "markers/0a1b2c", b"")

        assert await storage.exists("markers/0a1b2c")
        assert await storage.read("markers/0a1b2c") == b""

    async def test_a_draft_takes_many_chunks_and_tells_its_digest(self, storage: Storage) -> None:
        key, content = original_key(new_id()), os.urandom(300_001)
        draft = await storage.draft()
        for start in range(0, len(content), 65_536):
            await draft.write(content[start : start + 65_536])

        digest = await draft.digest()

        assert digest == (len(content), hashlib.sha256(content).hexdigest())
        await storage.keep({key: draft})
        assert await draft.digest() == digest
        await draft.discard()
        assert await storage.read(key) == content

    async def test_a_draft_may_be_written_through_its_descriptor(self, storage: Storage) -> None:
        key = f"renditions/{new_id()}/1/image.jpeg"
        draft = await storage.draft()

        os.write(draft.fileno(), b"a rendition")

        assert os.pread(draft.fileno(), 11, 0) == b"a rendition"
        await storage.keep({key: draft})
        await draft.discard()
        assert await storage.read(key) == b"a rendition"

    async def test_a_discarded_draft_leaves_nothing(self, storage: Storage) -> None:
        draft = await storage.draft()
        await draft.write(b"never mind")

        await draft.discard()
        await draft.discard()

        assert await storage.sweep_drafts(-1) == 0

    async def test_discarding_a_kept_draft_removes_nothing(self, storage: Storage) -> None:
        key = original_key(new_id())
        draft = await storage.draft()
        await draft.write(b"kept")
        await storage.keep({key: draft})

        await draft.discard()
        await draft.discard()

        assert await storage.read(key) == b"kept"

    async def test_a_stream_yields_the_bytes_from_first_to_last(self, storage: Storage) -> None:
        key, content = original_key(new_id()), os.urandom(2 * PIECE_BYTES + 17)
        await put(storage, key, content)
        size = len(content)

        for first, last in ((0, size - 1), (0, 0), (size - 1, size - 1), (1, PIECE_BYTES), (PIECE_BYTES, size - 2)):
            assert await streamed(storage, key, first, last) == content[first : last + 1]

    async def test_a_stream_comes_in_pieces(self, storage: Storage) -> None:
        """A large picture must not cost the web process its size in memory."""
        key = original_key(new_id())
        await put(storage, key, bytes(5 * PIECE_BYTES))

        pieces = [len(piece) async for piece in storage.stream(key, 0, 5 * PIECE_BYTES - 1)]

        assert len(pieces) > 1
        assert max(pieces) <= PIECE_BYTES

    async def test_a_stream_ends_with_what_there_is(self, storage: Storage) -> None:
        key = original_key(new_id())
        await put(storage, key, b"short")

        assert await streamed(storage, key, 2, 1000) == b"ort"

    async def test_a_stream_that_has_begun_goes_on_after_a_delete(self, storage: Storage) -> None:
        key, content = original_key(new_id()), os.urandom(2 * PIECE_BYTES)
        await put(storage, key, content)
        stream = storage.stream(key, 0, len(content) - 1)
        begun = await anext(aiter(stream))

        await storage.delete(key)

        assert begun + b"".join([piece async for piece in stream]) == content

    async def test_a_local_file_is_open_for_reading_only(self, storage: Storage) -> None:
        key = original_key(new_id())
        await put(storage, key, b"the original")

        with await storage.open_local(key) as file:
            assert file.read() == b"the original"
            assert os.pread(file.fileno(), 3, 4) == b"ori"
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.write(file.fileno(), b"x")

    async def test_what_is_not_there_is_no_such_key(self, storage: Storage) -> None:
        key = original_key(new_id())

        assert not await storage.exists(key)
        with pytest.raises(NoSuchKey):
            await storage.read(key)
        with pytest.raises(NoSuchKey):
            await streamed(storage, key, 0, 1)
        with pytest.raises(NoSuchKey):
            await storage.open_local(key)

    async def test_what_is_deleted_is_gone_and_deleting_it_again_is_no_error(self, storage: Storage) -> None:
        key, other = original_key(new_id()), original_key(new_id())
        await put(storage, key, b"goes")
        await put(storage, other, b"stays")

        await storage.delete(key)
        await storage.delete(key)

        assert not await storage.exists(key)
        assert await storage.exists(other)

    async def test_a_folder_is_deleted_with_all_that_is_in_it_and_nothing_else(self, storage: Storage) -> None:
        image_id, other_id = new_id(), new_id()
        names = [f"renditions/{image_id}/{attempt}/{name}" for attempt in (1, 2, 12) for name in ("a.jpeg", "b.jpeg")]
        for name in [*names, f"renditions/{other_id}/1/a.jpeg"]:
            await put(storage, name, b"x")

        await storage.delete_folder(f"renditions/{image_id}/1")
        await storage.delete_folder(f"renditions/{image_id}/1")

        assert [await storage.exists(name) for name in names] == [False, False, True, True, True, True]
        await storage.delete_folder(f"renditions/{image_id}")
        assert not any([await storage.exists(name) for name in names])
        assert await storage.exists(f"renditions/{other_id}/1/a.jpeg")

    async def test_the_folders_below_a_prefix_are_told_by_name(self, storage: Storage) -> None:
        image_id = new_id()
        for attempt in (10, 2, 1):
            await put(storage, f"renditions/{image_id}/{attempt}/image.jpeg", b"x")

        assert sorted(await storage.folders(f"renditions/{image_id}")) == ["1", "10", "2"]
        assert await storage.folders(f"renditions/{new_id()}") == []

    async def test_only_drafts_that_nobody_writes_to_any_more_are_swept(self, storage: Storage) -> None:
        forgotten, kept = await storage.draft(), await storage.draft()
        await forgotten.write(b"forgotten")
        key = original_key(new_id())
        await storage.keep({key: kept})
        await kept.discard()

        assert await storage.sweep_drafts(3600) == 0
        os.utime(forgotten.fileno(), (0, 0))
        assert await storage.sweep_drafts(3600) == 1
        assert await storage.sweep_drafts(3600) == 0
        assert await storage.exists(key)
        await forgotten.discard()

    async def test_preparing_again_changes_nothing(self, storage: Storage) -> None:
        key = original_key(new_id())
        await put(storage, key, b"x")

        await storage.prepare()

        assert await storage.read(key) == b"x"

    async def test_the_room_that_is_left_for_drafts_is_told(self, storage: Storage) -> None:
        assert await storage.free_bytes() > 0

    async def test_all_of_a_kind_is_listed_by_key_and_length_in_order_of_ids(self, storage: Storage) -> None:
        """Whoever walks the ledger and a storage side by side needs both in one order."""
        ids = [
            *(new_id() for _ in range(3)),
            "01890a5d-ac96-774b-bcce-b302099a8057",
            "ffffffff-ac96-774b-bcce-b302099a8057",
        ]
        expected = {}
        for number, image_id in enumerate(ids):
            await put(storage, original_key(image_id), bytes(number))
            for attempt, name in ((1, "a.jpeg"), (12, "b.jpeg")):
                await put(storage, key := f"renditions/{image_id}/{attempt}/{name}", bytes(number + attempt))
                expected[key] = number + attempt

        originals = [(stored.key, stored.bytes) async for stored in storage.listing("originals")]
        renditions = [(stored.key, stored.bytes) async for stored in storage.listing("renditions")]

        assert originals == [(original_key(image_id), ids.index(image_id)) for image_id in sorted(ids)]
        assert dict(renditions) == expected
        listed = [key.split("/")[1] for key, _ in renditions]
        assert listed == sorted(listed)

    async def test_what_is_stored_of_one_image_is_listed_alone(self, storage: Storage) -> None:
        image_id, other_id = new_id(), new_id()
        keys = [f"renditions/{image_id}/{attempt}/{name}" for attempt in (1, 2) for name in ("a.jpeg", "b.jpeg")]
        for key in [*keys, original_key(image_id), original_key(other_id), f"renditions/{other_id}/1/a.jpeg"]:
            await put(storage, key, b"x")

        async def listed(prefix: str) -> list[str]:
            return [stored.key async for stored in storage.listing(prefix)]

        assert sorted(await listed(f"renditions/{image_id}")) == keys
        assert sorted(await listed(f"renditions/{image_id}/2")) == keys[2:]
        assert await listed(original_key(image_id)) == [original_key(image_id)]
        assert await listed(original_key(new_id())) == await listed(f"renditions/{new_id()}") == []

    async def test_a_listing_tells_when_a_key_was_written(self, storage: Storage) -> None:
        await put(storage, key := original_key(new_id()), b"just now")

        (kept,) = [stored async for stored in storage.listing("originals")]

        assert (kept.key, kept.bytes) == (key, 8)
        # By the storage's own clock, of which a day is all that can be said here.
        assert abs(kept.changed - time.time()) < 86_400

    async def test_nothing_stored_is_an_empty_listing(self, storage: Storage) -> None:
        for prefix in ("originals", "renditions", f"renditions/{new_id()}"):
            assert [stored async for stored in storage.listing(prefix)] == []


class ConnectionLost(Exception):
    """The client is gone."""


async def sent(content: bytes, *, is_lost: bool = False) -> AsyncIterator[bytes]:
    """Yield content in the pieces in which a connection brings it, and then perhaps its end."""
    for start in range(0, len(content), 65_536):
        yield content[start : start + 65_536]
    if is_lost:
        raise ConnectionLost


async def content_of(draft: ResumableDraft) -> bytes:
    joined = await draft.join()
    try:
        length, digest = await joined.digest()
        content = os.pread(joined.fileno(), length + 1, 0)
        assert digest == hashlib.sha256(content).hexdigest()
        return content
    finally:
        await joined.discard()


class TestResumableDrafts:
    """Uploads in progress, in every storage."""

    async def test_a_draft_that_was_never_written_to_is_empty(self, storage: Storage) -> None:
        draft = ResumableDraft(storage, new_id())

        assert await draft.append(0, sent(b"")) == 0

        assert await draft.length() == 0
        assert await content_of(draft) == b""

    @pytest.mark.parametrize("name", ["", "..", "0a1b2c", "01890A5D-AC96-774B-BCCE-B302099A8057", "01890a5dac96"])
    async def test_a_name_that_is_no_uuid_is_refused(self, storage: Storage, name: str) -> None:
        with pytest.raises(ValueError, match="UUID"):
            ResumableDraft(storage, name)

    async def test_a_draft_goes_on_where_it_ended_in_any_process(self, processes: Processes) -> None:
        name, content = new_id(), os.urandom(100_000)
        for end, begun in ((1, 0), (70_000, 1), (100_000, 70_000)):
            draft = ResumableDraft(await opened(processes), name)
            assert await draft.length() == begun
            assert await draft.append(begun, sent(content[begun:end])) == end

        draft = ResumableDraft(await opened(processes), name)

        assert await draft.length() == 100_000
        assert await content_of(draft) == content

    async def test_what_is_sent_in_one_go_is_durable_bit_by_bit(self, processes: Processes) -> None:
        """A client that has sent 48 MB and then loses its web process need not begin again."""
        name, content = new_id(), os.urandom(2 * ENOUGH_BYTES + 17)
        draft, other = [ResumableDraft(await opened(processes), name) for _ in range(2)]
        durable = 0

        async def watched() -> AsyncIterator[bytes]:
            nonlocal durable
            async for chunk in sent(content):
                yield chunk
            durable = await other.length()

        await draft.append(0, watched())

        assert durable == 2 * ENOUGH_BYTES
        assert await content_of(draft) == content

    async def test_a_joined_draft_is_kept_like_any_other_while_its_pieces_stay(self, storage: Storage) -> None:
        """So that a crash between original and row leaves something to go on with."""
        draft, key = ResumableDraft(storage, new_id()), original_key(new_id())
        await draft.append(0, sent(b"the orig"))
        await draft.append(8, sent(b"inal"))

        joined = await draft.join()
        await storage.keep({key: joined})
        await joined.discard()

        assert await joined.digest() == (12, hashlib.sha256(b"the original").hexdigest())
        assert await storage.read(key) == b"the original"
        assert await draft.length() == 12
        await draft.discard()
        assert await storage.exists(key)

    async def test_what_came_before_the_connection_was_lost_is_kept(self, storage: Storage) -> None:
        draft, content = ResumableDraft(storage, new_id()), os.urandom(200_000)

        with pytest.raises(ConnectionLost):
            await draft.append(0, sent(content[:150_000], is_lost=True))

        assert await draft.length() == 150_000
        await draft.append(150_000, sent(content[150_000:]))
        assert await content_of(draft) == content
        assert await storage.sweep_drafts(-1) == 0

    @pytest.mark.parametrize("offset", [0, 4, 6])
    async def test_only_the_end_can_be_appended_to(self, storage: Storage, offset: int) -> None:
        draft = ResumableDraft(storage, new_id())
        await draft.append(0, sent(b"begun"))

        with pytest.raises(StorageConflict):
            await draft.append(offset, sent(b"x"))

        assert await content_of(draft) == b"begun"

    async def test_of_writers_at_the_same_time_one_succeeds_whole(self, processes: Processes) -> None:
        """A client that lost its connection comes back while the web process still waits for the rest."""
        name, everybody_has_measured = new_id(), asyncio.Barrier(4)
        drafts = [ResumableDraft(await opened(processes), name) for _ in range(4)]
        await drafts[0].append(0, sent(b"begun"))

        async def raced(content: bytes) -> AsyncIterator[bytes]:
            await everybody_has_measured.wait()
            yield content

        outcomes = await asyncio.gather(
            *(draft.append(5, raced(bytes([65 + number]) * (number + 1))) for number, draft in enumerate(drafts)),
            return_exceptions=True,
        )

        (winner,) = [number for number, outcome in enumerate(outcomes) if not isinstance(outcome, BaseException)]
        assert {type(outcome) for outcome in outcomes} == {int, StorageConflict}
        assert await content_of(drafts[0]) == b"begun" + bytes([65 + winner]) * (winner + 1)

    async def test_what_a_discard_that_was_cut_off_has_left_does_not_count(self, storage: Storage) -> None:
        name = new_id()
        draft = ResumableDraft(storage, name)
        for number in range(3):
            await draft.append(number, sent(b"x"))

        await storage.delete(f"uploads/{name}/{1:012}")

        assert await draft.length() == 1
        assert await content_of(draft) == b"x"

    async def test_a_client_that_sends_single_bytes_fills_no_folder(self, storage: Storage) -> None:
        draft = ResumableDraft(storage, new_id(), most_pieces=3)
        for offset in range(3):
            await draft.append(offset, sent(b"x"))

        with pytest.raises(TooManyPieces):
            await draft.append(3, sent(b"x"))

        assert await content_of(draft) == b"xxx"

    async def test_a_discarded_draft_is_gone_and_no_other(self, storage: Storage) -> None:
        draft, other = ResumableDraft(storage, new_id()), ResumableDraft(storage, new_id())
        await draft.append(0, sent(b"goes"))
        await other.append(0, sent(b"stays"))

        await draft.discard()
        await draft.discard()

        assert (await draft.length(), await other.length()) == (0, 5)

    async def test_a_draft_is_swept_when_its_last_byte_is_old_enough_and_not_with_others(
        self, storage: Storage
    ) -> None:
        draft = ResumableDraft(storage, new_id())
        await draft.append(0, sent(b"x"))
        await draft.append(1, sent(b"x"))

        assert await storage.sweep_drafts(-1) == 0
        assert await sweep_resumable_drafts(storage, 86_400) == 0
        assert await draft.length() == 2
        assert await sweep_resumable_drafts(storage, -86_400) == 1
        assert await sweep_resumable_drafts(storage, -86_400) == 0
        assert await draft.length() == 0

    async def test_what_has_no_uuid_for_a_name_does_not_end_a_sweep(self, storage: Storage) -> None:
        draft = ResumableDraft(storage, new_id())
        await draft.append(0, sent(b"x"))
        await put(storage, "uploads/0a1b2c/1", b"x")

        await sweep_resumable_drafts(storage, -86_400)

        assert await draft.length() == 0
