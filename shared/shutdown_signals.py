"""Distinguishes the first request to shut down from the second."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Signals within so many seconds are one request. Heroku signals every process of a dyno, perhaps more than once. A
#: supervisor, timeout(1) or a closing terminal also passes its signal on to its children.
ONE_REQUEST_SECONDS = 2.0


class Requests:
    """Counts the requests to shut down. After the first one a process finishes its work, after the second one not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted_at: float | None = None
        self._count = 0

    def hear(self) -> int | None:
        """Count a signal. Returns the request's number, or None if the signal belongs to the previous request."""
        now = self._clock()
        if self._counted_at is not None and now - self._counted_at < ONE_REQUEST_SECONDS:
            return None
        self._counted_at = now
        self._count += 1
        return self._count
