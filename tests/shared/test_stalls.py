"""Deadlines: a process that stood still reads what arrived meanwhile before one of them expires."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable

import pytest
import uvloop

from shared.stalls import Deadline, timeout
from tests.waiting import until

SECONDS = 0.05
#: Longer than any deadline here.
STANDSTILL = 3 * SECONDS

#: The loop of the worker, and the one of the web process, which runs timers and reads in another order.
LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]
NewLoop = Callable[[], asyncio.AbstractEventLoop]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_reply_that_came_during_a_standstill_is_in_time(new_loop: NewLoop) -> None:
    async def wait_for_replies() -> list[bytes]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        replies = []
        try:
            async with timeout(SECONDS):
                for word in (b"one", b"two"):
                    theirs.send(word)
                    time.sleep(STANDSTILL)  # noqa: ASYNC251 - the loop is to stand still
                    replies.append(await reader.readexactly(3))
        finally:
            theirs.close()
            writer.close()
            await writer.wait_closed()
        return replies

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(wait_for_replies()) == [b"one", b"two"]


@pytest.mark.parametrize("new_loop", LOOPS)
def test_a_block_that_takes_too_long_is_cancelled_at_its_deadline_and_not_before(new_loop: NewLoop) -> None:
    async def wait_in_vain() -> float:
        begun = time.monotonic()
        with pytest.raises(TimeoutError):
            async with timeout(SECONDS):
                await asyncio.get_running_loop().create_future()
        return time.monotonic() - begun

    with asyncio.Runner(loop_factory=new_loop) as runner:
        # A loop counts in whole milliseconds.
        assert runner.run(wait_in_vain()) >= SECONDS - 0.002


async def test_a_block_that_is_cancelled_ends_cancelled_and_not_overdue() -> None:
    async def wait_in_vain() -> None:
        async with timeout(60):
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(wait_in_vain())
    await asyncio.sleep(0)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_end_of_a_block_stops_its_deadline() -> None:
    async with timeout(SECONDS) as deadline:
        assert deadline.is_set

    assert not deadline.is_set


async def test_a_deadline_expires_once() -> None:
    expired: list[str] = []
    deadline = Deadline()
    deadline.start(0.01, lambda: expired.append("it"))
    later = Deadline()
    later.start(0.05, lambda: expired.append("a later one"))

    await until(lambda: not later.is_set)

    assert expired == ["it", "a later one"]
    assert not deadline.is_set


async def test_a_deadline_that_is_stopped_or_started_again_does_not_expire_as_it_was_started_before() -> None:
    expired: list[str] = []
    stopped, restarted = Deadline(), Deadline()
    stopped.start(0.01, lambda: expired.append("stopped"))
    restarted.start(0.01, lambda: expired.append("as before"))
    restarted.start(0.02, lambda: expired.append("as restarted"))
    stopped.stop()

    assert not stopped.is_set
    await until(lambda: not restarted.is_set)

    assert expired == ["as restarted"]


async def test_a_standstill_counts_as_one_part() -> None:
    deadline = Deadline()
    deadline.start(0.5, lambda: None)

    time.sleep(0.5)  # noqa: ASYNC251 - the loop is to stand still

    assert deadline.elapsed == pytest.approx(0.1)
    await until(lambda: not deadline.is_set)
    assert deadline.elapsed == pytest.approx(0.5)
