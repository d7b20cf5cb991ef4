"""The digest of what a rendition is made by: it is stored, so that it must stay as it is."""

from __future__ import annotations

import pytest

from shared.definitions import ENCODER_SETTINGS, definition_of

WHITE = (255, 255, 255)


def test_the_definition_of_a_jpeg_is_the_same_in_every_release() -> None:
    """Of all that release 0.1 has made on its default background, and of all that is made now."""
    assert definition_of("jpeg", WHITE) == "7425a376"


def test_another_background_setting_or_format_is_another_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {definition_of("jpeg", WHITE), definition_of("jpeg", (255, 255, 254))}
    monkeypatch.setitem(ENCODER_SETTINGS, "toy", ENCODER_SETTINGS["jpeg"])
    monkeypatch.setitem(ENCODER_SETTINGS, "jpeg", {**ENCODER_SETTINGS["jpeg"], "quality": 84})

    assert len({*before, definition_of("toy", WHITE), definition_of("jpeg", WHITE)}) == 4


def test_a_format_that_is_unknown_has_none() -> None:
    with pytest.raises(KeyError):
        definition_of("jpeg2000", WHITE)
