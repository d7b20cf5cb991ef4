"""What can go wrong with a machine, done for real to a service that runs: each fault by its name, made good after."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial

import redis

from tests.crash.disks import filled
from tests.integration.evidence import is_on_postgresql, query
from tests.integration.faults import freeze, thaw
from tests.integration.service import Deployed, children_of, command_of

#: Seconds after which whoever supervises the processes starts one again that has ended.
RESTART_SECONDS = 1.0
_EXIT_SECONDS = 30.0


@dataclass(frozen=True)
class Fault:
    """One fault as it happened: from when to when (seconds since the epoch), to whom, and what there is to tell."""

    name: str
    began: float
    ended: float
    pid: int | None = None
    told: str = ""


@dataclass
class Slot:
    """A process's place: whoever has ended in it is started again, unless it is to stay away for now."""

    name: str
    current: Callable[[], subprocess.Popen[bytes]]
    start: Callable[[], object]
    away: threading.Event = field(default_factory=threading.Event)
    ended: float | None = None


class Supervisor:
    """Starts again what has ended, as ./run, Heroku or systemd do; knows who ended without having been told to."""

    def __init__(self, service: Deployed) -> None:
        self.exits: list[tuple[float, str, str]] = []
        self.expected: set[int] = set()
        self._service = service
        self.valkey = Slot("Valkey", lambda: service.valkey, service.start_valkey)
        self.webs = [
            Slot(f"web {n}", partial(service.webs.__getitem__, n), partial(service.start_web_again, n))
            for n in range(len(service.webs))
        ]
        self.workers = [
            Slot(f"worker {n}", partial(service.workers.__getitem__, n), partial(service.start_worker_again, n))
            for n in range(len(service.workers))
        ]

    def look(self) -> None:
        """Start again whoever ended a second ago. For one thread only: with it end all that it started."""
        now = time.time()
        for slot in (self.valkey, *self.webs, *self.workers):
            process = slot.current()
            if process.poll() is None:
                slot.ended = None
            elif slot.ended is None:
                slot.ended = now
                if process.pid not in self.expected:
                    self.exits.append((now, slot.name, f"exit code {process.returncode}"))
            elif now - slot.ended >= RESTART_SECONDS and not slot.away.is_set():
                slot.ended = None
                slot.start()

    def kill(self, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a process that is to end of it."""
        self.expected.add(process.pid)
        process.send_signal(number)


class Faults:
    """All faults by name. `scale` shortens those that last: with 1, Valkey is gone for a minute."""

    #: Over in a moment; what follows is the service's.
    SUDDEN = ("kill web", "kill worker", "kill child", "kill Valkey", "FLUSHALL", "delete queue")
    #: These last.
    LASTING = (
        "Valkey frozen",
        "Valkey gone",
        "worker frozen",
        "ledger locked",
        "disk full",
        "deploy web",
        "deploy worker",
    )

    def __init__(self, service: Deployed, supervisor: Supervisor, dice: random.Random, scale: float) -> None:
        self.done: list[Fault] = []
        self._service = service
        self._supervisor = supervisor
        self._dice = dice
        self._scale = scale
        self._by_name: dict[str, Callable[[], Fault | None]] = {
            "kill web": lambda: self._kill("kill web", supervisor.webs),
            "kill worker": lambda: self._kill("kill worker", supervisor.workers),
            "kill child": self._kill_child,
            "kill Valkey": lambda: self._kill("kill Valkey", [supervisor.valkey]),
            "FLUSHALL": lambda: self._tell_redis("FLUSHALL", lambda client: client.flushall()),
            "delete queue": lambda: self._tell_redis("delete queue", _delete_queue),
            "Valkey frozen": lambda: self._frozen("Valkey frozen", [supervisor.valkey], 20),
            "Valkey gone": self._valkey_gone,
            "worker frozen": lambda: self._frozen("worker frozen", supervisor.workers, 20),
            "ledger locked": self._ledger_locked,
            "disk full": self._disk_full,
            "deploy web": lambda: self._deploy("deploy web", supervisor.webs),
            "deploy worker": lambda: self._deploy("deploy worker", supervisor.workers),
        }

    def happen(self, name: str) -> Fault | None:
        """Have a fault happen, and return it when it is over; None where there is nothing it could happen to now."""
        fault = self._by_name[name]()
        if fault is not None:
            self.done.append(fault)
        return fault

    def _kill(self, name: str, slots: list[Slot]) -> Fault | None:
        if (process := self._living(slots)) is None:
            return None
        at = time.time()
        self._supervisor.kill(process)
        process.wait()
        return Fault(name, at, at, process.pid)

    def _kill_child(self) -> Fault | None:
        if (worker := self._living(self._supervisor.workers)) is None:
            return None
        children = [pid for pid in children_of(worker.pid) if "worker.child" in command_of(pid)]
        if not children:
            return None
        at, child = time.time(), self._dice.choice(children)
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return Fault("kill child", at, at, child)

    def _tell_redis(self, name: str, order: Callable[[redis.Redis], object]) -> Fault | None:
        at = time.time()
        try:
            for port in self._service.valkey_ports:
                with closing(redis.Redis(port=port, socket_timeout=1)) as client:
                    order(client)
        except redis.RedisError:
            return None
        return Fault(name, at, at)

    def _frozen(self, name: str, slots: list[Slot], seconds: float) -> Fault | None:
        if (process := self._living(slots)) is None:
            return None
        at = time.time()
        try:
            freeze(process)
        except ChildProcessError:
            return None  # it was killed by another fault
        self._last(seconds)
        thaw(process)
        return Fault(name, at, time.time(), process.pid)

    def _valkey_gone(self) -> Fault | None:
        slot = self._supervisor.valkey
        if (process := self._living([slot])) is None:
            return None
        at = time.time()
        slot.away.set()
        self._supervisor.kill(process)
        process.wait()
        self._last(60)
        slot.away.clear()
        while (process := self._living([slot])) is None:  # until the supervisor has started it
            time.sleep(0.05)
        return Fault("Valkey gone", at, time.time())

    def _ledger_locked(self) -> Fault:
        if is_on_postgresql(self._service):
            seconds, at = 10 * self._scale, time.time()
            lock = f"LOCK TABLE images IN EXCLUSIVE MODE; PERFORM pg_sleep({seconds})"
            query(self._service, f"DO $$ BEGIN {lock}; END $$")
            return Fault("ledger locked", at, time.time())
        path = self._service.data / "ledger.sqlite3"
        with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            at = time.time()
            self._last(10)
            connection.rollback()
        return Fault("ledger locked", at, time.time())

    def _disk_full(self) -> Fault:
        # Only a disk of the service's own may be filled: other people's data are on the machine's.
        assert os.path.ismount(self._service.data.parent)
        at = time.time()
        with filled(self._service.data.parent):
            self._last(10)
        return Fault("disk full", at, time.time())

    def _deploy(self, name: str, slots: list[Slot]) -> Fault | None:
        """Have every process of a kind end in peace, one after another, and be started again."""
        at, slowest = time.time(), 0.0
        for slot in slots:
            if (process := self._living([slot])) is None:
                continue
            began = time.time()
            self._supervisor.kill(process, signal.SIGTERM)
            process.wait(_EXIT_SECONDS)
            slowest = max(slowest, time.time() - began)
            while self._living([slot]) is None:  # until the supervisor has started it
                time.sleep(0.05)
        return Fault(name, at, time.time(), told=f"{slowest:.1f} s to exit")

    def _living(self, slots: list[Slot]) -> subprocess.Popen[bytes] | None:
        living = [process for slot in slots if (process := slot.current()).poll() is None]
        return self._dice.choice(living) if living else None

    def _last(self, seconds: float) -> None:
        """Let a fault last: that it does is the fault."""
        time.sleep(seconds * self._scale)


def _delete_queue(client: redis.Redis) -> None:
    for key in client.scan_iter("arq:queue2:*"):
        client.delete(key)
