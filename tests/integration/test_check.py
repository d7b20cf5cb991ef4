"""What the service says of itself: health by part, workers alive, and logs that tell all but what is private."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from PIL import PngImagePlugin

from launch.processes import HERE
from tests.integration.evidence import lines_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Services
from tests.worker.pictures import encoded, photo

pytestmark = pytest.mark.processes

TOKEN = "s3cret-t0ken"


def check(service: Deployed) -> subprocess.CompletedProcess[str]:
    """Run `python -m worker --check` beside the service."""
    return subprocess.run(
        [sys.executable, "-m", "worker", "--check"],
        cwd=HERE,
        env=service.env,
        capture_output=True,
        text=True,
        timeout=60,
    )


def health_of(service: Deployed) -> tuple[int, dict[str, object]]:
    """Return the status of /readyz, and what is not good."""
    answer = service.get("/readyz")
    return answer.status, {name: state for name, state in answer.json.items() if state not in ("ok", [])}


def test_a_worker_is_alive_until_it_is_gone(services: Services) -> None:
    service = services.deploy()

    alive = check(service)

    assert alive.returncode == 0
    assert f":{service.workers[0].pid}" in alive.stdout
    service.workers[0].kill()
    service.until(lambda: health_of(service) == (200, {"status": "degraded", "workers": "none"}))
    dead = check(service)
    assert (dead.returncode, dead.stderr) == (1, "")


def test_a_worker_that_ends_in_peace_is_gone_at_once(services: Services) -> None:
    service = services.deploy()
    service.workers[0].terminate()
    service.workers[0].wait(20)

    assert check(service).returncode == 1
    service.until(lambda: health_of(service) == (200, {"status": "degraded", "workers": "none"}))


def test_without_redis_the_service_is_degraded_and_the_check_says_that_it_cannot_tell(services: Services) -> None:
    service = services.deploy()
    service.valkey.kill()
    service.valkey.wait()

    checked = check(service)

    assert health_of(service) == (
        200,
        {"status": "degraded", "redis": "away", "workers": "unknown"}
        # Where the cache has a server of its own, that is still there.
        | ({"cache": "away"} if service.cache_valkey is None else {}),
    )
    assert checked.returncode == 2
    assert checked.stderr.count("\n") == 1
    assert checked.stderr.startswith("asgilook: ")
    service.start_valkey()
    service.until(lambda: health_of(service) == (200, {}))


@pytest.mark.one_machine("it takes a table from SQLite and a folder from the disk that all share")
def test_without_ledger_or_storage_the_service_is_unavailable(services: Services) -> None:
    service = services.deploy()
    with closing(sqlite3.connect(service.data / "ledger.sqlite3", timeout=10)) as ledger:
        ledger.execute("ALTER TABLE deployment RENAME TO elsewhere")
        no_ledger = health_of(service)
        ledger.execute("ALTER TABLE elsewhere RENAME TO deployment")
    drafts = service.data / "drafts"
    drafts.rename(service.data / "elsewhere")
    no_storage = health_of(service)
    upload = service.upload(small_picture())
    (service.data / "elsewhere").rename(drafts)

    assert (no_ledger[0], no_ledger[1]["status"], no_ledger[1]["ledger"]) == (503, "unavailable", "away")
    assert (no_storage[0], no_storage[1]["status"], no_storage[1]["storage"]) == (503, "unavailable", "away")
    assert ("storage" in no_ledger[1], "ledger" in no_storage[1]) == (False, False)
    assert (upload.status, upload.headers["retry-after"]) == (503, "5")
    service.until(lambda: health_of(service) == (200, {}))
    assert service.upload(small_picture(), wait=20).status == 201


def test_a_requests_id_follows_its_image_into_every_room(service: Deployed) -> None:
    headers = {"X-Request-ID": "from-the-client.1", "Prefer": "wait=20"}

    image_id = service.request("POST", "/images", small_picture(), headers).json["id"]

    rooms = {("api.server.access_log", "answered"), ("worker.child", "rendered"), ("worker.attempts", "published")}

    def told() -> set[tuple[str, str]]:
        lines = lines_of(service, request="from-the-client.1", image=image_id)
        return {(line["logger"], line["message"]) for line in lines}

    # The web process writes its line when the answer has gone.
    service.until(lambda: rooms <= told(), what="a line of every room")


def test_logs_are_json_and_hold_neither_tokens_nor_content(services: Services) -> None:
    service = services.deploy(ASGI_LOOK_WRITE_TOKEN=TOKEN, ASGI_LOOK_LOG_LEVEL="DEBUG")
    words = ["content-of-the-upload", "name-of-the-file", "value-in-the-query", "wrong-t0ken", TOKEN]
    comment = PngImagePlugin.PngInfo()
    comment.add_text("Comment", words[0])
    picture = encoded(photo((200, 200)), "PNG", pnginfo=comment).getvalue()
    form = (
        b'--edge\r\nContent-Disposition: form-data; name="file"; filename="name-of-the-file.png"\r\n\r\n'
        + picture
        + b"\r\n--edge--\r\n"
    )
    bearer = {"Authorization": f"Bearer {TOKEN}", "Prefer": "wait=20"}
    as_form = {"Content-Type": "multipart/form-data; boundary=edge"}

    statuses = [
        service.request("POST", "/images", picture, bearer).status,
        service.request("POST", "/images", form, bearer | as_form).status,
        service.request("POST", "/images", picture[:3000], bearer).status,
        service.request("POST", "/images", words[0].encode() * 100, bearer).status,
        service.request("POST", "/images", picture, {"Authorization": "Bearer wrong-t0ken"}).status,
        service.get("/images?limit=value-in-the-query").status,
    ]

    assert statuses == [201, 201, 422, 415, 401, 400]
    service.stop()
    for line in service.output.splitlines():
        assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
    assert [word for word in words if word in service.output] == []
    assert lines_of(service, logger="worker.child", message="not rendered")
