"""An unusual but honest file comes out looking as its maker meant it."""

from __future__ import annotations

import io

import imagecodecs
import numpy as np
import pytest

from shared.errors import ImageTooLarge
from tests.fidelity import tutorial
from tests.fidelity.difference import BLOCK, Difference, difference
from tests.fidelity.kinds import KINDS, Kind, named, photograph
from tests.fidelity.rendered import MAX_PIXELS, decoded, reduced, renditions
from worker.child.opening import open_picture

#: Of which a JPEG of quality 85 with half the rows and columns of colour takes 1.1 and 2 for itself, of a photograph.
MEAN, WORST_BLOCK = 2.0, 5.0


def is_right(seen: Difference) -> bool:
    return seen.mean < MEAN and seen.worst_block < WORST_BLOCK


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_looks_as_its_maker_meant_it(kind: Kind) -> None:
    """The mean is what an eye judges; the worst block's catches a picture that is wrong in a part of it only."""
    sample = kind.make()

    for size, jpeg in renditions(sample.file).items():
        seen = difference(decoded(jpeg), reduced(sample.reference, size))

        assert is_right(seen), f"{size}: {seen}"


@pytest.mark.parametrize(
    "name",
    [
        "jpeg, orientation 2",
        "jpeg, orientation 3",
        "jpeg, Display P3",
        "jpeg, Adobe RGB",
        "jpeg, ProPhoto",
        "png, gAMA of linear light",
        "jpeg, CMYK with a profile",
        "png, 16 bits, grey",
        "png, hidden colour under alpha",
        "tiff, 16 bits, band by band, II, none",
        "gif, a first frame that does not fill the canvas",
    ],
)
def test_what_the_tutorial_makes_of_it_is_told_apart(name: str) -> None:
    """A measure that passed those would be no measure."""
    sample = named(name).make()

    seen = difference(decoded(tutorial.rendition(sample.file)), sample.reference)

    assert not is_right(seen), str(seen)


def test_a_picture_that_is_wrong_in_one_corner_is_told_apart() -> None:
    spoilt = photograph().copy()
    spoilt[:BLOCK, :BLOCK] = 255 - spoilt[:BLOCK, :BLOCK]

    seen = difference(spoilt, photograph())

    assert seen.mean < MEAN
    assert not is_right(seen)


@pytest.mark.parametrize("shape", [(1, 65_501), (65_501, 1)])
def test_a_side_longer_than_a_jpeg_can_have_is_refused(shape: tuple[int, int]) -> None:
    file = bytes(imagecodecs.png_encode(np.zeros((*shape, 3), np.uint8)))

    with pytest.raises(ImageTooLarge, match="side"):
        open_picture(io.BytesIO(file), max_pixels=MAX_PIXELS)
