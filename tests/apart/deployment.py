"""A service whose processes share nothing but a network: what `services.deploy()` returns with the switch on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import asyncpg

from launch.processes import free_port
from launch.valkey import is_valkey_up, valkey_command
from tests.apart.machines import Machine, hub
from tests.apart.stores import stores
from tests.integration.service import PLACES, Deployed

#: The ledger and the storage of each service by its data folder: a second one on the same data finds them there.
_known: dict[Path, dict[str, str]] = {}


class DeployedApart(Deployed):
    """Each web process and each worker on a machine of its own; whoever is started again is on another one."""

    def __init__(self, data: Path, output: Path, settings: Mapping[str, str]) -> None:
        shared = _known.get(data) or stores().settings()
        _known[data] = shared
        super().__init__(data, output, {**shared, **settings})
        self.machines: list[Machine] = []
        self._folder = output.parent

    def discard(self) -> None:
        """Let go of the machines and of the ledger."""
        for machine in self.machines:
            machine.close()
        self.machines = []
        if (shared := _known.pop(self.data, None)) is not None:
            with suppress(asyncpg.InvalidCatalogNameError):
                stores().postgresql.drop(shared["DATABASE_URL"])

    def disks(self) -> list[Path]:
        return [self.data, *(machine.disk for machine in self.machines)]

    def provide_redis(self) -> None:
        """Start two Valkeys, for queue and cache, and the doors through which machines get to them by TLS."""
        self.valkey_port, self.cache_port = free_port(), free_port()
        self.start_valkeys()
        urls = []
        ways = []
        for target in (self.valkey_port, self.cache_port):
            port = free_port()
            ways.append(f"{port}:{target}")
            urls.append(f"rediss://{hub()}:{port}/0")
        self.env |= {"REDIS_URL": urls[0], "CACHE_REDIS_URL": urls[1], "ASGI_LOOK_REDIS_CA_CERTS": str(stores().issuer)}
        self.start([sys.executable, "-m", "tests.apart.door", hub(), str(stores().certificate), *ways])

    def start_valkeys(self) -> None:
        self.start_valkey()
        folder = self.data / "cache-valkey"
        folder.mkdir(parents=True, exist_ok=True)
        self.cache_valkey = cache = self.start(valkey_command(folder, self.cache_port))
        self.until(lambda: is_valkey_up(self.cache_port, cache.pid), what="the cache's answer")

    def start_on_machine(self, command: str, port: int | None, **env: str) -> subprocess.Popen[bytes]:
        """Start one of the Procfile's lines on a new machine with an empty disk."""
        machine = Machine(self._folder / "disks" / str(len(self.machines)))
        self.machines.append(machine)
        for served in (port, (self.env | env).get("ASGI_LOOK_METRICS_PORT")):
            if served is not None:
                PLACES[int(served)] = machine.address
        if port is not None:
            env["PORT"] = str(port)
        self.data.mkdir(parents=True, exist_ok=True)
        line = machine.command(self.commands[command], self.data)
        return self.start(line, **{"HOST": machine.address, **env})
