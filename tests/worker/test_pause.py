"""A worker in trouble takes nothing new for longer and longer; the first success ends it."""

from __future__ import annotations

import pytest

from worker.pause import Pause


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that goes on when it is told to."""
    clock = Clock()
    monkeypatch.setattr("worker.pause.time", clock)
    return clock


@pytest.fixture
def pause(clock: Clock) -> Pause:
    return Pause()


def test_there_is_no_pause_at_first(pause: Pause) -> None:
    assert pause.seconds_left == 0


def test_each_pause_is_twice_as_long_as_the_one_before_up_to_a_minute(pause: Pause, clock: Clock) -> None:
    pauses = []
    for _ in range(9):
        pause.begin()
        pauses.append(pause.seconds_left)
        clock.seconds += pause.seconds_left

    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_pause_goes_by(pause: Pause, clock: Clock) -> None:
    pause.begin()

    clock.seconds += 0.75
    assert pause.seconds_left == pytest.approx(0.25)
    clock.seconds += 5
    assert pause.seconds_left == 0


def test_many_in_trouble_at_once_begin_one_pause(pause: Pause, clock: Clock) -> None:
    """Every slot of a worker fails when its disk does: that is one trouble, not eight."""
    for _ in range(8):
        pause.begin()

    assert pause.seconds_left == 1


def test_a_success_ends_the_pause_and_the_next_one_is_short_again(pause: Pause, clock: Clock) -> None:
    for _ in range(5):
        pause.begin()
        clock.seconds += pause.seconds_left
    pause.begin()

    pause.forget()
    assert pause.seconds_left == 0

    pause.begin()
    assert pause.seconds_left == 1
