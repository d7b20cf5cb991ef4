"""What every storage promises its callers. A new backend joins by a function in `BACKENDS`."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shared.errors import NoSuchKey
from shared.images import original_key
from shared.storage import Storage
from shared.storage.disk import DiskStorage
from shared.storage.files import PIECE_BYTES
from shared.storage.objects import ObjectStorage
from tests.ledgers import new_id
from tests.objects import ObjectServer, environment, new_prefix
from tests.services import put


def on_disk(request: pytest.FixtureRequest, folder: Path) -> Storage:
    return DiskStorage(folder)


def in_object_store(request: pytest.FixtureRequest, folder: Path) -> Storage:
    server: ObjectServer = request.getfixturevalue("object_server")
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    for name, value in environment(server.address).items():
        monkeypatch.setenv(name, value)
    return ObjectStorage(new_prefix(), folder)


BACKENDS: dict[str, Callable[[pytest.FixtureRequest, Path], Storage]] = {
    "disk": on_disk,
    "objects": in_object_store,
}


@pytest.fixture(params=BACKENDS.values(), ids=list(BACKENDS))
async def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    make: Callable[[pytest.FixtureRequest, Path], Storage] = request.param
    storage = make(request, tmp_path / "storage")
    await storage.prepare()
    return storage


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
        """This is how children write renditions: the parent hands them the descriptor."""
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
        with pytest.raises(NoSuchKey):
            await storage.carry_over(key, original_key(new_id()))

    async def test_what_is_carried_over_is_there_twice_and_goes_alone(self, storage: Storage) -> None:
        image_id = new_id()
        old, new = f"renditions/{image_id}/1/image.jpeg", f"renditions/{image_id}/2/image.jpeg"
        await put(storage, old, b"a rendition")

        await storage.carry_over(old, new)
        await storage.carry_over(old, new)

        assert await storage.read(new) == await storage.read(old) == b"a rendition"
        await storage.delete_folder(f"renditions/{image_id}/1")
        assert await storage.read(new) == b"a rendition"

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
