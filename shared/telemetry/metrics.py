"""All counters and histograms of `/metrics`. Until they are switched on, they count nothing and cost nearly nothing.

Labels have few values: routes, not paths; types, not details.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import Any

from shared.errors import RenderFailure


class _Metric:
    """A metric. When counting is switched on, it uses the class of prometheus_client with the same name."""

    def __init__(
        self, name: str, what: str, *labels: str, known: Iterable[tuple[str, ...]] = (), **options: Any
    ) -> None:
        self._declared = (name, what, labels)
        self._options = options
        self._known = tuple(known)
        self._real: Any = None
        _ALL.append(self)

    @property
    def is_on(self) -> bool:
        return self._real is not None

    def switch_on(self, prometheus: Any, registry: Any) -> None:
        real = self._real = getattr(prometheus, type(self).__name__)(
            *self._declared, registry=registry, **self._options
        )
        # Cached: the library's own lookup by labels takes longer than counting.
        self._labelled = cache(lambda *labels: real.labels(*labels) if labels else real)
        for labels in self._known:
            self._labelled(*labels)


class Counter(_Metric):
    """Counts events by their labels. The `known` labels are exported as 0 before their first event."""

    def add(self, *labels: str, by: float = 1) -> None:
        """Count one event, or `by` of them."""
        if self.is_on:
            self._labelled(*labels).inc(by)


class Histogram(_Metric):
    """Counts measured values in `buckets`, by their labels."""

    def observe(self, value: float, *labels: str) -> None:
        """Count a measured value."""
        if self.is_on:
            self._labelled(*labels).observe(value)


_ALL: list[_Metric] = []

# From a cached answer to a rendering at its time limit. The short ones are from a read of a local copy to a locked
# ledger. The long bounds are above round numbers: a client that asks to wait for 10 or 20 s is answered right after.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5.5, 11, 21, 31, 61)
_SHORT_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
_BYTES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)

REQUESTS = Counter("asgilook_requests", "Requests, by what they were answered.", "method", "route", "status")
REQUEST_SECONDS = Histogram(
    "asgilook_request_seconds",
    "Seconds from a request to its answer's end, apart for those that ask to wait (Prefer).",
    "method",
    "route",
    "waited",
    buckets=_SECONDS,
)
UPLOAD_BYTES = Histogram("asgilook_upload_bytes", "Bytes of the originals that were committed.", buckets=_BYTES)
UPLOAD_SECONDS = Histogram("asgilook_upload_seconds", "Seconds from a body's begin to its commit.", buckets=_SECONDS)
RESPONSE_CACHE = Counter(
    "asgilook_response_cache",
    "Looks into the response cache, and its fills.",
    "what",
    known=[("hit",), ("miss",), ("away",), ("fill",)],
)
REDIS_LEFT_ALONE = Counter("asgilook_redis_left_alone", "Times that a Redis failed and was left alone for a while.")
ATTEMPTS = Counter(
    "asgilook_attempts",
    "Attempts, by how they ended, and why.",
    "outcome",
    "why",
    known=[
        ("published", ""),
        ("taken", ""),
        *(("failed", failure.type) for failure in RenderFailure.__subclasses__()),
        *(("lost", why) for why in ("ChildLost", "NoSuchKey", "unforeseen")),
        *(("handed back", why) for why in ("stopping", "preempted", "StorageUnavailable", "StorageFull", "NoChild")),
        ("left to the sweep", "LedgerUnavailable"),
    ],
)
ATTEMPT_SECONDS = Histogram("asgilook_attempt_seconds", "Seconds from a claim to its publication.", buckets=_SECONDS)
RENDER_SECONDS = Histogram(
    "asgilook_render_seconds",
    "Seconds that a stage of a picture's rendering took.",
    "stage",
    "format",
    buckets=_SECONDS,
)
CHILDREN_REPLACED = Counter("asgilook_children_replaced", "Children that ended and had to be replaced.")
SWEPT = Counter(
    "asgilook_swept",
    "What the sweep took: served, or given back for a later pass.",
    "what",
    "outcome",
    known=product(("lost", "waiting", "tokens", "notice", "leftovers"), ("served", "given back")),
)
SETTLED = Counter("asgilook_settled", "Debts that were paid.", "owed", known=[("tokens",), ("notice",), ("leftovers",)])
LEDGER_SECONDS = Histogram("asgilook_ledger_seconds", "Seconds in the ledger.", "operation", buckets=_SHORT_SECONDS)
STORAGE_SECONDS = Histogram("asgilook_storage_seconds", "Seconds in storage.", "operation", buckets=_SHORT_SECONDS)


def switch_on(prometheus: Any, registry: Any) -> None:
    """Count all metrics in `registry` from now on. `prometheus` is the module prometheus_client."""
    for metric in _ALL:
        metric.switch_on(prometheus, registry)
