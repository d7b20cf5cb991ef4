"""Settling: paying the debts of commits. Any process may pay a debt, and paying it twice does no harm."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.images import Debt, DebtKind, Image, Status
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.notices import Announcer
from shared.redis.response_cache import ResponseCache
from shared.renditions import attempt_prefix, original_key, rendition_key, renditions_prefix
from shared.storage import Storage
from shared.telemetry import metrics


class Settling:
    """Pays debts: cache tokens, notices, leftovers.

    `on_change` is called with the id of each image whose tokens are changed, also while Redis is away, and of each
    image that a reader finds deleted.
    """

    def __init__(
        self,
        ledger: Ledger,
        storage: Storage,
        cache: ResponseCache,
        announcer: Announcer,
        keep_originals: bool,
        *,
        on_change: Callable[[str], None] = lambda image_id: None,
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._cache = cache
        self._announcer = announcer
        self._keep_originals = keep_originals
        self._on_change = on_change

    async def settle(self, image: Image) -> None:
        """Pay the image's debts. While Redis is away, tokens and notices stay owed.

        Raises StorageUnavailable or LedgerUnavailable.
        """
        with contextlib.suppress(RedisAway):
            await self.pay(image)

    async def pay(self, image: Image) -> None:
        """Pay the image's debts. Raises RedisAway, StorageUnavailable or LedgerUnavailable if some stay owed."""
        try:
            await self._change_tokens([image])
            await self._announce([image])
        except RedisAway:
            await self._remove_leftovers(image)
            raise
        await self._remove_leftovers(image)

    async def settle_tokens(self, image: Image) -> Image:
        """Change the cache tokens that the image owes. Returns the image without the paid debts.

        While Redis is away, the tokens stay owed. A reader must call this before it answers from a row: otherwise a
        client that has seen `ready` may read an older list next.
        """
        if not image.owes(DebtKind.TOKENS):
            if image.status is Status.DELETING:
                # Another process sent the notice, which may be lost. The answer will say that the image is gone, so
                # this process must not serve it from memory any more.
                self._on_change(image.id)
            return image
        try:
            await self._change_tokens([image])
        except RedisAway:
            return image
        return replace(image, debts=tuple(debt for debt in image.debts if debt.kind is not DebtKind.TOKENS))

    async def settle_all_tokens(self, even_if_open: bool = False) -> None:
        """Change the tokens of every row that owes them, and send its notice. Raises RedisAway if one is still owed."""
        while owing := await self._ledger.owing_tokens():
            await self._change_tokens(owing, even_if_open=even_if_open)
            await self._announce(owing, even_if_open=even_if_open)

    async def _change_tokens(self, images: Sequence[Image], *, even_if_open: bool = False) -> None:
        owed = _owed(images, DebtKind.TOKENS)
        if not owed:
            return
        ids = [image.id for image in images]
        self._all_changed(ids)
        try:
            await self._cache.change_tokens(*ids, even_if_open=even_if_open)
        finally:
            # Call it again: a read that ran meanwhile may have found a copy under the former token.
            self._all_changed(ids)
        # Record the payment before the notice is sent. The requests that it wakes would otherwise pay the debt again.
        await self._ledger.paid(owed)
        metrics.SETTLED.add("tokens", by=len(owed))

    async def _announce(self, images: Sequence[Image], *, even_if_open: bool = False) -> None:
        if owed := _owed(images, DebtKind.NOTICE):
            owing = [image.id for image in images if image.owes(DebtKind.NOTICE)]
            await self._announcer.announce(*owing, even_if_open=even_if_open)
            await self._ledger.paid(owed)
            metrics.SETTLED.add("notice", by=len(owed))

    def _all_changed(self, image_ids: Sequence[str]) -> None:
        for image_id in image_ids:
            self._on_change(image_id)

    async def _remove_leftovers(self, image: Image) -> None:
        """Remove files that the row does not name, originals that are not kept, and all files of a deleted image."""
        owed = image.owes(DebtKind.LEFTOVERS)
        if not owed:
            return
        if image.status is Status.DELETING:
            await self._storage.delete_folder(renditions_prefix(image.id))
            await self._storage.delete(original_key(image.id))
            await self._ledger.remove(image)
        else:
            await self._remove_unnamed(image)
            if image.status is Status.READY and not self._keep_originals:
                await self._storage.delete(original_key(image.id))
            await self._ledger.paid(owed)
        metrics.SETTLED.add("leftovers")

    async def _remove_unnamed(self, image: Image) -> None:
        # The attempt that holds the image may be writing to its folder, and later attempts to theirs.
        last = image.attempt if image.worker is None else image.attempt - 1
        named = {rendition_key(image.id, rendition) for rendition in image.renditions.values()}
        for name in await self._storage.folders(renditions_prefix(image.id)):
            if not name.isdecimal() or int(name) > last:
                continue
            folder = attempt_prefix(image.id, int(name))
            if not image.has_published(int(name)):
                await self._storage.delete_folder(folder)
                continue
            async for stored in self._storage.listing(folder):
                if stored.key not in named:
                    await self._storage.delete(stored.key)


def _owed(images: Sequence[Image], kind: DebtKind) -> list[Debt]:
    return [debt for image in images for debt in image.owes(kind)]
