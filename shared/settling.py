"""Settling: paying what a commit left to be done. Each step may be repeated by anybody."""

from __future__ import annotations

import logging
from collections.abc import Callable
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
    """Pays debts in their order: cache tokens, the notice, leftovers."""

    def __init__(
        self, ledger: Ledger, storage: Storage, cache: ResponseCache, announcer: Announcer, keep_originals: bool
    ) -> None:
        self._ledger = ledger
        self._storage = storage
        self._cache = cache
        self._announcer = announcer
        self._keep_originals = keep_originals
        #: Called with the id of every image whose commit this process is about to tell, whether Redis is there or not.
        self.on_change: list[Callable[[str], None]] = []

    async def settle(self, image: Image) -> bool:
        """Pay all that the image owes; return False where Redis did not allow it.

        May raise StorageUnavailable or LedgerUnavailable.
        """
        image = await self._settle_tokens(image, leaves_nothing=self._leaves_nothing(image))
        if image.owed is Owed.LEFTOVERS:
            await self.remove_leftovers(image)
        return image.owed is not Owed.TOKENS

    async def settle_tokens(self, image: Image) -> Image:
        """Change the tokens that the image owes and move its row on; return it as it is then.

        Whoever reads a row that owes tokens calls this before answering: otherwise a client that saw `ready` may
        read an older list next. What is left besides is not for readers to say: they leave leftovers to the sweep.
        """
        return await self._settle_tokens(image, leaves_nothing=False)

    async def _settle_tokens(self, image: Image, *, leaves_nothing: bool) -> Image:
        if image.owed is not Owed.TOKENS:
            if image.status is Status.DELETING:
                # Somebody else has told, and we may not have heard it: what is told to be gone is served no more.
                self._changed(image.id)
            return image
        self._changed(image.id)
        try:
            await self._cache.change_tokens(image.id)
        except RedisAway:
            return image
        finally:
            # Once more: what was looked for meanwhile may have been found under the token of before.
            self._changed(image.id)
        moved_on = await self._ledger.tokens_changed(image, leaves_nothing=leaves_nothing)
        metrics.SETTLED.add("tokens")
        await self._announce(image.id)
        # Whoever moved the row on before us pays what else it owes.
        return moved_on or replace(image, owed=None)

    def _leaves_nothing(self, image: Image) -> bool:
        # Most images: the first attempt is the one that was published, and the original stays.
        return image.status is Status.READY and image.published == image.attempt == 1 and self._keep_originals

    async def settle_all_tokens(self, even_if_open: bool = False) -> None:
        """Change the tokens of every row that owes them. Raises RedisAway where one could not be changed."""
        while owing := await self._ledger.owing_tokens():
            ids = [image.id for image in owing]
            self._changed(*ids)
            try:
                await self._cache.change_tokens(*ids, even_if_open=even_if_open)
            finally:
                self._changed(*ids)
            await self._ledger.all_tokens_changed(owing)
            metrics.SETTLED.add("tokens", by=len(owing))
            await self._announce(*ids, even_if_open=even_if_open)

    def _changed(self, *image_ids: str) -> None:
        for image_id in image_ids:
            for hear in self.on_change:
                hear(image_id)

    async def _announce(self, *image_ids: str, even_if_open: bool = False) -> None:
        try:
            await self._announcer.announce(*image_ids, even_if_open=even_if_open)
        except RedisAway:
            logger.debug("no notice went out", extra={"images": image_ids})

    async def remove_leftovers(self, image: Image) -> None:
        """Remove what no longer serves anybody: superseded attempts, unwanted originals, a deleted image's all."""
        if image.status is Status.DELETING:
            await self._storage.delete_folder(renditions_prefix(image.id))
            await self._storage.delete(original_key(image.id))
        else:
            for name in await self._storage.folders(renditions_prefix(image.id)):
                # Attempts past the one we read may be at work by now.
                if name.isdecimal() and int(name) <= image.attempt and int(name) != image.published:
                    await self._storage.delete_folder(attempt_prefix(image.id, int(name)))
            if image.status is Status.READY and not self._keep_originals:
                await self._storage.delete(original_key(image.id))
        await self._ledger.leftovers_removed(image)
        metrics.SETTLED.add("leftovers")
