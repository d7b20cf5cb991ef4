"""What arq runs: one coroutine for each kind of job, in four steps: claim, render, store, record."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

from arq.worker import Function, func

from shared.errors import LeaseLost, NoSuchKey, StorageUnavailable, UnreadableImage
from shared.identity import holds_marker
from shared.images import FULL, Image, Rendition, Size, ladder, original_key, rendition_key, thumbnail_name
from shared.ledger import Identity, Ledger
from shared.redis.queue import CONVERT_IMAGE, MAKE_THUMBNAILS
from shared.settings import Settings
from shared.storage import Draft, Storage
from worker.attempts import Attempts
from worker.renderer.outputs import Output
from worker.renderer.pool import Renderer
from worker.renderer.session import RenderSession
from worker.slots import Slot


class Jobs:
    """The work behind the queue's two functions."""

    def __init__(
        self,
        settings: Settings,
        ledger: Ledger,
        identity: Identity,
        storage: Storage,
        renderer: Renderer,
        attempts: Attempts,
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._ledger = ledger
        self._storage = storage
        self._renderer = renderer
        self._attempts = attempts

    @property
    def functions(self) -> list[Function]:
        """The functions to register with arq, by the names under which they are enqueued."""
        return [
            func(self.convert_image, name=CONVERT_IMAGE, max_tries=1),
            func(self.make_thumbnails, name=MAKE_THUMBNAILS, max_tries=1),
        ]

    async def convert_image(self, ctx: dict[str, Any], image_id: str) -> None:
        """Make an image's JPEG and thumbnails from its original."""
        await self._attempts.run(
            lambda: self._ledger.claim(image_id, self._attempts.worker),
            lambda image: self._convert(image, ctx["slot"]),
        )

    async def make_thumbnails(self, ctx: dict[str, Any], image_id: str, wake: int) -> None:
        """Make the thumbnails of a ready image, which is served meanwhile."""
        await self._attempts.run(
            lambda: self._ledger.claim_thumbnails(image_id, wake, self._attempts.worker),
            lambda image: self._make_thumbnails(image, ctx["slot"]),
        )

    async def _convert(self, image: Image, slot: Slot) -> Image:
        async with contextlib.AsyncExitStack() as stack:
            original = stack.enter_context(await self._open(original_key(image.id)))
            async with self._renderer.open(original.fileno()) as session:
                size = session.size
                drafts = await self._drafts(stack, [_full(size), *self._ladder(size)])
                await self._render(session, drafts, slot)
            renditions = await self._keep(image, drafts, session.written)
        return _committed(await self._ledger.publish(image, size, renditions))

    async def _make_thumbnails(self, image: Image, slot: Slot) -> Image:
        assert image.size is not None  # noqa: S101 - for mypy: a ready image has a size
        assert image.published is not None  # noqa: S101 - for mypy: a ready image is published
        published = rendition_key(image.id, image.published, FULL)
        # Made of the original, the JPEG is made anew, too: it may be torn. Of itself it would lose quality each time.
        has_original = await self._storage.exists(original_key(image.id))
        outputs = [_full(image.size)] if has_original else []
        async with contextlib.AsyncExitStack() as stack:
            source = stack.enter_context(await self._open(original_key(image.id) if has_original else published))
            async with self._renderer.open(source.fileno()) as session:
                if session.size != image.size:
                    raise UnreadableImage("The stored picture is not the one that was published.")
                drafts = await self._drafts(stack, [*outputs, *self._ladder(image.size)])
                await self._render(session, drafts, slot)
            renditions = await self._keep(image, drafts, session.written)
        if not has_original:
            await self._storage.carry_over(published, rendition_key(image.id, image.attempt, FULL))
            renditions = {FULL: image.renditions[FULL]} | renditions
        return _committed(await self._ledger.publish(image, image.size, renditions))

    async def _open(self, key: str) -> BinaryIO:
        try:
            return await self._storage.open_local(key)
        except NoSuchKey as exc:
            if await holds_marker(self._storage, self._identity):
                raise
            raise StorageUnavailable("the storage has lost its marker, and with it all that it held") from exc

    def _ladder(self, size: Size) -> list[Output]:
        return [Output(thumbnail_name(rung), "jpeg", rung) for rung in ladder(size, self._settings.min_thumb_size)]

    async def _drafts(self, stack: contextlib.AsyncExitStack, outputs: Sequence[Output]) -> dict[Output, Draft]:
        drafts = dict(zip(outputs, await self._storage.drafts(len(outputs)), strict=True))
        for draft in drafts.values():
            stack.push_async_callback(draft.discard)
        return drafts

    async def _render(self, session: RenderSession, drafts: Mapping[Output, Draft], slot: Slot) -> None:
        descriptors = {output: draft.fileno() for output, draft in drafts.items()}
        await session.render(descriptors, rendered=slot.leave)

    async def _keep(
        self, image: Image, drafts: Mapping[Output, Draft], written: Mapping[Output, tuple[int, str]]
    ) -> dict[str, Rendition]:
        renditions: dict[str, Rendition] = {}
        by_key: dict[str, Draft] = {}
        for output, draft in drafts.items():
            renditions[output.name] = Rendition(output.size, *written[output])
            by_key[rendition_key(image.id, image.attempt, output.name)] = draft
        if by_key:
            await self._storage.keep(by_key)
        return renditions


def _full(size: Size) -> Output:
    return Output(FULL, "jpeg", size)


def _committed(row: Image | None) -> Image:
    if row is None:
        raise LeaseLost("the commit found the image taken")
    return row
