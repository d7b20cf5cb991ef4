"""Storage, and everything over Redis, as a process's composition root puts them together; Redis is a fake."""

from __future__ import annotations

from collections.abc import AsyncIterator

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.images import Image
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.notices import Announcer
from shared.redis.queue import Queue
from shared.redis.response_cache import ResponseCache
from shared.renditions import attempt_prefix, original_key
from shared.settings import Settings
from shared.settling import Settling
from shared.storage import Storage
from shared.storage.disk import DiskStorage
from shared.telemetry import metrics

LEDGER_NAME = "5ca1ab1e"


def ledger_name() -> str:
    return LEDGER_NAME


@pytest.fixture
async def storage(settings: Settings) -> DiskStorage:
    """An empty storage on disk."""
    storage = DiskStorage(settings.storage_path)
    await storage.prepare()
    return storage


@pytest.fixture
def redis_server() -> fakeredis.FakeServer:
    """A fake Redis; `connected = False` and it is away."""
    return fakeredis.FakeServer()


@pytest.fixture
async def redis(redis_server: fakeredis.FakeServer) -> AsyncIterator[Redis]:
    """A client of the fake Redis."""
    client = fakeredis.FakeAsyncRedis(server=redis_server)
    yield client
    await client.aclose()


@pytest.fixture
async def breaker(redis: Redis) -> AsyncIterator[CircuitBreaker]:
    breaker = CircuitBreaker(redis, WORKER_DEADLINE)
    yield breaker
    await breaker.close()


@pytest.fixture
def queue(redis: Redis, breaker: CircuitBreaker) -> Queue:
    return Queue(redis, breaker, ledger_name)


@pytest.fixture
def cache(redis: Redis, breaker: CircuitBreaker) -> ResponseCache:
    return ResponseCache(redis, breaker, ledger_name)


@pytest.fixture
def announcer(redis: Redis, breaker: CircuitBreaker) -> Announcer:
    return Announcer(redis, breaker, ledger_name)


@pytest.fixture
def settling(
    settings: Settings, ledger: Ledger, storage: Storage, cache: ResponseCache, announcer: Announcer
) -> Settling:
    return Settling(ledger, storage, cache, announcer, settings.keep_originals)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever switches metrics on in this test does so for this test only."""
    for metric in metrics._ALL:
        monkeypatch.setattr(metric, "_real", None)


async def put(storage: Storage, key: str, content: bytes) -> None:
    """Keep `content` under `key`."""
    draft = await storage.draft()
    try:
        await draft.write(content)
        await storage.keep({key: draft})
    finally:
        await draft.discard()


async def put_original(storage: Storage, image: Image, content: bytes = b"the original") -> None:
    await put(storage, original_key(image.id), content)


async def put_rendition(storage: Storage, image: Image, attempt: int, name: str = "image.jpeg") -> str:
    """Keep a rendition of an attempt; return its key."""
    key = f"{attempt_prefix(image.id, attempt)}/{name}"
    await put(storage, key, f"{name} of attempt {attempt}".encode())
    return key
