"""What an iPhone takes comes out right where the extra `heic` is installed: pip install pillow-heif."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from shared.errors import ImageTooLarge, UnreadableImage
from shared.formats import SIGNATURE_BYTES, media_type_of
from tests.fidelity import colours
from tests.fidelity.colours import BT2020, DISPLAY_P3, Pixels, over, shown
from tests.fidelity.difference import difference
from tests.fidelity.kinds import SIZE, WHITE, photograph, stored
from tests.fidelity.rendered import MAX_PIXELS, decoded, reduced, renditions
from tests.fidelity.test_fidelity import is_right
from tests.integration.service import Deployed
from tests.worker.pictures import exif_with_orientation
from worker.child.opening import open_picture

pillow_heif = pytest.importorskip("pillow_heif", reason="the extra `heic` (pillow-heif) is not installed")


def heic(pixels: Any, mode: str = "RGB", **options: Any) -> bytes:
    """Return a HEIC of pixels that are nearly as they were."""
    file = io.BytesIO()
    height, width = pixels.shape[:2]
    made = pillow_heif.from_bytes(mode, (width, height), np.ascontiguousarray(pixels).tobytes())
    made.save(file, **{"quality": 95, "chroma": 444, "save_nclx_profile": True, **options})
    return file.getvalue()


def assert_right(file: bytes, reference: Pixels) -> None:
    for size, jpeg in renditions(file).items():
        seen = difference(decoded(jpeg), reduced(reference, size))
        assert is_right(seen), f"{size}: {seen}"


def test_a_heic_is_told_by_its_first_bytes() -> None:
    assert media_type_of(heic(photograph())[:SIGNATURE_BYTES]) == "image/heic"


def test_a_heic_looks_as_its_maker_meant_it() -> None:
    assert_right(heic(photograph()), photograph())


def test_a_heic_in_tiles_as_phones_make_it_is_put_together() -> None:
    assert_right(heic(photograph(), tile_size=128), photograph())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_heic_is_turned_once(orientation: int) -> None:
    """Its turns are boxes of the container; the EXIF that says the same is for those who do not know them."""
    assert_right(
        heic(stored(photograph(), orientation), exif=exif_with_orientation(orientation).tobytes()), photograph()
    )


def test_the_profile_of_a_heic_is_heeded() -> None:
    assert_right(heic(photograph(), icc_profile=DISPLAY_P3.profile(4)), shown(photograph() / 255, DISPLAY_P3))


def test_the_colours_that_a_heic_names_are_heeded() -> None:
    file = heic(photograph(), color_primaries=12, transfer_characteristics=13, matrix_coefficients=1)

    assert_right(file, shown(photograph() / 255, DISPLAY_P3))


def test_a_heic_for_hdr_screens_is_shown_on_others() -> None:
    light = colours.srgb_to_light(photograph() / 255) * 0.6
    values = np.round(colours.light_to_pq(light) * 65535).astype("<u2")

    file = heic(values, "RGB;16", color_primaries=9, transfer_characteristics=16, matrix_coefficients=9)

    assert_right(file, shown(colours.light_to_srgb(light), BT2020))


def test_the_alpha_of_a_heic_is_flattened() -> None:
    alpha = np.tile(np.linspace(0, 255, SIZE[0]).astype(np.uint8), (SIZE[1], 1))

    file = heic(np.dstack([photograph(), alpha]), "RGBA")

    assert_right(file, over(photograph(), alpha / 255, WHITE))


def test_the_header_of_a_heic_is_judged_before_its_pixels() -> None:
    with pytest.raises(ImageTooLarge, match="pixels"):
        open_picture(io.BytesIO(heic(photograph())), max_pixels=SIZE[0] * SIZE[1] - 1)


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_heic_is_unreadable(part: float) -> None:
    file = heic(photograph())

    with pytest.raises(UnreadableImage):
        renditions(file[: int(len(file) * part)])


def test_an_avif_is_not_taken_for_a_heic() -> None:
    file = io.BytesIO()
    Image.fromarray(photograph()).save(file, "AVIF", quality=95)

    assert media_type_of(file.getvalue()[:SIGNATURE_BYTES]) == "image/avif"
    assert open_picture(file, max_pixels=MAX_PIXELS).format == "AVIF"


@pytest.mark.processes
def test_an_uploaded_heic_is_served_as_a_jpeg(service: Deployed) -> None:
    """Through a child with all its limits: the decoder takes a thread, which the filter of system calls must allow."""
    for tile_size in (0, 128):
        answer = service.upload(heic(photograph(), tile_size=tile_size), wait=20)

        assert answer.status == 201, answer.body
        assert answer.json["original"]["type"] == "image/heic"
        assert is_right(difference(decoded(service.get(answer.json["image"]).body), photograph()))
