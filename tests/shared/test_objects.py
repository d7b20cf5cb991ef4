"""The object store backend: what it does when the store is in trouble, and what it leaves there."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import resource
import signal
import sys
import textwrap
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path

import obstore
import pytest

from shared.errors import NoSuchKey, StorageFull, StorageUnavailable
from shared.renditions import original_key
from shared.storage import objects
from shared.storage.objects import PART_BYTES, PUTS_AT_A_TIME, ObjectStorage
from tests.ledgers import new_id
from tests.objects import ACCESS_KEY, SECRET_KEY, Troublemaker, environment, new_prefix
from tests.services import put
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 1.5


@pytest.fixture
def url() -> str:
    return new_prefix()


@pytest.fixture
async def storage(url: str, trouble: Troublemaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStorage:
    """A storage that gives up soon, with somebody in front of it who makes no trouble yet."""
    env = environment(trouble.address)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    storage = ObjectStorage(url, tmp_path, env, patience=PATIENCE)
    await storage.prepare()
    trouble.requests.clear()
    return storage


def everything(storage: ObjectStorage, key: str) -> dict[str, Awaitable[object]]:
    """Return each thing that a storage is asked for, not yet begun."""

    async def listed() -> object:
        return [stored async for stored in storage.listing("originals")]

    async def streamed() -> object:
        return [piece async for piece in storage.stream(key, 0, 1)]

    async def kept_new() -> None:
        draft = await storage.draft()
        try:
            await storage.keep_new(original_key(new_id()), draft)
        finally:
            await draft.discard()

    return {
        "prepare": storage.prepare(),
        "keep": put(storage, original_key(new_id()), b"x"),
        "keep_new": kept_new(),
        "exists": storage.exists(key),
        "read": storage.read(key),
        "stream": streamed(),
        "open_local": storage.open_local(key),
        "folders": storage.folders("renditions"),
        "listing": listed(),
        "delete": storage.delete(key),
        "delete_folder": storage.delete_folder("renditions"),
    }


ALL_METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE")
TROUBLES: dict[str, Callable[[Troublemaker], None]] = {
    "refuses": lambda trouble: trouble.refuse(*ALL_METHODS),
    "says nothing": lambda trouble: trouble.ignore(*ALL_METHODS),
    "has gone": lambda trouble: trouble.go_away(),
}


@pytest.mark.parametrize("make", TROUBLES.values(), ids=list(TROUBLES))
async def test_a_store_that_is_away_is_told_within_seconds_whatever_it_was_asked(
    storage: ObjectStorage, trouble: Troublemaker, make: Callable[[Troublemaker], None]
) -> None:
    """Who asks has a client waiting; and what the library would say repeats our requests."""
    await put(storage, key := original_key(new_id()), b"x")
    make(trouble)
    asked = everything(storage, key)

    async with asyncio.timeout(60):
        outcomes = await asyncio.gather(*asked.values(), return_exceptions=True)

    for name, outcome in zip(asked, outcomes, strict=True):
        assert type(outcome) is StorageUnavailable, name
        assert SECRET_KEY not in str(outcome)
        assert ACCESS_KEY not in str(outcome)


async def test_a_store_that_refuses_for_a_moment_is_asked_again(
    storage: ObjectStorage, trouble: Troublemaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    key = original_key(new_id())
    trouble.refuse("PUT")

    keeping = asyncio.create_task(put(storage, key, b"the original"))
    await until(lambda: len(trouble.requests) >= 2)
    trouble.refuse()
    await keeping

    assert await storage.read(key) == b"the original"
    assert SECRET_KEY not in caplog.text


async def test_a_slow_store_is_waited_for_as_long_as_it_answers_in_time(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    """What has several exchanges has time for each."""
    trouble.slowness = PATIENCE / 5
    key, content = original_key(new_id()), os.urandom(PART_BYTES + 1)

    await put(storage, key, content)

    assert await storage.read(key) == content
    await storage.delete_folder("originals")
    assert not await storage.exists(key)


async def test_nothing_is_kept_before_the_store_has_said_so(storage: ObjectStorage, trouble: Troublemaker) -> None:
    """Promise 1, by another's word: what it has not acknowledged, we must not."""
    trouble.refuse("PUT")
    keeping = asyncio.create_task(put(storage, key := original_key(new_id()), b"x"))
    await until(lambda: trouble.requests)

    assert not keeping.done()
    assert not await storage.exists(key)
    with pytest.raises(StorageUnavailable):
        await keeping


async def test_who_is_cancelled_while_something_is_kept_learns_so_when_that_has_ended(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    """What comes after its caller's clean-up would stay for ever."""
    trouble.refuse("PUT")
    keeping = asyncio.create_task(put(storage, key := original_key(new_id()), b"x"))
    await until(lambda: trouble.requests)

    keeping.cancel()
    await asyncio.sleep(0)
    assert not keeping.done()
    trouble.refuse()

    with pytest.raises(asyncio.CancelledError):
        await keeping
    assert await storage.exists(key)


async def test_of_many_drafts_the_last_has_ended_when_the_first_failure_is_told(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    prefix = f"renditions/{new_id()}/1"
    small, large = await storage.draft(), await storage.draft()
    await small.write(b"x")
    await large.write(bytes(PART_BYTES + 1))
    trouble.refuse("POST")  # with which a put of several parts begins

    with pytest.raises(StorageUnavailable):
        await storage.keep({f"{prefix}/large.jpeg": large, f"{prefix}/small.jpeg": small})
    asked = len(trouble.requests)

    trouble.refuse()
    assert [stored.key async for stored in storage.listing(prefix)] == [f"{prefix}/small.jpeg"]
    assert len(trouble.requests) == asked + 1
    await small.discard()
    await large.discard()


async def test_a_large_file_goes_in_parts_and_every_request_carries_its_digest(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    key, content = original_key(new_id()), os.urandom(2 * PART_BYTES + 17)

    await put(storage, key, content)

    parts = [path for method, path in trouble.requests if method == "PUT"]
    assert len(parts) == 3
    assert await storage.read(key) == content
    await put(storage, original_key(new_id()), b"small")
    sent = {name.lower(): value for name, value in trouble.headers.items()}
    assert sent["x-amz-content-sha256"] == hashlib.sha256(b"small").hexdigest()
    assert sent["x-amz-checksum-sha256"] == base64.b64encode(hashlib.sha256(b"small").digest()).decode()


async def test_of_many_puts_a_few_at_a_time_take_memory(storage: ObjectStorage, trouble: Troublemaker) -> None:
    """A put holds parts of its file; the others wait on the disk."""
    keys = [original_key(new_id()) for _ in range(5 * PUTS_AT_A_TIME)]
    trouble.most_under_way = 0

    await asyncio.gather(*(put(storage, key, b"x") for key in keys))

    assert trouble.most_under_way <= PUTS_AT_A_TIME
    assert [stored.key async for stored in storage.listing("originals")] == sorted(keys)


async def test_who_waits_for_others_puts_in_vain_is_told_within_seconds(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    trouble.ignore("PUT")

    async with asyncio.timeout(30):
        outcomes = await asyncio.gather(
            *(put(storage, original_key(new_id()), b"x") for _ in range(2 * PUTS_AT_A_TIME)), return_exceptions=True
        )

    assert {type(outcome) for outcome in outcomes} == {StorageUnavailable}


async def test_a_put_that_fails_half_way_leaves_nothing_visible_and_aborts_its_parts(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    key = original_key(new_id())
    trouble.refuse("PUT")
    with pytest.raises(StorageUnavailable):
        await put(storage, key, bytes(PART_BYTES + 1))
    trouble.refuse()

    assert ("DELETE", True) in [(method, "uploadId=" in path) for method, path in trouble.requests]
    assert not await storage.exists(key)
    assert [stored async for stored in storage.listing("originals")] == []


async def test_a_put_that_hangs_half_way_leaves_nothing_visible(
    storage: ObjectStorage, trouble: Troublemaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "LEAST_RATE", 100 * PART_BYTES)
    key = original_key(new_id())
    trouble.ignore("PUT")
    with pytest.raises(StorageUnavailable):
        await put(storage, key, bytes(PART_BYTES + 1))
    trouble.ignore()

    assert not await storage.exists(key)
    assert [stored async for stored in storage.listing("originals")] == []


async def test_a_put_whose_process_is_killed_leaves_nothing_visible_and_its_draft_is_swept(
    storage: ObjectStorage, trouble: Troublemaker, url: str, tmp_path: Path
) -> None:
    program = textwrap.dedent("""
        import asyncio, sys
        from pathlib import Path
        from shared.storage.objects import PART_BYTES, ObjectStorage

        async def main():
            storage = ObjectStorage(sys.argv[1], Path(sys.argv[2]))
            draft = await storage.draft()
            await draft.write(bytes(PART_BYTES + 1))
            await storage.keep({sys.argv[3]: draft})

        asyncio.run(main())
    """)
    key = original_key(new_id())
    trouble.ignore("PUT")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, url, str(tmp_path), key, cwd=ROOT, env={**os.environ}
    )
    await until(lambda: any(method == "PUT" for method, _ in trouble.requests))

    process.kill()
    assert await process.wait() == -signal.SIGKILL
    trouble.ignore()

    assert not await storage.exists(key)
    assert await storage.sweep_drafts(-60) == 1


@pytest.mark.parametrize(
    ("after", "comes"), [(400_000, True), (0, False)], ids=["further each time", "at the same place"]
)
async def test_an_answer_that_breaks_off_is_gone_on_with_and_never_taken_for_the_whole(
    storage: ObjectStorage, trouble: Troublemaker, after: int, comes: bool
) -> None:
    """A torn picture would be served for as long as it is cached."""
    key, content = original_key(new_id()), os.urandom(1_000_000)
    await put(storage, key, content)

    async def streamed() -> bytes:
        return b"".join([piece async for piece in storage.stream(key, 0, len(content) - 1)])

    async def opened() -> bytes:
        with await storage.open_local(key) as file:
            return file.read()

    trouble.break_off(after)
    ways = (storage.read(key), streamed(), opened())
    outcomes = await asyncio.gather(*ways, return_exceptions=True)

    if comes:
        assert [outcome == content for outcome in outcomes] == [True] * 3
    else:
        assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 3


async def test_a_store_without_room_says_so(storage: ObjectStorage, trouble: Troublemaker) -> None:
    trouble.refusal = (403, "QuotaExceeded")
    trouble.refuse("PUT")

    with pytest.raises(StorageFull):
        await put(storage, original_key(new_id()), b"x")


async def test_a_bucket_that_is_not_there_is_no_missing_key(
    trouble: Troublemaker, tmp_path: Path, storage: ObjectStorage
) -> None:
    """Twenty losses fail an image for good: a mistake in an address must not do so to all there are."""
    elsewhere = ObjectStorage("s3://no-such-bucket/prefix", tmp_path, environment(trouble.address), patience=PATIENCE)

    for asked in (elsewhere.prepare(), elsewhere.read("originals/x"), elsewhere.open_local("originals/x")):
        with pytest.raises(StorageUnavailable):
            await asked


async def test_what_is_wrong_at_the_start_is_told_with_the_variable_to_set(
    trouble: Troublemaker, tmp_path: Path, storage: ObjectStorage
) -> None:
    trouble.refusal = (403, "InvalidAccessKeyId")
    trouble.refuse("GET")

    with pytest.raises(StorageUnavailable, match=r"ASGI_LOOK_STORAGE: .*403 Forbidden, InvalidAccessKeyId"):
        await storage.prepare()


@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT"])
async def test_a_store_without_tls_is_found_by_each_of_the_usual_names(
    trouble: Troublemaker, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Some who sell a store set one of them, some another."""
    env = environment(trouble.address)
    env[name] = env.pop("AWS_ENDPOINT_URL")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    for variable, value in env.items():
        monkeypatch.setenv(variable, value)
    storage = ObjectStorage(url, tmp_path, env, patience=PATIENCE)

    await storage.prepare()

    assert trouble.requests != []


async def test_what_else_lies_in_the_bucket_is_not_listed(storage: ObjectStorage) -> None:
    await put(storage, key := original_key(new_id()), b"x")
    for stranger in ("originals/notes.txt", "originals/.keep", f"originals/{new_id()}/below", "renditions/x/y"):
        await obstore.put_async(storage._store, stranger, b"x")

    assert [stored.key async for stored in storage.listing("originals")] == [key]
    assert [stored.key async for stored in storage.listing("renditions")] == []


async def test_a_signed_address_serves_a_rendition_as_what_it_is_to_anybody(
    storage: ObjectStorage, trouble: Troublemaker
) -> None:
    await put(storage, key := f"renditions/{new_id()}/1/image.jpeg", b"a rendition")

    address = await storage.signed_url(key, 60)

    assert address is not None
    assert SECRET_KEY not in address
    assert "X-Amz-Expires=60" in address

    def fetch() -> tuple[bytes, str]:
        with urllib.request.urlopen(address) as answer:  # noqa: S310
            return answer.read(), answer.headers["Content-Type"]

    assert await asyncio.to_thread(fetch) == (b"a rendition", "image/jpeg")


async def test_what_a_crash_has_left_of_drafts_is_swept_at_the_next_start(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    """Where a machine has no worker, nobody else would look."""
    forgotten, fresh = await storage.draft(), await storage.draft()
    os.utime(forgotten.fileno(), (0, 0))

    await storage.prepare()

    assert list((tmp_path / "drafts").iterdir()) == [fresh.path]
    await forgotten.discard()
    await fresh.discard()


async def test_what_is_opened_locally_leaves_no_file(storage: ObjectStorage, tmp_path: Path) -> None:
    await put(storage, key := original_key(new_id()), b"the original")

    with await storage.open_local(key) as file:
        assert file.read() == b"the original"
        assert os.fstat(file.fileno()).st_nlink == 0
    with pytest.raises(NoSuchKey):
        await storage.open_local(original_key(new_id()))

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_a_disk_that_takes_half_a_piece_is_trouble_of_ours_and_no_short_original(
    storage: ObjectStorage, tmp_path: Path
) -> None:
    """A full disk takes what it has room for, without an error; the file would be called unreadable, for good."""
    await put(storage, key := original_key(new_id()), content := os.urandom(600_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) - 1_000, limits[1]))
    try:
        with pytest.raises(StorageUnavailable):
            await storage.open_local(key)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


async def test_who_waits_for_large_puts_waits_as_long_as_those_may_take(
    storage: ObjectStorage, trouble: Troublemaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is asked much is not away, and an upload that has arrived is not to be sent again."""
    monkeypatch.setattr(objects, "LEAST_RATE", PART_BYTES // 20)
    trouble.slowness = PATIENCE / 5
    content = bytes(PART_BYTES + 1)  # of which each takes three exchanges, one after the other

    outcomes = await asyncio.gather(
        *(put(storage, original_key(new_id()), content) for _ in range(2 * PUTS_AT_A_TIME)),
        put(storage, original_key(new_id()), b"small"),
        return_exceptions=True,
    )

    assert outcomes == [None] * (2 * PUTS_AT_A_TIME + 1)


@pytest.mark.parametrize("code", ["NoSuchBucket", "ContainerNotFound"])
async def test_each_stores_word_for_a_bucket_that_is_not_there_is_understood(
    storage: ObjectStorage, trouble: Troublemaker, code: str
) -> None:
    trouble.refusal = (404, code)
    trouble.refuse("GET")

    with pytest.raises(StorageUnavailable, match="no such bucket"):
        await storage.open_local(original_key(new_id()))


async def test_an_answer_that_the_library_does_not_survive_is_the_stores_trouble(
    storage: ObjectStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It panics where a store names a key that it was not asked to delete, and calls that by a kind of its own."""

    class RustPanic(Exception):
        pass

    async def panic(*_: object) -> None:
        raise RustPanic("rust future panicked")

    monkeypatch.setattr(obstore, "delete_async", panic)

    with pytest.raises(StorageUnavailable):
        await storage.delete(original_key(new_id()))
