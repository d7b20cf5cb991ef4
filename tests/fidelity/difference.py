"""How different two pictures look."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from skimage.color import deltaE_ciede2000, rgb2lab

from tests.fidelity.colours import Pixels, Values

#: The side of the blocks whose mean colours are compared: what an encoder loses within one does not count, while a
#: part of the picture that is wrong does.
BLOCK = 16


@dataclass(frozen=True)
class Difference:
    """In units of CIEDE2000, of which an eye begins to notice one: over all pixels, and of the worst block."""

    mean: float
    worst_block: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} (worst {self.worst_block:.2f})"


def difference(one: Pixels, other: Pixels) -> Difference:
    """Compare two pictures of one size."""
    assert one.shape == other.shape, f"{one.shape} is not {other.shape}"
    return Difference(
        float(_ciede2000(one / 255, other / 255).mean()), float(_ciede2000(_blocks(one), _blocks(other)).max())
    )


def _ciede2000(one: Values, other: Values) -> Values:
    result: Values = deltaE_ciede2000(rgb2lab(one), rgb2lab(other))  # type: ignore[no-untyped-call] # no types
    return result


def _blocks(pixels: Pixels) -> Values:
    tops, lefts = (np.arange(0, side, BLOCK) for side in pixels.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(pixels.astype(float), tops, axis=0), lefts, axis=1)
    counts = np.diff([*tops, pixels.shape[0]])[:, None, None] * np.diff([*lefts, pixels.shape[1]])[None, :, None]
    return np.asarray(sums / counts / 255)
