from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgpack
import pytest
import pytest_asyncio
from falcon.testing import ASGIConductor, Result
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as ConnectionLost

from api.app import create_app
from shared.images import DebtKind, Image
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WEB_DEADLINE, WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import web_client
from shared.redis.response_cache import LIST_TOPIC, Copy, ResponseCache, Slot
from shared.renditions import Size
from shared.settings import Settings
from tests.api.arrange import Redises, Service, headers_of, problem_of, until
from tests.api.conftest import Start
from tests.fills import fills_landed
from tests.valkey import Valkey

CACHE_URL = "redis://cache.test:6379/0"
#: As large as the JPEG of a photograph of 12 MP.
PHOTOGRAPH = bytes(range(256)) * 16_000

PATHS = {
    "list": "/images",
    "record": "/images/{id}",
    "jpeg": "/images/{id}.jpeg",
    "thumbnail": "/thumbnails/{id}/320x180.jpeg",
}


@pytest_asyncio.fixture
async def service(start: Start) -> Service:
    """A process that holds no pictures in memory: these are about what Redis holds."""
    started: Service = await start(memory_cache_bytes=0)
    return started


def cache_of(response: Result) -> str | None:
    return response.headers.get("X-ASGILook-Cache")


# --- Miss and Hit --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_the_second_answer_is_the_first_byte_for_byte(service: Service, path: str) -> None:
    image = await service.worker.ready((640, 360), PHOTOGRAPH)
    path = path.format(id=image.id)

    first = await service.client.simulate_get(path)
    second = await service.client.simulate_get(path)

    assert (cache_of(first), cache_of(second)) == ("Miss", "Hit")
    assert first.status == second.status == "200 OK"
    assert list(headers_of(first).items()) == list(headers_of(second).items())
    assert first.content == second.content != b""


async def test_a_page_with_a_link_keeps_it(service: Service) -> None:
    for _ in range(2):
        await service.worker.ready()

    first = await service.client.simulate_get("/images?limit=1")
    second = await service.client.simulate_get("/images?limit=1")

    assert cache_of(second) == "Hit"
    assert second.headers["Link"] == first.headers["Link"] == '</images?limit=1&after=1>; rel="next"'


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_a_copy_is_served_without_ledger_or_storage(service: Service, path: str) -> None:
    image = await service.worker.ready()
    path = path.format(id=image.id)
    first = await service.client.simulate_get(path)
    service.execute("ALTER TABLE images RENAME TO elsewhere")
    for file in service.files("renditions"):
        file.unlink()

    second = await service.client.simulate_get(path)

    assert cache_of(second) == "Hit"
    assert second.content == first.content


async def test_a_copy_is_msgpack_of_token_path_status_headers_and_body(service: Service) -> None:
    """Promise 5 holds for the cache, too: who can write to Redis cannot run code."""
    image = await service.worker.ready()
    path = f"/images/{image.id}.jpeg"
    response = await service.client.simulate_get(path)

    entry = await service.redis.get(f"asgilook:{service.ledger_name}:response:{path}")

    token, entry_path, status, lines, body = msgpack.unpackb(entry)
    assert token == await service.redis.get(f"asgilook:{service.ledger_name}:token:{image.id}")
    assert (entry_path, status, body) == (path, 200, response.content)
    assert b"content-type: image/jpeg\r\n" in lines
    assert b"x-asgilook-cache" not in lines


async def test_lists_and_records_live_a_minute_and_pictures_ten(service: Service) -> None:
    image = await service.worker.ready()
    for path in PATHS.values():
        await service.client.simulate_get(path.format(id=image.id))

    lives = {
        name: await service.redis.ttl(f"asgilook:{service.ledger_name}:response:{path.format(id=image.id)}")
        for name, path in PATHS.items()
    }

    assert 0 < lives["list"] <= 60
    assert 0 < lives["record"] <= 60
    assert 60 < lives["jpeg"] <= 600
    assert 60 < lives["thumbnail"] <= 600


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_conditions_are_applied_to_a_copy_as_to_its_source(service: Service, path: str) -> None:
    image = await service.worker.ready()
    path = path.format(id=image.id)
    etag = (await service.client.simulate_get(path)).headers["ETag"]

    hit = await service.client.simulate_get(path, headers={"If-None-Match": etag})
    await service.redis.flushall()
    miss = await service.client.simulate_get(path, headers={"If-None-Match": etag})

    assert (cache_of(hit), cache_of(miss)) == ("Hit", "Miss")
    assert hit.status_code == miss.status_code == 304
    assert headers_of(hit) == headers_of(miss)


@pytest.mark.parametrize("headers", [{"Range": "bytes=0-1"}, {"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}])
async def test_what_is_copied_is_the_whole_whatever_was_asked_for(service: Service, headers: dict[str, str]) -> None:
    image = await service.worker.ready()
    path = f"/images/{image.id}.jpeg"
    first = await service.client.simulate_get(path, headers=headers)

    second = await service.client.simulate_get(path)

    assert first.status_code in (206, 304)
    assert (second.status_code, cache_of(second)) == (200, "Hit")
    assert second.headers["Content-Length"] == str(image.renditions["image.jpeg"].bytes)
    assert "Content-Range" not in second.headers


async def test_head_reads_copies_and_makes_none(service: Service) -> None:
    image = await service.worker.ready()
    path = f"/images/{image.id}.jpeg"

    before = await service.client.simulate_head(path)
    copies = await service.copies()
    await service.client.simulate_get(path)
    after = await service.client.simulate_head(path)

    assert (cache_of(before), copies, cache_of(after)) == ("Miss", [], "Hit")
    assert headers_of(before) == headers_of(after)


# --- Keys ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["jpeg", "thumbnail", "record"])
async def test_the_query_of_anything_but_a_list_is_ignored(service: Service, name: str) -> None:
    """Or anyone could fill Redis with copies of one picture."""
    image = await service.worker.ready()
    path = PATHS[name].format(id=image.id)

    responses = [await service.client.simulate_get(path + query) for query in ("?a=1", "?a=2", "", "?limit=5")]

    assert [cache_of(response) for response in responses] == ["Miss", "Hit", "Hit", "Hit"]
    assert await service.copies() == [path]


@pytest.mark.parametrize(
    "spellings",
    [
        ["", "?", "?limit=100", "?limit=0100", "?status=ready", "?order=asc", "?order=asc&limit=100", "?nonsense=1"],
        ["?limit=5&order=desc", "?order=desc&limit=5", "?limit=%35&order=desc", "?limit=005&order=desc&x=&y"],
        ["?after=0", "?after=00", "?status=ready&after=0"],
    ],
)
async def test_all_spellings_of_a_list_share_one_copy(service: Service, spellings: list[str]) -> None:
    await service.worker.ready()

    responses = [await service.client.simulate_get(f"/images{spelling}") for spelling in spellings]

    assert [cache_of(response) for response in responses] == ["Miss", *["Hit"] * (len(spellings) - 1)]
    assert len(await service.copies()) == 1


async def test_different_pages_are_different_copies(service: Service) -> None:
    images = [await service.worker.ready() for _ in range(3)]

    pages = {
        query: [(await service.client.simulate_get(f"/images{query}")).json for _ in range(2)]
        for query in ("", "?limit=1", "?order=desc", "?after=1", "?limit=1&after=1")
    }

    first, second, third = (image.id for image in images)
    expected = {
        "": [first, second, third],
        "?limit=1": [first],
        "?order=desc": [third, second, first],
        "?after=1": [second, third],
        "?limit=1&after=1": [second],
    }
    assert {query: [[r["id"] for r in page] for page in both] for query, both in pages.items()} == {
        query: [ids, ids] for query, ids in expected.items()
    }


# --- What is never copied ------------------------------------------------------------------------------------


async def test_nothing_unfinished_and_no_error_is_ever_copied(service: Service) -> None:
    queued, processing = await service.worker.queued(), await service.worker.processing()
    failed, ready = await service.worker.failed(), await service.worker.ready()
    for image in (queued, processing, failed):
        for path in ("/images/{id}", "/images/{id}.jpeg", "/thumbnails/{id}/320x180.jpeg"):
            for _ in range(2):
                response = await service.client.simulate_get(path.format(id=image.id))
                assert cache_of(response) is None
                assert response.headers["Cache-Control"] == "no-store"
    await service.client.simulate_get(f"/thumbnails/{ready.id}/1x1.jpeg")
    await service.client.simulate_get("/images?limit=0")
    await service.client.simulate_get("/images?status=queued")
    await service.client.simulate_get("/images", headers={"Accept": "image/*"})
    await service.client.simulate_options("/images")
    await service.client.simulate_post("/images", body=b"")
    await service.client.simulate_get("/healthz")

    assert await service.copies() == []


async def test_an_image_that_becomes_ready_is_seen_ready(service: Service) -> None:
    attempt = await service.worker.processing()
    paths = [f"/images/{attempt.id}", f"/images/{attempt.id}.jpeg", f"/thumbnails/{attempt.id}/320x180.jpeg"]
    before = [await service.client.simulate_get(path) for path in [*paths, *paths]]
    await service.worker.publish(attempt)

    after = [await service.client.simulate_get(path) for path in paths]

    assert [response.status_code for response in before] == [200, 404, 404] * 2
    assert [response.status_code for response in after] == [200, 200, 200]
    assert after[0].json["status"] == "ready"


# --- Tokens --------------------------------------------------------------------------------------------------


async def test_a_publication_makes_the_lists_stale(service: Service) -> None:
    queries = ["", "?limit=5", "?order=desc"]
    for query in queries:
        await service.client.simulate_get(f"/images{query}")
    image = await service.worker.ready()

    responses = [await service.client.simulate_get(f"/images{query}") for query in queries]

    assert [cache_of(response) for response in responses] == ["Miss"] * 3
    assert [[record["id"] for record in response.json] for response in responses] == [[image.id]] * 3


async def test_new_thumbnails_make_record_and_pictures_stale(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    for path in PATHS.values():
        await service.client.simulate_get(path.format(id=image.id))
    again = await service.worker.publish_again(image)

    responses = {name: await service.client.simulate_get(path.format(id=image.id)) for name, path in PATHS.items()}

    assert {name: cache_of(response) for name, response in responses.items()} == dict.fromkeys(PATHS, "Miss")
    assert f" {again.attempt} ".encode() in responses["jpeg"].content


@pytest.mark.parametrize(("name", "size"), [("image.webp", (640, 360)), ("320x180.webp", (320, 180))])
async def test_another_format_changes_nothing_that_is_told_of_an_image(service: Service, name: str, size: Size) -> None:
    image = await service.worker.ready((640, 360))
    before = {path: await service.client.simulate_get(path.format(id=image.id)) for path in PATHS.values()}
    await service.worker.publish_more(image, name, size)

    copies = {path: await service.client.simulate_get(path.format(id=image.id)) for path in PATHS.values()}
    service.redises.go_away()
    now = {path: await service.client.simulate_get(path.format(id=image.id)) for path in PATHS.values()}

    assert {path: cache_of(response) for path, response in copies.items()} == dict.fromkeys(PATHS.values(), "Hit")
    for path, response in before.items():
        assert now[path].content == copies[path].content == response.content
        assert headers_of(now[path]) == headers_of(copies[path]) == headers_of(response)


async def test_a_thumbnail_that_is_added_is_told_at_once(service: Service) -> None:
    """The smallest side was lowered since the image was made, and a client has asked for a size of today's ladder."""
    image = await service.worker.ready((640, 360))
    for path in PATHS.values():
        await service.client.simulate_get(path.format(id=image.id))
    await service.worker.publish_more(image, "80x45.jpeg", (80, 45))

    record = (await service.client.simulate_get(f"/images/{image.id}")).json
    listed = (await service.client.simulate_get("/images")).json

    assert record["thumbnails"][-1] == f"/thumbnails/{image.id}/80x45.jpeg"
    assert listed == [record]


async def test_a_deleted_image_is_served_from_no_copy(service: Service) -> None:
    image = await service.worker.ready()
    for path in PATHS.values():
        await service.client.simulate_get(path.format(id=image.id))
    await service.client.simulate_delete(f"/images/{image.id}")

    responses = {name: await service.client.simulate_get(path.format(id=image.id)) for name, path in PATHS.items()}

    assert responses.pop("list").json == []
    assert {problem_of(response) for response in responses.values()} == {"no-such-image"}


async def test_a_change_of_one_image_leaves_the_copies_of_others(service: Service) -> None:
    image, other = await service.worker.ready(), await service.worker.ready()
    await service.client.simulate_get(f"/images/{image.id}.jpeg")
    await service.client.simulate_delete(f"/images/{other.id}")

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg")

    assert cache_of(response) == "Hit"


Look = Callable[[Service, Image], Awaitable[Result]]


def get(path: str) -> Look:
    async def look(service: Service, image: Image) -> Result:
        return await service.client.simulate_get(path.format(id=image.id))

    return look


async def retry(service: Service, image: Image) -> Result:
    return await service.client.simulate_post(f"/images/{image.id}/retry")


@pytest.mark.parametrize("look", [get(path) for path in PATHS.values()] + [get("/images?limit=7")])
async def test_a_client_that_saw_an_image_ready_finds_it_in_every_list(service: Service, look: Look) -> None:
    """Its worker has died between its commit and the change of the tokens: a process that reads the row changes them.

    Without that, a client that saw `ready` read an older list next, 2 times of 180.
    """
    await service.client.simulate_get("/images?limit=3")
    attempt = await service.worker.processing()
    await service.worker.publish(attempt, (640, 360), settle=False)
    assert (await look(service, attempt)).status_code == 200

    response = await service.client.simulate_get("/images?limit=3")

    assert [record["id"] for record in response.json] == [attempt.id]
    assert not (await service.image(attempt.id)).owes(DebtKind.TOKENS)


async def delete_again(service: Service, image: Image) -> Result:
    return await service.client.simulate_delete(f"/images/{image.id}")


async def delete_again_if_there(service: Service, image: Image) -> Result:
    return await service.client.simulate_delete(f"/images/{image.id}", headers={"If-Match": "*"})


@pytest.mark.parametrize(
    "look",
    [
        get(PATHS["record"]),
        get(PATHS["jpeg"]),
        get(PATHS["thumbnail"]),
        get("/images?status=failed"),
        retry,
        delete_again,
        delete_again_if_there,
    ],
)
async def test_who_was_told_that_an_image_is_gone_finds_it_in_no_list(service: Service, look: Look) -> None:
    image = await service.worker.ready()
    assert len((await service.client.simulate_get("/images")).json) == 1
    await service.ledger.delete(image.id)
    answer = await look(service, image)
    assert answer.status_code == 404 or answer.json == []

    response = await service.client.simulate_get("/images")

    assert response.json == []


@pytest.mark.parametrize("change", ["publish", "delete"])
async def test_what_is_committed_while_a_list_is_read_is_in_all_lists_or_in_none(
    service: Service, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """The list tells of a commit whose own process has not come to the tokens yet: they must be paid before it does."""
    image = await (service.worker.processing() if change == "publish" else service.worker.ready())
    before = await service.client.simulate_get("/images?limit=3")
    list_ready = Ledger.list_ready

    async def commit_and_list(*arguments: Any) -> list[Image]:
        if change == "publish":
            await service.worker.publish(image, (640, 360), settle=False)
        else:
            await service.ledger.delete(image.id)
        monkeypatch.undo()
        return await list_ready(*arguments)

    monkeypatch.setattr(Ledger, "list_ready", commit_and_list)
    seen = await service.client.simulate_get("/images?limit=5")

    response = await service.client.simulate_get("/images?limit=3")

    assert response.json == seen.json != before.json


@pytest_asyncio.fixture
async def cache(redises: Redises) -> AsyncIterator[ResponseCache]:
    client = web_client("redis://127.0.0.1:6379/0", redises)
    breaker = CircuitBreaker(client, WEB_DEADLINE)
    yield ResponseCache(client, breaker, lambda: "name")
    await breaker.close()
    await client.aclose()


IMAGE = Slot("/images/one", "one", 60)
COPY = Copy.of(200, (("content-type", "application/json"),), b"{}")


async def test_a_fill_under_the_token_that_was_read_counts(cache: ResponseCache) -> None:
    lookup = await cache.read(IMAGE)
    cache.fill(IMAGE, lookup.token, COPY)
    await fills_landed()

    assert (lookup.copy, (await cache.read(IMAGE)).copy) == (None, COPY)


@pytest.mark.parametrize("slot", [IMAGE, Slot("/images", LIST_TOPIC, 60)], ids=["record", "list"])
async def test_a_fill_from_before_a_change_never_counts(cache: ResponseCache, slot: Slot) -> None:
    """The source was read, then changed and its tokens with it, and only then the copy was written."""
    lookup = await cache.read(slot)
    await cache.change_tokens("one")
    cache.fill(slot, lookup.token, COPY)
    await fills_landed()

    assert (await cache.read(slot)).copy is None


async def test_a_fill_from_before_all_was_flushed_never_counts(cache: ResponseCache, redises: Redises) -> None:
    lookup = await cache.read(IMAGE)
    await redises("redis://127.0.0.1:6379/0").flushall()
    cache.fill(IMAGE, lookup.token, COPY)
    await fills_landed()

    assert (await cache.read(IMAGE)).copy is None


async def test_two_who_find_no_token_agree_on_one(cache: ResponseCache) -> None:
    first = await cache.read(IMAGE)
    second = await cache.read(Slot("/images/one.jpeg", "one", 60))

    assert first.token == second.token != b""


@pytest.mark.parametrize(
    "entry",
    [
        b"",
        b"\xc1",
        b"nonsense",
        msgpack.packb([]),
        msgpack.packb({"a": 1}),
        msgpack.packb([b"another token", "/images/one", 200, [], b"x"]),
    ],
)
async def test_an_entry_that_cannot_be_read_is_no_copy(cache: ResponseCache, redises: Redises, entry: bytes) -> None:
    await cache.read(IMAGE)
    await redises("redis://127.0.0.1:6379/0").set("asgilook:name:response:/images/one", entry)

    lookup = await cache.read(IMAGE)

    assert lookup.copy is None


async def test_a_copy_of_another_path_is_no_copy(cache: ResponseCache, redises: Redises) -> None:
    lookup = await cache.read(IMAGE)
    cache.fill(IMAGE, lookup.token, COPY)
    await fills_landed()
    redis = redises("redis://127.0.0.1:6379/0")
    await redis.rename("asgilook:name:response:/images/one", "asgilook:name:response:/images/one.jpeg")

    assert (await cache.read(Slot("/images/one.jpeg", "one", 60))).copy is None


# --- Redis in trouble ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_without_redis_every_answer_is_the_same_and_new(service: Service, path: str) -> None:
    image = await service.worker.ready()
    path = path.format(id=image.id)
    before = await service.client.simulate_get(path)
    service.redises.go_away()

    responses = [await service.client.simulate_get(path) for _ in range(2)]

    for response in responses:
        assert (response.status_code, cache_of(response)) == (200, "Miss")
        assert response.content == before.content
        assert headers_of(response) == headers_of(before)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
async def test_a_request_waits_for_a_redis_that_hangs_only_once(service: Service, path: str) -> None:
    image = await service.worker.ready()
    service.redises.freeze()

    answer = await service.send("GET", path.format(id=image.id), {}, [])

    assert answer[0]["status"] == 200
    assert len([command for _, command in service.redises.exchanges if b"MGET" in command]) == 1
    assert len(service.redises.begun_here()) <= 1


async def test_what_changed_while_redis_was_away_is_not_served_from_it_afterwards(service: Service) -> None:
    """Before the cache is trusted again, the tokens of all that was committed meanwhile are changed."""
    gone, kept = await service.worker.ready(), await service.worker.ready()
    for path in ("/images", f"/images/{gone.id}", f"/images/{gone.id}.jpeg"):
        await service.client.simulate_get(path)
    service.redises.go_away()
    await service.client.simulate_delete(f"/images/{gone.id}")
    service.redises.come_back()

    async def is_trusted_again() -> bool:
        response = await service.client.simulate_get("/images")
        assert [record["id"] for record in response.json] == [kept.id]
        return cache_of(response) == "Hit"

    await until(is_trusted_again)
    for path in (f"/images/{gone.id}", f"/images/{gone.id}.jpeg"):
        assert (await service.client.simulate_get(path)).status_code == 404


async def test_after_a_flush_everything_is_there_and_copied_again(service: Service) -> None:
    """Promise 2."""
    image = await service.worker.ready()
    for path in PATHS.values():
        await service.client.simulate_get(path.format(id=image.id))
    await service.redis.flushall()

    responses = {
        name: [await service.client.simulate_get(path.format(id=image.id)) for _ in range(2)]
        for name, path in PATHS.items()
    }

    assert {name: [cache_of(r) for r in both] for name, both in responses.items()} == {
        name: ["Miss", "Hit"] for name in PATHS
    }


async def test_a_redis_without_memory_is_not_filled_any_further(service: Service) -> None:
    images = [await service.worker.ready() for _ in range(3)]
    service.redises.is_full = True

    responses = [await service.client.simulate_get(f"/images/{image.id}.jpeg") for image in images]

    assert [(response.status_code, cache_of(response)) for response in responses] == [(200, "Miss")] * 3
    assert service.redises.refused == 1
    assert await service.copies() == []


async def test_a_redis_without_memory_is_still_asked_for_copies(service: Service) -> None:
    image, other = await service.worker.ready(), await service.worker.ready()
    await service.client.simulate_get(f"/images/{image.id}.jpeg")
    service.redises.is_full = True
    await service.client.simulate_get(f"/images/{other.id}.jpeg")

    response = await service.client.simulate_get(f"/images/{image.id}.jpeg")

    assert cache_of(response) == "Hit"


@pytest.mark.parametrize(("used", "fills"), [(49, True), (50, False), (99, False)])
async def test_fills_stop_where_redis_is_half_full(service: Service, used: int, fills: bool) -> None:
    """On a small Redis that it shares, a full cache makes enqueues fail, or evicts queued jobs."""
    image = await service.worker.ready()
    service.redises.memory.update(used_memory=used, maxmemory=100)

    await service.client.simulate_get(f"/images/{image.id}.jpeg")
    second = await service.client.simulate_get(f"/images/{image.id}.jpeg")

    assert cache_of(second) == ("Hit" if fills else "Miss")
    assert (await service.copies() != []) is fills


async def test_the_cache_may_live_on_a_redis_of_its_own(start: Start, redises: Redises) -> None:
    service: Service = await start(cache_redis_url=CACHE_URL, memory_cache_bytes=0)
    await service.client.simulate_get("/images")
    image = await service.worker.ready()

    responses = [await service.client.simulate_get("/images") for _ in range(2)]

    assert [cache_of(response) for response in responses] == ["Miss", "Hit"]
    assert [record["id"] for record in responses[1].json] == [image.id]
    assert await service.copies() == []
    keys: list[Any] = await redises(CACHE_URL).keys("*:response:*")
    assert keys == [f"asgilook:{service.ledger_name}:response:/images".encode()]


@pytest.mark.parametrize(("most", "expected"), [(2, "Miss"), (3, "Hit")])
async def test_copies_are_read_over_a_connection_of_their_own_where_there_may_be_one(
    template: Path, tmp_path: Path, valkey: Valkey, monkeypatch: pytest.MonkeyPatch, most: int, expected: str
) -> None:
    """The other two are the one on which notices are listened for, and that of everything else."""
    monkeypatch.setattr("shared.redis.connections.WEB_DEADLINE", WORKER_DEADLINE)  # on a busy machine, too
    shutil.copytree(template, tmp_path / "data")
    settings = Settings(
        storage_path=tmp_path / "data", free_disk_floor=0, redis_url=valkey.url, redis_max_connections=most
    )
    redis = Redis.from_url(valkey.url)

    async def connections() -> int:
        return len(await redis.client_list()) - 1

    async def are_as_many_as_may_be() -> bool:
        return await connections() == most

    async with ASGIConductor(create_app(settings)) as client:
        await until(are_as_many_as_may_be)
        await client.simulate_get("/images")
        await fills_landed()

        def fail(*arguments: Any, **options: Any) -> None:
            raise ConnectionLost("it is not to be asked")

        monkeypatch.setattr(Redis, "pipeline", fail)
        answers = await asyncio.gather(*(client.simulate_get("/images") for _ in range(50)))

        assert {cache_of(answer) for answer in answers} == {expected}
        assert await connections() == most
    await redis.aclose()
