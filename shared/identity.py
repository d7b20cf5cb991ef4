"""Checks that storage, ledger and Redis belong together. A process must not run if they do not."""

from __future__ import annotations

import asyncio
import logging
import secrets

from redis.asyncio import Redis

from shared.errors import MismatchError
from shared.ledger import Identity, Ledger
from shared.redis.circuit_breaker import CircuitBreaker, RedisAway
from shared.settings import Settings
from shared.storage import Storage

logger = logging.getLogger(__name__)

#: Seconds after which a ledger's name in Redis expires. Every live process of the ledger renews it.
_STANDS_SECONDS = 5
_RENEWED_EVERY_SECONDS = 2.0
#: If another ledger's name is still in Redis after so many seconds, a live process renews it. The time is short: a
#: refused process must report that within ten seconds of its start.
_PATIENCE_SECONDS = 6
#: Extra seconds for a reply at the start. Also the seconds for which a Redis that is away is asked again.
_SLOWNESS_SECONDS = 2.0
_KEY = "asgilook:ledger"


async def check_storage(ledger: Ledger, storage: Storage, settings: Settings) -> Identity:
    """Check that storage and ledger belong together. Returns the ledger's identity. Raises MismatchError.

    The marker is an empty object with a random name. The ledger stores the first name that it is offered. Each process
    then looks for the object of that name in its storage. The error's message names the variables to set.
    """
    identity = await ledger.identity()
    marker = identity.marker
    if marker is None:
        async for _ in storage.listing("originals"):
            raise MismatchError(
                "the ledger and the storage do not match: the ledger is new, but the storage already holds originals "
                f"of another one. This process has {_places(settings)}. Set DATABASE_URL to the ledger of these "
                f"originals, or {settings.storage_variable} to an empty place"
            )
        offered = secrets.token_hex(16)
        draft = await storage.draft()
        try:
            await storage.keep({_marker_key(offered): draft})
        finally:
            await draft.discard()
        marker = await ledger.adopt_marker(offered)
        if marker != offered:
            await storage.delete(_marker_key(offered))
    return await _matching(storage, Identity(identity.name, marker), settings)


async def check_storage_as_it_is(ledger: Ledger, storage: Storage, settings: Settings) -> Identity:
    """Check as `check_storage` does, but write nothing. A ledger without a marker raises MismatchError."""
    identity = await ledger.identity()
    if identity.marker is None:
        raise MismatchError("the ledger belongs to no storage yet: start the service once")
    return await _matching(storage, identity, settings)


async def _matching(storage: Storage, identity: Identity, settings: Settings) -> Identity:
    if not await holds_marker(storage, identity):
        raise MismatchError(
            "the storage and the ledger do not match: this process sees another storage than the one that the ledger "
            f"belongs to. It has {_places(settings)}. Set them to the same values for web and worker"
        )
    return identity


def _places(settings: Settings) -> str:
    storage, ledger = settings.storage_place, settings.ledger_place
    return storage if storage == ledger else f"{storage} and {ledger}"


async def holds_marker(storage: Storage, identity: Identity) -> bool:
    """Return whether this is the ledger's storage, and not, for example, an empty mount point."""
    return identity.marker is not None and await storage.exists(_marker_key(identity.marker))


async def check_redis(client: Redis, breaker: CircuitBreaker, ledger_name: str, settings: Settings) -> None:
    """Check that no other ledger uses this Redis. Raises MismatchError. A Redis that is away passes."""
    for waited in range(_PATIENCE_SECONDS + 1):
        if waited:
            await asyncio.sleep(1.0)
        try:
            # No request waits yet, so allow a slow reply.
            standing = await breaker.call(
                lambda: _stand(client, ledger_name), extra_seconds=_SLOWNESS_SECONDS, even_if_open=True
            )
        except RedisAway:
            if waited >= _SLOWNESS_SECONDS:
                logger.warning("redis is away: whether another ledger uses it cannot be checked")
                return
        else:
            if standing == ledger_name:
                return
    raise MismatchError(
        f"Redis and the ledger do not match: a process with another ledger ({standing}, not {ledger_name}) "
        f"uses this Redis. This one has {settings.ledger_place}. Set {settings.ledger_variable} to the same "
        "value for web and worker, or REDIS_URL to another Redis"
    )


async def keep_standing(client: Redis, breaker: CircuitBreaker, ledger_name: str) -> None:
    """Renew the ledger's name in Redis until cancelled."""
    while True:
        await asyncio.sleep(_RENEWED_EVERY_SECONDS)
        try:
            standing = await breaker.call(lambda: _stand(client, ledger_name))
        except RedisAway:
            continue
        except Exception:
            logger.exception("the ledger's name in Redis could not be renewed")
            continue
        if standing != ledger_name:
            logger.error("another ledger uses this Redis", extra={"other": standing, "ours": ledger_name})


async def _stand(client: Redis, ledger_name: str) -> str:
    await client.set(_KEY, ledger_name, nx=True, ex=_STANDS_SECONDS)
    standing: bytes | None = await client.get(_KEY)
    if standing is not None and standing.decode() == ledger_name:
        await client.expire(_KEY, _STANDS_SECONDS)
    return ledger_name if standing is None else standing.decode()


def _marker_key(marker: str) -> str:
    return f"markers/{marker}"
