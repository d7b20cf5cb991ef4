"""Files are read without waiting for a disk, or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shared.storage import pages
from shared.storage.pages import MOST_BYTES, CachedPages

pytestmark = pytest.mark.skipif(pages._LIBC is None, reason="this system has no reads that never wait")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "picture.jpeg"
    path.write_bytes(bytes(range(256)) * 50)
    if CachedPages().read(str(path), 12_800) is None:
        pytest.skip("this file system has no reads that never wait")
    return path


def test_what_is_in_the_systems_memory_is_read(file: Path) -> None:
    assert CachedPages().read(str(file), 12_800) == file.read_bytes()


def test_one_file_after_the_other_is_read(file: Path) -> None:
    reader = CachedPages()
    other = file.with_name("other")
    other.write_bytes(b"x" * 100_000)
    first, second = reader.read(str(file), 12_800), reader.read(str(other), 100_000)

    assert (first, second) == (file.read_bytes(), other.read_bytes())


@pytest.mark.parametrize("length", [0, 12_799, 12_801, MOST_BYTES + 1])
def test_a_file_of_another_length_is_none(file: Path, length: int) -> None:
    assert CachedPages().read(str(file), length) is None


def test_what_is_not_there_is_none_and_no_reason_to_give_up(file: Path) -> None:
    reader = CachedPages()

    assert reader.read(str(file.with_name("nothing")), 1) is None
    assert reader.read(str(file), 12_800) is not None


def test_what_is_on_the_disk_alone_is_not_waited_for(file: Path) -> None:
    reader = CachedPages()
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)

    # A file system in memory lets nothing go.
    assert reader.read(str(file), 12_800) in (None, bytes(range(256)) * 50)

    file.read_bytes()
    assert reader.read(str(file), 12_800) == file.read_bytes()


def test_a_file_system_that_cannot_is_not_asked_again(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As NFS is: to open a file there would be to wait for its server."""
    reader = CachedPages()

    def refuse(*_: object) -> int:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with monkeypatch.context() as patched:
        patched.setattr(os, "preadv", refuse)
        assert reader.read(str(file), 12_800) is None

    assert reader.read(str(file), 12_800) is None


def test_no_descriptor_is_left_open(file: Path) -> None:
    reader = CachedPages()
    before = len(os.listdir("/proc/self/fd"))

    for length in (12_800, 12_799, 12_801, 1):
        reader.read(str(file), length)

    assert len(os.listdir("/proc/self/fd")) == before


def test_a_part_of_an_open_file_is_read(file: Path) -> None:
    with file.open("rb") as opened:
        assert pages.read_part(opened.fileno(), 100, 1000) == file.read_bytes()[100:1100]


def test_a_part_that_is_not_all_there_is_none(file: Path) -> None:
    with file.open("rb") as opened:
        assert pages.read_part(opened.fileno(), 12_000, 1000) is None
