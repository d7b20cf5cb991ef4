"""Processes of release 0.1 beside a migrated ledger, by 0.1's own code: they are refused, and harm nothing."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from shared.settings import Settings
from tests.databases import database
from tests.postgresql import Postgresql
from tests.releases.ledger_0_1 import Row, dump, read
from tests.releases.make_0_1 import COMMIT, Release, children_of, frozen_children, picture, until

__all__ = ["database"]

pytestmark = pytest.mark.processes

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def code_of_0_1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of release 0.1's commit."""
    archive = subprocess.run(["git", "archive", COMMIT], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode != 0:
        reason = f"the commit of release 0.1 is not in this clone: {archive.stderr.decode().strip()}"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("code-0.1")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


@dataclass
class Deployed:
    """Release 0.1 in processes, and the settings that name its data."""

    release: Release
    settings: Settings
    folder: Path

    def migrate(self) -> None:
        """Migrate its ledger with today's code."""
        url = self.settings.database_url if self.settings.is_on_postgresql else ""
        env = {**os.environ, "ASGI_LOOK_STORAGE_PATH": str(self.release.data), "DATABASE_URL": url}
        subprocess.run([sys.executable, "-m", "shared.migrations"], cwd=ROOT, env=env, timeout=60, check=True)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def statuses(self) -> dict[str, str]:
        return {row["id"]: row["status"] for row in read(self.settings, "SELECT id, status FROM images")}

    def until_status(self, image_id: str, status: str) -> None:
        until(lambda: self.statuses().get(image_id) == status, f"{status} of {image_id}")

    def files(self) -> dict[str, bytes]:
        """Return the content of each original and each rendition by its path."""
        kinds = (self.release.data / kind for kind in ("originals", "renditions"))
        found = [path for kind in kinds for path in kind.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.release.data)): path.read_bytes() for path in found}

    def rows(self) -> dict[str, list[Row]]:
        return dict(dump(self.settings))


@pytest.fixture
def deployed(code_of_0_1: Path, database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Deployed]:
    """Release 0.1 with a ledger and a Valkey, and without other processes yet."""
    env, settings = {}, Settings(storage_path=tmp_path / "data")
    if database == "postgresql":
        server: Postgresql = request.getfixturevalue("postgresql")
        env["DATABASE_URL"] = server.database(template="template0")
        settings = Settings(storage_path=tmp_path / "data", database_url=env["DATABASE_URL"])
    release = Release(code_of_0_1, tmp_path, **env)
    try:
        release.migrate()
        release.start_valkey()
        yield Deployed(release, settings, tmp_path)
    finally:
        release.close()


def test_processes_that_start_beside_a_migrated_ledger_are_refused(deployed: Deployed) -> None:
    release = deployed.release
    web, worker = release.start_web(), release.start_worker("worker")
    image_id = release.upload(picture(0))
    deployed.until_status(image_id, "ready")
    release.stop(worker)
    release.stop(web)
    deployed.migrate()
    before = deployed.rows(), deployed.files()

    ends = {name: release.end_of(name) for name in ("web", "worker", "release")}
    doctor = release.end_of("doctor", [sys.executable, "-m", "worker.doctor", "--mend"])

    assert all(code != 0 for code in ends.values()), ends
    assert doctor != 0
    missing = re.compile(r"no such table: ledger|ledger\W+does not exist")
    assert missing.search(deployed.log("web"))
    assert missing.search(deployed.log("worker"))
    assert "Can't locate revision identified by '0004'" in deployed.log("release")
    assert (deployed.rows(), deployed.files()) == before


def test_processes_that_run_during_the_migration_get_errors_and_lose_nothing(deployed: Deployed) -> None:
    release = deployed.release
    release.start_web()
    worker = release.start_worker("worker")
    ready = [release.upload(picture(number)) for number in range(3)]
    for image_id in ready:
        deployed.until_status(image_id, "ready")
    # The worker holds one image, and stands still until its lease is over: the migration waits for that.
    with frozen_children(worker):
        held = release.upload(picture(3))
        deployed.until_status(held, "processing")
        os.kill(worker.pid, signal.SIGSTOP)
        queued = release.upload(picture(4))
        files = deployed.files()
        deployed.migrate()
        rows = deployed.rows()
        os.kill(worker.pid, signal.SIGCONT)

    answers = {
        "upload": release.request("POST", "/images", picture(5), **{"Content-Type": "application/octet-stream"})[0],
        "record": release.request("GET", f"/images/{queued}")[0],
        "list": release.request("GET", "/images")[0],
        "deletion": release.request("DELETE", f"/images/{ready[0]}")[0],
        "retry": release.request("POST", f"/images/{ready[1]}/retry")[0],
        "thumbnail": release.request("GET", f"/thumbnails/{ready[2]}/7x7.jpeg")[0],
    }
    failed = "a pass of the sweep was cut short"
    until(lambda: deployed.log("worker").count(failed) >= 2, "two passes of the sweep")
    children = children_of(worker.pid)
    release.stop(worker)

    assert answers == dict.fromkeys(answers, 503)
    assert children
    assert deployed.rows() == rows
    assert deployed.statuses() == {**dict.fromkeys(ready, "ready"), held: "queued", queued: "queued"}
    # The worker may have written what it rendered. Nobody acknowledged the sixth upload.
    after = deployed.files()
    assert {path: after.get(path) for path in files} == files
    assert all(path.startswith(f"renditions/{held[:5]}/") and held in path for path in after.keys() - files.keys())
