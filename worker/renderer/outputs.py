"""The outputs that a child is ordered to make from a picture."""

from __future__ import annotations

from dataclasses import dataclass

from shared.renditions import Size


@dataclass(frozen=True)
class Output:
    """A rendition to be made. Two outputs may differ only in format, or only in name."""

    name: str
    format: str
    size: Size


class NotOurs(ValueError):
    """These bytes are not the ordered output as our encoder writes it."""
