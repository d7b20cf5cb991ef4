"""Cancelling for certain, and work that is certain whoever is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from shared.cancellation import cancel, to_the_end


async def test_who_loses_a_cancellation_is_cancelled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """On Python 3.11 `asyncio.wait_for` loses one that comes just when it is done, and redis-py sends through it."""
    monkeypatch.setattr("shared.cancellation._AGAIN_SECONDS", 0.001)
    lost = 0

    async def lose_two() -> None:
        nonlocal lost
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                lost += 1
                if lost == 3:
                    raise

    task = asyncio.create_task(lose_two())
    await asyncio.sleep(0)

    await cancel(task)

    assert task.cancelled()


async def test_cancelling_what_has_ended_is_no_error() -> None:
    task = asyncio.create_task(asyncio.sleep(0))
    await task

    await cancel(task)
    await cancel()

    assert not task.cancelled()


async def test_work_is_done_to_its_end_though_its_caller_is_cancelled_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That is what `cancel` does to a sweep that waits for the ledger when its worker ends."""
    monkeypatch.setattr("shared.cancellation._AGAIN_SECONDS", 0.001)
    may_end, done = asyncio.Event(), []

    async def work() -> None:
        await may_end.wait()
        done.append("work")

    caller = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    cancelling = asyncio.create_task(cancel(caller))
    await asyncio.wait([cancelling], timeout=0.05)
    waits = not caller.done() and not cancelling.done()
    may_end.set()
    await cancelling

    assert waits
    assert done == ["work"]
    assert caller.cancelled()


async def test_work_is_done_to_its_end_though_its_caller_is_cancelled() -> None:
    may_end, done = asyncio.Event(), []

    async def work() -> None:
        await may_end.wait()
        done.append("work")

    caller = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    caller.cancel()
    await asyncio.wait([caller], timeout=0.01)
    waits = not caller.done()
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await caller
    assert waits
    assert done == ["work"]


async def test_an_error_of_the_work_is_its_callers() -> None:
    async def work() -> None:
        raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        await to_the_end(work())
