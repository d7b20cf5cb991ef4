from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pytest

from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.queue import Queue
from tests.api.arrange import Service
from tests.api.conftest import Start


async def beat(service: Service, *, is_filtered: bool = True) -> None:
    queue = Queue(service.redis, CircuitBreaker(service.redis, WORKER_DEADLINE), lambda: service.ledger_name)
    await queue.beat("a worker", is_filtered=is_filtered)


async def test_a_process_that_answers_is_alive(service: Service) -> None:
    response = await service.client.simulate_get("/healthz")

    assert (response.status_code, response.json) == (200, {"status": "ok"})
    assert response.headers["Cache-Control"] == "no-store"


async def test_a_process_is_alive_whatever_else_is_away(service: Service) -> None:
    service.redises.go_away()
    service.execute("DROP TABLE alembic_version")

    response = await service.client.simulate_get("/healthz")

    assert response.status_code == 200


async def test_with_all_its_parts_the_service_is_ready(service: Service) -> None:
    await beat(service)

    response = await service.client.simulate_get("/readyz")

    assert response.status_code == 200
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json == {
        "status": "ok",
        "ledger": "ok",
        "storage": "ok",
        "redis": "ok",
        "cache": "ok",
        "workers": "ok",
        "warnings": [],
    }


async def test_a_worker_whose_children_nothing_filters_is_named(service: Service) -> None:
    """It works, and is not as safe as it could be: whoever runs it decides, and so has to know."""
    await beat(service, is_filtered=False)

    response = await service.client.simulate_get("/readyz")

    assert response.json["status"] == "ok"
    (warning,) = response.json["warnings"]
    assert "without a system-call filter" in warning
    assert warning.endswith("a worker.")


async def test_without_a_worker_the_service_is_degraded(service: Service) -> None:
    """It still takes uploads, which is why no balancer should take it out."""
    response = await service.client.simulate_get("/readyz")

    assert response.status_code == 200
    assert (response.json["status"], response.json["workers"]) == ("degraded", "none")


async def test_a_worker_whose_last_beat_is_long_ago_is_dead(service: Service) -> None:
    await beat(service)
    key = f"asgilook:{service.ledger_name}:workers2"
    ((name, at),) = await service.redis.zrange(key, 0, -1, withscores=True)
    await service.redis.zadd(key, {name: at - 60})

    response = await service.client.simulate_get("/readyz")

    assert response.json["workers"] == "none"


async def test_without_redis_the_service_is_degraded(service: Service) -> None:
    service.redises.go_away()

    responses = [await service.client.simulate_get("/readyz") for _ in range(2)]

    for response in responses:
        assert response.status_code == 200
        assert response.json == {
            "status": "degraded",
            "ledger": "ok",
            "storage": "ok",
            "redis": "away",
            "cache": "away",
            "workers": "unknown",
            "warnings": [],
        }


async def test_without_the_ledger_the_service_is_unavailable(service: Service) -> None:
    service.execute("DROP TABLE alembic_version")

    response = await service.client.simulate_get("/readyz")

    assert response.status_code == 503
    assert response.headers["Cache-Control"] == "no-store"
    assert (response.json["status"], response.json["ledger"]) == ("unavailable", "away")


async def test_without_storage_the_service_is_unavailable(service: Service) -> None:
    drafts = service.settings.storage_path / "drafts"
    shutil.rmtree(drafts)
    drafts.write_bytes(b"where a folder was expected")

    response = await service.client.simulate_get("/readyz")

    assert response.status_code == 503
    assert (response.json["status"], response.json["storage"]) == ("unavailable", "away")


async def test_an_empty_folder_in_the_storages_place_is_no_storage(service: Service) -> None:
    """A volume that is not mounted leaves a folder that can be written to, and holds none of our images."""
    shutil.rmtree(service.settings.storage_path / "markers")

    response = await service.client.simulate_get("/readyz")

    assert response.status_code == 503
    assert (response.json["ledger"], response.json["storage"]) == ("ok", "away")


async def test_a_storage_that_hangs_is_away(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A probe that waits as long as a hung NFS does is no probe."""
    monkeypatch.setattr("api.health._PATIENCE_SECONDS", 0.2)
    hang = threading.Event()
    real = os.path.exists

    def exists(path: Path) -> bool:
        return hang.wait(30) if "markers" in str(path) else real(path)

    monkeypatch.setattr(Path, "exists", exists)

    response = await service.client.simulate_get("/readyz")
    hang.set()

    assert response.status_code == 503
    assert (response.json["ledger"], response.json["storage"]) == ("ok", "away")


async def test_a_redis_that_evicts_is_warned_of(service: Service) -> None:
    """Under allkeys-lru a full cache evicted all the queued jobs that were measured."""
    await beat(service)
    service.redises.memory.update(maxmemory=100, maxmemory_policy="allkeys-lru")

    response = await service.client.simulate_get("/readyz")

    assert (response.status_code, response.json["status"]) == (200, "ok")
    (warning,) = response.json["warnings"]
    assert "allkeys-lru" in warning
    assert "CACHE_REDIS_URL" in warning


@pytest.mark.parametrize(("most", "policy"), [(0, "allkeys-lru"), (100, "noeviction")])
async def test_a_redis_that_evicts_nothing_is_not_warned_of(service: Service, most: int, policy: str) -> None:
    service.redises.memory.update(maxmemory=most, maxmemory_policy=policy)

    response = await service.client.simulate_get("/readyz")

    assert response.json["warnings"] == []


async def test_a_cache_of_its_own_is_not_advised_again(start: Start) -> None:
    service: Service = await start(cache_redis_url="redis://cache.test:6379/0")
    service.redises.memory.update(maxmemory=100, maxmemory_policy="allkeys-lru")

    response = await service.client.simulate_get("/readyz")

    (warning,) = response.json["warnings"]
    assert "CACHE_REDIS_URL" not in warning
