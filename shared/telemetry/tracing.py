"""Traces by OpenTelemetry: one from an upload's POST, through the ledger's row, to the publication in a worker.

Off, and free, unless the usual OTEL_* variables name a receiver; the library is imported here only, and only then. What
has ended is sent by a thread of the library's: nobody who answers, renders or stops waits for a receiver.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

from shared.images import Image
from shared.telemetry import logs

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Seconds that a process which ends has for sending its last spans.
_FLUSH_SECONDS = 1.0
#: Requests that are traced only where their client does so: there are many, and they are short.
_READING = ("GET", "HEAD", "OPTIONS")
#: Ends of an attempt that are trouble of ours.
_TROUBLE = ("lost", "left to the sweep")


class _Tracing:
    """What there is where tracing is on."""

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
        # At exit it would wait for a receiver that is gone.
        self.provider: Any = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self.tracer: Any = self.provider.get_tracer("asgilook")
        self.trace: Any = trace
        self._context: Any = context
        self._w3c: Any = TraceContextTextMapPropagator()

    @contextmanager
    def continuing(self, carrier: Mapping[str, str]) -> Iterator[None]:
        """Have the block belong to the trace that W3C's headers in `carrier` tell of, and to no other one."""
        token = self._context.attach(self._w3c.extract(carrier, context=self._context.Context()))
        try:
            yield
        finally:
            self._context.detach(token)

    @contextmanager
    def span(self, name: str, **options: Any) -> Iterator[None]:
        """Have the block be a span."""
        # Of an error its name, and not what the library would send: the text of every exception behind it.
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
        """Have the block be what answers a request; who goes on with what it has begun has it for a parent."""
        wanted = (b"traceparent", b"tracestate")
        carrier = {name.decode(): value.decode("latin-1") for name, value in headers if name in wanted}
        # In any case: a pipelined request starts in the context of the one before it.
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
        """Have the block be an attempt."""
        about = {"asgilook.attempt": image.attempt, **_subject()}
        with (
            self.continuing({"traceparent": image.trace} if image.trace else {}),
            self.span("attempt", kind=self.trace.SpanKind.CONSUMER, start_time=began, attributes=about),
        ):
            # Whose trace it belongs to was not known before it was over.
            self.tracer.start_span("claim", start_time=began).end()
            yield

    def current(self) -> Any:
        """Return the span that is being recorded, or None."""
        span = self.trace.get_current_span()
        return span if span.is_recording() else None


_tracing: _Tracing | None = None
_NOTHING: AbstractContextManager[None] = nullcontext()
#: Where the trace of the request that is being answered is to be continued.
_traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)


def switch_on(process: str) -> None:
    """Trace from now on. Where that cannot be, the process does its work without, and says so."""
    global _tracing
    try:
        _tracing = _Tracing(process)
    except ImportError as exc:
        logger.warning("nothing is traced: the extra `otel` is not installed", extra={"reason": str(exc)})
    except Exception as exc:  # whatever the library finds wrong with its variables
        logger.warning("nothing is traced", extra={"reason": repr(exc)})


async def close() -> None:
    """Send what is left, for a moment. Nobody waits for a receiver that does not answer."""
    if _tracing is None:
        return
    # A thread of its own: those of the event loop are waited for.
    loop, sent = asyncio.get_running_loop(), asyncio.Event()

    def send(provider: Any) -> None:
        provider.shutdown()
        with suppress(RuntimeError):  # the loop has been closed: nobody waits any more
            loop.call_soon_threadsafe(sent.set)

    threading.Thread(target=send, args=[_tracing.provider], daemon=True).start()
    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_SECONDS):
            await sent.wait()


def request(method: str, headers: Iterable[tuple[bytes, bytes]]) -> AbstractContextManager[None]:
    """Trace the block as a request's answer: what writes, and what its client traces."""
    return _NOTHING if _tracing is None else _tracing.request(method, headers)


def answered(method: str, route: str, status: int | None) -> None:
    """Note what became of the request."""
    if _tracing is None or (span := _tracing.current()) is None:
        return
    span.update_name(f"{method} {route}")
    span.set_attributes({"http.request.method": method, "http.route": route, **_subject()})
    if status is not None:
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(_tracing.trace.StatusCode.ERROR)


def attempt(image: Image, began: int) -> AbstractContextManager[None]:
    """Trace the block as an attempt at this image, whose claim `began` at that time, in nanoseconds since the epoch."""
    return _NOTHING if _tracing is None else _tracing.attempt(image, began)


def ended(outcome: str, why: str) -> None:
    """Note how the attempt ended."""
    if _tracing is not None and (span := _tracing.current()) is not None:
        span.set_attributes({"asgilook.outcome": outcome, "asgilook.why": why})
        if outcome in _TROUBLE:
            span.set_status(_tracing.trace.StatusCode.ERROR)


def span(name: str) -> AbstractContextManager[None]:
    """Trace the block as a part of what is being traced, if anything is."""
    return _NOTHING if _tracing is None or _tracing.current() is None else _tracing.span(name)


def note(**attributes: str | float) -> None:
    """Say more about the span at hand."""
    if _tracing is not None and (span := _tracing.current()) is not None:
        span.set_attributes({f"asgilook.{name}": value for name, value in attributes.items()})


def traceparent() -> str | None:
    """Return where the trace of this request is to be continued (W3C Trace Context), or None."""
    return _traceparent.get()


def traced(part: T, name: str) -> T:
    """Return `part`, each of whose public coroutine methods is a span from now on, where tracing is on."""
    if _tracing is not None:
        for method, operation in inspect.getmembers(part, inspect.iscoroutinefunction):
            if not method.startswith("_"):
                setattr(part, method, _traced(operation, f"{name}.{method}"))
    return part


def _traced(operation: Callable[..., Awaitable[T]], name: str) -> Callable[..., Awaitable[T]]:
    @wraps(operation)
    async def traced_operation(*args: Any, **kwargs: Any) -> T:
        with span(name):
            return await operation(*args, **kwargs)

    return traced_operation


def _subject() -> dict[str, str]:
    """Return what the log lines have, too."""
    about = {"asgilook.image": logs.image_id.get(), "asgilook.request": logs.request_id.get()}
    return {name: value for name, value in about.items() if value is not None}
