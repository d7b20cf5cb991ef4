"""Who is asked to end may be asked by several at once; who is asked again, later, has no more time."""

from __future__ import annotations

from shared.shutdown_signals import ONE_REQUEST_SECONDS, Requests


def test_signals_in_a_row_are_one_request_and_a_later_one_is_another() -> None:
    now = 100.0
    requests = Requests(lambda: now)

    at_once = [requests.hear() for _ in range(3)]
    now += ONE_REQUEST_SECONDS - 0.1
    soon = requests.hear()
    now += 0.1
    later = [requests.hear() for _ in range(2)]
    now += ONE_REQUEST_SECONDS
    latest = requests.hear()

    assert (at_once, soon, later, latest) == ([1, None, None], None, [2, None], 3)
