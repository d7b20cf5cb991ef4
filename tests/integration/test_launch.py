"""What a person sees of ./run: one line and a service, one line and no service, and nothing left behind."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from PIL import Image

from launch.processes import HERE, free_port, read_procfile
from tests.integration.faults import small_picture
from tests.integration.service import (
    Launched,
    Services,
    command_of,
    descendants_of,
    until,
)

pytestmark = [pytest.mark.processes, pytest.mark.one_machine("./run starts everything on the machine it is on")]

#: A web process that answers /readyz, and calls itself by its process id.
STAND_IN = """
import http.server, os

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = os.environ["ANSWER"].encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Handler).serve_forever()
"""


def launch_once(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run launch for a start that fails."""
    return subprocess.run(
        [sys.executable, str(HERE / "launch"), *arguments],
        env={"PATH": os.environ["PATH"], **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
    assert done.stderr.startswith("asgilook: ")
    for word in words:
        assert word in done.stderr


def photograph() -> bytes:
    """Return a small JPEG."""
    file = io.BytesIO()
    Image.linear_gradient("L").resize((640, 360)).convert("RGB").save(file, "JPEG")
    return file.getvalue()


def test_a_taken_port_is_told_in_one_line_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])

        done = launch_once(PORT=port, ASGI_LOOK_STORAGE_PATH=str(tmp_path / "data"))

    assert_one_line(done, "PORT", port)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "0"),
        ("PORT", "70000"),
        ("PORT", "80_00"),
        ("WEB_CONCURRENCY", "two"),
        ("HOST", "192.0.2.1"),
        ("ASGI_LOOK_WORKERS", "two"),
        ("ASGI_LOOK_WORKERS", "0"),
        ("ASGI_LOOK_GRACE_SECONDS", "1.5"),
        ("REDIS_URL", "http://127.0.0.1"),
    ],
)
def test_a_senseless_setting_is_told_in_one_line_with_its_name(tmp_path: Path, name: str, value: str) -> None:
    env = {"PORT": str(free_port()), "ASGI_LOOK_STORAGE_PATH": str(tmp_path / "data"), name: value}

    assert_one_line(launch_once(**env), name)


def test_an_argument_that_it_does_not_know_is_told_in_one_line() -> None:
    assert_one_line(launch_once("--prot", "80"), "--workers")


def test_a_storage_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    """Below a file nobody can make a folder, root included, whom permission bits do not stop."""
    (tmp_path / "file").write_bytes(b"")

    done = launch_once(PORT=str(free_port()), ASGI_LOOK_STORAGE_PATH=str(tmp_path / "file" / "data"))

    assert_one_line(done, "ASGI_LOOK_STORAGE_PATH", str(tmp_path / "file" / "data"))


def test_a_storage_folder_that_is_a_file_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    done = launch_once(PORT=str(free_port()), ASGI_LOOK_STORAGE_PATH=str(tmp_path / "file"))

    assert_one_line(done, "ASGI_LOOK_STORAGE_PATH")


def test_a_redis_that_does_not_answer_is_told_in_one_line_without_its_password(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}/0"

    done = launch_once(PORT=str(free_port()), ASGI_LOOK_STORAGE_PATH=str(tmp_path / "data"), REDIS_URL=url)

    assert_one_line(done, "REDIS_URL")
    assert "secret" not in done.stderr


class StandIn(Launched):
    """launch over a Procfile of the test's own, in a checkout whose path has a space in it."""

    def __init__(self, folder: Path, **lines: str) -> None:
        self.checkout = folder / "a checkout"
        self.checkout.mkdir()
        super().__init__(self.checkout / "data", folder / "output", {"ANSWER": '{"status": "ok"}'})
        del self.env["ASGI_LOOK_STORAGE_PATH"]
        shutil.copytree(HERE / "launch", self.checkout / "launch")
        (self.checkout / "web.py").write_text(STAND_IN)
        lines = {"web": "python web.py", "worker": "sleep 1000", "release": "true", **lines}
        (self.checkout / "Procfile").write_text("".join(f"{name}: {line}\n" for name, line in lines.items()))

    def begin(self, *arguments: str, ready: bool = True) -> None:
        """As `run`, but with the checkout's own launch."""
        self.ports = [free_port()]
        self.env["PORT"] = str(self.ports[0])
        self.launcher = self.start([sys.executable, str(self.checkout / "launch"), *arguments])
        if ready:
            self.until(lambda: "asgilook is ready" in self.output, what="readiness")


@pytest.fixture
def stand_in(services: Services, tmp_path: Path) -> StandIn:
    service = StandIn(tmp_path)
    services.made.append(service)
    return service


def test_a_ready_service_tells_its_address_and_keeps_its_data_in_the_checkout(stand_in: StandIn) -> None:
    stand_in.begin()

    assert f"http://127.0.0.1:{stand_in.ports[0]} " in stand_in.output
    assert (stand_in.checkout / "data" / "valkey" / "appendonlydir").is_dir()


def test_as_many_workers_run_as_were_asked_for(stand_in: StandIn) -> None:
    stand_in.begin("--workers", "3")

    assert len(stand_in.parts("sleep 1000")) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_ends_everything_and_is_no_error(stand_in: StandIn, number: signal.Signals) -> None:
    stand_in.begin()
    started = descendants_of(stand_in.launcher.pid)

    code = stand_in.interrupt(number)

    assert code == 0
    assert len(started) == 3
    assert [pid for pid in started if command_of(pid)] == []
    assert "Traceback" not in stand_in.output


def test_a_second_ctrl_c_does_not_wait_for_what_ignores_the_first(services: Services, tmp_path: Path) -> None:
    """The grace here is far longer than the test may last."""
    stubborn = StandIn(
        tmp_path, worker="python -c 'import signal; signal.signal(15, 1); print(\"deaf\"); signal.pause()'"
    )
    services.made.append(stubborn)
    stubborn.env |= {"ASGI_LOOK_GRACE_SECONDS": "3600", "PYTHONUNBUFFERED": "1"}
    stubborn.begin()
    stubborn.until(lambda: "deaf" in stubborn.output)
    stubborn.launcher.send_signal(signal.SIGINT)
    stubborn.until(lambda: "stopping" in stubborn.output and not stubborn.parts("web.py"))

    def asked_again() -> bool:
        # Two signals in a row count as one: it is asked again until it has noticed.
        stubborn.launcher.send_signal(signal.SIGINT)
        return stubborn.launcher.poll() is not None

    stubborn.until(asked_again)
    assert stubborn.launcher.returncode == 0


def test_what_ignores_sigterm_is_killed_when_its_grace_is_over(services: Services, tmp_path: Path) -> None:
    stubborn = StandIn(
        tmp_path, worker="python -c 'import signal; signal.signal(15, 1); print(\"deaf\"); signal.pause()'"
    )
    services.made.append(stubborn)
    stubborn.env |= {"ASGI_LOOK_GRACE_SECONDS": "1", "PYTHONUNBUFFERED": "1"}
    stubborn.begin()
    stubborn.until(lambda: "deaf" in stubborn.output)

    assert stubborn.interrupt() == 0


def test_a_failed_release_ends_the_start(services: Services, tmp_path: Path) -> None:
    service = StandIn(tmp_path, release="false")
    services.made.append(service)

    service.begin(ready=False)

    assert service.launcher.wait(30) == 1
    assert service.output == "asgilook: the release step ended with code 1\n"


def test_a_web_process_that_never_comes_up_ends_the_start(services: Services, tmp_path: Path) -> None:
    service = StandIn(tmp_path, web="false")
    services.made.append(service)

    service.begin(ready=False)

    assert service.launcher.wait(30) == 1
    assert service.output == "asgilook: web ended with code 1 before the service was ready\n"


@pytest.mark.parametrize("word", ["web.py", "sleep 1000", "valkey-server"])
def test_a_part_that_dies_is_started_again(stand_in: StandIn, word: str) -> None:
    stand_in.begin()
    (old,) = stand_in.parts(word)

    os.kill(old, signal.SIGKILL)

    stand_in.until(lambda: stand_in.parts(word) not in ([], [old]))
    assert stand_in.output.count("was ended by signal 9; starting it again\n") == 1
    assert stand_in.launcher.poll() is None


def test_a_valkey_whose_file_ends_in_zeros_starts_empty(stand_in: StandIn) -> None:
    """So a power cut leaves it, on a file system with a journal too; and Redis is expendable."""
    stand_in.begin()
    stand_in.interrupt()
    valkey = stand_in.checkout / "data" / "valkey"
    (kept,) = (valkey / "appendonlydir").glob("*.incr.aof")
    with kept.open("ab") as file:
        file.write(bytes(4096))

    stand_in.begin(ready=False)

    stand_in.until(lambda: stand_in.output.count("asgilook is ready") == 2, what="readiness")
    assert f"starts empty; see {valkey / 'unreadable'}\n" in stand_in.output
    assert (valkey / "unreadable" / kept.name).read_bytes().endswith(bytes(4096))


def test_two_of_them_never_share_a_folder(stand_in: StandIn) -> None:
    stand_in.begin()

    done = launch_once(PORT=str(free_port()), ASGI_LOOK_STORAGE_PATH=str(stand_in.data))

    assert_one_line(done, "ASGI_LOOK_STORAGE_PATH", "another ./run")


def test_a_killed_launcher_takes_everything_with_it(stand_in: StandIn) -> None:
    stand_in.begin("--workers", "2")
    started = descendants_of(stand_in.launcher.pid)

    stand_in.launcher.kill()

    until(lambda: not any(command_of(pid) for pid in started), seconds=10)
    assert len(started) == 4


def test_the_whole_service_stops_within_its_grace_without_a_traceback(services: Services) -> None:
    service = services.launch("--workers", "2")
    started = descendants_of(service.launcher.pid)

    code = service.interrupt(seconds=10)

    assert code == 0
    assert [command_of(pid) for pid in started if command_of(pid)] == []
    assert "Traceback" not in service.output


@pytest.mark.parametrize("webs", ["1", "2"])
def test_the_whole_service_dies_with_a_killed_launcher(services: Services, webs: str) -> None:
    """The worker's children and uvicorn's own have moved away: nothing but their parent's death reaches them."""
    service = services.launch(WEB_CONCURRENCY=webs)
    started = services.processes()

    service.launcher.kill()
    service.launcher.wait()

    assert len(started) >= 5
    assert services.left_over(seconds=5) == []


def test_a_killed_worker_of_the_whole_service_is_replaced(services: Services) -> None:
    service = services.launch()
    (old,) = service.parts("-m worker")

    os.kill(old, signal.SIGKILL)

    service.until(lambda: service.parts("-m worker") not in ([], [old]) and service.is_ready())


def test_every_line_of_the_service_is_json_but_the_two_for_its_user(services: Services) -> None:
    service = services.launch(WEB_CONCURRENCY="2")

    service.interrupt()

    plain = [line for line in service.output.splitlines() if not line.startswith('{"time": ')]
    assert [line.partition(" (")[0] for line in plain] == [
        f"asgilook is ready: http://127.0.0.1:{service.ports[0]}",
        "asgilook is stopping",
    ]


def test_a_restart_finds_the_data_of_before(services: Services) -> None:
    first = services.launch()
    uploaded = first.upload(photograph(), wait=20)
    picture = first.get(uploaded.headers["location"])
    first.interrupt()

    second = services.launch(data=first.data)

    assert uploaded.status == 201
    assert second.get(uploaded.headers["location"]).body == picture.body
    assert [image["id"] for image in second.get("/images").json] == [uploaded.json["id"]]


def test_several_webs_and_workers_serve_one_ledger(services: Services) -> None:
    service = services.deploy(webs=2, workers=2)

    # On a busy machine a single look at Redis may overstay its 50 ms.
    service.until(lambda: all(service.get("/readyz", web=web).json["status"] == "ok" for web in (0, 1)))

    uploaded = service.upload(small_picture(), wait=10)
    assert [service.get(uploaded.headers["location"], web=web).status for web in (0, 1)] == [200, 200]


def test_a_bad_setting_ends_several_web_processes_too(tmp_path: Path) -> None:
    """Uvicorn's supervisor starts a process that died again and again, but for one exit code, and ends with 0 then."""
    env = {**os.environ, "PORT": str(free_port()), "WEB_CONCURRENCY": "2", "ASGI_LOOK_MAX_WAITING": "many"}
    env |= {"ASGI_LOOK_STORAGE_PATH": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    web = subprocess.run(
        read_procfile()["web"], cwd=HERE, env=env, capture_output=True, text=True, timeout=60, check=False
    )

    assert "asgilook: the web process cannot run: ASGI_LOOK_MAX_WAITING: " in web.stderr
    assert "Traceback" not in web.stdout + web.stderr


def test_each_line_of_the_procfile_is_one_simple_command() -> None:
    """It is put behind `exec`: a list or a pipe would leave a shell between us and what we signal."""
    lines = [command[-1] for command in read_procfile().values()]

    assert sorted(read_procfile()) == ["release", "web", "worker"]
    assert [line for line in lines if re.search(r"[;&|<>`()]", line)] == []


LISTS = {"requirements-single.txt": [], "requirements.txt": ["apart"], "requirements-dev.txt": ["apart", "dev"]}


def locked_in(name: str) -> dict[str, SpecifierSet]:
    pins = re.findall(r"^(\S+==\S+)", (HERE / name).read_text(), re.MULTILINE)
    return {requirement.name: requirement.specifier for requirement in map(Requirement, pins)}


@pytest.mark.parametrize("name", LISTS)
def test_every_dependency_is_locked_within_its_bounds_and_without_an_address(name: str) -> None:
    project = tomllib.loads((HERE / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + [one for extra in LISTS[name] for one in project["optional-dependencies"][extra]]

    for requirement in map(Requirement, wanted):
        (pin,) = locked_in(name)[requirement.name]
        assert requirement.specifier.contains(Version(pin.version)), requirement
    assert re.search(r"://|file:|/home|/tmp", (HERE / name).read_text()) is None


def test_each_list_of_dependencies_holds_all_of_the_smaller_one() -> None:
    """So that ./run may find what ./test has installed, and adds to it only what is missing."""
    single, whole, dev = (locked_in(name) for name in LISTS)

    assert single.items() < whole.items() < dev.items()
    assert whole.keys() - single.keys() == {"asyncpg", "obstore"}
