"""Urgent work before bulk work, and the older before the younger: also of what Redis has forgotten."""

from __future__ import annotations

import pytest

from tests.crash.journal import Step
from tests.crash.order import MOST, drain_and_flush, order_of, queue_while_stopped
from tests.integration.service import Services

pytestmark = pytest.mark.processes

#: More than the sweep lets wait in the queue, in each of the lanes.
COUNT = 2000


def test_what_a_flushed_redis_forgets_is_claimed_in_its_order(services: Services) -> None:
    service = services.deploy(workers=2)

    in_order = queue_while_stopped(service, COUNT)
    order = drain_and_flush(service, in_order, flushes=3, patience=300)

    print(order)
    assert (order.claims, order.flushes) == (COUNT, 3)
    assert order.share <= MOST


def test_an_inversion_is_counted_for_each_pair() -> None:
    claims = {name: [Step(at, name, "processing", 1, 0, 7)] for at, name in enumerate("bcad")}

    order = order_of(claims, list("abcd"))

    assert (order.claims, order.inversions, order.overtaking) == (4, 2, 2)
