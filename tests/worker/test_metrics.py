"""A worker's metrics have a port of their own, which can do the worker no harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from launch.processes import free_port
from shared.cancellation import cancel
from shared.ledger import Ledger
from shared.redis.queue import Queue
from shared.settings import Settings
from shared.telemetry.exposition import Exposition
from tests.waiting import until
from worker.metrics import MetricsPort


@pytest.fixture
async def port(
    settings: Settings, ledger: Ledger, queue: Queue, counting: None, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[int]:
    """The port on which metrics are told to those who say the token."""
    monkeypatch.setattr("worker.metrics._PATIENCE_SECONDS", 120.0)
    port = free_port()
    settings = replace(settings, host="127.0.0.1", metrics_port=port, metrics_token="scrape-me")
    serving = asyncio.create_task(MetricsPort(settings, Exposition(), ledger, queue).run())
    yield port
    await cancel(serving)


async def answer_to(port: int, request: bytes) -> bytes:
    while True:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            break
        except ConnectionRefusedError:
            await asyncio.sleep(0.002)  # it is not there yet
    writer.write(request)
    answer = await reader.read()
    writer.close()
    return answer


GET = b"GET /metrics HTTP/1.1\r\nHost: worker\r\n"


async def test_metrics_are_told_to_whoever_has_the_token(port: int) -> None:
    answer = await answer_to(port, GET + b"authorization: Bearer scrape-me\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head
    assert b"asgilook_images_waiting 0.0" in body


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (GET + b"\r\n", b"401 "),
        (GET + b"Authorization: Bearer scrape\r\n\r\n", b"401 "),
        (GET + b"Authorization: scrape-me\r\n\r\n", b"401 "),
        (b"GET / HTTP/1.1\r\n\r\n", b"404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"404 "),
        (b"\r\n\r\n", b"404 "),
    ],
)
async def test_nobody_else_is_told_anything(port: int, request_bytes: bytes, status: bytes) -> None:
    answer = await answer_to(port, request_bytes)

    assert answer.startswith(b"HTTP/1.1 " + status)
    assert b"asgilook_images" not in answer


@pytest.mark.parametrize("request_bytes", [b"", b"GET /metrics HTTP/1.1\r\n", b"x" * 100_000])
async def test_who_does_not_come_to_an_end_is_hung_up_on(
    port: int, monkeypatch: pytest.MonkeyPatch, request_bytes: bytes
) -> None:
    monkeypatch.setattr("worker.metrics._PATIENCE_SECONDS", 0.2)
    with contextlib.suppress(ConnectionResetError):  # what it sent is not read to its end
        assert await answer_to(port, request_bytes) == b""

    monkeypatch.setattr("worker.metrics._PATIENCE_SECONDS", 120.0)
    assert b"200 OK" in await answer_to(port, GET + b"Authorization: Bearer scrape-me\r\n\r\n")


async def test_strangers_take_no_more_of_a_workers_files_than_a_few(port: int) -> None:
    await answer_to(port, b"\r\n\r\n")  # it is there
    before = len(os.listdir("/proc/self/fd"))
    strangers = [await asyncio.open_connection("127.0.0.1", port) for _ in range(60)]

    async with asyncio.timeout(30):
        assert await strangers[-1][0].read() == b""

    # Both ends are ours here.
    assert len(os.listdir("/proc/self/fd")) <= before + 60 + 16
    for _, writer in strangers:
        writer.close()
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    assert b"200 OK" in await answer_to(port, GET + b"Authorization: Bearer scrape-me\r\n\r\n")


async def test_a_port_that_is_taken_is_tried_until_it_is_free(
    settings: Settings, ledger: Ledger, queue: Queue, counting: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker in its grace has it, while its successor is at work already."""
    monkeypatch.setattr("worker.metrics._PATIENCE_SECONDS", 0.05)
    predecessor = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    port = predecessor.sockets[0].getsockname()[1]
    settings = replace(settings, host="127.0.0.1", metrics_port=port)
    serving = asyncio.create_task(MetricsPort(settings, Exposition(), ledger, queue).run())
    assert await answer_to(port, GET + b"\r\n") == b""

    predecessor.close()
    await predecessor.wait_closed()

    async def is_told() -> bool:
        return b"200 OK" in await answer_to(port, GET + b"\r\n")

    await until(is_told)
    await cancel(serving)
