"""Clients of Redis: how each kind is made, and whether its server accepts us."""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import Any, Protocol

from arq.connections import ArqRedis
from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import ConnectionError as ConnectionLost

from shared.cancellation import cancel
from shared.errors import RedisRefuses, SettingsError
from shared.redis.circuit_breaker import WORKER_DEADLINE, CircuitBreaker, RedisAway
from shared.settings import Settings

logger = logging.getLogger(__name__)

#: Seconds in addition to the deadline for the check at the start: no request waits, and a slow Redis may refuse us too.
_ACCESS_SECONDS = 2.0

_DEFAULTS = Settings()


class RedisFactory(Protocol):
    """A function that makes clients. Tests pass one that makes fakes."""

    def __call__(self, url: str, **options: Any) -> Redis:
        """Return a client of the server at `url`. Nothing is connected yet."""


def redis_from_url(url: str, **options: Any) -> Redis:
    """Return a client of a real server. If all its connections are in use, an exchange waits for one.

    The query of the address overrides `options`. Raises SettingsError.
    """
    options |= parse_url(url)
    try:
        if options.get("connection_class") is SSLConnection:
            tls = {name: options.pop(name) for name in tuple(options) if name.startswith("ssl_")}
            options |= {"connection_class": _TlsConnection, "context": _tls_context(**tls)}
        # The wait for a connection needs no limit, because every exchange has a deadline.
        pool = Pool(timeout=None, **options)
        # Make a connection now: an unknown option in the address fails here, not at the first command.
        pool.make_connection()  # type: ignore[no-untyped-call] # redis-py
    except (TypeError, ValueError, RedisError, OSError) as exc:
        raise SettingsError(f"REDIS_URL, CACHE_REDIS_URL, ASGI_LOOK_REDIS_CA_CERTS: {exc}") from exc
    return Redis.from_pool(pool)


def web_client(
    url: str, factory: RedisFactory = redis_from_url, settings: Settings = _DEFAULTS, others: int = 1
) -> Redis:
    """Return a client that never retries, because a request waits. The breaker limits each exchange.

    `others` of the connections that the process may have to this server are for other purposes.
    """
    most = settings.redis_max_connections - others
    return _client(url, factory, settings, most, retry=Retry(NoBackoff(), 0), retry_on_error=[ReadOnlyError])


def worker_client(
    url: str, factory: RedisFactory = redis_from_url, settings: Settings = _DEFAULTS, others: int = 0
) -> Redis:
    """Return a client that retries once: no request waits, and a lost connection must not end an attempt."""
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
    """Return a client with one connection on which notices arrive. Silence on it is no failure."""
    return _client(url, factory, settings, 1, socket_connect_timeout=WORKER_DEADLINE, health_check_interval=10)


def _client(url: str, factory: RedisFactory, settings: Settings, most: int, **options: Any) -> Redis:
    # An error in `retry_on_error` closes the connection, even without a retry. ReadOnlyError is one of these errors:
    # after a failover the old master is a replica that may keep its connections. The address leads to the new master.
    if url.startswith("rediss:"):
        options["ssl_cert_reqs"] = settings.redis_cert_reqs
        options["ssl_ca_certs"] = settings.redis_ca_certs and str(settings.redis_ca_certs)
    return factory(url, max_connections=most, socket_keepalive=True, **options)


class Pool(BlockingConnectionPool):
    """A pool that completes each connection, even if the exchange that needs it is cancelled.

    TCP, TLS, password and database take five round trips before the first command. At ten milliseconds each, that is
    longer than a web request waits for Redis. If the connection were cancelled with the request, none would ever be
    made.
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
            done.exception()  # retrieved, or asyncio would log it; a waiting exchange gets it from the shield


async def _connect(connection: AbstractConnection) -> None:
    async with asyncio.timeout(WORKER_DEADLINE):
        await connection.connect()  # type: ignore[no-untyped-call] # redis-py


class _TlsConnection(SSLConnection):
    """A connection that shares its pool's TLS context.

    redis-py makes a context for each connection. Making one reads all certificates of the system, and blocks the event
    loop for 35 ms.
    """

    def __init__(self, *, context: RedisSSLContext, **options: Any) -> None:
        super().__init__(**options)
        self.ssl_context = context


def _tls_context(**options: Any) -> RedisSSLContext:
    # If certificates are checked, their names are checked too, unless the address says otherwise.
    options["ssl_check_hostname"] = options.get("ssl_cert_reqs") != "none" and options.get("ssl_check_hostname", True)
    context = RedisSSLContext(**{name.removeprefix("ssl_"): value for name, value in options.items()})
    context.get()
    return context


def arq_client(client: Redis, **options: Any) -> ArqRedis:
    """Return an arq client with the same connections. arq's own `create_pool` sets no time-outs."""
    return ArqRedis(pool_or_conn=client.connection_pool, **options)


def ask_once(settings: Settings) -> None:
    """Wait until Redis has answered. Raises RedisAway. Call this outside of an event loop."""

    async def ask() -> None:
        client = worker_client(settings.redis_url, settings=settings)
        breaker = CircuitBreaker(client, 1.0)
        try:
            await breaker.call(client.ping, may_open=False)
        finally:
            await client.aclose()

    asyncio.run(ask())


async def memory_of(client: Redis) -> dict[str, Any]:
    """Return Redis' INFO about memory, or an empty map if it does not allow INFO, as some services do not."""
    try:
        memory: dict[str, Any] = await client.info("memory")
    except ResponseError:
        return {}
    return memory


async def check_access(client: Redis, breaker: CircuitBreaker, variable: str) -> None:
    """Raise RedisRefuses if the Redis that `variable` names refuses us. A Redis that is away is no error."""
    context = client.connection_pool.connection_kwargs.get("context")
    if context is not None and context.cert_reqs is ssl.CERT_NONE:
        logger.warning("the certificate of redis is not checked: any is taken", extra={"variable": variable})
    try:
        await breaker.call(client.ping, extra_seconds=_ACCESS_SECONDS, even_if_open=True, may_open=False)
    except RedisAway as exc:
        if (why := refusal_in(exc)) is not None:
            raise RedisRefuses(f"{variable}: {why}") from exc


def refusal_in(error: BaseException) -> str | None:
    """Return a text about why Redis refuses us, or None if the error may pass with time."""
    cause: BaseException | None = error
    while cause is not None:
        match cause:
            case AuthenticationError():
                return f"Redis does not take the user and password in it: {cause}"
            case NoPermissionError():
                return f"Redis does not allow its user enough: {cause}"
            case ssl.SSLCertVerificationError():
                return (
                    f"the certificate of Redis cannot be trusted: {cause.verify_message}. Let ASGI_LOOK_REDIS_CA_CERTS "
                    "name a file with its issuer's, or take any by ASGI_LOOK_REDIS_CERT_REQS=none"
                )
        cause = cause.__cause__ or cause.__context__
    return None
