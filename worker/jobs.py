"""Jobs: the work on an image, in four steps: claim, render, store, record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import BinaryIO

from shared.definitions import definition_of
from shared.errors import NoSuchKey, StorageUnavailable, UnreadableImage
from shared.identity import holds_marker
from shared.images import Image, Work
from shared.ledger import Identity
from shared.renditions import FULL, Rendition, Size, ladder, original_key, rendition_key, size_named, thumbnail_name
from shared.settings import Settings
from shared.storage import Draft, Storage
from worker.attempt import Attempt
from worker.attempts import Attempts
from worker.renderer.outputs import Output
from worker.renderer.pool import Renderer
from worker.slots import Slot


class Jobs:
    """Does both kinds of work: an image's first renditions, and more renditions of a ready image."""

    def __init__(
        self, settings: Settings, identity: Identity, storage: Storage, renderer: Renderer, attempts: Attempts
    ) -> None:
        self._settings = settings
        self._identity = identity
        self._storage = storage
        self._renderer = renderer
        self._attempts = attempts

    async def work(self, image_id: str, slot: Slot) -> None:
        """Do the work that waits on this image, if there is any."""
        async with self._attempts.claim(image_id) as attempt:
            if attempt is not None:
                await self._do(attempt, slot)

    async def work_on(self, attempt: Attempt, slot: Slot) -> None:
        """Do work that is already claimed."""
        async with self._attempts.hold(attempt):
            await self._do(attempt, slot)

    async def _do(self, attempt: Attempt, slot: Slot) -> None:
        """Render, store, record."""
        image = attempt.image
        slot.set_attempt(attempt)
        async with contextlib.AsyncExitStack() as stack:
            key = await self._source_of(image)
            source = stack.enter_context(await self._open(key))
            async with self._renderer.open(source.fileno()) as session:
                outputs = self._outputs(image, session.size, made_of=key)
                drafts = dict(zip(outputs, await self._storage.drafts(len(outputs)), strict=True))
                for draft in drafts.values():
                    stack.push_async_callback(draft.discard)
                descriptors = {output: draft.fileno() for output, draft in drafts.items()}
                await session.render(descriptors, rendered=slot.leave)
            renditions = await self._store(image, drafts, session.written)
        await attempt.publish(session.size, renditions, seconds=session.seconds)

    async def _source_of(self, image: Image) -> str:
        """Return the key of the file that renditions are made from: the original or, if it is gone, the JPEG."""
        original = original_key(image.id)
        if image.work is Work.CONVERT or await self._storage.exists(original):
            return original
        return rendition_key(image.id, image.renditions[FULL])

    async def _open(self, key: str) -> BinaryIO:
        try:
            return await self._storage.open_local(key)
        except NoSuchKey as exc:
            if await holds_marker(self._storage, self._identity):
                raise
            raise StorageUnavailable("the storage has lost its marker, and with it all that it held") from exc

    def _outputs(self, image: Image, size: Size, made_of: str) -> list[Output]:
        """Return the outputs to make from a source of this size. `made_of` is the source's key."""
        files = image.wanted
        if files is None:
            rungs = (thumbnail_name(rung) for rung in ladder(size, self._settings.min_thumb_size))
            # The row may also name thumbnails of a longer ladder, from a former setting. Make them too: otherwise a
            # missing one would be requested again and again.
            files = tuple(dict.fromkeys((FULL, *rungs, *(thumbnail.file for thumbnail in image.thumbnails))))
        outputs = [Output(file, file.rpartition(".")[2], size_named(file, size)) for file in files]
        if image.work is Work.CONVERT:
            return outputs
        if size != image.size:
            raise UnreadableImage("The stored picture is not the one that was published.")
        if made_of == original_key(image.id):
            return outputs
        # Do not make the JPEG from itself: it would lose quality each time, and a torn one would be published as whole.
        return [output for output in outputs if output.name != FULL]

    async def _store(
        self, image: Image, drafts: Mapping[Output, Draft], written: Mapping[Output, tuple[int, str]]
    ) -> Iterable[Rendition]:
        by_key: dict[str, Draft] = {}
        renditions: list[Rendition] = []
        for output, draft in drafts.items():
            definition = definition_of(output.format, self._settings.background)
            rendition = Rendition(output.name, output.size, *written[output], image.attempt, definition)
            renditions.append(rendition)
            by_key[rendition_key(image.id, rendition)] = draft
        if by_key:
            await self._storage.keep(by_key)
        return renditions
