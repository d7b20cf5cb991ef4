"""Tracing costs nothing until OpenTelemetry's own variables ask for it; a row keeps where its trace is continued.

What a receiver gets is in tests/integration/test_tracing.py.
"""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from shared.ledger import Ledger
from shared.settings import Settings
from shared.telemetry import tracing
from tests.ledgers import claimed, failed, let_pass, queued

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
RECEIVER = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.fixture
def in_a_trace() -> Iterator[None]:
    """What this test does is done for a request that is traced."""
    token = tracing._traceparent.set(TRACEPARENT)
    yield
    tracing._traceparent.reset(token)


@pytest.mark.parametrize("process", ["api.app", "worker.__main__"])
def test_who_asks_for_no_traces_does_not_even_load_the_library(process: str) -> None:
    code = f"import sys, {process}; print('opentelemetry' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("env", "is_on"),
    [
        ({}, False),
        ({"OTEL_SERVICE_NAME": "pictures"}, False),
        (RECEIVER, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:4318/v1/traces"}, True),
        (RECEIVER | {"OTEL_SDK_DISABLED": "true"}, False),
        (RECEIVER | {"OTEL_SDK_DISABLED": "false"}, True),
    ],
)
def test_tracing_is_on_where_the_usual_variables_name_a_receiver(env: dict[str, str], is_on: bool) -> None:
    assert Settings.from_env(env).tracing is is_on


def test_without_the_extra_a_process_says_so_and_works_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)

    with caplog.at_level(logging.WARNING):
        tracing.switch_on("web")

    assert "the extra `otel` is not installed" in caplog.text
    with tracing.request("POST", [(b"traceparent", TRACEPARENT.encode())]), tracing.span("receive"):
        assert tracing.traceparent() is None


class Part:
    """Something with operations."""

    async def work(self) -> None:
        """Do it."""


def test_operations_are_left_as_they_are_where_nobody_traces() -> None:
    assert vars(tracing.traced(Part(), "part")) == {}


@pytest.mark.usefixtures("in_a_trace")
async def test_a_row_keeps_its_trace_through_every_wake_up(ledger: Ledger) -> None:
    image = await queued(ledger)
    await let_pass(ledger, 60)

    (waiting,) = await ledger.waiting(1)

    assert (image.trace, waiting.trace) == (TRACEPARENT, TRACEPARENT)
    claim = await ledger.claim(image.id, "worker")
    assert claim is not None
    assert claim.trace == TRACEPARENT


async def test_an_image_that_nobody_traces_has_no_trace(ledger: Ledger) -> None:
    assert (await claimed(ledger)).trace is None


async def test_a_retry_belongs_to_the_trace_of_whoever_asks_for_it(ledger: Ledger) -> None:
    image = await failed(ledger)
    token = tracing._traceparent.set(TRACEPARENT)

    again = await ledger.retry(image.id)

    tracing._traceparent.reset(token)
    assert again is not None
    assert (image.trace, again.trace) == (None, TRACEPARENT)
