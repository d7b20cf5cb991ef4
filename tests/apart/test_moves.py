"""Machines that vanish in the middle of work: who was on them goes on elsewhere, and nothing is lost or missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.apart.failovers import move_everybody, upload_through
from tests.apart.machines import have_networks
from tests.integration.evidence import files_of
from tests.integration.faults import begin_render, small_picture, worker_of
from tests.integration.service import Services

pytestmark = pytest.mark.processes


def test_machines_share_nothing_but_the_network(services: Services) -> None:
    """Otherwise everything here would prove little."""
    service = services.deploy(workers=2)
    service.upload(small_picture(), wait=20)
    processes = [*service.webs, *service.workers]

    if not have_networks():
        pytest.skip("network namespaces cannot be made here: machines are but folders of their own")
    kinds = {kind: {os.readlink(f"/proc/{p.pid}/ns/{kind}") for p in processes} for kind in ("net", "mnt")}
    disks = [os.stat(f"/proc/{process.pid}/root{service.data}") for process in processes]

    assert {kind: len(found) for kind, found in kinds.items()} == {"net": 3, "mnt": 3}
    ours = {os.readlink(f"/proc/self/ns/{kind}") for kind in kinds}
    assert not ours & set().union(*kinds.values())
    assert len({disk.st_ino for disk in disks} | {service.data.stat().st_ino}) == 4
    assert all(Path(f"/proc/{process.pid}/root{service.data}/drafts").is_dir() for process in processes)
    assert not (service.data / "drafts").exists()
    assert not (service.data / "ledger.sqlite3").exists()


def test_whoever_is_killed_goes_on_elsewhere_with_an_empty_disk(services: Services) -> None:
    """Web process and workers, one after another; an upload under way has an unknown end, and is sent again."""
    service = services.deploy(workers=2)

    outcome = upload_through(service, move_everybody, uploads=12, seconds=0)

    outcome.assert_nothing_is_missing()
    # One of each client, at the most, whose web process was killed between the put and the answer.
    assert len(outcome.untold_originals) <= 4
    assert set(outcome.untold_rows) <= set(outcome.untold_originals)


def test_all_three_killed_at_once_in_the_middle_of_work_lose_nothing(services: Services) -> None:
    service = services.deploy(workers=2)
    before = [str(service.upload(small_picture(), wait=20).json["id"]) for _ in range(2)]
    pictures = {image_id: service.get(f"/images/{image_id}.jpeg").body for image_id in before}
    rendered = begin_render(service)
    assert worker_of(service, rendered) in service.workers
    queued = [str(service.upload(small_picture()).json["id"]) for _ in range(4)]

    for process in (*service.webs, *service.workers):
        process.kill()
    for process in (*service.webs, *service.workers):
        process.wait()
    service.start_web_again(0)
    service.start_worker_again(0)
    service.start_worker_again(1)
    service.until(service.is_ready, 60, "readiness")

    for image_id in (*before, rendered, *queued):
        service.until(lambda: service.get(f"/images/{image_id}").json["status"] == "ready", 60, "readiness")  # noqa: B023
        assert service.get(f"/images/{image_id}.jpeg").status == 200
    assert {image_id: service.get(f"/images/{image_id}.jpeg").body for image_id in before} == pictures
    assert {path.rpartition("/")[2] for path in files_of(service) if path.startswith("originals")} == {
        *before,
        rendered,
        *queued,
    }
