"""Each output format is known to everybody that deals with it."""

from __future__ import annotations

from shared.definitions import ENCODER_SETTINGS
from worker.child.encoders import ENCODERS
from worker.renderer.formats import FORMATS, most_bytes


def test_what_is_encoded_is_checked_and_has_a_definition() -> None:
    assert ENCODERS.keys() == FORMATS.keys() == ENCODER_SETTINGS.keys()


def test_a_child_may_write_the_longest_file_of_any_format() -> None:
    assert most_bytes(50_000_000) == max(format.most_bytes(50_000_000) for format in FORMATS.values())
