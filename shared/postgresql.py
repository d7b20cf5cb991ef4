"""PostgreSQL behind the ledger: few connections, each with time-outs, and nothing that PgBouncer minds."""

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

#: Seconds until a host must have answered who wants to connect, unless the address says otherwise.
CONNECT_SECONDS = 5.0
#: Seconds that one command may take before it is cancelled and its connection given up.
COMMAND_SECONDS = 8.0
#: Seconds of silence in a transaction after which PostgreSQL ends it: a frozen worker must not hold the counter.
IDLE_SECONDS = 4.0
#: Seconds that a transaction waits for another's lock: longer than a frozen one can hold it.
LOCK_SECONDS = 6.0
#: Seconds that a server has to say goodbye: one that is silent must keep nobody from ending, once a connection.
CLOSE_SECONDS = 0.5

#: SQLSTATEs, or classes of them, after which a connection is of no more use.
_LOST = (
    "08",  # a connection that broke
    "57P",  # a server that ends, or begins
    "25P03",  # silent in a transaction for too long
    "25006",  # a server that may only be read: what it was, another is since a failover
)

#: Any number that no other application on this database takes a lock by.
RELEASE_LOCK = 4_711_202_601


def create_engine(settings: Settings, migrating: bool = False) -> AsyncEngine:
    """Create the engine of a ledger on PostgreSQL; who is `migrating` may take as long as it takes."""
    options, hosts = _options_of(settings.database_url, None if migrating else COMMAND_SECONDS)
    where = ",".join(_place(host, port) for host, port in hosts)

    async def connected() -> Any:
        # Of several hosts each has its time, or one that is silent would take that of those behind it.
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
        # Whatever the database's default: in any other, who loses an image to somebody else gets an error.
        isolation_level="READ COMMITTED",
    )
    event.listen(engine.sync_engine, "checkout", _refuse_closed)
    event.listen(engine.sync_engine, "begin", _limit)
    event.listen(engine.sync_engine, "handle_error", _judge)
    return engine


async def take_turn(connection: AsyncConnection) -> None:
    """Wait until no other release is at work; ours then is, until its transaction ends."""
    await connection.exec_driver_sql(_set_locally(idle_in_transaction_session_timeout=60.0, lock_timeout=600.0))
    await connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({RELEASE_LOCK})")
    # Who waits long for a table makes all who come later wait: a migration that finds it busy had better fail.
    await connection.exec_driver_sql(_set_locally(lock_timeout=LOCK_SECONDS))


def _set_locally(**seconds: float) -> str:
    """Return the statement that sets time-outs for its transaction, as SET LOCAL does for one of them."""
    return "SELECT " + ", ".join(f"set_config('{name}', '{value:g}s', true)" for name, value in seconds.items())


def _options_of(url: str, command_seconds: float | None) -> tuple[dict[str, Any], list[tuple[str | None, int | None]]]:
    """Return what asyncpg is to be called with, and the hosts and ports of which it is to be given one at a time.

    It reads the address as libpq does, but for what is taken out here.
    """
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    query.pop("channel_binding", None)
    connect_seconds = float(query.pop("connect_timeout", 0)) or CONNECT_SECONDS
    query.setdefault("application_name", "asgilook")
    options: dict[str, Any] = {
        "timeout": connect_seconds,
        "command_timeout": command_seconds,
        # No statement gets a name then. PgBouncer hands each transaction another server, which does not know it.
        "statement_cache_size": 0,
        "connection_class": _Connection,
    }
    if query.get("sslrootcert") == "system":
        # What libpq has called by this name since 16: whom the machine trusts, verify-full.
        del query["sslrootcert"]
        options["ssl"] = ssl.create_default_context()
    hosts = _hosts_of(parts, query)
    login = "".join(parts.netloc.rpartition("@")[:2])
    options["dsn"] = parts._replace(netloc=login, query=urlencode(query)).geturl()
    return options, hosts


def _hosts_of(parts: SplitResult, query: dict[str, str]) -> list[tuple[str | None, int | None]]:
    """Take the hosts, each with its port, from an address: those after its ? count, as they do to libpq."""
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
    """A connection that is closed in no time, where the other side does not answer."""

    async def close(self, *, timeout: float | None = None) -> None:
        # Whatever fails, it is cut off then; there is nothing to be told.
        with suppress(OSError):
            await super().close(timeout=min(timeout or CLOSE_SECONDS, CLOSE_SECONDS))


def _refuse_closed(connection: Any, record: object, proxy: object) -> None:
    # What the server closed while nobody used it is known here already; to ask it would cost a round trip each time.
    if connection.driver_connection.is_closed():
        raise DisconnectionError("closed by the server")


def _limit(connection: Connection) -> None:
    # In the transaction, not for the session: behind PgBouncer a session belongs to everybody.
    limits = _set_locally(idle_in_transaction_session_timeout=IDLE_SECONDS, lock_timeout=LOCK_SECONDS)
    # What is acknowledged is on PostgreSQL's disk, whatever its default; one that asks for more than that is kept.
    durable = "set_config('synchronous_commit', replace(current_setting('synchronous_commit'), 'off', 'on'), true)"
    # Every order of ours is that of an index. Where statistics are older than a burst, PostgreSQL would read and sort
    # all of what it thinks are a few.
    unsorted = "set_config('enable_sort', 'off', true)"
    connection.exec_driver_sql(f"{limits}, {durable}, {unsorted}")


def _judge(context: ExceptionContext) -> None:
    """Tell after which errors a connection is not used again."""
    error = context.original_exception
    if isinstance(error, OSError):
        # A time-out of ours, or a network's: it says nothing about the other connections.
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
    elif (getattr(error, "sqlstate", None) or "").startswith(_LOST):
        context.is_disconnect = True
