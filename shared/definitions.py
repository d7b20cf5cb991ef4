"""Definitions: the settings of each output format's encoder, and the digest that is stored with each rendition."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

#: The encoder's settings for each output format.
ENCODER_SETTINGS: dict[str, Mapping[str, int | str]] = {
    "jpeg": {"quality": 85, "subsampling": "4:2:0"},
}


def definition_of(format: str, background: tuple[int, int, int]) -> str:
    """Return the digest (8 hex digits) of all that determines a rendition of this format, except the original.

    The digest is stored with each rendition, so an equal definition must have an equal digest in every release. Raises
    KeyError for an unknown format.
    """
    definition = {"format": format, "background": background, "settings": ENCODER_SETTINGS[format]}
    return sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]
