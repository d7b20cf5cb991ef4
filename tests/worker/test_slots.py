"""Slots: how many images are rendered and stored at once, and when a slot is free before its job ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shared.cancellation import cancel
from shared.images import Lane
from worker.attempt import Interrupted
from worker.slots import Slot, Slots


def begun(slots: Slots) -> Slot:
    """Return a slot in which work has begun."""
    with slots.reserve() as slot:
        slot.begin()
    return slot


class Attempt:
    """An attempt as slots see it."""

    def __init__(self, lane: Lane) -> None:
        self.is_preemptible = lane.is_preemptible
        self.reasons: list[str] = []

    def stop(self, reason: Interrupted) -> None:
        self.reasons.append(str(reason))
        self.is_preemptible = False


def occupied(slots: Slots, lane: Lane) -> Any:
    """Return a slot in which an attempt renders."""
    slot: Any = begun(slots)
    slot.attempt = Attempt(lane)
    return slot


def test_a_slot_that_is_released_is_free_again() -> None:
    slots = Slots(1)

    slot = begun(slots)
    free_meanwhile = slots.free
    slot.release()

    assert (free_meanwhile, slots.free) == (0, 1)


def test_a_slot_is_free_again_if_no_work_was_found_for_it() -> None:
    slots = Slots(1)

    with slots.reserve():
        free_meanwhile = slots.free

    assert (free_meanwhile, slots.free) == (0, 1)
    assert not slots.changed.is_set()


def test_a_slot_is_free_again_if_looking_for_work_has_failed() -> None:
    slots = Slots(1)

    with pytest.raises(OSError, match="away"), slots.reserve():
        raise OSError("away")

    assert slots.free == 1


@pytest.mark.parametrize("is_left", [True, False])
async def test_a_slot_that_is_released_twice_is_free_once(is_left: bool) -> None:
    slots = Slots(2)
    slot, _ = begun(slots), begun(slots)
    if is_left:
        await slot.leave()

    slot.release()
    slot.release()

    assert slots.free == 1
    await slots.storing.acquire()
    await slots.storing.acquire()
    assert slots.storing.locked()


async def test_a_slot_that_is_left_is_free_for_the_next_image_while_this_one_is_stored() -> None:
    """A child that waits for the disk of the image before renders nothing."""
    slots = Slots(1)
    slot = begun(slots)

    await slot.leave()
    free_while_storing = slots.free
    slot.release()

    assert (free_while_storing, slots.free) == (1, 1)


async def test_a_slot_is_kept_until_there_is_a_place_to_store() -> None:
    slots = Slots(1)
    first = begun(slots)
    await first.leave()
    second = begun(slots)

    leaving = asyncio.create_task(second.leave())
    await asyncio.sleep(0)
    free_meanwhile = slots.free
    first.release()
    await leaving

    assert (free_meanwhile, slots.free) == (0, 1)


async def test_who_is_cancelled_while_it_waits_for_a_place_to_store_keeps_nothing() -> None:
    slots = Slots(1)
    first = begun(slots)
    await first.leave()
    second = begun(slots)
    leaving = asyncio.create_task(second.leave())
    await asyncio.sleep(0)

    await cancel(leaving)
    second.release()
    first.release()

    assert slots.free == 1
    assert not slots.storing.locked()


@pytest.mark.parametrize("how", ["left", "released", "preempted"])
async def test_it_is_told_when_a_slot_is_free(how: str) -> None:
    slots = Slots(1)
    slot = occupied(slots, Lane.BULK)

    match how:
        case "left":
            await slot.leave()
        case "released":
            slot.release()
        case "preempted":
            slot.preempt()

    assert slots.changed.is_set()
    assert slots.free == 1


# Preemption


def test_the_preemptible_work_that_began_last_makes_room_first() -> None:
    slots = Slots(4)
    earlier, later = occupied(slots, Lane.BULK), occupied(slots, Lane.AHEAD)
    occupied(slots, Lane.UPLOAD)
    begun(slots)

    found: Any = slots.preemptible()
    assert found is later
    later.preempt()
    assert slots.preemptible() is earlier


def test_more_urgent_work_makes_no_room() -> None:
    slots = Slots(2)
    occupied(slots, Lane.UPLOAD)
    occupied(slots, Lane.DEMAND)

    assert slots.preemptible() is None


def test_it_is_told_when_the_work_in_a_slot_is_known() -> None:
    """A consumer that took it for urgent would look for uploads only half a second later."""
    slots = Slots(1)
    slot: Any = begun(slots)
    slots.changed.clear()

    slot.set_attempt(Attempt(Lane.BULK))

    assert slots.changed.is_set()
    assert slots.preemptible() is slot


async def test_what_is_rendered_makes_no_room_any_more() -> None:
    slots = Slots(1)
    first = occupied(slots, Lane.BULK)
    await first.leave()
    second = occupied(slots, Lane.BULK)
    leaving = asyncio.create_task(second.leave())
    await asyncio.sleep(0)

    assert slots.preemptible() is None

    first.release()
    await leaving


async def test_a_preempted_slot_is_free_at_once_and_counted_once() -> None:
    slots = Slots(1)
    slot = occupied(slots, Lane.BULK)
    attempt = slot.attempt

    slot.preempt()
    free_before_its_end = slots.free
    following = occupied(slots, Lane.UPLOAD)
    slot.release()

    assert attempt.reasons == ["preempted"]
    assert free_before_its_end == 1
    assert slots.free == 0
    following.release()
    assert slots.free == 1
