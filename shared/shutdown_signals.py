"""When a process is asked to end, and when it is asked again."""

from __future__ import annotations

import time
from collections.abc import Callable

#: Signals within so many seconds are one request: Heroku signals every process of a dyno, perhaps more than once, and a
#: supervisor, timeout(1) or a terminal that closes passes its own on to those it has started.
ONE_REQUEST_SECONDS = 2.0


class Requests:
    """Counts how often this process was asked to end: the first time it finishes what it has begun, the second not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted_at: float | None = None
        self._count = 0

    def hear(self) -> int | None:
        """Take a signal in; return the request's number, or None where it belongs to the one before."""
        now = self._clock()
        if self._counted_at is not None and now - self._counted_at < ONE_REQUEST_SECONDS:
            return None
        self._counted_at = now
        self._count += 1
        return self._count
