"""The pixel budget: first come, first served, and nothing of it is lost."""

from __future__ import annotations

import asyncio

import pytest

from worker.renderer.pixel_budget import PixelBudget


async def hold(budget: PixelBudget, pixels: int, name: str, log: list[str], leave: asyncio.Event) -> None:
    async with budget.hold(pixels):
        log.append(name)
        await leave.wait()


async def turn_of_the_loop() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_pixel_budget_is_given_in_the_order_of_asking() -> None:
    """A large picture must not starve behind small ones that would still fit."""
    budget, log = PixelBudget(10), list[str]()
    leave = {name: asyncio.Event() for name in "abcd"}
    async with asyncio.TaskGroup() as jobs:
        for name, pixels in (("a", 6), ("b", 8), ("c", 2), ("d", 2)):
            jobs.create_task(hold(budget, pixels, name, log, leave[name]))
        await turn_of_the_loop()
        assert log == ["a"]

        leave["a"].set()
        await turn_of_the_loop()
        assert log == ["a", "b", "c"]

        leave["c"].set()
        await turn_of_the_loop()
        assert log == ["a", "b", "c", "d"]
        for event in leave.values():
            event.set()


async def test_a_picture_larger_than_the_pixel_budget_passes_alone() -> None:
    budget, log, leave = PixelBudget(10), list[str](), asyncio.Event()
    async with asyncio.TaskGroup() as jobs:
        jobs.create_task(hold(budget, 1000, "large", log, leave))
        jobs.create_task(hold(budget, 1, "small", log, leave))
        await turn_of_the_loop()
        assert log == ["large"]

        leave.set()
        await turn_of_the_loop()
        assert log == ["large", "small"]


async def test_who_is_cancelled_while_waiting_for_the_pixel_budget_gives_way() -> None:
    budget, log = PixelBudget(10), list[str]()
    leave = asyncio.Event()
    first = asyncio.create_task(hold(budget, 6, "first", log, leave))
    waiting = asyncio.create_task(hold(budget, 10, "waiting", log, leave))
    last = asyncio.create_task(hold(budget, 4, "last", log, leave))
    await turn_of_the_loop()

    waiting.cancel()
    await turn_of_the_loop()

    assert log == ["first", "last"]
    leave.set()
    await asyncio.gather(first, last)
    async with budget.hold(10):  # all of it is there again
        pass


async def test_who_is_cancelled_at_the_moment_of_being_admitted_keeps_nothing() -> None:
    budget, log = PixelBudget(10), list[str]()
    leave = asyncio.Event()
    first = asyncio.create_task(hold(budget, 10, "first", log, leave))
    second = asyncio.create_task(hold(budget, 10, "second", log, asyncio.Event()))
    third = asyncio.create_task(hold(budget, 10, "third", log, leave))
    await turn_of_the_loop()

    leave.set()
    first.add_done_callback(lambda _: second.cancel())
    await asyncio.gather(first, third)

    assert log[-1] == "third"
    with pytest.raises(asyncio.CancelledError):
        await second
