"""What a child is ordered to make of a picture."""

from __future__ import annotations

from dataclasses import dataclass

from shared.renditions import Size


@dataclass(frozen=True)
class Output:
    """A rendition to be made. Outputs may differ in their format only, or in their name only."""

    name: str
    format: str
    size: Size


class NotOurs(ValueError):
    """These bytes are not the output that was ordered, as our encoder writes it."""
