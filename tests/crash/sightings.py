"""What clients saw and when, and which of it was older than what one of them had seen already.

Two sightings are in order where the answer of one was complete before the request of the other began, whoever made
them, and at whichever web process. Nothing is said of those that overlap.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

#: What is said of an image besides its status: that there is none, or by its picture that it is not ready yet.
GONE = "gone"
NOT_READY = "not ready"

#: How far along an image is, at the least and at the most, when this is said of it; a retry begins anew beyond.
_PROGRESS = {"queued": (0, 0), "processing": (1, 1), NOT_READY: (0, 1), "ready": (2, 2), "failed": (2, 2)}
_A_RETRY = 3


@dataclass(frozen=True)
class Sighting:
    """One answer: when its request began and when it was complete, and the state of each image that it told of."""

    began: float
    ended: float
    request: str
    states: Mapping[str, str]
    #: The sequences between which a list holds every ready image.
    covers: tuple[float, float] | None = None


@dataclass(frozen=True)
class Stale:
    """An answer that was older than what had been visible, so many seconds before it was asked for."""

    sighting: Sighting
    seconds: float
    words: str
    image_id: str
    #: Whether it was gone, and not only further along.
    was_gone: bool

    def __str__(self) -> str:
        seen = self.sighting
        return f"{self.words} {self.seconds:.3f} s before {seen.request} from {seen.began:.3f} to {seen.ended:.3f}"


@dataclass
class Sightings:
    """All that any client saw. Many threads add to it: lists and dicts take one more whole."""

    all: list[Sighting] = field(default_factory=list)
    #: When the first DELETE of an image was sent.
    deleted: dict[str, float] = field(default_factory=dict)
    #: When each retry of an image was sent and accepted (if it never was: infinity), in their order.
    retried: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    #: Which web process has deleted an image, and when it had said so.
    deleters: dict[str, tuple[str, float]] = field(default_factory=dict)
    #: The places of ready images in the list.
    sequences: dict[str, int] = field(default_factory=dict)

    def stale(self) -> list[Stale]:
        """Return every answer that was too old."""
        ready = self._first_seen(self.all, "ready")
        # Whoever is missing in a list after it was seen ready is gone: that is a sighting too.
        sightings = [*self.all, *(missing for seen in self.all for missing in self._missing(seen, ready))]
        gone = self._first_seen(sightings, GONE)
        histories = self._histories(sightings)
        return [
            stale
            for seen in sightings
            for image_id, state in seen.states.items()
            if (stale := self._judged(seen, image_id, state, histories, gone, ready)) is not None
        ]

    def _judged(
        self,
        seen: Sighting,
        image_id: str,
        state: str,
        histories: Mapping[str, _History],
        gone: Mapping[str, float],
        ready: Mapping[str, float],
    ) -> Stale | None:
        if state == GONE:
            # Older than its upload, as it were: nobody had deleted it yet.
            began = None if self._may_be_gone(seen, image_id) else min(ready.get(image_id, math.inf), seen.began)
            words, was_gone = f"{image_id}, missing now, was there", False
        elif (since := gone.get(image_id, math.inf)) < seen.began:
            began, words, was_gone = since, f"{image_id}, {state} now, was gone", True
        else:
            began = histories[image_id].beyond(self._progress(seen, image_id, state)[1])
            words, was_gone = f"{image_id}, {state} now, was further along", False
        if began is None or began > seen.began:
            return None
        return Stale(seen, seen.began - began, words, image_id, was_gone)

    def is_held_picture(self, stale: Stale, seconds: float) -> bool:
        """Tell whether this is a picture that a web process may still hold so long after it was deleted elsewhere."""
        web = stale.sighting.request.rpartition(" at ")[2]
        deleter, deleted = self.deleters.get(stale.image_id, ("", math.inf))
        is_picture = ".jpeg" in stale.sighting.request
        is_its_own = web == deleter and deleted <= stale.sighting.began
        return is_picture and stale.was_gone and stale.seconds < seconds and not is_its_own

    def _missing(self, seen: Sighting, ready: Mapping[str, float]) -> Iterator[Sighting]:
        """Yield, for a list, a sighting of each image that it lacks, though it had been seen ready before."""
        if seen.covers is None:
            return
        first, last = seen.covers
        for image_id, since in ready.items():
            is_covered = since < seen.began and first <= self.sequences.get(image_id, math.nan) <= last
            if is_covered and image_id not in seen.states:
                yield Sighting(seen.began, seen.ended, seen.request, {image_id: GONE})

    def _may_be_gone(self, seen: Sighting, image_id: str) -> bool:
        return self.deleted.get(image_id, math.inf) < seen.ended

    def _first_seen(self, sightings: Iterable[Sighting], state: str) -> dict[str, float]:
        """Return when each image had first been seen in this state; as gone, only if somebody had deleted it."""
        found: dict[str, float] = {}
        for seen in sightings:
            for image_id, seen_state in seen.states.items():
                if seen_state == state and (state != GONE or self._may_be_gone(seen, image_id)):
                    found[image_id] = min(found.get(image_id, math.inf), seen.ended)
        return found

    def _histories(self, sightings: Iterable[Sighting]) -> dict[str, _History]:
        steps: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        for seen in sightings:
            for image_id, state in seen.states.items():
                if state != GONE:
                    steps[image_id].append((seen.ended, self._progress(seen, image_id, state)[0]))
        return {image_id: _History(sorted(of_one)) for image_id, of_one in steps.items()}

    def _progress(self, seen: Sighting, image_id: str, state: str) -> tuple[int, int]:
        """Return how far along the image was, at the least and at the most."""
        least, most = _PROGRESS[state]
        retries = self.retried.get(image_id, [])
        least += _A_RETRY * sum(accepted < seen.began for _, accepted in retries)
        most += _A_RETRY * sum(sent < seen.ended for sent, _ in retries)
        return least, most


class _History:
    """How far along one image was known to be."""

    def __init__(self, steps: Sequence[tuple[float, int]]) -> None:
        self._moments = [moment for moment, _ in steps]
        self._known = list(accumulate((progress for _, progress in steps), max))

    def beyond(self, progress: int) -> float | None:
        """Return from when on it was known to be further along than this."""
        first = bisect_right(self._known, progress)
        return self._moments[first] if first < len(self._moments) else None
