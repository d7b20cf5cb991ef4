"""What the tests of the HTTP surface arrange: a served application, images in any status, Redis in any mood."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fakeredis
import uuid_utils
from falcon.testing import ASGIConductor, Result
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError

from api.app import create_app
from api.problems import MEDIA_TYPE, TITLES, problem_type
from api.server.asgi_types import Event
from api.server.guard import Guard
from shared.identity import check_storage
from shared.images import Image, Lane, Original
from shared.ledger import Ledger
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker
from shared.redis.clients import worker_client
from shared.redis.notices import Announcer
from shared.redis.response_cache import ResponseCache
from shared.renditions import FULL, Rendition, Size, attempt_prefix, ladder, original_key, thumbnail_name
from shared.settings import Settings
from shared.settling import Settling
from shared.storage.disk import DiskStorage
from tests.fills import fills_landed

T = TypeVar("T")

#: Seconds that only a failing test ever waits.
PATIENCE = 15.0

#: The web process decodes nothing, so that a signature and anything behind it is a picture to it.
PHOTO = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 20
UNKNOWN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"


class Redises:
    """The Redis servers of a test, one for each URL, and the factory of their clients."""

    def __init__(self) -> None:
        self._servers: dict[str, fakeredis.FakeServer] = defaultdict(fakeredis.FakeServer)
        #: What INFO says, which fakeredis cannot.
        self.memory: dict[str, Any] = {"used_memory": 1, "maxmemory": 0, "maxmemory_policy": "noeviction"}
        #: Whether SET is refused for want of memory, and how many copies were.
        self.is_full = False
        self.refused = 0
        self.is_frozen = False
        #: The task and the bytes of every exchange that was begun, in their order.
        self.exchanges: list[tuple[asyncio.Task[Any] | None, bytes]] = []

        self._connections: weakref.WeakSet[fakeredis.FakeAsyncRedisConnection] = weakref.WeakSet()

    def __call__(self, url: str, **options: Any) -> Redis:
        redises = self
        # fakeredis never takes a health check for done, and asks for another in the middle of connecting.
        options.pop("health_check_interval", None)

        class Connection(fakeredis.FakeAsyncRedisConnection):
            async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
                packed = b"".join(command) if isinstance(command, list) else command
                redises.exchanges.append((asyncio.current_task(), packed))
                if redises.is_frozen:
                    await asyncio.Event().wait()
                await super().send_packed_command(command, check_health)

            async def _read_response(self, **options: Any) -> Any:
                redises._connections.add(self)
                response = await super()._read_response(**options)
                if isinstance(response, RedisConnectionError):
                    await self.disconnect()
                    raise response
                return response

        class Client(fakeredis.FakeAsyncRedis):
            async def execute_command(self, *arguments: Any, **options: Any) -> Any:
                if arguments[0] == "INFO":
                    await self.ping()
                    return redises.memory
                return await super().execute_command(*arguments, **options)  # type: ignore[no-untyped-call] # redis-py

            def pipeline(self, *arguments: Any, **options: Any) -> Any:
                pipe = super().pipeline(*arguments, **options)
                return _Full(pipe, redises) if redises.is_full else pipe

        client: Redis = Client.from_url(url, server=self._servers[url], **options)
        client.connection_pool.connection_class = Connection
        return client

    def go_away(self) -> None:
        """Drop every connection and take no new one."""
        for server in self._servers.values():
            server.connected = False

    def come_back(self) -> None:
        """Take connections again; what was stored is still there."""
        for server in self._servers.values():
            server.connected = True

    def freeze(self) -> None:
        """Answer nothing any more; what was asked until now is forgotten."""
        self.is_frozen = True
        self.exchanges.clear()

    def hang_up(self) -> None:
        """Have everybody who is waiting for a message learn that the connection is lost."""
        for connection in self._connections:
            if connection._sock is not None:
                connection._sock.put_response(RedisConnectionError("the connection was lost"))

    def begun_here(self) -> list[bytes]:
        """Return what the current task has asked Redis."""
        return [command for task, command in self.exchanges if task is asyncio.current_task()]


class _Full:
    """A pipeline to a server that has no memory left: it refuses each SET, and answers the rest."""

    def __init__(self, pipe: Any, redises: Redises) -> None:
        self._pipe = pipe
        self._redises = redises
        self._is_refused: list[bool] = []

    async def __aenter__(self) -> _Full:
        await self._pipe.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        await self._pipe.__aexit__(*exc)

    def execute_command(self, *command: Any) -> None:
        is_set = command[0] == "SET"
        self._redises.refused += is_set and "NX" not in command
        self._is_refused.append(is_set)
        self._pipe.execute_command(*(("PING",) if is_set else command))

    async def execute(self, raise_on_error: bool) -> list[Any]:
        replies = await self._pipe.execute(raise_on_error=raise_on_error)
        full = OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        return [full if refused else reply for refused, reply in zip(self._is_refused, replies, strict=True)]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


class Worker:
    """Does to ledger, storage and tokens what a worker does, and renders nothing."""

    def __init__(self, settings: Settings, redises: Redises, ledger_name: str) -> None:
        self._settings = settings
        self._client = worker_client(settings.redis_url, redises)
        self._cache_client = worker_client(settings.cache_redis_url, redises)
        self._breakers = [CircuitBreaker(c, WORKER_DEADLINE) for c in (self._client, self._cache_client)]
        self.ledger = Ledger.connect(settings)
        self.storage = DiskStorage(settings.storage_path)
        cache = ResponseCache(self._cache_client, self._breakers[1], lambda: ledger_name)
        announcer = Announcer(self._client, self._breakers[0], lambda: ledger_name)
        self.settling = Settling(self.ledger, self.storage, cache, announcer, settings.keep_originals)

    async def close(self) -> None:
        for breaker in self._breakers:
            await breaker.close()
        await self._client.aclose()
        await self._cache_client.aclose()
        await self.ledger.close()

    async def queued(self, content: bytes = PHOTO) -> Image:
        """Return a new image that is queued."""
        image_id = str(uuid_utils.uuid7())
        size, sha256 = await self._keep(original_key(image_id), content)
        return await self.ledger.add(image_id, Original("image/jpeg", size, sha256), None)

    async def processing(self) -> Image:
        """Return a new image that an attempt holds."""
        return await self.claim((await self.queued()).id)

    async def ready(self, size: Size = (640, 360), jpeg: bytes | None = None) -> Image:
        """Return a new image that is ready, and owes nothing."""
        return await self.publish(await self.processing(), size, jpeg)

    async def failed(self, error_type: str = "unreadable-image", detail: str = "It is no picture.") -> Image:
        """Return a new image that has failed, and owes nothing."""
        return await self.fail(await self.processing(), error_type, detail)

    async def claim(self, image_id: str) -> Image:
        return certain(await self.ledger.claim(image_id, "a worker"))

    async def publish(
        self, attempt: Image, size: Size = (640, 360), jpeg: bytes | None = None, *, settle: bool = True
    ) -> Image:
        renditions = []
        sizes = {FULL: size, **{thumbnail_name(smaller): smaller for smaller in self.ladder(size)}}
        for name, its_size in sizes.items():
            content = picture(attempt, name) if jpeg is None or name != FULL else jpeg
            length, sha256 = await self._keep(f"{attempt_prefix(attempt.id, attempt.attempt)}/{name}", content)
            renditions.append(Rendition(name, its_size, length, sha256, attempt.attempt, "0123abcd"))
        published = certain(await self.ledger.publish(attempt, size, renditions, seconds=0.1))
        return await self.settle(published) if settle else published

    async def publish_again(self, image: Image, *, settle: bool = True) -> Image:
        """Have all renditions of a ready image made again; return it as it is then."""
        wanted = certain(await self.ledger.request_renditions(image, Lane.DEMAND))
        return await self.publish(await self.claim(wanted.id), settle=settle)

    async def publish_more(self, image: Image, name: str, size: Size) -> Image:
        """Add one rendition to a ready image; return it as it is then."""
        wanted = certain(await self.ledger.request_renditions(image, Lane.AHEAD, [name]))
        attempt = await self.claim(wanted.id)
        length, sha256 = await self._keep(f"{attempt_prefix(image.id, attempt.attempt)}/{name}", picture(attempt, name))
        rendition = Rendition(name, size, length, sha256, attempt.attempt, "0123abcd")
        return await self.settle(
            certain(await self.ledger.publish(attempt, certain(image.size), [rendition], seconds=0.1))
        )

    async def fail(self, attempt: Image, error_type: str, detail: str) -> Image:
        return await self.settle(certain(await self.ledger.fail(attempt, error_type, detail)))

    async def settle(self, image: Image) -> Image:
        await self.settling.settle(image)
        return certain(await self.ledger.get(image.id))

    def ladder(self, size: Size) -> list[Size]:
        return ladder(size, self._settings.min_thumb_size)

    async def _keep(self, key: str, content: bytes) -> tuple[int, str]:
        draft = await self.storage.draft()
        try:
            await draft.write(content)
            digest = await draft.digest()
            await self.storage.keep({key: draft})
        finally:
            await draft.discard()
        return digest


@dataclass
class Service:
    """The web process as production has it, behind its guard, and everything around it."""

    app: Callable[..., Awaitable[None]]
    guard: Guard
    client: ASGIConductor
    settings: Settings
    redises: Redises
    redis: Redis
    ledger_name: str
    worker: Worker

    @property
    def ledger(self) -> Ledger:
        return self.worker.ledger

    @property
    def storage(self) -> DiskStorage:
        return self.worker.storage

    async def image(self, image_id: str) -> Image:
        """Return the image as the ledger has it now."""
        return certain(await self.ledger.get(image_id))

    def rows(self) -> list[str]:
        """Return the id of every row."""
        with contextlib.closing(sqlite3.connect(self.settings.storage_path / "ledger.sqlite3")) as connection:
            return [row[0] for row in connection.execute("SELECT id FROM images")]

    def execute(self, statement: str) -> None:
        """Do to the ledger's database what no code of ours does."""
        with contextlib.closing(sqlite3.connect(self.settings.storage_path / "ledger.sqlite3")) as connection:
            connection.execute(statement)
            connection.commit()

    def files(self, *kinds: str) -> list[Path]:
        """Return every file of storage that is an original, a draft or a rendition, or only of these kinds."""
        below = (self.settings.storage_path / kind for kind in kinds or ("originals", "drafts", "renditions"))
        return sorted(path for folder in below for path in folder.rglob("*") if path.is_file())

    def traces(self) -> list[object]:
        """Return all that images have left behind, on disk or in the ledger."""
        return [*self.rows(), *self.files()]

    async def jobs(self) -> list[str]:
        """Return the ids of the jobs in the queue, without the ledger's name."""
        ids: list[bytes] = await self.redis.zrange(f"arq:queue2:{self.ledger_name}", 0, -1)
        return [job_id.decode().replace(f":{self.ledger_name}:", ":") for job_id in ids]

    async def copies(self) -> list[str]:
        """Return the paths of which the response cache holds a copy, current or not."""
        prefix = f"asgilook:{self.ledger_name}:response:"
        return sorted(key.decode().removeprefix(prefix) for key in await self.redis.keys(f"{prefix}*"))

    async def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        chunks: Sequence[bytes],
        *,
        goes_away: bool = False,
        stays_silent: bool = False,
    ) -> list[Event]:
        """Send a body chunk by chunk, perhaps not to its end; return the events of the answer."""
        events: list[Event] = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
        if goes_away:
            events.append({"type": "http.disconnect"})
        elif not stays_silent:
            events.append({"type": "http.request", "body": b"", "more_body": False})
        answer: list[Event] = []

        async def receive() -> Event:
            return events.pop(0) if events else await asyncio.Event().wait()  # type: ignore[return-value] # for ever

        async def send(event: Event) -> None:
            answer.append(event)

        path, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
            "server": ("test", 80),
            "client": ("test", 1),
        }
        async with asyncio.timeout(PATIENCE):
            await self.app(scope, receive, send)
        return answer


async def introduce(settings: Settings) -> None:
    """Have a new ledger and a new storage belong together."""
    ledger, storage = Ledger.connect(settings), DiskStorage(settings.storage_path)
    await storage.prepare()
    await check_storage(ledger, storage, settings)
    await ledger.close()


@contextlib.asynccontextmanager
async def serve(template: Path, settings: Settings, redises: Redises, **injected: Any) -> AsyncIterator[Service]:
    """Serve an application on a copy of `template`, unless there is one already, and close all of it."""
    if not settings.storage_path.exists():
        shutil.copytree(template, settings.storage_path)
    guard = create_app(settings, redis_from_url=redises, **injected)

    async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
        # Falcon's test client gives headers that can be read only once, on purpose; servers give lists.
        await guard({**scope, "headers": [tuple(pair) for pair in scope.get("headers", ())]}, receive, send)
        await fills_landed()

    async with ASGIConductor(app) as client:
        with contextlib.closing(sqlite3.connect(settings.storage_path / "ledger.sqlite3")) as connection:
            (name,) = connection.execute("SELECT identity FROM deployment").fetchone()
        redis = redises(settings.redis_url)
        worker = Worker(settings, redises, name)
        try:
            yield Service(app, guard, client, settings, redises, redis, name, worker)
        finally:
            await worker.close()
            await redis.aclose()


def picture(attempt: Image, name: str) -> bytes:
    """Return what stands for a rendition of this attempt: bytes that no other rendition has."""
    return b"\xff\xd8\xff" + f"{attempt.id} {attempt.attempt} {name} ".encode() * 8 + b"\xff\xd9"


def form(*files: tuple[str, bytes], fields: Mapping[str, str] | None = None) -> tuple[str, bytes]:
    """Return the content type and the body of a form with these files, each by its name, and fields."""
    parts = [_part(f'form-data; name="{name}"', value.encode()) for name, value in (fields or {}).items()]
    parts += [_part(f'form-data; name="image"; filename="{name}"', content) for name, content in files]
    return "multipart/form-data; boundary=delimiter", b"".join(parts) + b"--delimiter--\r\n"


def _part(disposition: str, content: bytes) -> bytes:
    return b"--delimiter\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


def problem_of(response: Result) -> str:
    """Return the name of the problem that a response is, having checked that it is one in every respect."""
    body: dict[str, Any] = json.loads(response.text)
    name = str(body["type"]).rpartition(":")[2]
    assert body["type"] == problem_type(name)
    assert (response.status_code, body["title"]) == TITLES[name]
    assert body["status"] == response.status_code
    assert response.headers["Content-Type"] == MEDIA_TYPE
    assert response.headers["Cache-Control"] == "no-store"
    assert "ETag" not in response.headers
    assert "X-ASGILook-Cache" not in response.headers
    return name


def headers_of(response: Result) -> dict[str, str]:
    """Return the headers of a response but for the one that tells Hit from Miss."""
    return {name: value for name, value in response.headers.items() if name.lower() != "x-asgilook-cache"}


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Return once `condition` holds, which something else brings about."""
    async with asyncio.timeout(PATIENCE):
        while not await condition():  # noqa: ASYNC110 - a row or a file has no event to wait for
            await asyncio.sleep(0.005)


def certain(found: T | None) -> T:
    """Return what must be there."""
    assert found is not None
    return found
