"""A selection of what is tested on one machine, on several; all of it, by the commands in this folder's `__init__`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.crash import points
from tests.crash.points import Point
from tests.crash.test_crash_points import (
    Crashes,
    asking,
    stop_workers,
)
from tests.crash.test_crash_points import (
    test_what_was_acknowledged_ends_as_it_should as assert_it_ends_as_it_should,
)
from tests.integration.service import ended
from tests.integration.test_tutorial import (
    test_a_thumbnail_is_a_miss_then_a_hit,
    test_an_upload_that_waits_is_created_and_located_as_the_tutorial_has_it,
    test_the_list_is_a_miss_then_a_hit,
    test_the_second_get_equals_the_first_of_what_failed,
    test_the_second_get_equals_the_first_of_what_is_not_ready,
)

__all__ = [
    "test_a_thumbnail_is_a_miss_then_a_hit",
    "test_an_upload_that_waits_is_created_and_located_as_the_tutorial_has_it",
    "test_the_list_is_a_miss_then_a_hit",
    "test_the_second_get_equals_the_first_of_what_failed",
    "test_the_second_get_equals_the_first_of_what_is_not_ready",
]

pytestmark = pytest.mark.processes


def _named(*names: str) -> list[Point]:
    by_name = {point.name: point for point in points.ALL}
    return [by_name[name] for name in names]


#: Where most is at stake between a store and a ledger that know nothing of each other: one leads to the next.
UPLOADING = _named("upload: the original is kept", "upload: its row is committed")
CONVERTING = _named(
    "conversion: one of three is put",
    "publication: what it leaves to be done is owed, not committed",
    "settling: published, the tokens not changed",
)


@pytest.fixture(scope="module")
def crashed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crashes]:
    """A service in which a process has died at each of these points, and others have put all in order."""
    with ended(tmp_path_factory.mktemp("crashed")) as services:
        crashes = Crashes(services.deploy(), tmp_path_factory.mktemp("marks"))
        stop_workers(crashes.service)
        crashes.kill_webs(asking(crashes.service, {point: crashes.unsent() for point in UPLOADING}, "POST", "/images"))
        crashes.kill_workers([(point, crashes.upload()) for point in CONVERTING])
        crashes.service.start_worker()
        crashes.service.until(crashes.settled, 60, "the end of all work")
        yield crashes


@pytest.mark.parametrize("point", [*UPLOADING, *CONVERTING], ids=str)
def test_what_was_acknowledged_ends_as_it_should(crashed: Crashes, point: Point) -> None:
    assert_it_ends_as_it_should(crashed, point)
