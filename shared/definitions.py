"""What renditions are made by: each output format's settings, and the digest that is recorded of them. No Pillow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256

#: What the encoder of each output format is told.
ENCODER_SETTINGS: dict[str, Mapping[str, int | str]] = {
    "jpeg": {"quality": 85, "subsampling": "4:2:0"},
}


def definition_of(format: str, background: tuple[int, int, int]) -> str:
    """Return the digest (8 hex digits) of everything that renditions of a format are made by, besides the original.

    It is stored with each rendition, so the same definition must have the same digest in every release. Raises KeyError
    for an unknown format.
    """
    definition = {"format": format, "background": background, "settings": ENCODER_SETTINGS[format]}
    return sha256(json.dumps(definition, sort_keys=True).encode()).hexdigest()[:8]
