"""Names, keys and the ladder of thumbnails."""

from __future__ import annotations

import pytest

from shared.renditions import (
    MAX_SIDE,
    Rendition,
    Size,
    attempt_prefix,
    ladder,
    original_key,
    rendition_key,
    renditions_prefix,
    size_named,
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


def test_keys_lie_below_their_prefixes() -> None:
    assert original_key("id") == "originals/id"
    assert thumbnail_name((320, 180)) == "320x180.jpeg"
    rendition = Rendition("320x180.jpeg", (320, 180), 300, "2c" * 32, 2, "0123abcd")
    assert rendition_key("id", rendition) == "renditions/id/2/320x180.jpeg"
    assert rendition_key("id", rendition).startswith(f"{attempt_prefix('id', 2)}/")
    assert attempt_prefix("id", 2).startswith(f"{renditions_prefix('id')}/")


@pytest.mark.parametrize(("file", "format_"), [("image.jpeg", "jpeg"), ("320x180.webp", "webp"), ("a.b.avif", "avif")])
def test_the_format_of_a_rendition_is_the_ending_of_its_file(file: str, format_: str) -> None:
    assert Rendition(file, (1, 1), 1, "2c" * 32, 1, "0123abcd").format == format_


@pytest.mark.parametrize(
    ("file", "size"), [("image.jpeg", (640, 360)), ("image.webp", (640, 360)), ("320x180.webp", (320, 180))]
)
def test_a_file_name_stands_for_a_size(file: str, size: Size) -> None:
    assert size_named(file, (640, 360)) == size
