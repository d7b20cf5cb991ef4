"""Redis gone, or there and of no use: uploads are accepted and converted, pictures served."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import redis

from launch.valkey import is_valkey_up, valkey_command
from tests.crash.absence import live_without_redis
from tests.crash.journal import keep_journal, losses_in
from tests.crash.retrying import Clients, ids_in_list
from tests.integration.evidence import is_at_rest, lines_of, rows_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Services, children_of, ended

pytestmark = pytest.mark.processes


@pytest.mark.parametrize("emptied", [False, True], ids=["with its file", "emptied"])
def test_what_is_uploaded_while_redis_is_gone_is_converted_meanwhile_and_once(
    services: Services, emptied: bool
) -> None:
    service = services.deploy(webs=2, workers=2)
    keep_journal(service)
    before = [str(service.upload(small_picture(), wait=20).json["id"]) for _ in range(3)]
    started = {worker.pid: children_of(worker.pid) for worker in service.workers}

    def is_over(clients: Clients) -> bool:
        """Whether enough is ready while Redis is away, and both workers have had their part in it."""
        ready = {image_id for image_id, row in rows_of(service).items() if row["status"] == "ready"}
        without_redis = [image_id for image_id in clients.acknowledged if image_id in ready]
        rendering = {
            line["pid"] for line in lines_of(service, message="rendered") if line.get("image") in without_redis
        }
        return len(without_redis) >= 40 and all(rendering & set(pids) for pids in started.values())

    absence = live_without_redis(service, is_over, emptied=emptied)

    print(absence)
    clients = absence.clients
    assert (clients.surprises, dict(clients.retries)) == ([], {})
    # Of a client that waits for its picture only a 201 comes.
    assert clients.told_to_wait == {"5": clients.answers["POST 202"], "": clients.answers["POST 201"]}
    assert sorted(ids_in_list(service)) == sorted([*before, *clients.acknowledged])
    assert {worker.pid: children_of(worker.pid) for worker in service.workers} == started
    assert losses_in(service) == []
    service.until(lambda: all(map(is_at_rest, rows_of(service).values())), what="settling")
    # Whatever Redis still had in its queue, or was told again, nothing was rendered twice.
    assert {row["attempt"] for row in rows_of(service).values()} == {1}
    service.until(service.is_ready, what="every part's health")
    assert "Traceback" not in service.output


def test_who_is_started_while_redis_is_gone_works_without_it(services: Services) -> None:
    service = services.deploy()
    ready = service.upload(small_picture(), wait=20).json
    service.valkey.kill()
    service.valkey.wait()
    for process in (*service.webs, *service.workers):
        process.terminate()
        assert process.wait(30) in (0, -signal.SIGTERM)
    started = [service.start_web_again(0), service.start_worker_again(0)]
    # It says so before it listens.
    service.until(lambda: service.output.count("Uvicorn running on") == 2, what="the web process's start")
    service.until(lambda: len(lines_of(service, message="the worker is ready")) == 2, what="the worker's start")

    answers = [service.upload(small_picture()) for _ in range(5)]

    assert [answer.status for answer in answers] == [202] * 5
    assert service.get(ready["image"]).status == 200
    until_converted(service, [answer.json["id"] for answer in answers])
    service.start_valkey()
    service.until(service.is_ready, what="every part's health")
    assert [process.poll() for process in started] == [None, None]


# --- There, but of no use ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """A service whose Redis each test troubles and then leaves as it was."""
    with ended(tmp_path_factory.mktemp("troubled")) as services:
        service = services.deploy()
        keep_journal(service)
        yield service


def client_of(service: Deployed, password: str | None = None) -> redis.Redis:
    return redis.Redis(port=service.valkey_port, socket_timeout=20, password=password)


@contextmanager
def full(service: Deployed) -> Iterator[None]:
    with client_of(service) as client:
        client.config_set("maxmemory", "1")
        yield
        client.config_set("maxmemory", "256mb")


@contextmanager
def unable_to_save(service: Deployed) -> Iterator[None]:
    """MISCONF: a snapshot could not be written, here for want of a place: a folder is in its way."""
    obstacle = service.data / "valkey" / "dump.rdb"
    (obstacle / "full").mkdir(parents=True)
    with client_of(service) as client:
        client.config_set("save", "3600 1000000")
        client.bgsave()
        service.until(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", what="its failure")
        yield
        client.config_set("save", "")
        (obstacle / "full").rmdir()
        obstacle.rmdir()


@contextmanager
def short_of_replicas(service: Deployed) -> Iterator[None]:
    with client_of(service) as client:
        client.config_set("min-replicas-to-write", "1")
        yield
        client.config_set("min-replicas-to-write", "0")


@contextmanager
def read_only(service: Deployed) -> Iterator[None]:
    """As after a failover, at the address of what is a replica now."""
    with client_of(service) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        yield
        client.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def behind_a_password(service: Deployed) -> Iterator[None]:
    with client_of(service) as client:
        client.config_set("requirepass", "secret")
    with client_of(service, password="secret") as client:
        # Who was there before the password may stay: they are shown the door.
        client.execute_command("CLIENT", "KILL", "SKIPME", "yes")
        yield
        client.config_set("requirepass", "")


@contextmanager
def paused(service: Deployed) -> Iterator[None]:
    with client_of(service) as client:
        client.execute_command("CLIENT", "PAUSE", "6000", "ALL")
    yield


@contextmanager
def loading(service: Deployed) -> Iterator[None]:
    """It has been started again, and reads a file that takes it seconds: 2,000 keys, each 3 ms."""
    with client_of(service) as client:
        for number in range(2000):
            client.set(f"large:{number}", bytes(1000))
        client.bgrewriteaof()
        service.until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="its file")
    service.valkey.kill()
    service.valkey.wait()
    slowly = ["--key-load-delay", "3000", "--loading-process-events-interval-bytes", "1024"]
    service.valkey = service.start([*valkey_command(service.data / "valkey", service.valkey_port), *slowly])
    with client_of(service) as client:
        service.until(lambda: answer_of(client) == redis.BusyLoadingError, what="its loading")
        yield
        service.until(lambda: is_valkey_up(service.valkey_port, service.valkey.pid), what="its loading's end")
        client.flushall()


def answer_of(client: redis.Redis) -> type[Exception] | None:
    """Return what a client gets that wants to write."""
    try:
        client.set("asked", "1")
    except redis.RedisError as exc:
        return type(exc)
    return None


Trouble = Callable[[Deployed], AbstractContextManager[None]]
TROUBLES = [full, unable_to_save, short_of_replicas, read_only, behind_a_password, paused, loading]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_what_is_uploaded_while_redis_is_of_no_use_is_converted_afterwards(service: Deployed, trouble: Trouble) -> None:
    service.until(service.is_ready, what="every part's health")
    record = service.upload(small_picture(), wait=20).json
    paths = ["/images", f"/images/{record['id']}", record["image"], *record["thumbnails"]]
    started = [*service.webs, *service.workers]

    with trouble(service):
        answers = [service.upload(small_picture()) for _ in range(5)]
        reads = [service.get(path).status for path in paths]
        health = service.get("/readyz")

    assert [(answer.status, answer.headers["retry-after"]) for answer in answers] == [(202, "5")] * 5
    assert reads == [200] * len(paths)
    assert health.status == 200
    until_converted(service, [answer.json["id"] for answer in answers])
    service.until(service.is_ready, what="every part's health")
    assert [process.poll() for process in started] == [None, None]
    assert losses_in(service) == []
    assert "Traceback" not in service.output


def until_converted(service: Deployed, image_ids: list[str]) -> None:
    def are_converted() -> bool:
        rows = rows_of(service)
        return all(rows[image_id]["status"] == "ready" for image_id in image_ids)

    service.until(are_converted, seconds=60, what="every conversion")
    listed = ids_in_list(service)
    assert sorted(set(listed)) == sorted(listed)
    assert set(image_ids) <= set(listed)
