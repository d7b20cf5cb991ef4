"""Settling: doing what a commit left to be done. Any process may do a step, and any step may be repeated."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.images import Image, Owed, Status, attempt_prefix, original_key, renditions_prefix
from shared.ledger import Ledger
from shared.redis.circuit_breaker import RedisAway
from shared.redis.notices import Announcer
from shared.redis.response_cache import ResponseCache
from shared.storage import Storage
from shared.telemetry import metrics

logger = logging.getLogger(__name__)


class Settling:
    """Settles debts in their order: cache tokens, the notice, leftovers.

    `on_change` gets the id of each image whose commit is about to be announced, also while Redis is away.
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

    async def settle(self, image: Image) -> bool:
        """Settle all that the image owes; return False if Redis is away.

        May raise StorageUnavailable or LedgerUnavailable.
        """
        image = await self._settle_tokens(image, leaves_nothing=self._leaves_nothing(image))
        if image.owed is Owed.LEFTOVERS:
            await self.remove_leftovers(image)
        return image.owed is not Owed.TOKENS

    async def settle_tokens(self, image: Image) -> Image:
        """Change the cache tokens that the image owes and record it; return the image as it is then.

        A reader calls this before it answers from a row that owes tokens: otherwise a client that saw `ready` may read
        an older list next. Leftovers are left to the sweep: only the committing process knows of none.
        """
        return await self._settle_tokens(image, leaves_nothing=False)

    async def _settle_tokens(self, image: Image, *, leaves_nothing: bool) -> Image:
        if image.owed is not Owed.TOKENS:
            if image.status is Status.DELETING:
                # Another process announced it, and its notice may be lost. This answer says that the image is gone, so
                # this process must not serve it from memory any more.
                self._on_change(image.id)
            return image
        self._on_change(image.id)
        try:
            await self._cache.change_tokens(image.id)
        except RedisAway:
            return image
        finally:
            # Again: a read that ran meanwhile may have found a copy under the former token.
            self._on_change(image.id)
        moved_on = await self._ledger.tokens_changed(image, leaves_nothing=leaves_nothing)
        metrics.SETTLED.add("tokens")
        await self._announce(image.id)
        # None: another process changed the row first, and settles the rest.
        return moved_on or replace(image, owed=None)

    def _leaves_nothing(self, image: Image) -> bool:
        # True for most images: their first attempt is published and their original is kept.
        return image.status is Status.READY and image.published == image.attempt == 1 and self._keep_originals

    async def settle_all_tokens(self, even_if_open: bool = False) -> None:
        """Change the tokens of every row that owes them. Raises RedisAway if one could not be changed."""
        while owing := await self._ledger.owing_tokens():
            ids = [image.id for image in owing]
            self._all_changed(ids)
            try:
                await self._cache.change_tokens(*ids, even_if_open=even_if_open)
            finally:
                self._all_changed(ids)
            await self._ledger.all_tokens_changed(owing)
            metrics.SETTLED.add("tokens", by=len(owing))
            await self._announce(*ids, even_if_open=even_if_open)

    def _all_changed(self, image_ids: Sequence[str]) -> None:
        for image_id in image_ids:
            self._on_change(image_id)

    async def _announce(self, *image_ids: str, even_if_open: bool = False) -> None:
        try:
            await self._announcer.announce(*image_ids, even_if_open=even_if_open)
        except RedisAway:
            logger.debug("no notice went out", extra={"images": image_ids})

    async def remove_leftovers(self, image: Image) -> None:
        """Remove superseded attempts, originals that are not kept, and all files of a deleted image."""
        if image.status is Status.DELETING:
            await self._storage.delete_folder(renditions_prefix(image.id))
            await self._storage.delete(original_key(image.id))
        else:
            for name in await self._storage.folders(renditions_prefix(image.id)):
                # A later attempt than the one in `image` may be running.
                if name.isdecimal() and int(name) <= image.attempt and int(name) != image.published:
                    await self._storage.delete_folder(attempt_prefix(image.id, int(name)))
            if image.status is Status.READY and not self._keep_originals:
                await self._storage.delete(original_key(image.id))
        await self._ledger.leftovers_removed(image)
        metrics.SETTLED.add("leftovers")
