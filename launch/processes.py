"""The processes of the Procfile's lines. They end with the process that starts them."""

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
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
#: None on other systems: there the parts outlive a launcher that is killed by SIGKILL.
LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class LaunchError(Exception):
    """The service cannot be started. The message is the one line that is printed."""


class Signals:
    """Counts the requests to stop. A request, or the end of a process, ends a `pause`."""

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
        # A closing terminal, or timeout(1), signals twice in a row. Both signals are one request.
        if (now := time.monotonic()) > self._counted + 0.2:
            self._counted = now
            self.requests += 1

    def pause(self, seconds: float | None) -> None:
        """Wait for `seconds`, or until a signal comes."""
        if select.select([self._wakeups], [], [], seconds)[0]:
            os.read(self._wakeups, 4096)


@dataclass
class Part:
    """One process of the service, with its command to start it again."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> Part:
        """Start the process in its own session, so that a terminal's Ctrl-C reaches only the launcher."""
        launcher = os.getpid()

        def end_with_launcher() -> None:
            if LIBC is not None:
                LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
                if os.getppid() != launcher:  # the launcher ended before the line above
                    os._exit(1)

        self.process = subprocess.Popen(  # noqa: S603 - our own Procfile
            self.command,
            cwd=HERE,
            env=self.env,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=end_with_launcher,
        )
        return self

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def end(self) -> str:
        """How the process ended, for messages."""
        code = self.process.returncode if self.process else 0
        return f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"


def read_procfile() -> dict[str, Sequence[str]]:
    """Return the Procfile's commands by name."""
    split = (line.partition(":") for line in (HERE / "Procfile").read_text().splitlines())
    return {name.strip(): ("/bin/sh", "-c", f"exec {line.strip()}") for name, colon, line in split if colon}


def free_port() -> int:
    """Return a port of 127.0.0.1 that is not in use."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
