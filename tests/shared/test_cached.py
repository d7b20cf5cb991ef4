"""Copies on this machine's disk in front of an object store: bounded, never torn, never in the way."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from shared.errors import NoSuchKey, StorageUnavailable
from shared.renditions import original_key
from shared.storage.cached import CachedStorage
from shared.storage.local_cache import FIXED_BYTES, LocalCache
from shared.storage.objects import ObjectStorage
from tests.ledgers import new_id
from tests.objects import Troublemaker, environment, new_prefix
from tests.services import put
from tests.waiting import until

ROOM = 64 * 4096
BOUND = ROOM + FIXED_BYTES
#: Of these, four are copied at a time.
QUARTER = ROOM // 4 - 4096


@pytest.fixture
def url() -> str:
    return new_prefix()


@pytest.fixture
async def storage(
    url: str, trouble: Troublemaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CachedStorage]:
    for name, value in environment(trouble.address).items():
        monkeypatch.setenv(name, value)
    storage = await opened(url, tmp_path)
    trouble.requests.clear()
    yield storage
    await storage.close()


async def opened(url: str, folder: Path, bound: int = BOUND) -> CachedStorage:
    storage = CachedStorage(ObjectStorage(url, folder, patience=1.0), folder / "cache", bound, floor=0)
    await storage.prepare()
    return storage


async def rendition(storage: CachedStorage, content: bytes, image_id: str = "", name: str = "a.jpeg") -> str:
    await put(storage, key := f"renditions/{image_id or new_id()}/1/{name}", content)
    return key


def copies(folder: Path) -> list[Path]:
    return [path for path in (folder / "cache").rglob("*") if path.is_file() and path.name != "lock"]


def gets(trouble: Troublemaker) -> int:
    return sum(method == "GET" for method, _ in trouble.requests)


async def test_what_was_read_once_is_read_from_the_disk(storage: CachedStorage, trouble: Troublemaker) -> None:
    key = await rendition(storage, content := os.urandom(100_000))
    assert await storage.read(key) == content
    trouble.go_away()

    assert await storage.read(key) == content
    assert b"".join([piece async for piece in storage.stream(key, 10, 99)]) == content[10:100]


async def test_of_many_who_ask_at_the_same_time_one_fetches(storage: CachedStorage, trouble: Troublemaker) -> None:
    """A picture that has just been linked to by many is asked for by many."""
    key = await rendition(storage, b"a rendition")
    asked = gets(trouble)

    contents = await asyncio.gather(*(storage.read(key) for _ in range(50)))

    assert contents == [b"a rendition"] * 50
    assert gets(trouble) == asked + 1


async def test_who_goes_away_takes_the_copy_of_the_others_not_along(
    storage: CachedStorage, trouble: Troublemaker
) -> None:
    key = await rendition(storage, b"a rendition")
    trouble.refuse("GET")
    goes, stays = (asyncio.create_task(storage.read(key)) for _ in range(2))
    await until(lambda: gets(trouble))

    goes.cancel()
    trouble.refuse()

    assert await stays == b"a rendition"


async def test_an_original_is_not_copied(storage: CachedStorage, tmp_path: Path) -> None:
    await put(storage, key := original_key(new_id()), b"the original")

    assert await storage.read(key) == b"the original"

    assert copies(tmp_path) == []


async def test_what_was_not_used_for_longest_makes_room(
    storage: CachedStorage, trouble: Troublemaker, tmp_path: Path
) -> None:
    keys = [await rendition(storage, bytes([number]) * QUARTER) for number in range(5)]
    for key in keys[:4]:
        await storage.read(key)
    await storage.read(keys[0])

    await storage.read(keys[4])

    asked = gets(trouble)
    for number in (0, 2, 3, 4):
        assert await storage.read(keys[number]) == bytes([number]) * QUARTER
    assert gets(trouble) == asked
    assert await storage.read(keys[1]) == b"\1" * QUARTER
    assert gets(trouble) == asked + 1
    assert storage._cache.total <= BOUND
    assert sum(path.stat().st_size for path in copies(tmp_path)) <= BOUND


async def test_a_picture_that_there_is_no_room_for_comes_straight_from_the_store(
    storage: CachedStorage, tmp_path: Path
) -> None:
    key = await rendition(storage, content := os.urandom(BOUND + 1))

    assert await storage.read(key) == content
    assert b"".join([piece async for piece in storage.stream(key, 0, BOUND)]) == content

    assert copies(tmp_path) == []
    assert storage._cache.total == 0


def on_disk(folder: Path) -> int:
    """Return what a folder takes up, as `du` counts: files, and the folders that hold their names."""
    return sum(path.lstat().st_blocks * 512 for path in (folder, *folder.rglob("*")))


def test_ten_thousand_pictures_of_all_sizes_never_exceed_the_bound(tmp_path: Path) -> None:
    """Counted as file systems count, by what is on the disk and not by what we believe."""
    generator, bound = random.Random(5), 1024 * 1024
    cache = LocalCache(tmp_path / "cache", bound)
    cache.open()
    most = 0
    for number in range(10_000):
        length = generator.choice((0, 1, 700, 4_097, 9_000))
        key = f"renditions/{new_id()}/1/image.jpeg"
        gone = cache.make_room(length, spare=bound)
        assert gone is not None
        for path in gone:
            path.unlink()
        place = cache.place_of(key)
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(bytes(length))
        cache.give_back(length)
        cache.note(key, length)
        if number % 100 == 99:
            most = max(most, on_disk(tmp_path / "cache"))
    cache.close()

    assert bound // 2 < most <= bound


def test_copies_give_way_where_the_disk_has_less_room_than_they_may_take(tmp_path: Path) -> None:
    """At the floor uploads are refused: a disk that is no larger than the bound would take none any more."""
    cache = LocalCache(tmp_path, BOUND)
    cache.open()
    keys = [f"renditions/{new_id()}/1/image.jpeg" for _ in range(3)]
    for key in keys:
        cache.note(key, QUARTER)

    assert cache.make_room(QUARTER, spare=QUARTER + 4096) == []
    cache.give_back(QUARTER)
    assert cache.make_room(QUARTER, spare=0) == [cache.place_of(keys[0])]
    cache.give_back(QUARTER)
    assert cache.make_room(0, spare=-QUARTER) == [cache.place_of(keys[1])]
    cache.give_back(0)
    assert cache.make_room(QUARTER, spare=-QUARTER) is None
    cache.close()


async def test_where_the_disk_is_at_its_floor_the_store_is_read(
    url: str, storage: CachedStorage, tmp_path: Path
) -> None:
    key = await rendition(storage, b"a rendition")
    store = ObjectStorage(url, tmp_path, patience=1.0)
    full = CachedStorage(store, tmp_path / "cache", BOUND, floor=shutil.disk_usage(tmp_path).total)
    await full.prepare()

    assert await full.read(key) == b"a rendition"

    assert copies(tmp_path) == []
    await full.close()


async def test_the_next_process_begins_without_copies(storage: CachedStorage, url: str, tmp_path: Path) -> None:
    """Copies are not fsynced: after a power cut one may be as long as it should be, and full of zeros."""
    await storage.read(await rendition(storage, b"a rendition"))
    await storage.close()

    successor = await opened(url, tmp_path)

    assert copies(tmp_path) == []
    assert successor._cache.total == 0
    await successor.close()


async def test_two_processes_have_a_folder_each(storage: CachedStorage, url: str, tmp_path: Path) -> None:
    """None evicts, counts or removes what another has."""
    key = await rendition(storage, b"a rendition")
    other = await opened(url, tmp_path)

    await asyncio.gather(storage.read(key), other.read(key))

    assert sorted(path.relative_to(tmp_path / "cache").parts[0] for path in copies(tmp_path)) == ["0", "1"]
    await other.close()


async def test_a_copy_that_breaks_off_is_no_copy(storage: CachedStorage, trouble: Troublemaker, tmp_path: Path) -> None:
    key = await rendition(storage, os.urandom(100_000))
    trouble.break_off(after=0)

    with pytest.raises(StorageUnavailable):
        await storage.read(key)

    assert copies(tmp_path) == []
    assert storage._cache.total == 0


async def test_where_no_copy_can_be_written_the_store_is_read(storage: CachedStorage, tmp_path: Path) -> None:
    key = await rendition(storage, b"a rendition")
    # Where the copy's folder is to be, there is a file.
    storage._cache.place_of(key).parent.touch()

    assert await storage.read(key) == b"a rendition"
    assert b"".join([piece async for piece in storage.stream(key, 0, 3)]) == b"a re"
    assert storage._cache.total == 0


async def test_a_copy_that_somebody_has_removed_is_fetched_again(storage: CachedStorage, tmp_path: Path) -> None:
    key = await rendition(storage, b"a rendition")
    await storage.read(key)
    for removed in (1, 2):
        (copy,) = copies(tmp_path)
        copy.unlink()

        content = await storage.read(key) if removed == 1 else b"".join([p async for p in storage.stream(key, 0, 99)])

        assert content == b"a rendition"
        await storage.read(key)


async def test_copies_of_what_is_deleted_go_with_it(storage: CachedStorage, tmp_path: Path) -> None:
    image_id = new_id()
    for name in ("a.jpeg", "b.jpeg"):
        await storage.read(await rendition(storage, b"x", image_id, name))
    other = await rendition(storage, b"stays")
    await storage.read(other)

    await storage.delete_folder(f"renditions/{image_id}")

    assert [path.read_bytes() for path in copies(tmp_path)] == [b"stays"]
    with pytest.raises(NoSuchKey):
        await storage.read(f"renditions/{image_id}/1/a.jpeg")


async def test_copies_of_what_another_process_has_deleted_go_at_its_notice_and_those_under_way_when_they_come(
    storage: CachedStorage, trouble: Troublemaker, tmp_path: Path
) -> None:
    """Who waits for other images hears of them by the same connection: a notice does not wait for the store."""
    image_id = new_id()
    await storage.read(await rendition(storage, b"x", image_id, "a.jpeg"))
    under_way = await rendition(storage, b"y", image_id, "b.jpeg")
    trouble.refuse("GET")
    reading = asyncio.create_task(storage.read(under_way))
    before = gets(trouble)
    await until(lambda: gets(trouble) > before)

    await storage.forget_copies(image_id)

    assert not reading.done()
    assert copies(tmp_path) == []
    trouble.refuse()
    assert await reading == b"y"
    assert copies(tmp_path) == []
    assert storage._cache.total == 0


async def test_who_deletes_leaves_no_copy_that_is_under_way(
    storage: CachedStorage, trouble: Troublemaker, tmp_path: Path
) -> None:
    key = await rendition(storage, os.urandom(100_000))
    trouble.slowness = 0.2
    reading = asyncio.create_task(storage.read(key))
    await until(lambda: gets(trouble))

    await storage.delete_folder(key.rpartition("/")[0])

    assert copies(tmp_path) == []
    await asyncio.wait([reading])
    assert copies(tmp_path) == []


async def test_copies_of_images_that_are_not_ready_any_more_go_when_the_ledger_is_asked(
    storage: CachedStorage, tmp_path: Path
) -> None:
    """A notice may be missed: Redis was away, or this process was."""
    stays, goes = new_id(), new_id()
    for image_id in (stays, goes):
        await storage.read(await rendition(storage, image_id.encode(), image_id))
    asked: list[str] = []

    async def which_are_ready(image_ids: Sequence[str]) -> set[str]:
        asked.extend(image_ids)
        return {stays}

    await storage.check_copies(which_are_ready)

    assert sorted(asked) == sorted((stays, goes))
    assert [path.read_text() for path in copies(tmp_path)] == [stays]


async def test_copies_of_processes_that_are_no_more_are_cleared_and_those_of_others_are_not(
    storage: CachedStorage, url: str, tmp_path: Path
) -> None:
    """Where fewer processes run than did, nobody would count, evict or delete what the last ones had."""
    key = await rendition(storage, b"a rendition")
    lives, ended = await opened(url, tmp_path), await opened(url, tmp_path)
    for process in (storage, lives, ended):
        await process.read(key)
    await storage.close()
    await ended.close()

    successor = await opened(url, tmp_path)

    assert [path.relative_to(tmp_path / "cache").parts[0] for path in copies(tmp_path)] == ["1"]
    await successor.close()
    await lives.close()


async def test_whoever_closes_leaves_nothing_that_comes_after_its_successor_has_counted(
    storage: CachedStorage, trouble: Troublemaker, url: str, tmp_path: Path
) -> None:
    key = await rendition(storage, os.urandom(100_000))
    trouble.slowness = 0.2
    reading = asyncio.create_task(storage.read(key))
    await until(lambda: gets(trouble))

    await storage.close()
    trouble.slowness = 0.0
    await asyncio.wait([reading])

    assert copies(tmp_path) == []
