"""A colour space that is named in a few numbers has a profile, and a file that names none, or nonsense, has none."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from tests.worker.pictures import encoded, png
from worker.child import profiles

ADOBE_RGB = (0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
SRGB = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
DISPLAY_P3 = (12, 13)


def shown(profile: bytes | None, colour: tuple[int, int, int]) -> tuple[int, ...]:
    """Return what a colour of this profile is in sRGB."""
    assert profile is not None
    transform = ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), "RGB", "RGB"
    )
    pixel = transform.apply(Image.new("RGB", (1, 1), colour)).getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return tuple(round(value) for value in pixel)


@pytest.mark.parametrize("points", [DISPLAY_P3, (9, 16), (9, 18), (11, 4), (5, 5), (6, 8), (2, 8), (1, 16)])
def test_white_and_black_and_grey_stay_without_colour(points: tuple[int, int]) -> None:
    profile = profiles.of_code_points(*points)

    for level in (0, 128, 255):
        red, green, blue = shown(profile, (level, level, level))
        assert max(red, green, blue) - min(red, green, blue) <= 1


def test_a_colour_of_display_p3_is_as_published() -> None:
    """CSS Color 4 has color(display-p3 0 1 0) beyond sRGB's green, and orange as below."""
    profile = profiles.of_code_points(*DISPLAY_P3)

    assert shown(profile, (0, 255, 0)) == (0, 255, 0)
    assert shown(profile, (200, 100, 50)) == pytest.approx((215, 93, 31), abs=2)


def test_the_white_of_paper_is_nearly_white_and_what_is_brighter_keeps_its_shape() -> None:
    """203 cd/m² of PQ, 500 and 1,000: cut off at the first, clouds would be blank."""
    profile = profiles.of_code_points(1, 16)

    paper, cloud, lamp = (shown(profile, (level, level, level))[0] for level in (148, 172, 191))

    assert 240 <= paper < cloud < lamp


@pytest.mark.parametrize(
    ("primaries", "transfer"), [(1, 13), (1, 1), (2, 2), (6, 99), (99, 13), (0, 0), (255, 255), (22, 13)]
)
def test_what_is_srgb_or_unknown_has_no_profile(primaries: int, transfer: int) -> None:
    assert profiles.of_code_points(primaries, transfer) is None


@pytest.mark.parametrize(
    ("gamma", "chromaticities"),
    [
        (1 / 2.2, None),
        (1 / 2.2, SRGB),
        (0.0, None),
        (1e6, None),
        (0.5, (0.0,) * 8),
        (0.5, (0.3,) * 8),
    ],
)
def test_gamma_and_chromaticities_that_are_srgb_or_nonsense_have_no_profile(
    gamma: float, chromaticities: Sequence[float] | None
) -> None:
    assert profiles.of_gamma(gamma, chromaticities) is None


def test_gamma_alone_is_a_curve() -> None:
    assert shown(profiles.of_gamma(1.0, None), (55, 55, 55)) == pytest.approx((128, 128, 128), abs=1)


def test_gamma_with_other_primaries_is_a_power() -> None:
    assert shown(profiles.of_gamma(256 / 563, ADOBE_RGB), (200, 100, 50)) == pytest.approx(
        shown(profiles.of_adobe_rgb(), (200, 100, 50)), abs=1
    )


def test_a_chunk_behind_the_pixels_or_of_another_length_names_nothing() -> None:
    row = b"\0" + bytes(3)
    for chunks in ([(b"cICP", bytes((12, 13, 0)))], [(b"IDAT", b""), (b"cICP", bytes((12, 13, 0, 1)))]):
        assert profiles.of_png(png((1, 1), 8, 2, row, *chunks)) is None


def test_more_chunks_than_an_honest_file_has_are_not_searched() -> None:
    chunks = [(b"teSt", b"")] * 2000 + [(b"cICP", bytes((12, 13, 0, 1)))]

    assert profiles.of_png(png((1, 1), 8, 2, b"\0" + bytes(3), *chunks)) is None


def box(name: bytes, *content: bytes) -> bytes:
    data = b"".join(content)
    return struct.pack(">I4s", len(data) + 8, name) + data


def avif(*associations: bytes, colours: Sequence[tuple[int, int]] = (DISPLAY_P3,), wide: bool = False) -> io.BytesIO:
    """Return the boxes of an AVIF whose primary item is 1, without any pixels."""
    coded = [box(b"colr", b"nclx", struct.pack(">HHHB", *points, 0, 128)) for points in colours]
    ipma = box(b"ipma", bytes((0, 0, 0, int(wide))), struct.pack(">I", len(associations)), *associations)
    meta = box(b"meta", bytes(4), box(b"pitm", bytes(4), b"\0\1"), box(b"iprp", box(b"ipco", *coded), ipma))
    return io.BytesIO(box(b"ftyp", b"avif") + meta)


def test_the_primary_items_colours_count() -> None:
    """A gain map and its rendering for HDR are items with colours of their own."""
    gain_map, primary = struct.pack(">HBB", 2, 1, 1), struct.pack(">HBB", 1, 1, 0x82)

    assert profiles.of_avif(avif(gain_map, primary, colours=((9, 16), DISPLAY_P3))) == profiles.of_code_points(12, 13)


def test_indexes_of_properties_may_take_two_bytes() -> None:
    assert profiles.of_avif(avif(struct.pack(">HBH", 1, 1, 0x8001), wide=True)) == profiles.of_code_points(12, 13)


@pytest.mark.parametrize(
    "file",
    [
        avif(),
        avif(struct.pack(">HBB", 1, 1, 9)),
        avif(struct.pack(">HBB", 1, 1, 0)),
        io.BytesIO(b""),
        io.BytesIO(bytes(100)),
        io.BytesIO(box(b"ftyp", b"avif") + struct.pack(">I4s", 0xFFFFFFFF, b"meta")),
        encoded(Image.new("RGB", (8, 8)), "AVIF"),
    ],
)
def test_boxes_that_lead_nowhere_name_nothing(file: io.BytesIO) -> None:
    assert profiles.of_avif(file) is None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_boxes_are_survived(data: st.DataObject) -> None:
    """Pillow has opened the file before: whatever stands in its boxes, the pixels are worth showing."""
    file = bytearray(avif(struct.pack(">HBB", 1, 1, 1)).getvalue())
    for _ in range(data.draw(st.integers(1, 6))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))

    profiles.of_avif(io.BytesIO(bytes(file[: data.draw(st.integers(0, len(file)))])))
