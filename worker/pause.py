"""The pause in which a worker takes no work, after trouble with storage, ledger, Redis or children."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 2.0


class Pause:
    """Lasts 2 s from the last trouble. A success ends it."""

    def __init__(self) -> None:
        self._until = 0.0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def begin(self) -> None:
        """Begin a pause, or restart the present one."""
        if not self.seconds_left:
            logger.warning("this worker takes nothing new for a while", extra={"seconds": PAUSE_SECONDS})
        self._until = time.monotonic() + PAUSE_SECONDS

    def end(self) -> None:
        """End the pause now."""
        self._until = 0.0
