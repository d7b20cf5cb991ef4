"""PostgreSQL as the ledger's database: few connections, each with time-outs, also behind PgBouncer."""

from __future__ import annotations

import re
import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

import asyncpg
from sqlalchemy import Connection, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from shared.settings import Settings

#: Seconds that a host has to accept a connection, unless the address sets `connect_timeout`.
CONNECT_SECONDS = 5.0
#: Seconds that one command may take before it is cancelled and its connection closed.
COMMAND_SECONDS = 8.0
#: Seconds of silence after which PostgreSQL ends a transaction: a frozen worker must not keep its locks.
IDLE_SECONDS = 4.0
#: Seconds that a transaction waits for a lock: longer than a frozen process can hold one.
LOCK_SECONDS = 6.0
#: Seconds that closing a connection may take. A silent server must not delay a shutdown for each connection.
CLOSE_SECONDS = 0.5

#: Prefixes of SQLSTATEs after which a connection is not used again.
_LOST = (
    "08",  # the connection broke
    "57P",  # the server shuts down or starts
    "25P03",  # the transaction was silent for too long
    "25006",  # the server is read-only: another one is the primary since a failover
)

#: The number of the release step's advisory lock. No other application on the database may use this number.
RELEASE_LOCK = 4_711_202_601


def create_engine(settings: Settings, migrating: bool = False) -> AsyncEngine:
    """Create the engine of a ledger on PostgreSQL. With `migrating`, commands have no time limit."""
    options, hosts = _options_of(settings.database_url, None if migrating else COMMAND_SECONDS)
    where = ",".join(_place(host, port) for host, port in hosts)

    async def connected() -> Any:
        # Each host has its own time limit. With one limit for all, a silent host would leave no time for the next.
        for host, port in hosts:
            try:
                return await asyncpg.connect(**options, host=host, port=port)
            except (OSError, asyncpg.CannotConnectNowError, asyncpg.TargetServerAttributeNotMatched) as exc:
                failed = exc
        if isinstance(failed, TimeoutError):
            raise TimeoutError(f"PostgreSQL at {where} did not let us in within {options['timeout']:g} s") from failed
        if isinstance(failed, OSError):
            raise ConnectionError(f"PostgreSQL at {where} cannot be reached: {failed}") from failed
        raise failed

    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={"async_creator_fn": connected, "prepared_statement_cache_size": 0},
        pool_size=settings.database_connections,
        max_overflow=0,
        pool_timeout=10,
        # Set for databases with a higher default, at which a failing guard raises an error instead of finding no row.
        isolation_level="READ COMMITTED",
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "begin", _limit)
    event.listen(engine.sync_engine, "handle_error", _judge)
    return engine


async def take_turn(connection: AsyncConnection) -> None:
    """Wait for the lock of the release step, and hold it until this transaction ends."""
    # A statement_timeout of the server or the role would end every long migration.
    await connection.exec_driver_sql(
        _set_locally(idle_in_transaction_session_timeout=60.0, lock_timeout=600.0, statement_timeout=0.0)
    )
    await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({RELEASE_LOCK})")
    # A migration that waits for a table blocks every later statement on that table. So let it fail soon.
    await connection.exec_driver_sql(_set_locally(lock_timeout=LOCK_SECONDS))


def _set_locally(**seconds: float) -> str:
    """Return a statement that sets time-outs for its transaction only, as SET LOCAL does."""
    return "SELECT " + ", ".join(f"set_config('{name}', '{value:g}s', true)" for name, value in seconds.items())


def _options_of(url: str, command_seconds: float | None) -> tuple[dict[str, Any], list[tuple[str | None, int | None]]]:
    """Return the arguments for asyncpg, and the hosts and ports to try one after the other.

    asyncpg reads the address as libpq does, except for the options that are removed here.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    query.pop("channel_binding", None)
    connect_seconds = float(query.pop("connect_timeout", 0)) or CONNECT_SECONDS
    query.setdefault("application_name", "asgilook")
    options: dict[str, Any] = {
        "timeout": connect_seconds,
        "command_timeout": command_seconds,
        # At 0, no statement has a name. Behind PgBouncer the next transaction may run on another server connection,
        # which does not know the name.
        "statement_cache_size": 0,
        "connection_class": _Connection,
    }
    if query.get("sslrootcert") == "system":
        # As in libpq 16: verify-full with the certificates that the machine trusts.
        del query["sslrootcert"]
        options["ssl"] = ssl.create_default_context()
    hosts = _hosts_of(parts, query)
    login = "".join(parts.netloc.rpartition("@")[:2])
    options["dsn"] = parts._replace(netloc=login, query=urlencode(query)).geturl()
    return options, hosts


def _hosts_of(parts: SplitResult, query: dict[str, str]) -> list[tuple[str | None, int | None]]:
    """Return the hosts of an address with their ports, and remove both from `query`.

    As in libpq, hosts and ports after the `?` replace the others.
    """
    hosts, ports = [], []
    for place in parts.netloc.rpartition("@")[2].split(","):
        host, _, port = place.rpartition(":") if re.search(r":\d*$", place) else (place, "", "")
        hosts.append(unquote(host.strip("[]")))
        ports.append(port)
    hosts = query.pop("host", ",".join(hosts)).split(",")
    ports = query.pop("port", ",".join(ports)).split(",")
    if len(ports) == 1:
        ports *= len(hosts)
    return [(host or None, int(port) if port else None) for host, port in zip(hosts, ports, strict=True)]


def _place(host: str | None, port: int | None) -> str:
    if host is None:
        return "its usual socket"
    name = f"[{host}]" if ":" in host else host
    return name if port is None else f"{name}:{port}"


class _Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection that closes quickly, also if the server does not answer."""

    async def close(self, *, timeout: float | None = None) -> None:
        # After an error the connection is closed, too.
        with suppress(OSError):
            await super().close(timeout=min(timeout or CLOSE_SECONDS, CLOSE_SECONDS))


def _refuse_closed(connection: Any, record: object, proxy: object) -> None:
    # asyncpg knows if the server closed an idle connection. A ping would cost a round trip.
    if connection.driver_connection.is_closed():
        raise DisconnectionError("closed by the server")


def _limit(connection: Connection) -> None:
    # Set for the transaction, not for the session: behind PgBouncer sessions are shared.
    limits = _set_locally(idle_in_transaction_session_timeout=IDLE_SECONDS, lock_timeout=LOCK_SECONDS)
    # A commit must be on PostgreSQL's disk. So `off` becomes `on`, and stricter values stay.
    durable = "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
    # An index serves each ORDER BY of the ledger. With statistics from before a burst, PostgreSQL would expect few
    # rows, and then read and sort many.
    unsorted = "set_config('enable_sort', 'off', true)"
    connection.exec_driver_sql(f"{limits}, {durable}, {unsorted}")


def _judge(context: ExceptionContext) -> None:
    """Tell SQLAlchemy after which errors a connection is not used again."""
    error = context.original_exception
    if isinstance(error, OSError):
        # A time-out or a network error. The pool's other connections may be fine.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    elif (getattr(error, "sqlstate", None) or "").startswith(_LOST):
        context.is_disconnect = True
