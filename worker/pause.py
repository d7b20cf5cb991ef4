"""A pause in which a worker in trouble takes no jobs."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)


class Pause:
    """Lasts 1 s at first, then twice as long each time, up to a minute. The first success ends it."""

    MOST_SECONDS = 60.0

    def __init__(self) -> None:
        self._seconds = 0.0
        self._until = 0.0

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def begin(self) -> None:
        """Begin a pause, unless one lasts."""
        if self.seconds_left:
            return
        self._seconds = min(self._seconds * 2 or 1.0, self.MOST_SECONDS)
        self._until = time.monotonic() + self._seconds
        logger.warning("this worker takes nothing new for a while", extra={"seconds": self._seconds})

    def forget(self) -> None:
        """End the pause, and begin the next one at 1 s."""
        self._seconds = self._until = 0.0
