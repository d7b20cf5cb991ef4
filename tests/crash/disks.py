"""File systems for tests: one in a file, whose copy is what a power cut leaves; one in memory, which can be full.

    def test_something(tmp_path, mounting):                     # skipped where nothing can be mounted
        disk = Disk.make(tmp_path / "disk", EXT4)
        with disk.mounted(tmp_path / "mnt") as folder:          # nothing is mounted after the block
            ...                                                 # whatever is done below `folder`
            with standstill(services):                          # all at once, as a power cut stops them
                after = disk.copy(tmp_path / "after")           # what the power cut leaves
        after.repair()
        with after.mounted(tmp_path / "again") as folder:
            ...

A copy of the file holds what the file system has written to its device: what was fsynced, and what the kernel wrote
by itself. What sits in the page cache only is not in it. (What a device keeps in a cache of its own, is.)
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.service import Services, until

#: Where these tools are, whoever asks: /usr/sbin is not on everybody's PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
#: What is left of a full disk at the most: a block may be there and not to be had.
_LEAST_BYTES = 4096
#: Written by e2fsck where it had something to repair, and did.
_REPAIRED = (0, 1)


@dataclass(frozen=True)
class FileSystem:
    """A file system's kind: how to make it, and how to mount it."""

    name: str
    make: Sequence[str]
    options: str


#: With a journal, which is committed when somebody fsyncs and hardly ever by itself.
EXT4 = FileSystem("ext4", ("mke2fs", "-t", "ext4", "-E", "lazy_itable_init=0,lazy_journal_init=0"), "loop,commit=600")
#: Without: a file that was fsynced is there under no name until its folder was fsynced, too.
EXT2 = FileSystem("ext2", ("mke2fs", "-t", "ext2", "-E", "lazy_itable_init=0"), "loop")


@dataclass(frozen=True)
class Disk:
    """A file system in a file."""

    file: Path
    kind: FileSystem

    @classmethod
    def make(cls, file: Path, kind: FileSystem, size: int = 512 * 1024 * 1024) -> Disk:
        """Make an empty one; the file takes no more than what is written."""
        with file.open("xb") as empty:
            empty.truncate(size)
        _run(*kind.make, "-q", "-F", "-m", "0", str(file))
        return cls(file, kind)

    @contextmanager
    def mounted(self, folder: Path) -> Iterator[Path]:
        """Mount it for the block; yield where."""
        with _mounted(folder, "-t", self.kind.name, "-o", self.kind.options, str(self.file)):
            yield folder

    def copy(self, file: Path) -> Disk:
        """Copy it as it is at one moment, mounted or not; nobody else may be writing to it."""
        while True:
            before = self.file.stat().st_mtime_ns
            _run("cp", "--sparse=always", str(self.file), str(file))
            # The kernel writes of its own accord, too: rarely, and a copy made meanwhile would be of no moment.
            if self.file.stat().st_mtime_ns == before:
                return Disk(file, self.kind)

    def repair(self) -> None:
        """Do what a machine does before it mounts a disk that was not unmounted."""
        _run("e2fsck", "-f", "-y", str(self.file), fine=_REPAIRED)


@contextmanager
def standstill(services: Services) -> Iterator[None]:
    """Keep every process of the services frozen for the block: all stop at once, as by a power cut, and go on."""
    stopped: set[int] = set()
    try:
        while starting := set(services.processes()) - stopped:
            # Again until there are no more: one that was not frozen yet may have started another.
            for pid in starting:
                stopped.add(pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
        # Who is in the middle of a write or an fsync finishes it before it stops.
        until(lambda: all(_stands_still(pid) for pid in stopped), what="the standstill")
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextmanager
def memory_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of so many bytes for the block."""
    with _mounted(folder, "-t", "tmpfs", "-o", f"size={size}", "tmpfs"):
        yield folder


@contextmanager
def bound(source: Path, folder: Path) -> Iterator[Path]:
    """Have `folder` show what is in `source` for the block, in which `unbind` and `bind` take it away and back."""
    folder.mkdir()
    bind(source, folder)
    try:
        yield folder
    finally:
        with suppress(subprocess.CalledProcessError):  # it may be away at this moment
            unbind(folder)


def bind(source: Path, folder: Path, *, read_only: bool = False) -> None:
    """Have `folder` show what is in `source`."""
    _run("mount", "--bind", str(source), str(folder))
    if read_only:
        _run("mount", "-o", "remount,bind,ro", str(folder))


def unbind(folder: Path) -> None:
    """Take what a folder shows away, from under those who use it."""
    _run("umount", "--lazy", str(folder))


@contextmanager
def filled(folder: Path, leave: int = 0) -> Iterator[None]:
    """Keep the disk that `folder` is on full for the block, but for so many bytes."""
    filler = folder / "filler"
    try:
        with filler.open("xb", buffering=0) as file:
            # Of what is left, again and again: others may be writing, and the file takes some room for itself.
            size, step = 0, 1 << 30
            while (free := shutil.disk_usage(folder).free - leave) > 0:
                step = min(step, free)
                try:
                    os.posix_fallocate(file.fileno(), size, step)
                    size += step
                except OSError:
                    if (step := step // 2) < _LEAST_BYTES:
                        break
        yield
    finally:
        filler.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def mounting(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test where nothing can be mounted: that takes root and e2fsprogs. CI has both."""
    folder = tmp_path_factory.mktemp("mounting")
    try:
        with Disk.make(folder / "disk", EXT2, 1024 * 1024).mounted(folder / "mnt"):
            pass
    except (OSError, subprocess.CalledProcessError) as exc:
        reason = f"file systems cannot be mounted here: {getattr(exc, 'stderr', '') or exc}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@contextmanager
def _mounted(folder: Path, *arguments: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    _run("mount", *arguments, str(folder))
    try:
        yield
    finally:
        try:
            _run("umount", str(folder))
        except subprocess.CalledProcessError:
            # Whoever still uses it fails the test, but keeps nothing mounted; its loop device goes with the last user.
            _run("umount", "--lazy", str(folder))
            raise


def _stands_still(pid: int) -> bool:
    """Tell whether every thread of a process is stopped, or gone."""
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            if stat.read_text(errors="replace").rpartition(")")[2].split()[0] not in "TZX":
                return False
    return True


def _run(name: str, *arguments: str, fine: Sequence[int] = (0,)) -> None:
    path = shutil.which(name, path=_PATH)
    if path is None:
        raise FileNotFoundError(f"there is no {name}")
    done = subprocess.run([path, *arguments], capture_output=True, text=True)
    if done.returncode not in fine:
        failed = subprocess.CalledProcessError(done.returncode, [name, *arguments], done.stdout, done.stderr)
        failed.add_note(f"{done.stdout}\n{done.stderr}".strip())
        raise failed
