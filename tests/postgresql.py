"""A real PostgreSQL, Debian's, for the ledger's tests: a server a test run, on a free port, and a database a test.

    def test_something(postgresql):
        url = postgresql.database()                # migrated and empty, ended with the server
        postgresql.execute("SELECT pg_sleep(1)")   # behind everybody's back
        postgresql.stop(); postgresql.start()      # same port, same data

Which one a test's `settings` name is `database`'s to say; `databases.py` has tests run on both.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import asyncpg
import pytest

from launch.processes import free_port
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.apart.machines import NETWORK, hub
from tests.integration.service import children_of, is_apart

_DEBIANS = Path("/usr/lib/postgresql")
#: That its files are lost with the machine hurts no test; all that it makes is to be in its folder, and go with it.
_SETTINGS = (
    *("fsync=off", "shared_buffers=32MB", "max_connections=100", "autovacuum=off"),
    *("unix_socket_directories=", "dynamic_shared_memory_type=mmap"),
)


def find_program(name: str, package: str = "postgresql") -> str:
    """Return the path of a program; without it the test is skipped, but PostgreSQL's own must be there in CI."""
    versions = sorted(_DEBIANS.glob(f"*/bin/{name}"), key=lambda path: int(path.parts[-3]))
    found = str(versions[-1]) if versions else shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found:
        return found
    reason = f"{name} is not installed (on Debian and Ubuntu: apt install {package})"
    if package == "postgresql" and os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def unprivileged(command: Sequence[str]) -> list[str]:
    """Return the command as one that ends with us, and runs as somebody else where we are root: they refuse root."""
    user = ["--reuid", "nobody", "--regid", "nogroup", "--clear-groups"] if os.geteuid() == 0 else []
    return [find_program("setpriv", "util-linux"), *user, "--pdeathsig", "KILL", *command]


class Postgresql:
    """A server on a free port of 127.0.0.1, and in it a database that is migrated and never used: tests copy it."""

    def __init__(self, folder: Path) -> None:
        self._data = folder / "data"
        self._log = folder / "log"
        self._numbers = count()
        self.user = "asgilook"
        initdb = [find_program("initdb"), "-D", str(self._data), "-U", self.user, "-A", "trust", "--no-sync"]
        subprocess.run(unprivileged([*initdb, "-E", "UTF8", "--locale=C.UTF-8"]), check=True, stdout=subprocess.DEVNULL)
        self._addresses = ["127.0.0.1"]
        if is_apart() and hub() not in self._addresses:
            self._addresses.append(hub())
            with (self._data / "pg_hba.conf").open("a") as rules:
                rules.write(f"host all all {NETWORK} trust\n")
        for _ in range(5):  # somebody else may take the free port before we do
            self.port = free_port()
            if self._comes_up():
                break
        else:
            raise AssertionError(f"PostgreSQL does not come up: {self._log.read_text()}")
        self.execute("CREATE DATABASE migrated")
        migrate(Settings(database_url=self.url("migrated")))

    def url(self, database: str, query: str = "") -> str:
        """Return a database's address."""
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}{query}"

    def database(self, template: str = "migrated") -> str:
        """Make a database, migrated and empty unless told; return its address."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        return self.url(name)

    def drop(self, url: str) -> None:
        """Remove a database, whoever is still connected to it."""
        self.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def execute(self, statement: str, url: str | None = None) -> list[dict[str, Any]]:
        """Execute one statement; return its rows."""
        return execute(url or self.url("postgres"), statement)

    def give(self, name: str, content: bytes) -> None:
        """Put a file, which nobody else may read, into the server's folder."""
        (file := self._data / name).write_bytes(content)
        file.chmod(0o600)
        if os.geteuid() == 0:
            shutil.chown(file, "nobody", "nogroup")

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server, by default as its operators do: sessions are cut off, what is committed is written."""
        self._process.send_signal(number)
        self._process.wait(30)

    def start(self) -> None:
        """Start the server again. It ends with the thread that does so: the main one, at best."""
        assert self._comes_up(), self._log.read_text()

    def freeze(self) -> None:
        """Have the server, and all its sessions, answer nothing."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)
        for session in children_of(self._process.pid):
            os.kill(session, signal.SIGSTOP)

    def thaw(self) -> None:
        """Have it answer again."""
        for session in children_of(self._process.pid):
            os.kill(session, signal.SIGCONT)
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """End the server, if it still runs."""
        if self._process.poll() is None:
            self.thaw()
            self.stop()

    def _comes_up(self) -> bool:
        options = [word for option in _SETTINGS for word in ("-c", option)]
        command = [find_program("postgres"), "-D", str(self._data), "-h", ",".join(self._addresses), *options]
        command += ["-p", str(self.port)]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(unprivileged(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        asking = [find_program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        while self._process.poll() is None and time.monotonic() < deadline:
            if subprocess.run(asking, check=False).returncode == 0:
                # That it is ours, and not whoever took the port, is in its folder.
                pid, port = (self._data / "postmaster.pid").read_text().split("\n")[0:4:3]
                return (int(pid), int(port)) == (self._process.pid, self.port)
            time.sleep(0.01)  # between two looks
        self.end()
        return False


def execute(url: str, statement: str) -> list[dict[str, Any]]:
    """Execute one statement in a database; return its rows."""

    async def executed() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            return [dict(row) for row in await connection.fetch(statement)]
        finally:
            await connection.close()

    # In a thread: whoever asks may be in an event loop.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, executed()).result()


@contextmanager
def folder_of_nobody() -> Iterator[Path]:
    """A folder for the block that belongs to who runs an unprivileged command, in memory where that is possible."""
    memory = "/dev/shm"  # noqa: S108 - only where it is, and in a folder of our own
    with TemporaryDirectory(prefix="asgilook-", dir=memory if os.access(memory, os.W_OK) else None) as above:
        Path(above).chmod(0o755)  # else nobody but us gets to what is below it
        folder = Path(above) / "folder"
        folder.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody", "nogroup")
        yield folder


@contextmanager
def started() -> Iterator[Postgresql]:
    """A server for the block."""
    with folder_of_nobody() as folder:
        server = Postgresql(folder)
        try:
            yield server
        finally:
            server.end()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgresql]:
    """The server that a test run's tests share, none of which stops it."""
    with started() as server:
        yield server


@pytest.fixture
def own_postgresql() -> Iterator[Postgresql]:
    """A server of the test's own, to be stopped and frozen."""
    with started() as server:
        yield server
