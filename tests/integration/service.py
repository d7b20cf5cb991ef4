"""asgilook in real processes, for the tests that need them: as ./run starts it, or with a handle on each process.

    def test_something(services):
        service = services.launch()                            # launch: Valkey, migrations, web, worker; all ready
        image = service.upload(jpeg, wait=10)                  # a Response: .status, .headers, .body, .json
        ...
        service.interrupt()                                    # Ctrl-C; returns the exit code

    def test_something_else(services):
        service = services.deploy(webs=2, workers=2)           # the Procfile's lines, one Popen each; all ready
        service.workers[0].send_signal(signal.SIGSTOP)
        service.until(lambda: service.get(uri).json["status"] == "ready", seconds=20)
        service.request("GET", "/images", web=1)               # the second web process
        service.valkey.kill(); service.start_valkey()          # same port, same folder

The fixture `services` (the conftest has it) ends whatever its services started and fails the test if any process is
left: children without our environment, in sessions of their own, orphans too. `with ended(folder) as services:` does
the same for a fixture of wider scope.
Any setting can be given: `services.launch(ASGI_LOOK_MIN_THUMB_SIZE="16")`; a second service on the data of the first:
`services.launch(data=service.data)`. What the processes printed is in `service.output`.

With ASGI_LOOK_TEST_APART=1 `deploy` gives each process a machine of its own (`tests/apart`); `host_of(port)` has its
address.
"""

from __future__ import annotations

import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest

from launch.processes import HERE, free_port, read_procfile
from launch.valkey import is_valkey_up, valkey_command

#: The variable that has each process of a deployed service live on a machine of its own: `tests/apart`.
APART = "ASGI_LOOK_TEST_APART"
#: The addresses of ports that are not on 127.0.0.1.
PLACES: dict[int, str] = {}
PR_SET_CHILD_SUBREAPER = 36
LIBC = ctypes.CDLL(None)

#: Ends a process with the test run, even with one that is killed. A shim, for pytest has threads, and what runs
#: between fork and exec in a process with threads may hang.
_TIED = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True)
class Response:
    """An answer, read to its end. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def until(condition: Callable[[], object], seconds: float = 30, what: str = "the condition") -> None:
    """Return once `condition()` is true; fail the test if it is not within `seconds`, far more than it should need."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"{what} has not come true in {seconds} s")
        time.sleep(0.02)  # between two looks


def is_apart() -> bool:
    """Tell whether deployed services are spread over machines."""
    return os.environ.get(APART) == "1"


def host_of(port: int) -> str:
    """Return the address at which a service's port is."""
    return PLACES.get(port, "127.0.0.1")


def new_port() -> int:
    """Return a free port for a service of this machine."""
    PLACES.pop(port := free_port(), None)
    return port


class Service:
    """What launched and deployed services have in common: a data folder, settings, output, requests."""

    def __init__(self, data: Path, output: Path, settings: Mapping[str, str]) -> None:
        self.data = data
        self.ports: list[int] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self._output = output
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        self.env = {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOST": "127.0.0.1",
            "ASGI_LOOK_STORAGE_PATH": str(data),
            "ASGI_LOOK_GRACE_SECONDS": "7",
            **settings,
        }

    @property
    def output(self) -> str:
        """Everything that the processes have printed so far, stdout and stderr."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        web: int = 0,
        timeout: float = 40,
    ) -> Response:
        """Send one request over a connection of its own to the web process number `web`."""
        with closing(http.client.HTTPConnection(host_of(port := self.ports[web]), port, timeout=timeout)) as connection:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, names, answer.read())

    def get(self, path: str, headers: Mapping[str, str] | None = None, *, web: int = 0) -> Response:
        """Send a GET."""
        return self.request("GET", path, headers=headers, web=web)

    def upload(self, picture: bytes, wait: int | None = None, *, web: int = 0) -> Response:
        """Upload a picture; with `wait`, hold the answer up to so many seconds until it is converted."""
        headers = {"Content-Type": "application/octet-stream"}
        if wait is not None:
            headers["Prefer"] = f"wait={wait}"
        return self.request("POST", "/images", picture, headers, web=web)

    def until(self, condition: Callable[[], object], seconds: float = 30, what: str = "the condition") -> None:
        """As `until`, and what the processes printed goes into the failure's report."""
        try:
            until(condition, seconds, what)
        except pytest.fail.Exception:
            print(self.output)
            raise

    def is_ready(self, web: int = 0) -> bool:
        """Tell whether /readyz calls every part good."""
        try:
            answer = self.request("GET", "/readyz", web=web, timeout=5)
        except (OSError, http.client.HTTPException):
            return False
        return answer.status == 200 and answer.json["status"] == "ok"

    def start(self, command: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        """Start a process of the service, in a session of its own."""
        with self._output.open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-c", _TIED, str(os.getpid()), *command],
                cwd=HERE,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def disks(self) -> list[Path]:
        """Return the folder that is `ASGI_LOOK_STORAGE_PATH`, on each machine there is or was."""
        return [self.data]

    def discard(self) -> None:
        """Let go of what has outlived the processes, for nobody will come back to it."""

    def stop(self, seconds: float = 12) -> None:
        """End every process as an operator would, SIGTERM first to those that serve, Valkey last."""
        for process in reversed(self.processes):
            if process.poll() is not None:
                continue
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


class Launched(Service):
    """The service as ./run starts it: one process to start, interrupt and kill."""

    launcher: subprocess.Popen[bytes]

    def run(self, *arguments: str, ready: bool = True) -> Self:
        """Start launch, and wait until it calls itself ready."""
        self.ports = [int(self.env.setdefault("PORT", str(new_port())))]
        said = self.output.count("asgilook is ready")
        self.launcher = self.start([sys.executable, str(HERE / "launch"), *arguments])
        if ready:
            self.until(
                lambda: self.output.count("asgilook is ready") > said or self.launcher.poll() is not None,
                seconds=60,
                what="readiness",
            )
            assert self.launcher.poll() is None, self.output
        return self

    def interrupt(self, number: int = signal.SIGINT, seconds: float = 20) -> int:
        """Press Ctrl-C, as it were; return the exit code."""
        self.launcher.send_signal(number)
        return self.launcher.wait(seconds)

    def parts(self, word: str) -> list[int]:
        """Return the process ids of the launcher's children whose command line has `word` in it."""
        return [pid for pid in children_of(self.launcher.pid) if word in command_of(pid)]


class Deployed(Service):
    """The service as an operator runs it: the Procfile's lines with settings in the environment, a handle for each."""

    valkey: subprocess.Popen[bytes]

    def __init__(self, data: Path, output: Path, settings: Mapping[str, str]) -> None:
        super().__init__(data, output, settings)
        self.webs: list[subprocess.Popen[bytes]] = []
        self.workers: list[subprocess.Popen[bytes]] = []
        self.commands = read_procfile()
        self.valkey_port = 0
        #: The cache's server, where it has one of its own.
        self.cache_valkey: subprocess.Popen[bytes] | None = None
        self.cache_port = 0

    def run(self, webs: int = 1, workers: int = 1) -> Self:
        """Start Valkey (unless REDIS_URL was given), migrate, start the rest; wait until all is ready."""
        if "REDIS_URL" not in self.env:
            self.provide_redis()
        assert self.start(self.commands["release"]).wait(60) == 0, self.output
        for _ in range(webs):
            self.start_web()
        for _ in range(workers):
            self.start_worker()
        for web in range(webs):
            self.until(lambda web=web: self.is_ready(web), seconds=60, what=f"readiness of web {web}")  # type: ignore[misc] # a default is no argument
        return self

    @property
    def valkeys(self) -> list[subprocess.Popen[bytes]]:
        """The queue's server, and the cache's where that is another one."""
        return [self.valkey] if self.cache_valkey is None else [self.valkey, self.cache_valkey]

    @property
    def valkey_ports(self) -> list[int]:
        """The ports of these, on this machine."""
        return sorted({self.valkey_port, self.cache_port})

    def provide_redis(self) -> None:
        """Start Valkey, and have the settings name it."""
        self.valkey_port = self.cache_port = free_port()
        self.env["REDIS_URL"] = f"redis://127.0.0.1:{self.valkey_port}/0"
        self.start_valkey()

    def start_valkeys(self) -> None:
        """Start whatever there is of Valkeys, or start it again."""
        self.start_valkey()

    def start_valkey(self) -> None:
        """Start Valkey, or start it again, on its port and its folder; return when it answers."""
        (self.data / "valkey").mkdir(parents=True, exist_ok=True)
        self.valkey = self.start(valkey_command(self.data / "valkey", self.valkey_port))
        self.until(lambda: is_valkey_up(self.valkey_port, self.valkey.pid), what="Valkey's answer")

    def start_web(self, **env: str) -> subprocess.Popen[bytes]:
        """Start one more web process on a port of its own, appended to `ports`."""
        self.ports.append(new_port())
        self.webs.append(self.start_on_machine("web", self.ports[-1], **env))
        return self.webs[-1]

    def start_web_again(self, number: int, **env: str) -> subprocess.Popen[bytes]:
        """Start the web process number `number`, which has ended, again on its port, as a supervisor would."""
        self.webs[number] = self.start_on_machine("web", self.ports[number], **env)
        return self.webs[number]

    def start_worker(self, **env: str) -> subprocess.Popen[bytes]:
        """Start one more worker."""
        self.workers.append(self.start_on_machine("worker", None, **env))
        return self.workers[-1]

    def start_worker_again(self, number: int, **env: str) -> subprocess.Popen[bytes]:
        """Start the worker number `number`, which has ended, again, as a supervisor would."""
        self.workers[number] = self.start_on_machine("worker", None, **env)
        return self.workers[number]

    def start_on_machine(self, command: str, port: int | None, **env: str) -> subprocess.Popen[bytes]:
        """Start one of the Procfile's lines: on this machine, there being one."""
        return self.start(self.commands[command], **({} if port is None else {"PORT": str(port)}), **env)


class Services:
    """Makes the services of one test, and ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[Service] = []
        self._before = set(children_of(os.getpid(), dead=True))

    def launch(self, *arguments: str, data: Path | None = None, ready: bool = True, **settings: str) -> Launched:
        """Return the service as ./run starts it."""
        service = Launched(*self._places(data), settings)
        self.made.append(service)
        return service.run(*arguments, ready=ready)

    def deploy(self, *, webs: int = 1, workers: int = 1, data: Path | None = None, **settings: str) -> Deployed:
        """Return the service as an operator runs it."""
        kind = Deployed
        if is_apart():
            from tests.apart.deployment import DeployedApart as kind
        service = kind(*self._places(data), settings)
        self.made.append(service)
        return service.run(webs, workers)

    def processes(self) -> list[int]:
        """Return the process ids of whatever the test has started and is still alive, children's children included."""
        ours = {process.pid for service in self.made for process in service.processes}
        roots = set(children_of(os.getpid(), dead=True)) - self._before
        for orphan in roots - ours:
            if _state(orphan)[0] == "Z":
                os.waitpid(orphan, os.WNOHANG)
        started = [*roots, *(pid for root in roots for pid in descendants_of(root))]
        return [pid for pid in started if _state(pid)[0] not in ("Z", "")]

    def left_over(self, seconds: float = 10) -> list[str]:
        """Return the command lines of those processes that do not end by themselves within `seconds`; kill them."""
        deadline = time.monotonic() + seconds
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)  # between two looks
        commands = [f"{pid}: {command_of(pid)}" for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return commands

    def _places(self, data: Path | None) -> tuple[Path, Path]:
        folder = self.folder / f"service-{len(self.made)}"
        folder.mkdir()
        return data or folder / "data", folder / "output"


@contextmanager
def ended(folder: Path) -> Iterator[Services]:
    """Services that end with the block, which fails if they leave a process behind."""
    # Orphans become our children, wherever they have moved to.
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
    if is_apart():
        from tests.apart.stores import stores

        # Before the first service: they outlive it.
        stores()
    services = Services(folder)
    try:
        yield services
    finally:
        for service in reversed(services.made):
            service.stop()
        left = services.left_over()
        for service in services.made:
            service.discard()
    assert left == []


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """Services that end with the test; it fails if they leave a process behind."""
    with ended(tmp_path) as services:
        yield services


def children_of(parent: int, *, dead: bool = False) -> list[int]:
    """Return the process ids of `parent`'s children, in the order of their numbers."""
    numbers = sorted(int(entry) for entry in os.listdir("/proc") if entry.isdigit())
    states = {pid: _state(pid) for pid in numbers}
    return [pid for pid, (state, ppid) in states.items() if ppid == parent and state and (dead or state != "Z")]


def descendants_of(parent: int) -> list[int]:
    """Return the process ids of `parent`'s children, their children, and so on."""
    children = children_of(parent, dead=True)
    return [*children, *(pid for child in children for pid in descendants_of(child))]


def command_of(pid: int) -> str:
    """Return a process's command line, empty when it has gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def _state(pid: int) -> tuple[str, int]:
    """Return a process's state and its parent's id, ("", 0) when it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return "", 0
    return fields[0], int(fields[1])
