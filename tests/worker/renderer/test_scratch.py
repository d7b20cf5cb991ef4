"""Scratch files: what a child can do to one before its reply, after it, and what its worker takes over."""

from __future__ import annotations

import fcntl
import io
import mmap
import os
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import IO

import pytest

from shared.renditions import Size
from tests.worker.pictures import encoded, jpeg_of, photo
from worker.child import opening, rendering
from worker.renderer.formats import most_bytes
from worker.renderer.outputs import NotOurs
from worker.renderer.scratch import Scratch, scratch_file

SIZE = (320, 180)


def rendition(size: Size = SIZE) -> bytes:
    output = io.BytesIO()
    picture = opening.open_picture(encoded(photo(size), "PNG"), max_pixels=50_000_000)
    rendering.render(picture, {jpeg_of(size): output}, (255, 255, 255))
    return output.getvalue()


OURS = rendition()


@pytest.fixture
def scratch() -> Iterator[Scratch]:
    with scratch_file(jpeg_of(SIZE)) as scratch:
        yield scratch


@pytest.fixture
def target() -> Iterator[IO[bytes]]:
    with TemporaryFile() as file:
        yield file


def write(scratch: Scratch, content: bytes) -> None:
    """Write as a child does."""
    os.write(scratch.descriptor, content)
    os.ftruncate(scratch.descriptor, len(content))


def content_of(target: IO[bytes]) -> bytes:
    target.seek(0)
    return target.read()


def test_what_was_rendered_is_taken_over(scratch: Scratch, target: IO[bytes]) -> None:
    write(scratch, OURS)

    scratch.copy_to(target.fileno())

    assert content_of(target) == OURS


def test_what_is_written_after_the_reply_is_not_taken_over(scratch: Scratch, target: IO[bytes]) -> None:
    """A child that a picture has taken over must not reach what was published, whatever it kept open or mapped."""
    write(scratch, OURS)
    with mmap.mmap(scratch.descriptor, len(OURS)) as mapped:
        scratch.copy_to(target.fileno())
        mapped[:8] = b"<script>"

    assert content_of(target) == OURS


def test_who_keeps_a_descriptor_keeps_no_memory(target: IO[bytes]) -> None:
    """What is in no process's memory is seen by no limit: the kernel would look for its victim among others."""
    with scratch_file(jpeg_of(SIZE)) as scratch:
        kept = os.dup(scratch.descriptor)
        write(scratch, OURS)
        scratch.copy_to(target.fileno())
    try:
        assert os.fstat(kept).st_blocks == 0
        assert os.pread(kept, 1, 0) == b""
        with pytest.raises(PermissionError):
            os.pwrite(kept, b"x", 0)
        with pytest.raises(PermissionError):
            os.ftruncate(kept, 1)
    finally:
        os.close(kept)


def test_no_more_is_written_than_a_rendition_can_need(scratch: Scratch) -> None:
    most = most_bytes(SIZE[0] * SIZE[1])

    with pytest.raises(PermissionError):
        os.ftruncate(scratch.descriptor, most + 1)
    assert os.pwrite(scratch.descriptor, bytes(most + 1), 0) <= most
    with pytest.raises(PermissionError):
        os.pwrite(scratch.descriptor, b"x", most)


def test_nobody_can_keep_it_from_being_emptied(scratch: Scratch) -> None:
    with pytest.raises(PermissionError):
        fcntl.fcntl(scratch.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)


def test_one_that_cannot_be_set_up_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")

    with pytest.raises(OverflowError), scratch_file(jpeg_of((1 << 31, 1 << 31))):
        pass

    assert os.listdir("/proc/self/fd") == before


def test_nothing_takes_memory_that_nobody_has_written(scratch: Scratch) -> None:
    assert os.fstat(scratch.descriptor).st_blocks == 0


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(OURS + b"PK\3\4", id="more than a JPEG"),
        pytest.param(OURS[:-2], id="less"),
        pytest.param(rendition((180, 320)), id="another size"),
        pytest.param(encoded(photo(SIZE), "PNG").getvalue(), id="a PNG"),
    ],
)
def test_what_is_no_rendition_is_not_taken_over(scratch: Scratch, target: IO[bytes], content: bytes) -> None:
    write(scratch, content)

    with pytest.raises(NotOurs):
        scratch.copy_to(target.fileno())

    assert content_of(target) == b""


def test_what_was_not_cut_to_its_length_is_not_taken_over(scratch: Scratch, target: IO[bytes]) -> None:
    os.write(scratch.descriptor, OURS)

    with pytest.raises(NotOurs):
        scratch.copy_to(target.fileno())


def test_a_full_disk_is_told_as_it_is(scratch: Scratch) -> None:
    write(scratch, OURS)

    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        scratch.copy_to(full.fileno())
