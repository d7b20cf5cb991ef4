"""The disk backend: what is kept survives a crash at any point, and a full disk is told from a broken one."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from io import FileIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from shared.errors import StorageFull, StorageUnavailable
from shared.renditions import original_key
from shared.storage.disk import DiskStorage
from shared.storage.disk_draft import WRITTEN_AT_ONCE, DiskDraft
from shared.storage.files import read_cached
from shared.storage.resumable import ResumableDraft
from tests.ledgers import new_id
from tests.services import put

ROOT = Path(__file__).resolve().parents[2]
ID = "01890a5d-ac96-774b-bcce-b302099a8057"


@pytest.fixture
async def storage(tmp_path: Path) -> DiskStorage:
    storage = DiskStorage(tmp_path)
    await storage.prepare()
    return storage


Event = tuple[str, str]


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """Every call that makes something durable or visible, with the path it was about, below the storage."""
    recorded: list[Event] = []
    real_fsync, real_rename, real_mkdir = os.fsync, os.rename, os.mkdir

    def name(path: Any) -> str:
        relative = Path(path).relative_to(tmp_path)
        return "draft" if relative.parts[:1] == ("drafts",) else str(relative)

    def fsync(descriptor: int) -> None:
        recorded.append(("fsync", name(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real_fsync(descriptor)

    def rename(source: Any, target: Any) -> None:
        recorded.append(("rename", name(target)))
        real_rename(source, target)

    def mkdir(path: Any, mode: int = 0o777) -> None:
        real_mkdir(path, mode)
        recorded.append(("mkdir", name(path)))

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "mkdir", mkdir)
    return recorded


async def test_a_put_is_fsynced_then_renamed_then_its_folders_are_fsynced(
    storage: DiskStorage, events: list[Event]
) -> None:
    """Promise 1: a rename that survives a power cut without its bytes, or a file without its folder, is a loss."""
    await put(storage, original_key(ID), b"the original")

    folders = ["originals", "originals/01890", "originals/01890/a5d"]
    assert [name for what, name in events if what == "mkdir"] == folders
    renamed = events.index(("rename", f"originals/01890/a5d/{ID}"))
    fsynced = [name for what, name in events[:renamed] if what == "fsync"]
    assert sorted(fsynced) == sorted(["draft", ".", *folders[:-1]])
    for folder, above in zip(folders, [".", *folders], strict=False):
        assert events.index(("mkdir", folder)) < events.index(("fsync", above))
    assert events[renamed + 1 :] == [("fsync", folders[-1])]


async def test_a_folder_that_was_removed_meanwhile_is_made_durable_again(
    storage: DiskStorage, tmp_path: Path, events: list[Event]
) -> None:
    await put(storage, original_key(ID), b"the original")
    shutil.rmtree(tmp_path / "originals" / "01890")
    events.clear()

    await put(storage, original_key(ID), b"the original")

    renamed = events.index(("rename", f"originals/01890/a5d/{ID}"))
    for folder, above in (("originals/01890", "originals"), ("originals/01890/a5d", "originals/01890")):
        assert ("fsync", above) in events[events.index(("mkdir", folder)) : renamed]


@pytest.mark.parametrize("fails", [1, 2])
async def test_folders_that_a_failed_put_has_made_are_made_durable_by_the_next(
    storage: DiskStorage, events: list[Event], monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    fsync, calls = os.fsync, count(1)

    def fail_once(descriptor: int) -> None:
        if next(calls) == fails:
            raise OSError(errno.EIO, "broken")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_once)
    with pytest.raises(StorageUnavailable):
        await put(storage, original_key(ID), b"the original")
    assert await storage.sweep_drafts(-1) == 0
    events.clear()

    await put(storage, original_key(ID), b"the original")

    renamed = events.index(("rename", f"originals/01890/a5d/{ID}"))
    assert {name for what, name in events[:renamed] if what == "fsync"} == {
        *("draft", ".", "originals", "originals/01890")
    }


async def test_many_drafts_are_all_fsynced_before_the_first_is_renamed(
    storage: DiskStorage, events: list[Event]
) -> None:
    drafts = {f"renditions/{ID}/1/{name}": await storage.draft() for name in ("a.jpeg", "b.jpeg")}

    await storage.keep(drafts)

    for draft in drafts.values():
        await draft.discard()
    folder = f"renditions/01890/a5d/{ID}/1"
    renames = [events.index(("rename", f"{folder}/{name}")) for name in ("a.jpeg", "b.jpeg")]
    assert events[: min(renames)].count(("fsync", "draft")) == 2
    made = events.index(("mkdir", folder))
    assert ("fsync", f"renditions/01890/a5d/{ID}") in events[made : min(renames)]
    assert events.index(("fsync", folder)) > max(renames)


async def test_what_is_deleted_is_not_brought_back_by_a_power_cut(storage: DiskStorage, events: list[Event]) -> None:
    """Nobody would remove it a second time: its row owes nothing any more."""
    await put(storage, original_key(ID), b"the original")
    events.clear()

    await storage.delete(original_key(ID))

    assert not await storage.exists(original_key(ID))
    # Then the nameless file itself: its place must not be anybody else's while the disk still has it as this one's.
    assert events == [("fsync", "originals/01890/a5d"), ("fsync", f"originals/01890/a5d/{ID} (deleted)")]


async def test_what_another_process_was_removing_when_it_died_is_not_brought_back_either(
    storage: DiskStorage, tmp_path: Path, events: list[Event]
) -> None:
    """It died between its unlink and its fsync. Its debt is paid by a second delete."""
    await put(storage, original_key(ID), b"the original")
    (tmp_path / "originals/01890/a5d" / ID).unlink()
    events.clear()

    await storage.delete(original_key(ID))
    await storage.delete(original_key(new_id()))

    assert events == [("fsync", "originals/01890/a5d")]


async def test_no_folder_grows_without_bound(storage: DiskStorage, tmp_path: Path) -> None:
    """Ids begin with their time: those of one folder are of the same 65 seconds."""
    await put(storage, original_key(ID), b"x")
    await put(storage, f"renditions/{ID}/3/image.jpeg", b"x")
    await put(storage, "markers/0a1b2c", b"")

    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}

    assert files == {
        f"originals/01890/a5d/{ID}",
        f"renditions/01890/a5d/{ID}/3/image.jpeg",
        "markers/0a1b2c",
    }


#: Kills its process at one call of `os.fsync` and the like, which the command line names.
CRASHING = """
import asyncio, os, signal, sys
from pathlib import Path
from shared.storage.disk import DiskStorage
from shared.storage.resumable import ResumableDraft

storage, crash_at, image_id = DiskStorage(Path(sys.argv[1])), sys.argv[2], sys.argv[3]
calls = {"fsync": 0, "rename": 0, "link": 0, "unlink": 0}

def crashing(name):
    real = getattr(os, name)
    def call(*arguments):
        calls[name] += 1
        if f"{name}-{calls[name]}" == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    return call

for name in calls:
    setattr(os, name, crashing(name))
"""


async def crash(program: str, folder: Path, crash_at: str) -> None:
    """Run a program that dies at this call, or ends if it is "never"."""
    arguments = (sys.executable, "-c", CRASHING + textwrap.dedent(program), str(folder), crash_at, ID)
    process = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT)
    assert await process.wait() == (0 if crash_at == "never" else -signal.SIGKILL)


@pytest.mark.parametrize(
    ("crash_at", "whole"),
    [("fsync-1", 0), ("fsync-7", 0), ("rename-1", 0), ("rename-2", 1), ("fsync-8", 2), ("never", 2)],
)
async def test_after_a_crash_there_is_the_whole_file_or_none(
    storage: DiskStorage, tmp_path: Path, crash_at: str, whole: int
) -> None:
    """A process that is killed at any step of a put leaves nothing half-written under a key."""
    program = """
        async def main():
            drafts = {f"renditions/{image_id}/1/{name}": await storage.draft() for name in ("a", "b")}
            for draft in drafts.values():
                await draft.write(b"x" * 100_000)
            await storage.keep(drafts)
            for draft in drafts.values():
                await draft.discard()

        asyncio.run(main())
    """

    await crash(program, tmp_path, crash_at)

    kept = {stored.key: stored.bytes async for stored in storage.listing("renditions")}
    assert kept == {f"renditions/{ID}/1/{name}": 100_000 for name in ("a", "b")[:whole]}
    assert await storage.sweep_drafts(-1) == 2 - whole


async def sent(content: bytes) -> AsyncIterator[bytes]:
    yield content


@pytest.mark.parametrize(
    ("crash_at", "length", "drafts"),
    [
        ("fsync-1", 0, 1),
        ("link-1", 0, 1),
        ("unlink-1", 100_000, 1),
        ("fsync-4", 100_000, 0),
        ("link-2", 100_000, 1),
        ("unlink-2", 200_000, 1),
        ("never", 200_000, 0),
    ],
)
async def test_after_a_crash_a_resumable_draft_is_a_beginning_and_goes_on(
    storage: DiskStorage, tmp_path: Path, crash_at: str, length: int, drafts: int
) -> None:
    program = """
        async def sent(content):
            yield content

        async def main():
            draft = ResumableDraft(storage, image_id)
            for number in range(2):
                await draft.append(number * 100_000, sent(bytes([number]) * 100_000))

        asyncio.run(main())
    """

    await crash(program, tmp_path, crash_at)

    draft = ResumableDraft(storage, ID)
    assert await draft.length() == length
    content = (bytes(100_000) + b"\1" * 100_000)[:length] + b"the rest"
    await draft.append(length, sent(b"the rest"))
    joined = await draft.join()
    assert await joined.digest() == (length + 8, hashlib.sha256(content).hexdigest())
    await joined.discard()
    # The piece's draft may be there, also beside the piece: as a second name of the same file.
    assert await storage.sweep_drafts(-1) == drafts
    assert await draft.length() == length + 8


def draft_on_a_full_disk(tmp_path: Path) -> DiskDraft:
    # /dev/full refuses every byte as a full disk does. The path is another file: it is what discard removes.
    path = tmp_path / "drafts" / "on-a-full-disk"
    path.touch()
    return DiskDraft(path, FileIO("/dev/full", "r+"))


async def test_a_full_disk_is_told_while_a_draft_is_written(storage: DiskStorage, tmp_path: Path) -> None:
    draft = draft_on_a_full_disk(tmp_path)

    with pytest.raises(StorageFull):
        await draft.write(bytes(WRITTEN_AT_ONCE))
    await draft.discard()

    assert await storage.sweep_drafts(-1) == 0


async def cancelled_while_a_thread_works(
    work: Coroutine[Any, Any, object], busy: threading.Event, go: threading.Event, times: int
) -> None:
    """Cancel `work` so many times while a thread is `busy`, then let that go on; return at the end of `work`."""
    task = asyncio.create_task(work)
    assert await asyncio.to_thread(busy.wait, 30)
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    go.set()
    await asyncio.wait([task])
    assert task.cancelled()


async def test_who_is_cancelled_again_while_a_piece_is_written_leaves_no_draft(storage: DiskStorage) -> None:
    """A slow disk: the one who is cancelled waits for the thread, first to learn of it and then to clean up."""
    busy, go = threading.Event(), threading.Event()
    draft = await storage.draft()
    flush = draft._flush

    def slowly() -> None:
        busy.set()
        go.wait(30)
        flush()

    draft._flush = slowly  # type: ignore[method-assign] # a slow disk

    async def upload() -> None:
        try:
            await draft.write(bytes(WRITTEN_AT_ONCE))
        finally:
            await draft.discard()

    await cancelled_while_a_thread_works(upload(), busy, go, times=3)

    assert await storage.sweep_drafts(-1) == 0
    assert draft._file.closed


async def test_who_is_cancelled_while_drafts_are_begun_leaves_none(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy, go = threading.Event(), threading.Event()
    begin = DiskDraft.begin

    def slowly(folder: Path) -> DiskDraft:
        draft = begin(folder)
        busy.set()
        go.wait(30)
        return draft

    monkeypatch.setattr(DiskDraft, "begin", slowly)

    await cancelled_while_a_thread_works(storage.drafts(3), busy, go, times=1)

    assert await storage.sweep_drafts(-1) == 0


async def test_a_full_disk_is_told_before_anything_is_kept(storage: DiskStorage, tmp_path: Path) -> None:
    draft = draft_on_a_full_disk(tmp_path)
    await draft.write(b"short enough to wait in a buffer")

    with pytest.raises(StorageFull):
        await storage.keep({original_key(ID): draft})
    await draft.discard()

    assert not await storage.exists(original_key(ID))
    assert await storage.sweep_drafts(-1) == 0


def failing(number: int) -> Callable[..., Any]:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize(
    ("number", "error"),
    [
        (errno.ENOSPC, StorageFull),
        (errno.EDQUOT, StorageFull),
        (errno.EIO, StorageUnavailable),
        (errno.EACCES, StorageUnavailable),
        (errno.EROFS, StorageUnavailable),
        (errno.ESTALE, StorageUnavailable),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else value.__name__,
)
async def test_trouble_of_the_disk_is_trouble_that_may_pass(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch, number: int, error: type[StorageUnavailable]
) -> None:
    monkeypatch.setattr(os, "fsync", failing(number))

    with pytest.raises(StorageUnavailable) as told:
        await put(storage, original_key(ID), b"x")

    assert type(told.value) is error
    assert not await storage.exists(original_key(ID))


async def test_a_storage_whose_place_is_a_file_says_so_when_prepared(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(StorageUnavailable):
        await DiskStorage(tmp_path / "file").prepare()


async def test_a_probe_leaves_no_draft(storage: DiskStorage) -> None:
    assert await storage.sweep_drafts(-1) == 0


async def test_a_file_added_while_a_folder_is_deleted_goes_too(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A late attempt may still be writing when its image is deleted."""
    folder = f"renditions/{new_id()}"
    await put(storage, f"{folder}/1/image.jpeg", b"x")
    real_rmdir, late = os.rmdir, storage._path(f"{folder}/1/late.jpeg")

    def rmdir(path: Any, *arguments: Any, **options: Any) -> None:
        if late.parent.exists() and not late.exists() and not added:
            late.touch()
            added.append(late)
        real_rmdir(path, *arguments, **options)

    added: list[Path] = []
    monkeypatch.setattr(os, "rmdir", rmdir)

    await storage.delete_folder(folder)

    assert added
    assert not storage._path(folder).exists()


async def test_what_lies_where_no_key_would_put_it_is_not_listed(storage: DiskStorage, tmp_path: Path) -> None:
    """A person's or a file system's own files are none of ours, whatever is done with a listing."""
    await put(storage, original_key(ID), b"x")
    await put(storage, f"renditions/{ID}/1/image.jpeg", b"x")
    for kind in ("originals", "renditions"):
        for folder in ("", "01890", "01890/a5d", "fffff/fff"):
            (tmp_path / kind / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / kind / folder / ".DS_Store").touch()

    listed = [stored.key for kind in ("originals", "renditions") async for stored in storage.listing(kind)]

    assert listed == [original_key(ID), f"renditions/{ID}/1/image.jpeg"]


async def test_a_listing_goes_on_when_what_it_is_about_to_look_at_goes(
    storage: DiskStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.jpeg", "b.jpeg"):
        await put(storage, f"renditions/{ID}/1/{name}", b"x")
    real_path = storage._path

    def path(key: str) -> Path:
        if key.endswith("a.jpeg"):
            real_path(key).unlink()
        return real_path(key)

    monkeypatch.setattr(storage, "_path", path)

    assert [stored.key async for stored in storage.listing("renditions")] == [f"renditions/{ID}/1/b.jpeg"]


async def test_a_part_of_a_file_comes_from_the_systems_memory_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "picture.jpeg"
    path.write_bytes(content := os.urandom(12_800))

    with path.open("rb") as file:
        # None on a file system that has no such reads.
        assert read_cached(file.fileno(), 100, 1000) in (content[100:1100], None)
        assert read_cached(file.fileno(), 12_000, 1000) is None
