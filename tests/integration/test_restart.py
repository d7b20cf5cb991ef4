"""Stopping and starting again, in peace and with a bang: what was acknowledged is there, and what was begun is done."""

from __future__ import annotations

import os
import signal
from contextlib import closing

import pytest

from tests.integration.evidence import comparable, files_of, row_of
from tests.integration.faults import RawClient, begin_render, small_picture
from tests.integration.service import Services, command_of, descendants_of
from tests.worker.pictures import encoded, photo

pytestmark = [
    pytest.mark.processes,
    pytest.mark.one_machine("./run starts everything on the machine it is on"),
]


def test_a_restart_finds_and_serves_all_images(services: Services) -> None:
    first = services.launch()
    pictures = [
        encoded(photo(size), format).getvalue() for size in ((640, 360), (801, 600)) for format in ("PNG", "JPEG")
    ]
    records = [first.upload(picture, wait=20).json for picture in pictures]
    paths = ["/images", "/images?limit=1&order=desc"]
    paths += [
        path for record in records for path in (f"/images/{record['id']}", record["image"], *record["thumbnails"])
    ]
    before = [comparable(first.get(path)) for path in paths]
    assert first.interrupt() == 0

    second = services.launch(data=first.data)

    assert [comparable(second.get(path)) for path in paths] == before
    assert {status for status, _, _ in before} == {200}
    assert second.upload(pictures[0], wait=20).json["sequence"] == len(pictures) + 1


def test_ctrl_c_in_the_middle_of_a_render_and_of_an_upload_ends_everything_in_ten_seconds(services: Services) -> None:
    """The render is held up past every grace by freezing its child, the upload by a client that dawdles."""
    service = services.launch(ASGI_LOOK_RENDER_SLOTS="1")
    (worker,) = service.parts("-m worker")
    (child,) = (pid for pid in descendants_of(worker) if "worker.child" in command_of(pid))
    os.kill(child, signal.SIGSTOP)
    image_id = begin_render(service, small_picture())
    with closing(RawClient(service.ports[0]).socket) as dawdler:
        dawdler.sendall(
            b"POST /images HTTP/1.1\r\nHost: test\r\nContent-Length: 100000\r\n\r\n" + small_picture()[:70000]
        )
        service.until(lambda: any(path.startswith("drafts") for path in files_of(service)), what="a draft")
        started = descendants_of(service.launcher.pid)

        code = service.interrupt(seconds=10)

    assert code == 0
    assert [command_of(pid) for pid in started if command_of(pid)] == []
    assert "Traceback" not in service.output
    assert [path for path in files_of(service) if path.startswith("drafts")] == []
    assert (row_of(service, image_id)["status"], row_of(service, image_id)["losses"]) == ("queued", 0)
    again = services.launch(data=service.data)
    record = again.get(f"/images/{image_id}", {"Prefer": "wait=20"}).json
    assert record["status"] == "ready"
    assert again.get(record["image"]).status == 200


def test_what_a_killed_launcher_interrupted_is_done_after_the_next_start(services: Services) -> None:
    service = services.launch()
    image_id = begin_render(service)

    service.launcher.kill()
    service.launcher.wait()

    service.until(lambda: services.processes() == [], seconds=10, what="every process's end")
    assert row_of(service, image_id)["status"] == "processing"
    again = services.launch(data=service.data)
    again.until(lambda: row_of(again, image_id)["status"] == "ready", seconds=60, what="readiness")
    assert [image["id"] for image in again.get("/images").json] == [image_id]
