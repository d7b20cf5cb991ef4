"""Redis is expendable: emptied, killed or frozen, it loses no image and no status, and nobody reads what is stale."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
import redis

from tests.integration.evidence import row_of, rows_of
from tests.integration.faults import freeze, frozen, frozen_worker, small_picture, thaw
from tests.integration.service import Deployed, Services

pytestmark = pytest.mark.processes


def client_of(service: Deployed) -> redis.Redis:
    return redis.Redis(port=service.valkey_port, socket_timeout=10)


def until_all_ready(service: Deployed, image_ids: list[str]) -> None:
    def are_ready() -> bool:
        rows = rows_of(service)
        return all(rows[image_id]["status"] == "ready" for image_id in image_ids)

    service.until(are_ready, seconds=60, what="every image's readiness")
    assert {image["id"] for image in service.get("/images").json} == set(image_ids)


def empty(client: redis.Redis) -> None:
    client.flushall()


def delete_queue(client: redis.Redis) -> None:
    (queue,) = client.scan_iter("arq:queue2:*")
    assert client.delete(queue) == 1


@pytest.mark.parametrize("lose", [empty, delete_queue])
def test_wakes_that_redis_loses_are_found_in_the_ledger(
    services: Services, lose: Callable[[redis.Redis], None]
) -> None:
    """The worker is frozen, so that there is something to lose."""
    service = services.deploy()
    with closing(client_of(service)) as client, frozen_worker(service):
        image_ids = [str(service.upload(small_picture()).json["id"]) for _ in range(5)]
        lose(client)

    until_all_ready(service, image_ids)
    assert [row["losses"] for row in rows_of(service).values()] == [0] * 5


def test_every_acknowledged_image_survives_flushall_while_uploads_run(services: Services) -> None:
    service = services.deploy()

    def upload(_: int) -> str:
        answer = service.upload(small_picture())
        assert answer.status == 202
        return str(answer.json["id"])

    with closing(client_of(service)) as client, ThreadPoolExecutor(4) as pool:
        uploads = [pool.submit(upload, number) for number in range(40)]
        while not all(done.done() for done in uploads):
            client.flushall()
        image_ids = [done.result() for done in uploads]

    until_all_ready(service, image_ids)


def assert_requests_are_answered(service: Deployed, ready: str) -> str:
    """Assert that each kind of request is answered as ever but an upload's; return what that became."""
    upload = service.upload(small_picture())
    assert (upload.status, upload.headers["retry-after"]) == (202, "5")
    image_id = str(upload.json["id"])
    paths = ["/images", f"/images/{ready}", f"/images/{ready}.jpeg", f"/thumbnails/{ready}/320x180.jpeg"]
    answers = [service.get(path) for path in [*paths, f"/images/{image_id}"]]
    assert [answer.status for answer in answers] == [200] * 5
    health = service.get("/readyz")
    assert (health.status, health.json["status"], health.json["redis"]) == (200, "degraded", "away")
    return image_id


def test_a_redis_that_dies_and_comes_back_empty_loses_nothing(services: Services) -> None:
    service = services.deploy()
    ready = str(service.upload(small_picture(), wait=20).json["id"])
    with frozen_worker(service):
        lost = str(service.upload(small_picture()).json["id"])
        service.valkey.kill()
        service.valkey.wait()
    shutil.rmtree(service.data / "valkey")

    unsent = assert_requests_are_answered(service, ready)

    service.start_valkey()
    until_all_ready(service, [ready, lost, unsent])
    service.until(service.is_ready, what="every part's health")


def test_a_frozen_redis_holds_nobody_up_and_loses_nothing(services: Services) -> None:
    service = services.deploy()
    ready = str(service.upload(small_picture(), wait=20).json["id"])
    freeze(service.valkey)

    # Longer than the worker waits for one exchange.
    image_ids = [assert_requests_are_answered(service, ready)]
    service.until(lambda: row_of(service, image_ids[0])["status"] == "ready", what="work that is taken without it")
    image_ids += [assert_requests_are_answered(service, ready) for _ in range(5)]

    thaw(service.valkey)
    until_all_ready(service, [ready, *image_ids])
    service.until(service.is_ready, what="every part's health")


def test_no_copy_outlives_what_was_deleted_while_redis_was_away(services: Services) -> None:
    """One web process commits the DELETE and cannot tell Redis; the other does not even know that it was away.

    The contract allows stale answers for two seconds after its return: hence the first wait.
    """
    service = services.deploy(webs=2)
    record = service.upload(small_picture(), wait=20).json
    paths = [f"/images/{record['id']}", record["image"], *record["thumbnails"]]
    for path in [*paths, "/images"]:
        service.until(lambda path=path: service.get(path, web=1).headers["x-asgilook-cache"] == "Hit")  # type: ignore[misc] # a default is no argument
    with frozen_worker(service):
        # Nor does the worker's sweep help: who has committed makes it good before it trusts Redis again.
        with ExitStack() as stack:
            for valkey in service.valkeys:
                stack.enter_context(frozen(valkey))
            # From here on it is left alone: what was sent to it, it would do when it wakes.
            service.get(paths[0])
            deletion = service.request("DELETE", f"/images/{record['id']}")
            at_once = [service.get(path).status for path in paths]

        assert deletion.status == 204
        assert at_once == [404] * 4
        both = (0, 1)
        service.until(lambda: all(service.get(path, web=web).status == 404 for path in paths for web in both))
        service.until(lambda: all(service.get("/images", web=web).json == [] for web in both))
        for _ in range(10):
            assert [service.get(path, web=web).status for path in paths for web in both] == [404] * 8
            assert [service.get("/images", web=web).json for web in both] == [[], []]
