"""Every Redis client: how each is made, and whether its server lets us in."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterator
from typing import Any, Protocol, TypeVar

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError
from redis.exceptions import ConnectionError as ConnectionLost

from shared.cancellation import cancel
from shared.errors import RedisRefuses, SettingsError
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker, RedisAway
from shared.settings import Settings

T = TypeVar("T")
logger = logging.getLogger(__name__)

#: Seconds beyond the deadline for the first exchange, before anybody waits: a slow Redis is no reason to ask nothing.
_ACCESS_SECONDS = 2.0

_DEFAULTS = Settings()


class RedisFactory(Protocol):
    """How clients are made: tests give one that makes fake ones."""

    def __call__(self, url: str, **options: Any) -> Redis:
        """Return a client of the server at `url`; nothing is connected yet."""


def redis_from_url(url: str, **options: Any) -> Redis:
    """Return a client of a real server, which waits for a connection where as many are taken as it may have.

    What stands behind the address's question mark counts more than `options`. Raises SettingsError.
    """
    options |= parse_url(url)
    try:
        if options.get("connection_class") is SSLConnection:
            tls = {name: options.pop(name) for name in tuple(options) if name.startswith("ssl_")}
            options |= {"connection_class": _TlsConnection, "context": _tls_context(**tls)}
        # Nobody waits for ever: whoever has a connection has a time limit.
        pool = Pool(timeout=None, **options)
        pool.make_connection()  # type: ignore[no-untyped-call] # redis-py; an option that nobody knows is found here, not when there is something to do
    except (TypeError, ValueError, RedisError, OSError) as exc:
        raise SettingsError(f"REDIS_URL, CACHE_REDIS_URL, ASGI_LOOK_REDIS_CA_CERTS: {exc}") from exc
    return Redis.from_pool(pool)


def web_client(
    url: str, factory: RedisFactory = redis_from_url, settings: Settings = _DEFAULTS, others: int = 1
) -> Redis:
    """Return a client that never retries: somebody is waiting, so long as its breaker allows for a whole exchange.

    `others` of the connections that we may have to its server are not the client's.
    """
    most = settings.redis_max_connections - others
    return _client(url, factory, settings, most, retry=Retry(NoBackoff(), 0), retry_on_error=[ReadOnlyError])


def worker_client(
    url: str, factory: RedisFactory = redis_from_url, settings: Settings = _DEFAULTS, others: int = 0
) -> Redis:
    """Return a client that retries once: nobody is waiting, and a dropped connection is no reason to hand back."""
    return _client(
        url,
        factory,
        settings,
        settings.redis_max_connections - others,
        socket_timeout=WORKER_DEADLINE,
        socket_connect_timeout=WORKER_DEADLINE,
        retry=Retry(ExponentialBackoff(cap=1, base=0.05), 1),
        retry_on_error=[ConnectionLost, ReadOnlyError],
    )


def listening_client(url: str, factory: RedisFactory = redis_from_url, settings: Settings = _DEFAULTS) -> Redis:
    """Return a client that waits for notices, over its one connection: silence is not a failure."""
    return _client(url, factory, settings, 1, socket_connect_timeout=WORKER_DEADLINE, health_check_interval=10)


def _client(url: str, factory: RedisFactory, settings: Settings, most: int, **options: Any) -> Redis:
    # What is in `retry_on_error` drops its connection, however few retries there are. A Redis that may only be read is
    # what it was: since a failover the address leads to another, while the old one is still there, a replica.
    if is_tls(url):
        options["ssl_cert_reqs"] = settings.redis_cert_reqs
        options["ssl_ca_certs"] = settings.redis_ca_certs and str(settings.redis_ca_certs)
    return factory(url, max_connections=most, socket_keepalive=True, **options)


def is_tls(url: str) -> bool:
    """Tell whether this address asks for TLS."""
    return url.startswith("rediss:")


class Pool(BlockingConnectionPool):
    """A pool whose connections are made to the end, also where those who asked for them do not wait so long.

    TCP, TLS, the password and the database are five exchanges before the first command. Where each takes ten
    milliseconds, a connection that went with whoever ran out of time would never come about.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._connecting: dict[AbstractConnection, asyncio.Task[None]] = {}

    async def ensure_connection(self, connection: AbstractConnection) -> None:
        if connection in self._connecting or not connection.is_connected:
            connecting = self._connecting.get(connection)
            if connecting is None:
                connecting = self._connecting[connection] = asyncio.create_task(_connect(connection))
                connecting.add_done_callback(lambda done: self._connected(connection, done))
            await asyncio.shield(connecting)
        await super().ensure_connection(connection)

    async def disconnect(self, inuse_connections: bool = True) -> None:
        await cancel(*self._connecting.values())
        await super().disconnect(inuse_connections)

    def _connected(self, connection: AbstractConnection, done: asyncio.Task[None]) -> None:
        del self._connecting[connection]
        if not done.cancelled():
            done.exception()  # seen: whoever still waits hears of it


async def _connect(connection: AbstractConnection) -> None:
    async with asyncio.timeout(WORKER_DEADLINE):
        await connection.connect()  # type: ignore[no-untyped-call] # redis-py


class _TlsConnection(SSLConnection):
    """A connection whose TLS context is its pool's: to make one reads all of the system's certificates.

    That takes 35 ms, in which the event loop stands still; redis-py makes one for each connection.
    """

    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = context


def _tls_context(**options: Any) -> RedisSSLContext:
    # Whoever has a certificate checked has the name in it checked, unless the address says otherwise. Where none is
    # there is no telling whose name it is.
    options["ssl_check_hostname"] = options.get("ssl_cert_reqs") != "none" and options.get("ssl_check_hostname", True)
    context = RedisSSLContext(**{name.removeprefix("ssl_"): value for name, value in options.items()})
    context.get()
    return context


def arq_client(client: Redis, **options: Any) -> ArqRedis:
    """Return arq's view of the same connections: its own `create_pool` sets no time-outs."""
    return ArqRedis(pool_or_conn=client.connection_pool, **options)


def ask_once(settings: Settings) -> None:
    """Return when Redis has answered, from outside of any event loop. Raises RedisAway."""

    async def ask() -> None:
        client = worker_client(settings.redis_url, settings=settings)
        breaker = CircuitBreaker(client, 1.0)
        try:
            await breaker.call(client.ping, may_open=False)
        finally:
            await client.aclose()

    asyncio.run(ask())


async def check_access(client: Redis, breaker: CircuitBreaker, variable: str) -> None:
    """Make sure that the Redis which `variable` names lets us in. Raises RedisRefuses; who is away refuses nobody."""
    context = client.connection_pool.connection_kwargs.get("context")
    if context is not None and context.cert_reqs is ssl.CERT_NONE:
        logger.warning("the certificate of redis is not checked: any is taken", extra={"variable": variable})
    try:
        await breaker.call(client.ping, extra_seconds=_ACCESS_SECONDS, even_if_open=True, may_open=False)
    except RedisAway as exc:
        if (why := refusal_in(exc)) is not None:
            raise RedisRefuses(f"{variable}: {why}") from exc


def refusal_in(error: BaseException) -> str | None:
    """Return why Redis and we do not come together, in words, or None where time may change it."""
    for exc in _causes_of(error):
        match exc:
            case AuthenticationError():
                return f"Redis does not take the user and password in it: {exc}"
            case NoPermissionError():
                return f"Redis does not allow its user enough: {exc}"
            case ssl.SSLCertVerificationError():
                return (
                    f"the certificate of Redis cannot be trusted: {exc.verify_message}. Let ASGI_LOOK_REDIS_CA_CERTS "
                    "name a file with its issuer's, or take any by ASGI_LOOK_REDIS_CERT_REQS=none"
                )
    return None


def _causes_of(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
