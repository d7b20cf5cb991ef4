"""Slots: how many images are rendered and stored at once, and when a slot is left before its job ends."""

from __future__ import annotations

import asyncio

import pytest

from shared.cancellation import cancel
from worker.slots import Slots


def test_a_slot_that_is_released_is_free_again() -> None:
    slots = Slots(1)

    slot = slots.take()
    free_meanwhile = slots.free
    slot.release()

    assert (free_meanwhile, slots.free) == (0, 1)


async def test_a_slot_that_is_left_is_free_for_the_next_image_while_this_one_is_stored() -> None:
    """A child that waits for the disk of the image before renders nothing."""
    slots = Slots(1)
    slot = slots.take()

    await slot.leave()
    free_while_storing = slots.free
    slot.release()

    assert (free_while_storing, slots.free) == (1, 1)


async def test_a_slot_is_kept_until_there_is_a_place_to_store() -> None:
    slots = Slots(1)
    first = slots.take()
    await first.leave()
    second = slots.take()

    leaving = asyncio.create_task(second.leave())
    await asyncio.sleep(0)
    free_meanwhile = slots.free
    first.release()
    await leaving

    assert (free_meanwhile, slots.free) == (0, 1)


async def test_who_is_cancelled_while_it_waits_for_a_place_to_store_keeps_nothing() -> None:
    slots = Slots(1)
    first = slots.take()
    await first.leave()
    second = slots.take()
    leaving = asyncio.create_task(second.leave())
    await asyncio.sleep(0)

    await cancel(leaving)
    second.release()
    first.release()

    assert slots.free == 1
    assert not slots.storing.locked()


@pytest.mark.parametrize("early", [True, False])
async def test_it_is_told_when_a_slot_is_free(early: bool) -> None:
    slots = Slots(1)
    slot = slots.take()

    if early:
        await slot.leave()
    else:
        slot.release()

    assert slots.freed.is_set()
