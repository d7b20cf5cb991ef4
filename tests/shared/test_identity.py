"""A process that sees another storage, ledger or Redis than its companions says which two do not match, and ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import fakeredis
import pytest
from redis.asyncio import Redis

from shared.errors import MismatchError
from shared.identity import check_redis, check_storage, check_storage_as_it_is, keep_standing
from shared.ledger import Ledger
from shared.redis.circuit_breaker import CircuitBreaker
from shared.renditions import original_key
from shared.settings import Settings
from shared.storage import Storage
from shared.storage.disk import DiskStorage
from tests.databases import database
from tests.ledgers import new_id
from tests.services import put
from tests.waiting import until

__all__ = ["database"]


@pytest.fixture
async def other_storage(tmp_path: Path) -> DiskStorage:
    storage = DiskStorage(tmp_path / "other")
    await storage.prepare()
    return storage


# Storage and ledger


async def test_a_new_ledger_and_an_empty_storage_belong_together_from_then_on(
    ledger: Ledger, storage: Storage, settings_files: Path, settings: Settings
) -> None:
    identity = await check_storage(ledger, storage, settings)

    assert await ledger.identity() == identity
    assert [path.name for path in settings_files.glob("markers/*")] == [identity.marker]
    assert await check_storage(ledger, storage, settings) == identity


@pytest.fixture
def settings_files(storage: DiskStorage) -> Path:
    return storage._root


async def test_processes_that_start_at_once_agree_on_one_marker(
    ledger: Ledger, storage: Storage, settings_files: Path, settings: Settings
) -> None:
    names = await asyncio.gather(*(check_storage(ledger, storage, settings) for _ in range(5)))

    assert len(set(names)) == 1
    assert len(list(settings_files.glob("markers/*"))) == 1
    assert list(settings_files.glob("drafts/*")) == []


async def test_who_only_looks_adopts_nothing(
    ledger: Ledger, storage: Storage, settings_files: Path, settings: Settings
) -> None:
    with pytest.raises(MismatchError):
        await check_storage_as_it_is(ledger, storage, settings)

    assert (await ledger.identity()).marker is None
    assert list(settings_files.glob("markers/*")) == []
    identity = await check_storage(ledger, storage, settings)
    assert await check_storage_as_it_is(ledger, storage, settings) == identity


async def test_who_only_looks_refuses_another_storage_too(
    ledger: Ledger, storage: Storage, other_storage: DiskStorage, settings: Settings
) -> None:
    await check_storage(ledger, storage, settings)

    with pytest.raises(MismatchError):
        await check_storage_as_it_is(ledger, other_storage, settings)


async def test_another_storage_than_the_ledgers_is_refused(
    ledger: Ledger, storage: Storage, other_storage: Storage, settings: Settings
) -> None:
    await check_storage(ledger, storage, settings)

    with pytest.raises(MismatchError, match=r"do not match.*ASGI_LOOK_STORAGE_PATH=/.* same values"):
        await check_storage(ledger, other_storage, settings)


async def test_processes_with_two_storages_that_start_at_once_do_not_both_run(
    ledger: Ledger, storage: Storage, other_storage: Storage, settings: Settings
) -> None:
    outcomes = await asyncio.gather(
        check_storage(ledger, storage, settings), check_storage(ledger, other_storage, settings), return_exceptions=True
    )

    assert sorted(isinstance(outcome, MismatchError) for outcome in outcomes) == [False, True]


async def test_a_new_ledger_does_not_adopt_a_storage_with_originals(
    ledger: Ledger, storage: Storage, settings: Settings
) -> None:
    """Somebody has lost or mistyped the ledger: its pictures are not to be taken over by another."""
    await put(storage, original_key(new_id()), b"somebody's")

    with pytest.raises(MismatchError, match=r"already holds originals.*DATABASE_URL"):
        await check_storage(ledger, storage, settings)

    assert (await ledger.identity()).marker is None


async def test_a_ledger_with_a_marker_may_have_originals(ledger: Ledger, storage: Storage, settings: Settings) -> None:
    name = await check_storage(ledger, storage, settings)
    await put(storage, original_key(new_id()), b"ours")

    assert await check_storage(ledger, storage, settings) == name


async def test_a_storage_emptied_behind_the_ledgers_back_is_refused(
    ledger: Ledger, storage: Storage, settings_files: Path, settings: Settings
) -> None:
    await check_storage(ledger, storage, settings)
    for marker in settings_files.glob("markers/*"):
        marker.unlink()

    with pytest.raises(MismatchError, match=r"do not match"):
        await check_storage(ledger, storage, settings)


# Ledger and Redis


async def test_the_first_ledger_stands_in_redis_for_five_seconds(
    redis: Redis, breaker: CircuitBreaker, settings: Settings
) -> None:
    await check_redis(redis, breaker, "one", settings)

    assert await redis.get("asgilook:ledger") == b"one"
    assert 0 < await redis.ttl("asgilook:ledger") <= 5


async def test_processes_of_one_ledger_share_redis(redis: Redis, breaker: CircuitBreaker, settings: Settings) -> None:
    await check_redis(redis, breaker, "one", settings)
    await check_redis(redis, breaker, "one", settings)


async def test_a_second_ledger_on_one_redis_is_refused_when_patience_ends(
    redis: Redis, breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    monkeypatch.setattr("shared.identity._PATIENCE_SECONDS", 0)
    await check_redis(redis, breaker, "one", settings)

    with pytest.raises(
        MismatchError, match=r"\(one, not other\).*(DATABASE_URL|STORAGE_PATH)=.* same value .*REDIS_URL"
    ):
        await check_redis(redis, breaker, "other", settings)

    assert await redis.get("asgilook:ledger") == b"one"


async def test_the_name_of_a_ledger_that_is_gone_makes_way(
    redis: Redis, breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """Its time is over within five seconds: patience is longer, so that a new ledger may follow an old one."""
    await check_redis(redis, breaker, "gone", settings)
    checking = asyncio.create_task(check_redis(redis, breaker, "new", settings))
    await asyncio.wait([checking], timeout=0.01)
    waits = not checking.done()

    await redis.delete("asgilook:ledger")
    await checking

    assert waits
    assert await redis.get("asgilook:ledger") == b"new"


async def test_a_redis_that_is_away_is_no_mismatch(
    redis: Redis,
    breaker: CircuitBreaker,
    redis_server: fakeredis.FakeServer,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> None:
    """Promise 2: Redis is expendable, at start as well."""
    monkeypatch.setattr("shared.identity._SLOWNESS_SECONDS", 0.0)
    redis_server.connected = False

    await check_redis(redis, breaker, "one", settings)


@pytest.fixture
async def standing(
    redis: Redis, breaker: CircuitBreaker, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncio.Task[None]]:
    """A process of ledger "one" that renews its name a hundred times a second."""
    monkeypatch.setattr("shared.identity._RENEWED_EVERY_SECONDS", 0.01)
    monkeypatch.setattr("shared.redis.circuit_breaker.PAUSE_SECONDS", 0.01)
    task = asyncio.create_task(keep_standing(redis, breaker, "one"))
    yield task
    task.cancel()
    await asyncio.wait([task])


@pytest.mark.usefixtures("standing")
async def test_a_living_process_renews_its_ledgers_name(redis: Redis) -> None:
    async def stands() -> bool:
        return bool(await redis.ttl("asgilook:ledger") > 3)

    await until(stands)
    await redis.expire("asgilook:ledger", 1)
    await until(stands)
    await redis.flushall()
    await until(stands)


@pytest.mark.usefixtures("standing")
async def test_a_living_process_renews_its_ledgers_name_after_redis_was_away(
    redis: Redis, breaker: CircuitBreaker, redis_server: fakeredis.FakeServer
) -> None:
    redis_server.connected = False
    await until(lambda: breaker.is_open)
    redis_server.connected = True
    await redis.flushall()

    async def stands() -> bool:
        return bool(await redis.get("asgilook:ledger") == b"one")

    await until(stands)


@pytest.mark.usefixtures("standing")
async def test_a_second_ledger_that_came_later_is_told(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    await redis.set("asgilook:ledger", "other", ex=5)

    await until(lambda: "another ledger uses this Redis" in caplog.messages)

    [record] = caplog.records[:1]
    assert (record.__dict__["other"], record.__dict__["ours"]) == ("other", "one")
    assert await redis.get("asgilook:ledger") == b"other"
