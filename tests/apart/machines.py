"""Machines in small: network namespaces around a bridge, each with an address and with a disk of its own.

The test process moves into a namespace of its own first, the hub, in which everything else is: other test processes
may use the same addresses, and nothing is left for anybody to tidy up. A namespace lives as long as a process in it or
a descriptor of it; with it go its end of the cable, and so the other end.

Where namespaces cannot be made, which takes root, a machine is but a folder of its own: in CI that is a failure.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

CLONE_NEWNET = 0x40000000
#: The hub's address; machines have the ones that follow.
_HUB = "10.77.0.1"
NETWORK = "10.77.0.0/16"
_LIBC = ctypes.CDLL(None, use_errno=True)
#: Where `ip` is, whoever asks: /usr/sbin is not on everybody's PATH.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))

#: Puts the disk where the service's folder is, for this process and its children only, and becomes the command.
_WITH_DISK = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'


@functools.cache
def have_networks() -> bool:
    """Tell whether machines can have networks of their own here."""
    missing = [tool for tool in ("ip", "nsenter", "unshare", "mount") if shutil.which(tool, path=_PATH) is None]
    try:
        os.close(_new_namespace())
    except OSError as exc:
        missing.append(str(exc))
    if missing and os.environ.get("CI"):
        raise AssertionError(f"machines cannot have networks of their own: {', '.join(missing)}")
    return not missing


def hub() -> str:
    """Return the address at which machines find the stores."""
    return _HUB if have_networks() else "127.0.0.1"


@functools.cache
def move_into_hub() -> None:
    """Leave the host's network for an empty one: to be called by the main thread; threads begun later follow."""
    if not have_networks():
        print("network namespaces cannot be made here: machines are but folders of their own")
        return
    _leave_network()
    _run("ip", "link", "set", "lo", "up")
    _run("ip", "link", "add", "hub", "type", "bridge")
    _run("ip", "address", "add", f"{_HUB}/16", "dev", "hub")
    _run("ip", "link", "set", "hub", "up")


class Machine:
    """A machine on the hub's network, whose disk is the folder `disk`. Closed, it is gone once nobody runs on it."""

    _made = 0

    def __init__(self, disk: Path) -> None:
        assert move_into_hub.cache_info().currsize, "the hub comes first"
        number = Machine._made = Machine._made + 1
        assert number < 65_000, "there are no more addresses"
        self.disk = disk
        disk.mkdir(parents=True)
        self._namespace: int | None = None
        self.address = "127.0.0.1"
        if have_networks():
            self.address = f"10.77.{(number + 1) // 256}.{(number + 1) % 256}"
            self._namespace = _new_namespace()
            self._connect(f"m{number}")

    def command(self, command: Sequence[str], folder: Path) -> list[str]:
        """Return the command as one that runs on this machine, where `folder` is its disk; it keeps its process id."""
        if self._namespace is None:
            return ["env", f"ASGI_LOOK_STORAGE_PATH={self.disk}", *command]
        enter = ["nsenter", f"--net={self._place}", "unshare", "--mount"]
        return [*enter, "/bin/sh", "-c", _WITH_DISK, "sh", str(self.disk), str(folder), *command]

    def close(self) -> None:
        if self._namespace is not None:
            os.close(self._namespace)

    def _connect(self, cable: str) -> None:
        there = ("nsenter", f"--net={self._place}")
        _run("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", self._place)
        _run("ip", "link", "set", cable, "master", "hub", "up")
        _run(*there, "ip", "link", "set", "lo", "up")
        _run(*there, "ip", "address", "add", f"{self.address}/16", "dev", "eth0")
        _run(*there, "ip", "link", "set", "eth0", "up")

    @property
    def _place(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self._namespace}"


def _leave_network() -> None:
    if _LIBC.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "network namespaces cannot be made")


def _new_namespace() -> int:
    """Return the descriptor of a new network namespace; the thread that made it is not missed."""
    made: list[int] = []
    failed: list[OSError] = []

    def make() -> None:
        try:
            _leave_network()
            made.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as exc:
            failed.append(exc)

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return made[0]


def _run(*command: str) -> None:
    done = subprocess.run(command, env={"PATH": _PATH}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
