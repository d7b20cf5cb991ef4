"""Renditions from this process's memory, by rows that it knows, and in lookups that many share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgpack
import pytest
import pytest_asyncio
from falcon.testing import Result

from api.renditions.memory import MOST_SECONDS
from api.server.asgi_types import Event
from shared.images import Image
from shared.ledger import Ledger
from shared.redis.notices import Announcer, Listener
from shared.redis.response_cache import MOST_BODY_BYTES, RENDITION_SECONDS, Lookup, ResponseCache, Slot
from shared.storage.disk import DiskStorage
from tests.api.arrange import Service, certain, picture, problem_of, until
from tests.api.conftest import Start

LARGE = bytes(range(256)) * (MOST_BODY_BYTES // 256) + b"and one byte more"


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def begin(start: Start, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Start:
    """As `start`, and return once the process hears notices: at its first subscription it holds nothing."""
    subscribed = 0
    pass_on = Listener._pass_on

    async def pass_on_and_count(listener: Listener, message: dict[str, object]) -> None:
        nonlocal subscribed
        await pass_on(listener, message)
        subscribed += message["type"] == "subscribe"

    monkeypatch.setattr(Listener, "_pass_on", pass_on_and_count)

    async def begin(**settings: Any) -> Service:
        before = subscribed

        async def is_listening() -> bool:
            return subscribed > before

        service: Service = await start(injected={"clock": clock}, **settings)
        await until(is_listening)
        return service

    return begin


@pytest_asyncio.fixture
async def service(begin: Start) -> Service:
    started: Service = await begin()
    return started


class Calls:
    """Counts what is asked of a collaborator, and can hold it up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str, before: Callable[[], None]) -> None:
        self.count = 0
        self.begun = asyncio.Event()
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        real = getattr(owner, name)

        async def called(*arguments: Any, **options: Any) -> Any:
            self.count += 1
            self.begun.set()
            before()
            await self.may_go_on.wait()
            return await real(*arguments, **options)

        monkeypatch.setattr(owner, name, called)

    def hold(self) -> None:
        self.may_go_on.clear()
        self.begun.clear()

    def release(self) -> None:
        self.may_go_on.set()


Watch = Callable[..., Calls]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    def watch(owner: type, name: str, before: Callable[[], None] = lambda: None) -> Calls:
        return Calls(monkeypatch, owner, name, before)

    return watch


def path_of(image: Image, name: str = "320x180.jpeg") -> str:
    return f"/images/{image.id}.jpeg" if name == "image.jpeg" else f"/thumbnails/{image.id}/{name}"


def cache_of(response: Result) -> str | None:
    return response.headers.get("X-ASGILook-Cache")


def status_of(answer: list[Event]) -> int:
    return int(answer[0]["status"])


async def delete_unheard(service: Service, image: Image) -> None:
    """Delete an image as another process would whose notice does not come; Redis knows, and has no copy any more."""
    certain(await service.ledger.delete(image.id))
    await service.redis.flushall()


# --- What is held --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["image.jpeg", "320x180.jpeg"])
async def test_what_was_just_served_is_served_without_ledger_storage_or_redis(service: Service, name: str) -> None:
    image = await service.worker.ready((640, 360))
    first = await service.client.simulate_get(path_of(image, name))
    service.execute("ALTER TABLE images RENAME TO elsewhere")
    service.redises.go_away()
    for file in service.files("renditions"):
        file.unlink()

    second = await service.client.simulate_get(path_of(image, name))

    assert (cache_of(first), cache_of(second)) == ("Miss", "Hit")
    assert second.content == first.content == picture(image, name)


async def test_a_thumbnail_after_its_image_is_a_miss_then_a_hit_and_redis_has_a_copy(service: Service) -> None:
    image = await service.worker.ready((640, 360))
    await service.client.simulate_get(path_of(image, "image.jpeg"))

    responses = [await service.client.simulate_get(path_of(image)) for _ in range(2)]

    assert [cache_of(response) for response in responses] == ["Miss", "Hit"]
    assert {response.content for response in responses} == {picture(image, "320x180.jpeg")}
    assert await service.copies() == [path_of(image, "image.jpeg"), path_of(image)]


async def test_another_size_of_an_image_that_is_known_is_read_without_asking_the_ledger(
    service: Service, watch: Watch
) -> None:
    image = await service.worker.ready((640, 360))
    await service.client.simulate_get(path_of(image))
    ledger = watch(Ledger, "get")

    response = await service.client.simulate_get(path_of(image, "160x90.jpeg"))

    assert (cache_of(response), response.content) == ("Miss", picture(image, "160x90.jpeg"))
    assert ledger.count == 0


async def test_a_copy_of_what_was_read_by_a_known_row_has_the_token_from_before_that_row(service: Service) -> None:
    """The token that is there by now may be younger than the row, and must not vouch for it."""
    image = await service.worker.ready((640, 360))
    await service.client.simulate_get(path_of(image, "image.jpeg"))
    token_key = f"asgilook:{service.ledger_name}:token:{image.id}"
    before = await service.redis.get(token_key)
    await service.redis.set(token_key, b"a younger token")

    await service.client.simulate_get(path_of(image))

    entry = await service.redis.get(f"asgilook:{service.ledger_name}:response:{path_of(image)}")
    assert msgpack.unpackb(certain(entry))[0] == before != b"a younger token"


async def test_a_large_picture_of_an_image_that_is_known_is_streamed_without_asking_the_ledger(
    service: Service, watch: Watch
) -> None:
    image = await service.worker.ready((640, 360), LARGE)
    await service.client.simulate_get(path_of(image))
    ledger, cache = watch(Ledger, "get"), watch(ResponseCache, "read")

    responses = [await service.client.simulate_get(path_of(image, "image.jpeg")) for _ in range(2)]

    assert [(response.content == LARGE, cache_of(response)) for response in responses] == [(True, "Miss")] * 2
    assert (ledger.count, cache.count) == (0, 0)


@pytest.mark.parametrize("name", ["image.jpeg", "320x180.jpeg"])
async def test_of_a_known_row_whose_files_have_gone_the_row_is_read_again(service: Service, name: str) -> None:
    """They were superseded a moment ago, and nobody has told us yet."""
    image = await service.worker.ready((640, 360))
    await service.client.simulate_get(path_of(image, "160x90.jpeg"))
    published = await service.worker.publish_again(image, settle=False)
    await service.storage.delete_folder(f"renditions/{image.id}/{image.attempt}")

    response = await service.client.simulate_get(path_of(image, name))

    assert response.content == picture(published, name)


async def test_without_memory_nothing_is_held(start: Start) -> None:
    service: Service = await start(memory_cache_bytes=0)
    image = await service.worker.ready()
    await service.client.simulate_get(path_of(image))
    await delete_unheard(service, image)

    response = await service.client.simulate_get(path_of(image))

    assert problem_of(response) == "no-such-image"


# --- For how long --------------------------------------------------------------------------------------------


async def test_a_picture_that_was_deleted_elsewhere_is_gone_within_two_seconds(service: Service, clock: Clock) -> None:
    """Promise 7's bound, where not even a notice comes."""
    image = await service.worker.ready((640, 360))
    await service.client.simulate_get(path_of(image))
    await delete_unheard(service, image)
    clock.now += MOST_SECONDS - 0.001
    before = await service.client.simulate_get(path_of(image))
    clock.now += 0.001

    after = await service.client.simulate_get(path_of(image))

    assert (before.status_code, problem_of(after)) == (200, "no-such-image")


@pytest.mark.parametrize("source", [(Ledger, "get"), (DiskStorage, "read"), (ResponseCache, "read")])
async def test_the_two_seconds_begin_before_the_source_is_read(
    begin: Start, clock: Clock, watch: Watch, source: tuple[type, str]
) -> None:
    """What is read slowly is old when it comes."""
    if source[0] is ResponseCache:
        # Somebody else has filled Redis.
        other: Service = await begin(memory_cache_bytes=0)
        image = await other.worker.ready()
        await other.client.simulate_get(path_of(image))
    service: Service = await begin()
    if source[0] is not ResponseCache:
        image = await service.worker.ready()

    def take_long() -> None:
        clock.now += 1.5

    watch(*source, take_long)
    await service.client.simulate_get(path_of(image))
    await delete_unheard(service, image)
    clock.now += 0.499
    before = await service.client.simulate_get(path_of(image))
    clock.now += 0.002

    after = await service.client.simulate_get(path_of(image))

    assert (before.status_code, after.status_code) == (200, 404)


@pytest.mark.parametrize("is_redis_away", [False, True])
async def test_who_deletes_finds_nothing_held_at_once(service: Service, is_redis_away: bool) -> None:
    image, other = await service.worker.ready(), await service.worker.ready()
    for each in (image, other):
        await service.client.simulate_get(path_of(each))
    if is_redis_away:
        service.redises.go_away()
    await service.client.simulate_delete(f"/images/{image.id}")

    responses = [await service.client.simulate_get(path_of(image, name)) for name in ("320x180.jpeg", "160x90.jpeg")]

    assert [problem_of(response) for response in responses] == ["no-such-image"] * 2
    assert cache_of(await service.client.simulate_get(path_of(other))) == "Hit"


async def test_what_redis_still_had_during_a_delete_is_not_held_after_it(
    service: Service, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the commit and the new token a copy in Redis still counts, and who finds it must not keep it."""

    async def say_nothing(*_: object, **options: object) -> None:
        """As where the notice is lost, by which this process would forget the image, too."""

    monkeypatch.setattr(Announcer, "announce", say_nothing)
    image = await service.worker.ready()
    await service.client.simulate_get(path_of(image))
    tokens = watch(ResponseCache, "change_tokens")
    tokens.hold()
    delete = asyncio.create_task(service.send("DELETE", f"/images/{image.id}", {}, []))
    await tokens.begun.wait()
    during = await service.client.simulate_get(path_of(image))
    tokens.release()
    assert status_of(await delete) == 204

    after = await service.client.simulate_get(path_of(image))

    assert (cache_of(during), problem_of(after)) == ("Hit", "no-such-image")


async def test_who_reads_that_an_image_is_gone_finds_no_picture_of_it(service: Service) -> None:
    """Whoever deleted it died before it could tell: this process settles it, and forgets it with that."""
    image = await service.worker.ready()
    await service.client.simulate_get(path_of(image))
    await service.ledger.delete(image.id)
    await service.client.simulate_get("/images?status=failed")

    response = await service.client.simulate_get(path_of(image))

    assert problem_of(response) == "no-such-image"


async def test_who_was_told_that_an_image_is_gone_finds_no_picture_of_it_though_no_notice_came(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def say_nothing(*_: object, **options: object) -> None:
        """The notice is lost."""

    monkeypatch.setattr(Announcer, "announce", say_nothing)
    image = await service.worker.ready()
    await service.client.simulate_get(path_of(image))
    await service.worker.settling.settle(certain(await service.ledger.delete(image.id)))
    held = await service.client.simulate_get(path_of(image))
    assert problem_of(await service.client.simulate_get(f"/images/{image.id}")) == "no-such-image"

    response = await service.client.simulate_get(path_of(image))

    assert (held.status_code, problem_of(response)) == (200, "no-such-image")


async def test_at_a_notice_nothing_is_held_any_more(service: Service) -> None:
    image = await service.worker.ready()
    await service.client.simulate_get(path_of(image))
    certain(await service.ledger.delete(image.id))

    await service.worker.settling.settle(certain(await service.ledger.get(image.id)))

    async def is_gone() -> bool:
        return (await service.client.simulate_get(path_of(image))).status_code == 404

    await until(is_gone)


async def test_where_notices_may_have_been_missed_nothing_is_held_any_more(service: Service) -> None:
    image = await service.worker.ready()
    await service.client.simulate_get(path_of(image))
    await delete_unheard(service, image)
    assert (await service.client.simulate_get(path_of(image))).status_code == 200

    service.redises.hang_up()

    async def is_gone() -> bool:
        return (await service.client.simulate_get(path_of(image))).status_code == 404

    await until(is_gone)


# --- Flights -------------------------------------------------------------------------------------------------


async def test_a_thousand_requests_at_once_read_ledger_storage_and_redis_once(service: Service, watch: Watch) -> None:
    image = await service.worker.ready()
    calls = [
        watch(Ledger, "get"),
        watch(DiskStorage, "read"),
        watch(ResponseCache, "read"),
        watch(ResponseCache, "_fill"),
    ]

    answers = await asyncio.gather(*(service.send("GET", path_of(image), {}, []) for _ in range(1000)))

    assert {status_of(answer) for answer in answers} == {200}
    assert {answer[1]["body"] for answer in answers} == {picture(image, "320x180.jpeg")}
    assert [each.count for each in calls] == [1, 1, 1, 1]


async def test_a_first_client_that_goes_away_takes_nothing_along(service: Service, watch: Watch) -> None:
    image = await service.worker.ready()
    storage = watch(DiskStorage, "read")
    storage.hold()
    first = asyncio.create_task(service.send("GET", path_of(image), {}, []))
    await storage.begun.wait()
    second = asyncio.create_task(service.send("GET", path_of(image), {}, []))
    await asyncio.sleep(0)

    first.cancel()
    await asyncio.wait([first])
    storage.release()

    assert status_of(await second) == 200


async def test_what_was_begun_before_a_delete_is_neither_joined_nor_held_after_it(
    service: Service, watch: Watch
) -> None:
    image = await service.worker.ready()
    storage = watch(DiskStorage, "read")
    storage.hold()
    early = asyncio.create_task(service.send("GET", path_of(image), {}, []))
    await storage.begun.wait()
    await service.client.simulate_delete(f"/images/{image.id}")

    late = await service.client.simulate_get(path_of(image))
    storage.release()
    await asyncio.wait([early])
    after = await service.client.simulate_get(path_of(image))

    assert (problem_of(late), problem_of(after)) == ("no-such-image", "no-such-image")


async def test_a_flight_that_has_taken_two_seconds_is_not_joined(service: Service, clock: Clock, watch: Watch) -> None:
    image = await service.worker.ready()
    storage = watch(DiskStorage, "read")
    storage.hold()
    first = asyncio.create_task(service.send("GET", path_of(image), {}, []))
    await storage.begun.wait()
    clock.now += MOST_SECONDS
    storage.begun.clear()
    second = asyncio.create_task(service.send("GET", path_of(image), {}, []))
    await storage.begun.wait()

    storage.release()

    assert [status_of(answer) for answer in await asyncio.gather(first, second)] == [200, 200]
    assert storage.count == 2


async def test_a_flight_that_another_has_replaced_keeps_nothing_from_before_a_delete(
    service: Service, clock: Clock, watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in nobody's list any more, so that nobody can tell it."""

    flights: list[asyncio.Task[list[Event]]] = []

    def take_half_a_second_at_first() -> None:
        clock.now += 0.5 if len(flights) == 1 else 0.0

    image = await service.worker.ready()
    real = DiskStorage.read
    has_read, may_go_on = asyncio.Event(), asyncio.Event()

    async def read_and_wait(storage: DiskStorage, key: str) -> bytes:
        content = await real(storage, key)
        has_read.set()
        await may_go_on.wait()
        return content

    monkeypatch.setattr(DiskStorage, "read", read_and_wait)
    watch(ResponseCache, "read", take_half_a_second_at_first)
    for seconds in (MOST_SECONDS - 0.5, 0.0):
        has_read.clear()
        flights.append(asyncio.create_task(service.send("GET", path_of(image), {}, [])))
        await has_read.wait()
        clock.now += seconds
    assert (await service.client.simulate_delete(f"/images/{image.id}")).status_code == 204
    may_go_on.set()
    await asyncio.gather(*flights)

    response = await service.client.simulate_get(path_of(image))

    assert problem_of(response) == "no-such-image"


async def test_what_was_wrong_before_is_told_to_nobody_who_asked_after(
    service: Service, clock: Clock, watch: Watch
) -> None:
    """A 404 from before must not be the answer to who asked after the image became ready."""
    attempt = await service.worker.processing()
    settled = watch(ResponseCache, "read")
    rows: list[Image | None] = []
    real = Ledger.get

    async def get_and_wait(ledger: Ledger, image_id: str) -> Image | None:
        rows.append(await real(ledger, image_id))
        if len(rows) == 1:
            has_read.set()
            await may_go_on.wait()
        return rows[-1]

    has_read, may_go_on = asyncio.Event(), asyncio.Event()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Ledger, "get", get_and_wait)
        early = asyncio.create_task(service.send("GET", path_of(attempt), {}, []))
        await has_read.wait()
        patched.setattr(Ledger, "get", real)
        await service.worker.publish(attempt, (640, 360), settle=False)
        clock.now += 0.001
        late = asyncio.create_task(service.send("GET", path_of(attempt), {}, []))
        await asyncio.sleep(0)
        may_go_on.set()

        assert [status_of(answer) for answer in await asyncio.gather(early, late)] == [404, 200]
    assert settled.count == 2


async def test_a_stampede_for_a_picture_that_is_not_there_asks_hardly_more_than_once(
    service: Service, clock: Clock, watch: Watch
) -> None:
    image = await service.worker.queued()
    ledger, cache = watch(Ledger, "get"), watch(ResponseCache, "read")

    answers = await asyncio.gather(*(service.send("GET", path_of(image), {}, []) for _ in range(100)))

    assert {status_of(answer) for answer in answers} == {404}
    # Those that waited for the first lookup, which failed, share a second one of the ledger.
    assert (ledger.count, cache.count) == (2, 1)


@pytest.mark.parametrize(("name", "is_large"), [("image.jpeg", True), ("320x180.jpeg", False)])
async def test_whoever_looks_for_a_copy_looks_for_the_same_and_knows_whether_it_is_large(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str, is_large: bool
) -> None:
    """A GET's is looked for by the stage, a HEAD's by falcon's middleware; nobody should wait behind a large one."""
    service: Service = await start(memory_cache_bytes=0)
    image = await service.worker.ready()
    real, slots = ResponseCache.read, []

    async def read(cache: ResponseCache, slot: Slot) -> Lookup:
        slots.append(slot)
        return await real(cache, slot)

    monkeypatch.setattr(ResponseCache, "read", read)
    for method in ("GET", "HEAD"):
        await service.send(method, path_of(image, name), {}, [])

    assert slots == [Slot(path_of(image, name), image.id, RENDITION_SECONDS, is_large)] * 2


async def test_one_who_asks_for_what_is_not_there_asks_ledger_and_redis_once(service: Service, watch: Watch) -> None:
    image = await service.worker.queued()
    ledger, cache = watch(Ledger, "get"), watch(ResponseCache, "read")

    response = await service.client.simulate_get(path_of(image))

    assert problem_of(response) == "not-ready"
    assert (ledger.count, cache.count) == (1, 1)


# --- The same answers, whichever way -------------------------------------------------------------------------


REQUESTS: dict[str, tuple[str, dict[str, str]]] = {
    "GET": ("GET", {}),
    "HEAD": ("HEAD", {}),
    "held": ("GET", {"If-None-Match": "ETAG"}),
    "held among others": ("GET", {"If-None-Match": '"other", ETAG'}),
    "any": ("GET", {"If-None-Match": "*"}),
    "not held": ("GET", {"If-None-Match": '"other"'}),
    "HEAD held": ("HEAD", {"If-None-Match": "ETAG"}),
    "unmodified": ("GET", {"If-Modified-Since": "Fri, 31 Dec 2100 23:59:59 GMT"}),
    "modified": ("GET", {"If-Modified-Since": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    "meant": ("GET", {"If-Match": "ETAG"}),
    "not meant": ("GET", {"If-Match": '"other"'}),
    "part": ("GET", {"Range": "bytes=3-9"}),
    "part of the same": ("GET", {"Range": "bytes=3-9", "If-Range": "ETAG"}),
    "part of another": ("GET", {"Range": "bytes=3-9", "If-Range": '"other"'}),
    "parts": ("GET", {"Range": "bytes=0-1,3-4"}),
    "past": ("GET", {"Range": "bytes=1000000-"}),
    "accept": ("GET", {"Accept": "text/html"}),
    "another origin": ("GET", {"Origin": "https://www.example.com"}),
    "OPTIONS": ("OPTIONS", {}),
    "POST": ("POST", {}),
}


@pytest.mark.parametrize("origins", [(), ("https://www.example.com",)], ids=["", "CORS"])
async def test_each_answer_from_memory_is_the_one_from_a_copy_in_redis(begin: Start, origins: tuple[str, ...]) -> None:
    """Header by header, in their order."""
    fast: Service = await begin(cors_origins=origins)
    slow: Service = await begin(cors_origins=origins, memory_cache_bytes=0)
    image = await fast.worker.ready((640, 360))
    for name in ("image.jpeg", "320x180.jpeg"):
        etag = (await slow.client.simulate_get(path_of(image, name))).headers["ETag"]
        for what, (method, headers) in REQUESTS.items():
            asked = {header: value.replace("ETAG", etag) for header, value in headers.items()}
            await fast.client.simulate_get(path_of(image, name))

            answers = [await each.send(method, path_of(image, name), asked, [b""]) for each in (fast, slow)]

            assert answers[0] == answers[1], what


@pytest.mark.parametrize(
    "path",
    [
        "/images/{upper}.jpeg",
        "/images/{id}.jpg",
        "/images/{id}.jpeg/",
        "/images/{id}.jpeg.jpeg",
        "/thumbnails/{id}/0320x180.jpeg",
        "/thumbnails/{id}/+320x180.jpeg",
        "/thumbnails/{id}/320x180",
        "/thumbnails/{id}/320x180.jpeg/x.jpeg",
        "/thumbnails/{id}/99999x180.jpeg",
    ],
)
async def test_a_path_that_is_not_spelled_as_ours_is_nothing(service: Service, path: str) -> None:
    image = await service.worker.ready((640, 360))
    await service.client.simulate_get(path_of(image))

    answer = await service.send("GET", path.format(id=image.id, upper=image.id.upper()), {}, [])

    assert status_of(answer) == 404


@pytest.mark.parametrize(
    ("status", "name", "value"),
    [
        (200, "content-type", "image/jpeg\nset-cookie: a=b"),
        (200, "content-type\r\nset-cookie", "a=b"),
        (200, "content-type", "image/jpeg\x7f"),
        (200, "etag", "x" * 3000),
        (200, "content-length", "1000"),
        (200, "Transfer-Encoding", "chunked"),
        (200, "connection", "upgrade"),
        (200, "x-accel-redirect", "/protected/originals/"),
        (206, "content-type", "image/jpeg"),
    ],
)
async def test_a_copy_that_can_be_none_of_ours_is_no_copy(service: Service, status: int, name: str, value: str) -> None:
    """Who can write to Redis must not be able to add what he likes to an answer, nor to prevent one."""
    image = await service.worker.ready()
    await service.client.simulate_get(f"/images/{image.id}")
    token = await service.redis.get(f"asgilook:{service.ledger_name}:token:{image.id}")
    lines = f"{name}: {value}\r\n".encode()
    entry = msgpack.packb([token, path_of(image), status, lines, b"x"])
    await service.redis.set(f"asgilook:{service.ledger_name}:response:{path_of(image)}", entry)

    answer = await service.client.simulate_get(path_of(image))

    assert (cache_of(answer), answer.headers.get("set-cookie")) == ("Miss", None)
    assert answer.content == picture(image, "320x180.jpeg")
