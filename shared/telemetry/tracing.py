"""Traces by OpenTelemetry. A trace runs from an upload's POST, through the ledger's row, to the worker's publication.

Tracing is off, and costs nothing, unless the usual OTEL_* variables name a receiver. The library is imported only here,
and only then. A thread of the library sends ended spans. No request or rendering waits for a receiver, and a shutdown
waits at most a second.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from shared.images import Image
from shared.telemetry import logs
from shared.telemetry.metrics import Histogram

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds that an ending process may take to send its last spans.
_FLUSH_SECONDS = 1.0
#: Requests with these methods are traced only if they have a traceparent, because they are many and short.
_READING = ("GET", "HEAD", "OPTIONS")
#: Outcomes of an attempt that are errors of the service, not of the file.
_TROUBLE = ("lost", "left to the sweep")


class _Tracing:
    """The state of a process that traces."""

    def __init__(self, process: str) -> None:
        from opentelemetry import context, trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create()
        if str(resource.attributes["service.name"]).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": f"asgilook-{process}"}))
        # By default the library waits at exit, also for a receiver that is gone.
        self.provider: Any = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Any = self.provider.get_tracer("asgilook")
        self.trace: Any = trace
        self._context: Any = context
        self._w3c: Any = TraceContextTextMapPropagator()

    @contextmanager
    def continuing(self, carrier: Mapping[str, str]) -> Iterator[None]:
        """Run the block in the trace that the W3C headers in `carrier` name, or without a trace."""
        token = self._context.attach(self._w3c.extract(carrier, context=self._context.Context()))
        try:
            yield
        finally:
            self._context.detach(token)

    @contextmanager
    def span(self, name: str, **options: Any) -> Iterator[None]:
        """Run the block in a span."""
        # Store only an error's class. By default the library sends the texts of all exceptions in the chain.
        quiet = {"record_exception": False, "set_status_on_exception": False}
        with self.tracer.start_as_current_span(name, **quiet, **options) as span:
            try:
                yield
            except Exception as exc:
                span.set_attribute("error.type", type(exc).__name__)
                span.set_status(self.trace.StatusCode.ERROR)
                raise

    @contextmanager
    def request(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> Iterator[None]:
        """Run the block as the answer to a request. Work that the request queues continues its trace."""
        wanted = (b"traceparent", b"tracestate")
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in wanted}
        # Reset always: a pipelined request starts in the context of the request before it.
        _traceparent.set(None)
        with self.continuing(carrier):
            if method in _READING and "traceparent" not in carrier:
                yield
                return
            with self.span(method, kind=self.trace.SpanKind.SERVER):
                here: dict[str, str] = {}
                self._w3c.inject(here)
                _traceparent.set(here.get("traceparent"))
                yield

    @contextmanager
    def attempt(self, image: Image, began: int) -> Iterator[None]:
        """Run the block as an attempt."""
        about = {"asgilook.attempt": image.attempt, **_subject()}
        with (
            self.continuing({"traceparent": image.trace} if image.trace else {}),
            self.span("attempt", kind=self.trace.SpanKind.CONSUMER, start_time=began, attributes=about),
        ):
            # The claim's span is added after the claim: only the claimed row names its trace.
            self.tracer.start_span("claim", start_time=began).end()
            yield

    def current(self) -> Any:
        """Return the current span if it is recorded, otherwise None."""
        span = self.trace.get_current_span()
        return span if span.is_recording() else None


_tracing: _Tracing | None = None
_NOTHING: AbstractContextManager[None] = nullcontext()
#: The traceparent of the current request.
_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def switch_on(process: str) -> None:
    """Trace from now on. If that fails, the process logs a warning and runs without traces."""
    global _tracing
    try:
        _tracing = _Tracing(process)
    except ImportError as exc:
        logger.warning("nothing is traced: the extra `otel` is not installed", extra={"reason": str(exc)})
    except Exception as exc:  # the library has no class of its own for bad OTEL_* variables
        logger.warning("nothing is traced", extra={"reason": repr(exc)})


async def close() -> None:
    """Send the remaining spans, for at most a second."""
    if _tracing is not None:
        # A daemon thread: asyncio waits at its end for the threads of its executor, and a receiver may be silent.
        sending = threading.Thread(target=_tracing.provider.shutdown, daemon=True)
        sending.start()
        await asyncio.to_thread(sending.join, _FLUSH_SECONDS)


def request(method: str, headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[None]:
    """Trace the block as the answer to a request, if the request writes or has a traceparent."""
    return _NOTHING if _tracing is None else _tracing.request(method, headers)


def answered(method: str, route: str, status: int | None) -> None:
    """Set the request's route and status on its span."""
    if _tracing is None or (span := _tracing.current()) is None:
        return
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, **_subject()})
    if status is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(_tracing.trace.StatusCode.ERROR)


def attempt(image: Image, began: int) -> AbstractContextManager[None]:
    """Trace the block as an attempt at this image. Its claim `began` at this time, in nanoseconds since the epoch."""
    return _NOTHING if _tracing is None else _tracing.attempt(image, began)


def ended(outcome: str, why: str) -> None:
    """Set the attempt's outcome on its span."""
    if _tracing is not None and (span := _tracing.current()) is not None:
        span.set_attributes({"asgilook.outcome": outcome, "asgilook.why": why})
        if outcome in _TROUBLE:
            span.set_status(_tracing.trace.StatusCode.ERROR)


def span(name: str) -> AbstractContextManager[None]:
    """Trace the block as a part of the current span, if there is one."""
    return _NOTHING if _tracing is None or _tracing.current() is None else _tracing.span(name)


def note(**attributes: str | float) -> None:
    """Set attributes on the current span."""
    if _tracing is not None and (span := _tracing.current()) is not None:
        span.set_attributes({f"asgilook.{name}": value for name, value in attributes.items()})


def traceparent() -> str | None:
    """Return the traceparent (W3C Trace Context) that continues this request's trace, or None."""
    return _traceparent.get()


def traced(part: T, name: str, seconds: Histogram | None = None) -> T:
    """Make each public coroutine method of `part` a span, and time it in `seconds`. Returns `part`.

    If neither traces nor metrics are on, the methods stay as they are.
    """
    if _tracing is not None or (seconds is not None and seconds.is_on):
        for method, operation in inspect.getmembers(part, inspect.iscoroutinefunction):
            if not method.startswith("_"):
                setattr(part, method, _traced(operation, name, method, seconds))
    return part


def _traced(
    operation: Callable[..., Awaitable[T]], name: str, method: str, seconds: Histogram | None
) -> Callable[..., Awaitable[T]]:
    @wraps(operation)
    async def traced_operation(*args: Any, **kwargs: Any) -> T:
        began = time.monotonic()
        try:
            with span(f"{name}.{method}"):
                return await operation(*args, **kwargs)
        finally:
            if seconds is not None:
                seconds.observe(time.monotonic() - began, method)

    return traced_operation


def _subject() -> dict[str, str]:
    """Return the ids of the image and the request that log lines have."""
    about = {"asgilook.image": logs.image_id.get(), "asgilook.request": logs.request_id.get()}
    return {name: value for name, value in about.items() if value is not None}
