"""Names, keys and the ladder of thumbnails."""

from __future__ import annotations

import pytest

from shared.images import (
    MAX_SIDE,
    Size,
    Status,
    attempt_prefix,
    ladder,
    original_key,
    rendition_key,
    renditions_prefix,
    thumbnail_name,
)


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        ((640, 360), [(320, 180), (160, 90)]),
        ((4000, 3000), [(2000, 1500), (1000, 750), (500, 375), (250, 187), (125, 93)]),
        ((3000, 4000), [(1500, 2000), (750, 1000), (375, 500), (187, 250), (93, 125)]),
        ((128, 128), [(64, 64)]),
        ((129, 129), [(64, 64)]),
        ((127, 4000), []),
        ((1, 1), []),
        ((MAX_SIDE, 100), []),
    ],
)
def test_the_ladder_halves_and_rounds_down_while_both_sides_are_long_enough(size: Size, sizes: list[Size]) -> None:
    """640 x 360 is the tutorial's own picture: 320 x 180 and 160 x 90."""
    assert ladder(size, 64) == sizes


@pytest.mark.parametrize("smallest", [1, 0, -5])
def test_no_thumbnail_has_a_side_of_nothing(smallest: int) -> None:
    assert ladder((9, 5), smallest) == [(4, 2), (2, 1)]


def test_a_ladder_ends_at_the_smallest_side_that_is_set() -> None:
    assert ladder((640, 360), 180) == [(320, 180)]
    assert ladder((640, 360), 181) == []


def test_only_ready_and_failed_are_final() -> None:
    assert {status for status in Status if status.is_final} == {Status.READY, Status.FAILED}


def test_keys_lie_below_their_prefixes() -> None:
    assert original_key("id") == "originals/id"
    assert thumbnail_name((320, 180)) == "320x180.jpeg"
    assert rendition_key("id", 2, "image.jpeg") == "renditions/id/2/image.jpeg"
    assert rendition_key("id", 2, "x").startswith(f"{attempt_prefix('id', 2)}/")
    assert attempt_prefix("id", 2).startswith(f"{renditions_prefix('id')}/")
