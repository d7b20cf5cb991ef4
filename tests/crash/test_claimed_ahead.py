"""A worker that ends while one image is stored, and the next is claimed and rendered already: both go on."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.crash.arming import Ambush, Arm
from tests.integration.evidence import lines_of, row_of
from tests.integration.service import Deployed, Services, is_apart
from tests.worker.pictures import encoded, photo

pytestmark = pytest.mark.processes

#: The first image is rendered, and never stored.
STORING = Arm(
    "shared.storage.objects:ObjectStorage.keep" if is_apart() else "shared.storage.disk:DiskStorage.keep",
    "before",
    "hold",
)


@pytest.fixture
def service(services: Services) -> Deployed:
    """A service without a worker, which had one when it began."""
    service = services.deploy()
    service.workers[0].terminate()
    assert service.workers[0].wait(30) == 0
    return service


def start(service: Deployed, folder: Path, *arms: Arm) -> tuple[subprocess.Popen[bytes], list[str]]:
    """Start a worker of one slot on three images; return it with them, when it has claimed two and stores one."""
    picture = encoded(photo((320, 180)), "PNG").getvalue()
    image_ids = [str(service.upload(picture).json["id"]) for _ in range(3)]
    worker = service.start_worker(
        ASGI_LOOK_RENDER_SLOTS="1", ASGI_LOOK_GRACE_SECONDS="0", **Ambush(folder, STORING, *arms).env
    )
    service.until(lambda: statuses(service, image_ids) == ["processing", "processing", "queued"], what="two claims")
    return worker, image_ids


def statuses(service: Deployed, image_ids: list[str]) -> list[str]:
    return [row_of(service, image_id)["status"] for image_id in image_ids]


def until_all_are_ready(service: Deployed, image_ids: list[str]) -> None:
    service.start_worker()
    service.until(lambda: statuses(service, image_ids) == ["ready"] * 3, seconds=60, what="readiness")


def test_a_killed_worker_loses_neither(service: Deployed, tmp_path: Path) -> None:
    worker, image_ids = start(service, tmp_path, Arm("worker.jobs:Jobs._open", "after", "kill", call=2))
    assert worker.wait(30) == -signal.SIGKILL

    until_all_are_ready(service, image_ids)

    assert [row_of(service, image_id)["published"] for image_id in image_ids] == [2, 2, 1]
    assert [len(lines_of(service, message="a lease was over", image=image_id)) for image_id in image_ids] == [1, 1, 0]


def test_a_worker_told_to_stop_hands_both_back(service: Deployed, tmp_path: Path) -> None:
    worker, image_ids = start(service, tmp_path)

    worker.terminate()

    assert worker.wait(30) == 0
    assert statuses(service, image_ids) == ["queued"] * 3
    assert [len(lines_of(service, message="handed back", image=image_id)) for image_id in image_ids] == [1, 1, 0]
    until_all_are_ready(service, image_ids)
    assert lines_of(service, message="a lease was over") == []
