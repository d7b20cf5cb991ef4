"""What a process opens of Redis: by its role, and by how many servers and connections it is given."""

from __future__ import annotations

import asyncio

import pytest

from shared.cancellation import cancel
from shared.errors import RedisRefuses
from shared.redis.circuit_breaker import RedisAway
from shared.redis.connections import RedisConnections, open_redis
from shared.settings import Settings
from tests.valkey import StartValkey, Valkey
from tests.waiting import until


def most_connections(redis: RedisConnections, role: str) -> tuple[int, int]:
    """Return how many connections the queue's server and the cache's may get from this process."""
    queue, cache, listening = (
        client.connection_pool.max_connections for client in (redis.queue, redis.cache, redis.listening)
    )
    queue += listening if role == "web" else 0
    shared = int(redis.shared is not None)
    return (queue + shared,) * 2 if redis.is_one_server else (queue, cache + shared)


@pytest.mark.parametrize("cache_url", ["redis://127.0.0.1:1/0", "redis://127.0.0.1:2/0"], ids=["one server", "two"])
@pytest.mark.parametrize("role", ["web", "worker"])
@pytest.mark.parametrize("most", [2, 3, 6])
def test_a_process_uses_as_many_connections_to_a_server_as_it_may_and_no_more(
    most: int, role: str, cache_url: str
) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", cache_redis_url=cache_url, redis_max_connections=most)

    redis = open_redis(settings, role)  # type: ignore[arg-type] # one of the two

    assert most_connections(redis, role) == (most, most)
    assert (redis.shared is not None) is (role == "web" and most > 2)
    assert redis.queue.connection_pool.max_connections >= 1


async def test_the_breaker_drops_the_shared_connection_when_it_opens_and_catches_up_before_it_closes(
    start_valkey: StartValkey,
) -> None:
    caught_up: list[str] = []

    async def catch_up() -> None:
        caught_up.append("the response cache")

    queue, cache = start_valkey(), start_valkey()
    settings = Settings(redis_url=queue.url, cache_redis_url=cache.url)
    redis = open_redis(settings, "web", before_closing=catch_up)
    shared = redis.shared
    assert shared is not None
    running = asyncio.create_task(redis.run())
    await until(lambda: shared.is_free)
    cache.freeze()
    reply = shared.execute(("GET", "key"), seconds=60)

    with pytest.raises(RedisAway):
        await redis.cache_breaker.call(redis.cache.ping)

    assert reply.exception() is not None
    assert not redis.queue_breaker.is_open
    cache.thaw()
    await until(lambda: not redis.cache_breaker.is_open)
    assert caught_up == ["the response cache"]
    await cancel(running)
    await redis.close()


@pytest.mark.parametrize("refuses", ["REDIS_URL", "CACHE_REDIS_URL"])
async def test_a_refusal_names_the_setting_of_its_server(start_valkey: StartValkey, refuses: str) -> None:
    servers: dict[str, Valkey] = {name: start_valkey() for name in ("REDIS_URL", "CACHE_REDIS_URL")}
    urls = {name: server.url for name, server in servers.items()}
    urls[refuses] = urls[refuses].replace("redis://", "redis://nobody:secret@")
    redis = open_redis(Settings(redis_url=urls["REDIS_URL"], cache_redis_url=urls["CACHE_REDIS_URL"]), "worker")

    with pytest.raises(RedisRefuses, match=f"^{refuses}: "):
        await redis.check()

    await redis.close()
