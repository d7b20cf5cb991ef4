"""How the modules of a request are counted."""

from __future__ import annotations

from bench.rooms import Way, way_of


def test_a_module_is_entered_once_however_often_it_is_called() -> None:
    assert way_of([[("door", None), ("desk", "door"), ("desk", "door")]]) == Way(("door", "desk"), ())


def test_a_call_from_below_turns_back() -> None:
    calls = [("door", None), ("desk", "door"), ("shelf", "desk"), ("door", "shelf")]

    assert way_of([calls]).turned_back_into == ("door",)


def test_a_second_caller_from_above_does_not_turn_back() -> None:
    calls = [("door", None), ("desk", "door"), ("clock", "desk"), ("clock", "door")]

    assert way_of([calls]).turned_back_into == ()


def test_a_call_within_a_module_does_not_turn_back() -> None:
    assert way_of([[("door", None), ("door", "door")]]).turned_back_into == ()


def test_what_is_not_in_every_round_does_not_count() -> None:
    disturbed = [("door", None), ("sweep", None), ("ledger", "sweep"), ("sweep", "ledger")]

    assert way_of([disturbed, [("door", None)]]) == Way(("door",), ())
