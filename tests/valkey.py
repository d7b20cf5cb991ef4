"""A real Valkey for what fakeredis cannot tell: connections that break, servers that freeze, memory that ends."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from redis import Redis

from launch.processes import Part, free_port
from launch.valkey import is_valkey_up, valkey_command


class Valkey:
    """A server on a free port, without any file; frozen, thawed and ended by its process id."""

    def __init__(self, folder: Path, options: dict[str, str]) -> None:
        folder.mkdir()
        for _ in range(5):  # somebody else may take the free port before Valkey does
            self.port = free_port()
            words = (word for name, value in options.items() for word in (f"--{name}", value))
            command = [*valkey_command(folder, self.port), "--appendonly", "no", *words]
            self._part = Part("Valkey", command, dict(os.environ)).start()
            deadline = time.monotonic() + 30
            while self._part.is_running and time.monotonic() < deadline:
                if is_valkey_up(self.port, self._process.pid):
                    return
                # Nothing tells that a server listens, but asking it.
                time.sleep(0.002)
            self.end()
        raise AssertionError(f"Valkey does not come up, see {folder}/valkey.log")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def _process(self) -> subprocess.Popen[bytes]:
        assert self._part.process is not None
        return self._part.process

    def freeze(self) -> None:
        """Have it answer nothing, with its connections open."""
        os.kill(self._process.pid, signal.SIGSTOP)
        # The signal is on its way when kill returns: wait until the process has stopped.
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Have it answer again, what came meanwhile included."""
        os.kill(self._process.pid, signal.SIGCONT)

    def cut_connections(self) -> None:
        """Close every connection but the one that asks for it."""
        with Redis(port=self.port) as client:
            client.execute_command("CLIENT", "KILL", "SKIPME", "yes")

    def start_again(self) -> None:
        """Start it on the same port once it has ended; it has forgotten everything."""
        self._part.start()
        while not is_valkey_up(self.port, self._process.pid):
            assert self._part.is_running, "Valkey does not come up again"
            time.sleep(0.002)

    def end(self) -> None:
        """Kill it; there is nothing that it would have to save."""
        self._process.kill()
        self._process.wait()


StartValkey = Callable[..., Valkey]


@pytest.fixture
def start_valkey(tmp_path: Path) -> Iterator[StartValkey]:
    """Start servers with the options given; they end with the test."""
    servers: list[Valkey] = []

    def start(**options: str) -> Valkey:
        named = {name.replace("_", "-"): value for name, value in options.items()}
        servers.append(Valkey(tmp_path / f"valkey-{len(servers)}", named))
        return servers[-1]

    yield start

    for server in servers:
        server.end()


@pytest.fixture
def valkey(start_valkey: StartValkey) -> Valkey:
    """An empty server of this test's own."""
    return start_valkey()
