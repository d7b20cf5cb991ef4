"""Waiting until an image is final, for `POST` and `GET` alike."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time

from shared.images import Image, Status
from shared.ledger import Ledger
from shared.redis.notices import Listener
from shared.settling import Settling

MOST_SECONDS = 20
#: Seconds after which a waiter reads the ledger even without a notice.
_LOOK_EVERY_SECONDS = 1.0


def wait_of(prefer: str | None) -> int | None:
    """Return the seconds that a `Prefer` header (RFC 7240) asks to wait, at most 20, or None if it asks for none."""
    for preference in (prefer or "").split(","):
        name, _, value = preference.partition(";")[0].partition("=")
        if name.strip().lower() == "wait" and re.fullmatch(r'\s*("?)[0-9]+\1\s*', value):
            digits = value.strip().strip('"').lstrip("0")
            # Three digits are enough to reach the maximum, so int() never sees a long number.
            return min(int(digits[:3] or "0"), MOST_SECONDS)
    return None


class Waiter:
    """Reads images, and waits until they are final."""

    def __init__(
        self, ledger: Ledger, settling: Settling, listener: Listener, look_every: float = _LOOK_EVERY_SECONDS
    ) -> None:
        self._ledger = ledger
        self._settling = settling
        self._listener = listener
        self._look_every = look_every

    async def until_final(self, image_id: str, seconds: float) -> Image | None:
        """Return the image once it is neither queued nor processing, or after `seconds`.

        Returns None if there is no such image. The image's debts of cache tokens are paid before it is returned, if
        Redis can be reached.
        """
        deadline = time.monotonic() + seconds
        # Subscribe before the first read, or a notice between the two would be missed.
        with self._listener.listen(image_id) as heard:
            while True:
                heard.clear()
                image = await self._ledger.get(image_id)
                left = deadline - time.monotonic()
                if image is None or image.status not in (Status.QUEUED, Status.PROCESSING) or left <= 0:
                    return None if image is None else await self._settling.settle_tokens(image)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(heard.wait(), min(left, self._look_every))
