"""A worker in trouble takes nothing new for a while; a success ends it."""

from __future__ import annotations

import pytest

from worker.pause import PAUSE_SECONDS, Pause


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


def test_a_pause_goes_by(pause: Pause, clock: Clock) -> None:
    pause.begin()

    clock.seconds += 0.75
    assert pause.seconds_left == pytest.approx(PAUSE_SECONDS - 0.75)
    clock.seconds += 5
    assert pause.seconds_left == 0


def test_further_trouble_begins_the_pause_anew(pause: Pause, clock: Clock) -> None:
    pause.begin()
    clock.seconds += 1.5

    pause.begin()

    assert pause.seconds_left == PAUSE_SECONDS


def test_a_success_ends_the_pause(pause: Pause) -> None:
    pause.begin()

    pause.end()

    assert pause.seconds_left == 0
