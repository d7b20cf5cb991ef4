"""A Redis as it is sold: TLS that nobody vouches for, a user who may do little, few connections, and a failover."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import redis

from tests.doors import Doors
from tests.integration.evidence import rows_of
from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Response, Services
from tests.valkey import StartValkey, Valkey

pytestmark = [pytest.mark.processes, pytest.mark.one_machine("it brings Redis, and a disk that all share")]

#: A user as docs/redis.md makes one; without INFO, which some sellers keep to themselves.
RULES = "on >p@ss/secret resetkeys ~arq:* ~asgilook:* resetchannels &asgilook:* +@all -@admin -@dangerous"
CREDENTIALS = "pictures:p%40ss%2Fsecret"
#: Listener or queue, and two for everything else.
MOST = 3


def sold(start_valkey: StartValkey, **options: str) -> Valkey:
    """Return a Redis that lets nobody in but the one user; its tests look at it as another."""
    valkey = start_valkey(**options)
    with closing(redis.Redis(port=valkey.port)) as client:
        for user in (f"pictures {RULES}", "tests on >look ~* &* +@all", "default off"):
            client.execute_command("ACL", "SETUSER", *user.split())  # type: ignore[no-untyped-call] # redis-py
    return valkey


def client_of(valkey: Valkey) -> redis.Redis:
    return redis.Redis(port=valkey.port, username="tests", password="look")


def assert_nothing_was_denied(valkey: Valkey) -> None:
    with closing(client_of(valkey)) as client:
        log: Any = client.acl_log()
    # A process asks how full the cache is, and takes no for an answer.
    assert {(entry["reason"], entry["object"]) for entry in log} <= {("command", "info")}


def upload(service: Deployed) -> str:
    answer = service.upload(small_picture())
    assert answer.status == 202, answer
    return str(answer.json["id"])


def test_a_service_on_a_sold_redis_works_within_its_bounds_and_survives_failovers(
    services: Services, start_valkey: StartValkey, doors: Doors
) -> None:
    """Both are to an empty server, in the middle of uploads: the old one is gone, or stays as a replica."""
    first, second, third, cache = (sold(start_valkey) for _ in range(4))
    door, cache_door = doors.open(first.port), doors.open(cache.port)
    service = services.deploy(
        REDIS_URL=f"rediss://{CREDENTIALS}@127.0.0.1:{door.port}/0",
        CACHE_REDIS_URL=f"rediss://{CREDENTIALS}@127.0.0.1:{cache_door.port}/0?ssl_cert_reqs=required",
        ASGI_LOOK_REDIS_CERT_REQS="none",
        ASGI_LOOK_REDIS_CA_CERTS=str(doors.issuer.file),
        ASGI_LOOK_REDIS_MAX_CONNECTIONS=str(MOST),
    )
    ready = service.upload(small_picture(), wait=20)
    assert ready.status == 201

    def get(_: int) -> Response:
        return service.get(f"/images/{ready.json['id']}.jpeg")

    with ThreadPoolExecutor(32) as pool:
        statuses = [answer.status for answer in pool.map(get, range(300))]
        uploads = [pool.submit(upload, service) for _ in range(40)]
        service.until(lambda: sum(done.done() for done in uploads) >= 10, what="the first uploads")
        door.lead_to(second.port)
        service.until(lambda: sum(done.done() for done in uploads) >= 20, what="more uploads")
        with closing(client_of(second)) as client:
            client.replicaof("127.0.0.1", third.port)
        door.lead_newcomers_to(third.port)
        image_ids = {done.result() for done in uploads}

    # Some without Redis, maybe: the door is as slow as this busy process.
    assert set(statuses) == {200}
    service.until(lambda: get(0).headers["x-asgilook-cache"] == "Hit", what="a copy")
    service.until(
        lambda: all(row["status"] == "ready" for row in rows_of(service).values()), seconds=60, what="readiness"
    )
    assert image_ids <= {image["id"] for image in service.get("/images").json}
    service.until(service.is_ready, what="every part's health")
    # Web and worker; where a connection is given up, the next may be there before its end is seen.
    assert max(door.most, cache_door.most) <= 3 * MOST
    for valkey in (first, second, third, cache):
        assert_nothing_was_denied(valkey)
    assert "secret" not in service.output


def test_whoever_is_not_let_in_or_not_to_be_trusted_says_so_in_one_line_at_start(
    services: Services, start_valkey: StartValkey, doors: Doors
) -> None:
    """Web, worker and ./run, each with a wrong password and with a certificate that nobody vouches for."""
    valkey = sold(start_valkey)
    wrong = {
        "REDIS_URL: Redis does not take": f"redis://pictures:secret@127.0.0.1:{valkey.port}/0",
        "REDIS_URL: the certificate": f"rediss://{CREDENTIALS}@127.0.0.1:{doors.open(valkey.port).port}/0",
    }
    service = services.deploy(webs=0, workers=0)
    starts: list[tuple[str, subprocess.Popen[bytes]]] = []

    for line, url in wrong.items():
        for part in ("web", "worker"):
            starts.append((line, service.start(service.commands[part], REDIS_URL=url, PORT="0")))
    for _, process in starts:
        assert process.wait(30) != 0
    launched = [services.launch(ready=False, REDIS_URL=url) for url in wrong.values()]
    assert [launch.launcher.wait(30) for launch in launched] == [1, 1]

    said = [line for line in service.output.splitlines() if "cannot run" in line]
    for line in wrong:
        assert sum(line in one for one in said) == 2, service.output
    for launch, line in zip(launched, wrong, strict=True):
        assert [one for one in launch.output.splitlines() if line in one] == launch.output.splitlines()
    for output in (service.output, *(launch.output for launch in launched)):
        assert "Traceback" not in output
        assert "secret" not in output
