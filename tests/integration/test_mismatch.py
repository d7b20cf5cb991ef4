"""Web and worker that do not see the same: whoever comes later does not run, says which two differ, and what to set.

`python -m bench.mismatch` has the same cases one after another, and tells how long each took to refuse.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launch.processes import HERE, free_port
from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Services
from tests.objects import ObjectServer, environment, new_prefix
from tests.postgresql import Postgresql

pytestmark = pytest.mark.processes

OTHER_BUCKET = "others"


@dataclass(frozen=True)
class Stranger:
    """A process whose settings differ from the service's: what of it does not match, and how it is to say so."""

    differs: str
    process: str
    env: Mapping[str, str]
    says: tuple[str, ...]


def another_storage(place: str) -> tuple[str, ...]:
    return ("the storage and the ledger do not match: this process sees another storage", place, "Set them to the same")


def another_ledger(place: str) -> tuple[str, ...]:
    return ("Redis and the ledger do not match", f"This one has {place}", "to the same value for web and worker")


class Places:
    """Storages and ledgers that are nobody's yet."""

    def __init__(self, folder: Path, postgresql: Postgresql, objects: ObjectServer) -> None:
        self._folder = folder
        self._postgresql = postgresql
        self._objects = objects
        self._urls: list[str] = []
        self.store = environment(objects.address)
        with closing(http.client.HTTPConnection("127.0.0.1", objects.port, timeout=30)) as connection:
            connection.request("PUT", f"/{OTHER_BUCKET}")
            assert connection.getresponse().status == 200

    def end(self) -> None:
        for url in self._urls:
            self._postgresql.drop(url)

    def folder(self, name: str) -> Path:
        (folder := self._folder / name).mkdir()
        return folder

    def sqlite(self, name: str) -> str:
        url = f"sqlite:///{self.folder(name) / 'ledger.sqlite3'}"
        migrate(Settings(database_url=url))
        return url

    def database(self) -> str:
        # No copy of the migrated one: a copy is the same ledger, by its name.
        self._urls.append(self._postgresql.database("template1"))
        migrate(Settings(database_url=self._urls[-1]))
        return self._urls[-1]

    def schema(self, url: str) -> str:
        """Return the address of another schema in the same database."""
        self._postgresql.execute("CREATE SCHEMA other", url)
        other = f"{url}?options=-csearch_path%3Dother"
        migrate(Settings(database_url=other))
        return other

    def strangers(self, service: Deployed) -> list[Stranger]:
        """Return those whose storage is another than the service's, then those whose ledger is."""
        bucket, prefix, folder = f"s3://{OTHER_BUCKET}", new_prefix(), str(self.folder("elsewhere"))
        found = [
            Stranger("another prefix", "web", {"ASGI_LOOK_STORAGE": prefix}, another_storage(prefix)),
            Stranger("another bucket", "worker", {"ASGI_LOOK_STORAGE": bucket}, another_storage(bucket)),
            Stranger(
                "the disk",
                "worker",
                {"ASGI_LOOK_STORAGE": "", "ASGI_LOOK_STORAGE_PATH": folder},
                another_storage(f"ASGI_LOOK_STORAGE_PATH={folder}"),
            ),
        ]
        if "ASGI_LOOK_STORAGE" not in service.env:
            found = [replaced for replaced in found if replaced.differs != "another bucket"]
        ledgers = {"another database": self.database(), "SQLite": self.sqlite("other ledger")}
        if (url := service.env["DATABASE_URL"]).startswith("postgresql"):
            ledgers["another schema"] = self.schema(url)
        for number, (differs, url) in enumerate(ledgers.items()):
            place = Settings.from_env({"DATABASE_URL": url}).ledger_place
            found.append(Stranger(differs, ("web", "worker")[number % 2], {"DATABASE_URL": url}, another_ledger(place)))
        return found


@pytest.fixture
def places(tmp_path: Path, postgresql: Postgresql, object_server: ObjectServer) -> Iterator[Places]:
    places = Places(tmp_path, postgresql, object_server)
    yield places
    places.end()


def deploy(services: Services, places: Places, kind: str) -> Deployed:
    """Return a service with its storage and its ledger of this kind."""
    where: dict[str, Any] = dict(places.store)
    if kind == "objects and PostgreSQL":
        where |= {"ASGI_LOOK_STORAGE": new_prefix(), "DATABASE_URL": places.database()}
    else:
        where |= {"DATABASE_URL": places.sqlite("ledger")}
    return services.deploy(**where)


def start(service: Deployed, stranger: Stranger) -> subprocess.Popen[bytes]:
    return service.start(service.commands[stranger.process], PORT=str(free_port()), **stranger.env)


def what_it_said(service: Deployed, stranger: Stranger) -> str:
    """Return the one line in which this stranger said why it does not run; they are told apart by their places."""
    return next((line for line in service.output.splitlines() if all(word in line for word in stranger.says)), "")


@pytest.mark.one_machine("it chooses storage and ledger by itself")
@pytest.mark.parametrize("kind", ["disk and SQLite", "objects and PostgreSQL"])
def test_whoever_sees_another_storage_or_ledger_does_not_run_and_says_what_to_set(
    services: Services, places: Places, kind: str
) -> None:
    service = deploy(services, places, kind)
    strangers = places.strangers(service)

    processes = [start(service, stranger) for stranger in strangers]

    codes = {stranger.differs: process.wait(60) for stranger, process in zip(strangers, processes, strict=True)}
    assert codes == {stranger.differs: 3 if stranger.process == "web" else 1 for stranger in strangers}
    assert [stranger.differs for stranger in strangers if not what_it_said(service, stranger)] == [], service.output
    assert service.upload(small_picture(), wait=20).status == 201
    assert "Traceback" not in service.output


def test_two_that_start_at_once_with_a_ledger_each_do_not_both_run(services: Services, places: Places) -> None:
    """Nothing is there yet that either could be measured by: the first to stand in Redis stays."""
    service = services.deploy(webs=0, workers=0, DATABASE_URL=places.sqlite("one"))
    web = service.start_web()
    worker = service.start_worker(DATABASE_URL=places.sqlite("two"))

    service.until(lambda: None not in (web.poll(), worker.poll()) or (web.poll(), worker.poll()) != (None, None))

    service.until(lambda: "Redis and the ledger do not match" in service.output, what="the reason")
    assert [web.poll(), worker.poll()].count(None) == 1


def on_heroku(env: Mapping[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=HERE,
        env={"PATH": str(Path(sys.executable).parent), "DYNO": "web.1", **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["shared.migrations"], 1),
        (["worker"], 1),
        (["worker", "--check"], 2),
        (["worker.doctor"], 2),
        (["uvicorn", "api.asgi:application"], 3),
    ],
)
def test_on_heroku_every_command_refuses_the_disk_in_one_line_and_leaves_nothing(
    tmp_path: Path, command: list[str], code: int
) -> None:
    """The release step before all others: what it refuses, Heroku does not deploy."""
    folder = tmp_path / "data"

    done = on_heroku({"ASGI_LOOK_STORAGE_PATH": str(folder)}, *command)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (code, "", 1), done
    assert done.stderr.startswith("asgilook: ")
    assert "ASGI_LOOK_STORAGE and DATABASE_URL: DYNO is set" in done.stderr
    assert not folder.exists()


def test_on_heroku_the_disk_is_taken_when_it_is_asked_for_on_purpose(tmp_path: Path) -> None:
    env = {"ASGI_LOOK_STORAGE_PATH": str(tmp_path / "data"), "ASGI_LOOK_ALLOW_LOCAL": "1"}

    assert on_heroku(env, "shared.migrations").returncode == 0
    assert (tmp_path / "data" / "ledger.sqlite3").exists()
