"""What becomes of a picture: whatever it was, it ends as upright sRGB JPEGs of exactly the sizes asked for."""

from __future__ import annotations

import errno
import io
import os
import struct
from collections.abc import Mapping
from typing import Any, BinaryIO

import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat, PngImagePlugin

from shared.definitions import ENCODER_SETTINGS
from shared.errors import ImageTooLarge, UnreadableImage
from shared.renditions import MAX_SIDE, Size, ladder
from tests.worker import toy_format
from tests.worker.pictures import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    all_green_inks_profile,
    encoded,
    exif_with_orientation,
    grey_tiff,
    jpeg_of,
    linear_grey_profile,
    photo,
    png,
    quartered,
    segments,
    swapping_profile,
    without_segment,
)
from worker.child.encoders import ENCODERS
from worker.child.opening import open_picture
from worker.child.rendering import render
from worker.renderer.outputs import Output

WHITE = (255, 255, 255)
MAX_PIXELS = 50_000_000
LOSSLESS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "GIF": {},
    "WEBP": {"quality": 95},
    "TIFF": {},
    "BMP": {},
    "AVIF": {"quality": 90},
}


def rendered(
    file: BinaryIO, sizes: list[Size] | None = None, background: tuple[int, int, int] = WHITE
) -> dict[Size, bytes]:
    picture = open_picture(file, max_pixels=MAX_PIXELS)
    outputs = {jpeg_of(size): io.BytesIO() for size in (sizes or [picture.size])}
    render(picture, outputs, background)
    return {output.size: file.getvalue() for output, file in outputs.items()}


def full_size(file: BinaryIO, background: tuple[int, int, int] = WHITE) -> Image.Image:
    (jpeg,) = rendered(file, background=background).values()
    return decoded(jpeg)


def decoded(jpeg: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(jpeg))
    image.load()
    return image


def assert_colour(
    image: Image.Image, at: tuple[float, float], expected: tuple[int, int, int], within: int = 12
) -> None:
    """Compare the pixel at this fraction of the sides."""
    pixel = image.getpixel((int(image.width * at[0]), int(image.height * at[1])))
    assert isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= within, f"{pixel} is not {expected}"


def assert_upright(image: Image.Image) -> None:
    assert_colour(image, (0.2, 0.2), RED)
    assert_colour(image, (0.8, 0.2), GREEN)
    assert_colour(image, (0.2, 0.8), BLUE)
    assert_colour(image, (0.8, 0.8), YELLOW)


def mean_difference(one: Image.Image, other: Image.Image) -> float:
    """Compare the lightness only: colours have half the resolution, which would drown everything else."""
    return ImageStat.Stat(ImageChops.difference(one.convert("L"), other.convert("L"))).mean[0]


@pytest.mark.parametrize("format", LOSSLESS)
def test_every_format_becomes_a_jpeg_of_the_same_picture(format: str) -> None:
    picture = open_picture(encoded(quartered(), format, **LOSSLESS[format]), max_pixels=MAX_PIXELS)
    output = io.BytesIO()

    stages = render(picture, {jpeg_of((96, 64)): output}, WHITE)

    assert (picture.size, picture.format) == ((96, 64), format)
    assert_upright(decoded(output.getvalue()))
    assert set(stages) == {"decode", "colour", "scale", "encode"}


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("PNG", {}),
        ("WEBP", {"quality": 95}),
        ("AVIF", {"quality": 90}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_a_picture_is_turned_upright_once(format: str, options: dict[str, Any], orientation: int) -> None:
    """Pillow turns a TIFF by itself, libavif has rotations of its own beside the EXIF: nothing may be turned twice."""
    lying = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quartered()
    if orientation in lying:
        stored = stored.transpose(lying[orientation])
    file = encoded(stored, format, exif=exif_with_orientation(orientation), **options)

    picture = open_picture(file, max_pixels=MAX_PIXELS)
    outputs = {jpeg_of(size): io.BytesIO() for size in ((96, 64), (48, 32))}
    render(picture, outputs, WHITE)

    assert picture.size == (96, 64)
    for output, file in outputs.items():
        assert decoded(file.getvalue()).size == output.size
        assert_upright(decoded(file.getvalue()))


def test_a_tiff_that_is_turned_by_its_xmp_alone_has_the_size_that_was_told() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    file = encoded(quartered().transpose(Image.Transpose.ROTATE_90), "TIFF", tiffinfo={700: xmp})

    picture = open_picture(file, max_pixels=MAX_PIXELS)
    output = io.BytesIO()
    render(picture, {jpeg_of(picture.size): output}, WHITE)

    assert picture.size == (96, 64)
    assert_upright(decoded(output.getvalue()))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0garbage",
        b"Exif\0\0MM\0*\xff\xff\xff\xff",
        b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01",
        b"Exif\0\0" + exif_with_orientation(77).tobytes().removeprefix(b"Exif\0\0"),
    ],
)
def test_garbage_in_the_exif_does_not_fail_an_honest_picture(format: str, exif: bytes) -> None:
    assert_upright(full_size(encoded(quartered(), format, exif=exif, **LOSSLESS[format])))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_colours_are_converted_by_the_embedded_profile(format: str) -> None:
    file = encoded(Image.new("RGB", (32, 32), (255, 0, 0)), format, icc_profile=swapping_profile(), **LOSSLESS[format])

    assert_colour(full_size(file), (0.5, 0.5), (0, 255, 0))


def test_grey_levels_are_converted_by_the_embedded_profile() -> None:
    file = encoded(Image.new("L", (32, 32), 128), "PNG", icc_profile=linear_grey_profile())

    assert_colour(full_size(file), (0.5, 0.5), (188, 188, 188))


def test_inks_are_converted_by_the_embedded_profile() -> None:
    file = encoded(Image.new("CMYK", (32, 32), (0, 255, 0, 0)), "JPEG", icc_profile=all_green_inks_profile())

    red, green, blue = full_size(file).getpixel((16, 16))  # type: ignore[misc] # three bands: the output is RGB

    assert green > red + 60
    assert green > blue + 60


def test_grey_levels_with_alpha_are_converted_by_the_embedded_profile() -> None:
    file = encoded(Image.new("LA", (32, 32), (128, 255)), "PNG", icc_profile=linear_grey_profile())

    assert_colour(full_size(file), (0.5, 0.5), (188, 188, 188))


def test_a_long_text_or_profile_does_not_fail_an_honest_picture() -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    long_profile = profile + bytes(3_000_000)

    assert_upright(full_size(encoded(quartered(), "PNG", pnginfo=info, icc_profile=long_profile)))


def test_a_profile_that_says_srgb_changes_nothing() -> None:
    image = photo((160, 120))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    with_profile = rendered(encoded(image, "PNG", icc_profile=srgb))

    assert with_profile == rendered(encoded(image, "PNG"))


def test_a_profile_that_was_met_before_does_what_it_did() -> None:
    """What a profile does is remembered between pictures, and depends on their colours: each kind on its own."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = encoded(Image.new("RGB", (32, 32), RED), "PNG", icc_profile=swapping_profile())
    translucent = encoded(Image.new("RGBA", (32, 32), (*RED, 128)), "PNG", icc_profile=swapping_profile())
    grey = encoded(Image.new("L", (32, 32), 128), "PNG", icc_profile=srgb)
    plain = encoded(Image.new("RGB", (32, 32), RED), "PNG", icc_profile=srgb)
    (once,) = rendered(swapped).values()

    for _ in range(2):
        assert_colour(full_size(grey), (0.5, 0.5), (128, 128, 128))
        assert_colour(full_size(plain), (0.5, 0.5), RED)
        assert_colour(full_size(translucent, (255, 255, 255)), (0.5, 0.5), halfway(decoded(once)))
        assert list(rendered(swapped).values()) == [once]


def halfway(image: Image.Image) -> tuple[int, int, int]:
    """Return a colour that is halfway to white."""
    pixel = image.getpixel((16, 16))
    assert isinstance(pixel, tuple)
    red, green, blue = (round(127 + value * 0.5) for value in pixel)
    return red, green, blue


@pytest.mark.parametrize("profile", [b"junk", b"", swapping_profile()[:200], linear_grey_profile()])
def test_a_profile_that_is_broken_or_of_another_kind_is_ignored(profile: bytes) -> None:
    assert_upright(full_size(encoded(quartered(), "PNG", icc_profile=profile)))


def test_cmyk_is_converted() -> None:
    """JPEGs hold inverted inks. Adobe's marker does not tell, it gets lost: browsers do not look for it either."""
    image = quartered().convert("CMYK")
    adobe = encoded(image, "JPEG", quality=95)
    unmarked = without_segment(adobe.getvalue(), 0xEE)

    assert_upright(full_size(adobe))
    assert_upright(full_size(io.BytesIO(unmarked)))
    assert_upright(full_size(encoded(image, "TIFF")))


def test_cie_lab_is_converted() -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")

    assert_upright(full_size(encoded(to_lab.apply(quartered()), "TIFF")))


@pytest.mark.parametrize("mode", ["I;16", "I;16B"])
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_of_grey_keep_their_shades(mode: str, format: str) -> None:
    row = [value for value in (0, 200, 0x8000, 0xC000, 0xFF00, 0xFFFF) for _ in range(8)]
    image = Image.frombytes(mode, (48, 16), struct.pack("<48H" if mode == "I;16" else ">48H", *row) * 16)

    result = full_size(encoded(image, format))

    for i, shade in enumerate((0, 1, 128, 191, 254, 255)):
        assert_colour(result, ((i + 0.5) / 6, 0.5), (shade,) * 3, within=3)


def test_sixteen_bits_a_channel_keep_their_colours_and_their_transparent_one() -> None:
    rows = (b"\0" + struct.pack(">HHH", 0xFFFF, 0x8080, 0) * 16 + struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC) * 16) * 16
    transparent = struct.pack(">HHH", 0x1234, 0x5678, 0x9ABC)

    result = full_size(png((32, 16), 16, 2, rows, (b"tRNS", transparent)), background=BLUE)

    assert_colour(result, (0.2, 0.5), (255, 128, 0))
    assert_colour(result, (0.8, 0.5), BLUE)


@pytest.mark.parametrize("opaque", [(0xFF00, 0xFF00, 0), (0xFFFF, 0xFFFF, 0x00FF), (0x00FF, 0xFFFF, 0)])
def test_a_transparent_colour_of_sixteen_bits_a_channel_is_told_from_its_neighbours(
    opaque: tuple[int, int, int],
) -> None:
    rows = (b"\0" + struct.pack(">HHH", *opaque) * 16 + struct.pack(">HHH", 0xFFFF, 0xFFFF, 0) * 16) * 16
    transparent = struct.pack(">HHH", 0xFFFF, 0xFFFF, 0)

    result = full_size(png((32, 16), 16, 2, rows, (b"tRNS", transparent)), background=BLUE)

    red, green, blue = (value >> 8 for value in opaque)
    assert_colour(result, (0.2, 0.5), (red, green, blue))
    assert_colour(result, (0.8, 0.5), BLUE)


def test_a_transparent_colour_of_sixteen_bits_may_be_a_small_number() -> None:
    rows = (b"\0" + struct.pack(">HHH", 0x1200, 0, 0) * 16 + struct.pack(">HHH", 0x0012, 0, 0) * 16) * 16

    result = full_size(png((32, 16), 16, 2, rows, (b"tRNS", struct.pack(">HHH", 0x0012, 0, 0))), background=BLUE)

    assert_colour(result, (0.2, 0.5), (0x12, 0, 0))
    assert_colour(result, (0.8, 0.5), BLUE)


def test_sixteen_bits_of_grey_in_a_tiff_may_count_from_white() -> None:
    row = struct.pack("<48H", *(value for value in (0, 0x4000, 0xFFFF) for _ in range(16)))

    result = full_size(grey_tiff((48, 16), 16, row * 16, is_white_zero=True))

    for i, shade in enumerate((255, 191, 0)):
        assert_colour(result, ((i + 0.5) / 3, 0.5), (shade,) * 3, within=3)


def test_floats_in_a_tiff_may_count_from_white() -> None:
    row = struct.pack("<48f", *(value for value in (0.0, 0.25, 1.0) for _ in range(16)))

    result = full_size(grey_tiff((48, 16), 32, row * 16, is_white_zero=True, sample_format=3))

    for i, shade in enumerate((255, 191, 0)):
        assert_colour(result, ((i + 0.5) / 3, 0.5), (shade,) * 3, within=3)


@pytest.mark.parametrize("depth", [2, 4, 8])
def test_few_bits_of_grey_that_count_from_white_are_turned_once(depth: int) -> None:
    """Pillow turns these by itself."""
    white, black = bytes(4 * depth), b"\xff" * (4 * depth)

    result = full_size(grey_tiff((64, 16), depth, (white + black) * 16, is_white_zero=True))

    assert_colour(result, (0.2, 0.5), WHITE)
    assert_colour(result, (0.8, 0.5), (0, 0, 0))


def test_twelve_bits_of_grey_keep_their_shades() -> None:
    row = bytes.fromhex("000000" * 8 + "800800" * 8 + "ffffff" * 8)  # two values of 12 bits in three bytes

    result = full_size(grey_tiff((48, 16), 12, row * 16))

    for i, shade in enumerate((0, 128, 255)):
        assert_colour(result, ((i + 0.5) / 3, 0.5), (shade,) * 3, within=3)


def test_thirty_two_bits_without_a_sign_are_not_taken_for_signed() -> None:
    row = struct.pack("<48I", *(value for value in (0, 0x7FFFFFFF, 0xFFFFFFFF) for _ in range(16)))

    result = full_size(grey_tiff((48, 16), 32, row * 16))

    for i, shade in enumerate((0, 128, 255)):
        assert_colour(result, ((i + 0.5) / 3, 0.5), (shade,) * 3, within=4)


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("I", (0, 128, 255)),
        ("I", (0, 32896, 65535)),
        ("I", (-1_000_000, 0, 1_000_000)),
        ("F", (0.0, 0.5, 1.0)),
        ("F", (0.0, 128.0, 255.0)),
        ("F", (0.0, 32768.0, 65535.0)),
        ("F", (-7.5, 0.0, 7.5)),
    ],
)
def test_wide_grey_is_scaled_to_the_range_it_uses(mode: str, values: tuple[float, ...]) -> None:
    image = Image.new(mode, (48, 16))
    for i, value in enumerate(values):
        image.paste(value, (i * 16, 0, i * 16 + 16, 16))

    result = full_size(encoded(image, "TIFF"))

    for i, shade in enumerate((0, 128, 255)):
        assert_colour(result, ((i + 0.5) / 3, 0.5), (shade,) * 3, within=4)


def test_floats_that_are_no_numbers_are_survived() -> None:
    image = Image.new("F", (16, 16), float("nan"))

    assert full_size(encoded(image, "TIFF")).size == (16, 16)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_alpha_is_flattened_onto_the_background(format: str) -> None:
    image = Image.new("RGBA", (96, 32), (*RED, 255))
    image.paste((*RED, 128), (32, 0, 64, 32))
    image.paste((*RED, 0), (64, 0, 96, 32))

    result = full_size(encoded(image, format, **LOSSLESS[format]), background=BLUE)

    assert_colour(result, (0.1, 0.5), RED)
    assert_colour(result, (0.5, 0.5), (120, 20, 120))
    assert_colour(result, (0.9, 0.5), BLUE)


@pytest.mark.parametrize("format", ["PNG", "GIF"])
def test_a_transparent_entry_of_a_palette_is_flattened(format: str) -> None:
    image = Image.new("P", (32, 16), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (16, 0, 32, 16))

    result = full_size(encoded(image, format, transparency=1), background=YELLOW)

    assert_colour(result, (0.2, 0.5), RED)
    assert_colour(result, (0.8, 0.5), YELLOW)


def test_a_palette_with_an_alpha_for_each_entry_is_flattened() -> None:
    image = Image.new("P", (32, 16), 0)
    image.putpalette([*RED, *GREEN, *BLUE])
    image.paste(1, (16, 0, 32, 16))

    result = full_size(encoded(image, "PNG", transparency=b"\xff\x80\xff"), background=BLUE)

    assert_colour(result, (0.2, 0.5), RED)
    assert_colour(result, (0.8, 0.5), (20, 90, 120))


def test_grey_with_alpha_is_flattened() -> None:
    image = Image.new("LA", (32, 16), (100, 255))
    image.paste((100, 0), (16, 0, 32, 16))

    result = full_size(encoded(image, "PNG"), background=BLUE)

    assert_colour(result, (0.2, 0.5), (100, 100, 100))
    assert_colour(result, (0.8, 0.5), BLUE)


def test_a_transparent_grey_level_is_flattened() -> None:
    image = Image.new("L", (32, 16), 100)
    image.paste(7, (16, 0, 32, 16))

    result = full_size(encoded(image, "PNG", transparency=7), background=BLUE)

    assert_colour(result, (0.2, 0.5), (100, 100, 100))
    assert_colour(result, (0.8, 0.5), BLUE)


@pytest.mark.parametrize(
    ("depth", "opaque", "transparent", "shade"),
    [(1, 0, 1, 0), (2, 1, 2, 85), (4, 5, 8, 85), (8, 85, 136, 85), (16, 0x5555, 0x5556, 85), (16, 0xFFFF, 0, 255)],
)
def test_a_transparent_grey_level_of_any_depth_is_flattened(
    depth: int, opaque: int, transparent: int, shade: int
) -> None:
    def half(level: int) -> bytes:
        return int(f"{level:0{depth}b}" * 16, 2).to_bytes(2 * depth, "big")

    rows = (b"\0" + half(opaque) + half(transparent)) * 16

    result = full_size(png((32, 16), depth, 0, rows, (b"tRNS", struct.pack(">H", transparent))), background=BLUE)

    assert_colour(result, (0.2, 0.5), (shade,) * 3)
    assert_colour(result, (0.8, 0.5), BLUE)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP", "GIF"])
def test_one_bit_becomes_black_and_white(format: str) -> None:
    image = Image.new("1", (32, 16), 0)
    image.paste(1, (16, 0, 32, 16))

    result = full_size(encoded(image, format))

    assert result.mode == "RGB"
    assert_colour(result, (0.2, 0.5), (0, 0, 0))
    assert_colour(result, (0.8, 0.5), WHITE)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"])
def test_only_the_first_frame_is_shown(format: str) -> None:
    frames = [Image.new("RGB", (32, 32), colour) for colour in (RED, BLUE, GREEN)]
    file = encoded(frames[0], format, save_all=True, append_images=frames[1:])

    picture = open_picture(file, max_pixels=MAX_PIXELS)
    output = io.BytesIO()
    render(picture, {jpeg_of((32, 32)): output}, WHITE)

    assert picture.format == ("JPEG" if format == "MPO" else format)
    assert_colour(decoded(output.getvalue()), (0.5, 0.5), RED)


def test_a_broken_index_of_further_pictures_does_not_matter() -> None:
    file = encoded(quartered(), "JPEG", quality=95)
    jpeg = file.getvalue()
    index = b"MPF\0II*\0\x08\0\0\0\xff\xff\xff\xff"
    marked = jpeg[:2] + struct.pack(">BBH", 255, 0xE2, len(index) + 2) + index + jpeg[2:]

    assert_upright(full_size(io.BytesIO(marked)))


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3), (3, 3), (127, 65), (257, 130), (1000, 3)])
def test_every_rendition_has_exactly_its_size(size: Size) -> None:
    sizes = [size, *ladder(size, 1)]

    jpegs = rendered(encoded(photo((300, 300)).resize(size), "PNG"), sizes)

    assert {asked: decoded(jpeg).size for asked, jpeg in jpegs.items()} == {asked: asked for asked in sizes}


def test_any_part_of_the_ladder_is_the_same_as_in_the_whole() -> None:
    file = encoded(photo((640, 480)), "PNG")
    whole = rendered(file, [(640, 480), *ladder((640, 480), 16)])
    file.seek(0)

    part = rendered(file, [(160, 120), (40, 30)])

    assert part == {size: whole[size] for size in part}


def test_a_size_beside_the_ladder_is_our_own_mistake() -> None:
    picture = open_picture(encoded(quartered(), "PNG"), max_pixels=MAX_PIXELS)

    with pytest.raises(ValueError, match="not on the ladder"):
        render(picture, {jpeg_of((50, 50)): io.BytesIO()}, WHITE)


def test_a_format_without_an_encoder_is_our_own_mistake() -> None:
    picture = open_picture(encoded(quartered(), "PNG"), max_pixels=MAX_PIXELS)

    with pytest.raises(ValueError, match=r"not output formats: .*jpeg2000"):
        render(picture, {jpeg_of((96, 64)): io.BytesIO(), Output("full", "jpeg2000", (96, 64)): io.BytesIO()}, WHITE)


def test_outputs_of_one_size_are_each_encoded_from_one_level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the formats, a picture is decoded once and scaled once to each size."""
    levels: list[Image.Image] = []

    def remembering(level: Image.Image, settings: Mapping[str, Any]) -> memoryview:
        levels.append(level)
        return toy_format.encode(level, settings)

    monkeypatch.setitem(ENCODERS, "toy", remembering)
    monkeypatch.setitem(ENCODER_SETTINGS, "toy", toy_format.SETTINGS)
    sizes = [(320, 240), (160, 120)]
    files = {Output(name, "toy", size): io.BytesIO() for size in sizes for name in ("one", "other")}
    jpegs = {jpeg_of(size): io.BytesIO() for size in sizes}

    render(open_picture(encoded(photo((320, 240)), "PNG"), max_pixels=MAX_PIXELS), {**files, **jpegs}, WHITE)

    assert [level.size for level in levels] == [(320, 240)] * 2 + [(160, 120)] * 2
    assert levels[0] is levels[1]
    assert levels[2] is levels[3]
    for output, file in files.items():
        assert mean_difference(toy_format.decoded(file.getvalue()), decoded(jpegs[jpeg_of(output.size)].getvalue())) < 3


@pytest.mark.parametrize("size", [(800, 600), (801, 600), (800, 601), (801, 601)])
def test_thumbnails_look_like_those_made_directly_from_the_picture(size: Size) -> None:
    """The box filter of the first halving is allowed because it is exact there; a shift by a pixel would show."""
    image = photo(size)
    width, height = size
    for thumbnail, jpeg in rendered(encoded(image, "PNG"), ladder(size, 64)).items():
        ours = decoded(jpeg)
        direct = image.resize(thumbnail, Image.Resampling.LANCZOS)
        loss = mean_difference(decoded(encoded(direct, "JPEG", quality=85).getvalue()), direct)

        assert mean_difference(ours, direct) < loss + 0.1
        # A pixel of the picture is an eighth of the smallest thumbnail's: less than what the encoder does to it.
        cut = max(1, width // thumbnail[0] // 4)
        boxes = ((cut, 0, width, height), (0, cut, width, height), (0, 0, width - cut, height))
        for box in (*boxes, (0, 0, width, height - cut)):
            assert mean_difference(ours, direct) < mean_difference(
                ours, image.resize(thumbnail, Image.Resampling.LANCZOS, box)
            )


@pytest.mark.parametrize("format", LOSSLESS)
@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_picture_is_unreadable(format: str, part: float) -> None:
    file = encoded(photo((256, 192)), format, **LOSSLESS[format]).getvalue()

    with pytest.raises(UnreadableImage):
        rendered(io.BytesIO(file[: int(len(file) * part)]))


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"%PDF-1.7", b"P6 1 1 255 abc"]
)
def test_what_is_no_picture_of_ours_is_unreadable(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match="no picture that we can read"):
        open_picture(io.BytesIO(content), max_pixels=MAX_PIXELS)


def test_formats_that_pillow_reads_and_we_do_not_are_unreadable() -> None:
    for format in ("PPM", "TGA", "ICO", "PDF", "JPEG2000"):
        with pytest.raises(UnreadableImage):
            open_picture(encoded(quartered(), format), max_pixels=MAX_PIXELS)


def header_only(format: str, size: Size) -> io.BytesIO:
    """Return a file whose header claims `size` and behind whose header there is nothing: decoding it must fail."""
    width, height = size
    if format == "PNG":
        return png(size, 8, 2, b"")
    if format == "GIF":
        return io.BytesIO(
            b"GIF89a"
            + struct.pack("<HHBBB", width, height, 0, 0, 0)
            + b",\0\0\0\0"
            + struct.pack("<HHBB", width, height, 0, 8)
        )
    if format == "BMP":
        return io.BytesIO(b"BM" + struct.pack("<IIIIiiHHIIiiII", 0, 0, 54, 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0))
    if format == "WEBP":
        chunk = (
            b"VP8X" + struct.pack("<II", 10, 0) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        )
        return io.BytesIO(b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk)
    file = encoded(Image.new("RGB", (16, 16)), format).getvalue()
    if format == "JPEG":
        at = file.index(b"\xff\xc0") + 5
        scan = file.index(b"\xff\xda") + 14
        return io.BytesIO(file[:at] + struct.pack(">HH", height, width) + file[at + 4 : scan])
    assert format == "TIFF"
    for tag, value in ((256, width), (257, height)):
        at = file.index(struct.pack("<H", tag), struct.unpack_from("<I", file, 4)[0])
        file = file[: at + 2] + struct.pack("<HII", 4, 1, value) + file[at + 12 :]
    return io.BytesIO(file)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("size", [(60_000, 50_000), (10_000, 5_001)])
def test_a_bomb_is_refused_by_its_header(format: str, size: Size) -> None:
    """Just past the limit and far past it: Pillow's own check, WebP's before its canvas, and ours agree."""
    if format == "WEBP":
        size = (16_000, 3_126 if size[1] == 5_001 else 16_000)

    with pytest.raises(ImageTooLarge, match="pixels"):
        open_picture(header_only(format, size), max_pixels=MAX_PIXELS)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP"])
def test_opening_decodes_nothing(format: str) -> None:
    """Pixels wait for their budget; Pillow's PNG plugin would decode them for being asked for the EXIF."""
    picture = open_picture(header_only(format, (100, 50)), max_pixels=MAX_PIXELS)

    assert (picture.size, picture.format) == ((100, 50), format)
    with pytest.raises(UnreadableImage):
        render(picture, {jpeg_of((100, 50)): io.BytesIO()}, WHITE)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_a_side_longer_than_a_jpeg_can_have_is_refused_by_the_header(format: str) -> None:
    with pytest.raises(ImageTooLarge, match="side"):
        open_picture(header_only(format, (MAX_SIDE + 1, 1)), max_pixels=MAX_PIXELS)


def test_a_side_longer_than_was_set_is_refused_by_the_header() -> None:
    with pytest.raises(ImageTooLarge, match="at most 99"):
        open_picture(encoded(photo((100, 50)), "PNG"), max_pixels=MAX_PIXELS, max_side=99)


def test_as_many_pixels_as_allowed_pass() -> None:
    file = encoded(Image.new("L", (7, 7)), "PNG")

    assert open_picture(file, max_pixels=49).size == (7, 7)
    with pytest.raises(ImageTooLarge):
        open_picture(file, max_pixels=48)


def test_nothing_but_pixels_comes_through() -> None:
    """Promise 9: no metadata, comment or trailing payload of an upload survives."""
    exif = exif_with_orientation(1)
    exif[0x010E] = "SECRET description"
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = encoded(
        photo((128, 96)), "JPEG", exif=exif, xmp=b"<x>SECRET</x>", comment=b"SECRET", icc_profile=srgb, dpi=(300, 300)
    )
    file.seek(0, io.SEEK_END)
    file.write(b"SECRET payload")
    file.seek(0)

    jpegs = rendered(file, [(128, 96), (64, 48)])

    for jpeg in jpegs.values():
        found = segments(jpeg)
        assert b"SECRET" not in jpeg
        assert jpeg.endswith(b"\xff\xd9")
        assert {marker for marker, _ in found} == {0xE0, 0xDB, 0xC0, 0xC4, 0xDA}
        (frame,) = (data for marker, data in found if marker == 0xC0)
        assert [frame[i] for i in (7, 10, 13)] == [0x22, 0x11, 0x11], "not 4:2:0"


class Stingy(io.RawIOBase):
    """A file that takes little at a time, as a raw descriptor may."""

    def __init__(self) -> None:
        self.content = b""

    def write(self, data: Any, /) -> int:
        self.content += bytes(data[:1000])
        return min(len(data), 1000)


def test_a_file_that_takes_less_than_given_gets_all_of_the_picture() -> None:
    file = encoded(photo((320, 240)), "PNG")
    (expected,) = rendered(file).values()
    file.seek(0)
    output = Stingy()

    render(open_picture(file, max_pixels=MAX_PIXELS), {jpeg_of((320, 240)): output}, WHITE)

    assert output.content == expected


class Full(io.RawIOBase):
    def write(self, data: Any, /) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_not_the_fault_of_the_picture() -> None:
    picture = open_picture(encoded(quartered(), "PNG"), max_pixels=MAX_PIXELS)

    with pytest.raises(OSError, match="No space left"):
        render(picture, {jpeg_of((96, 64)): Full()}, WHITE)


class Sick(io.BytesIO):
    """A file on a disk that fails past the header, or a decoder that asks for what the filter refuses."""

    number = errno.EIO

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 1000:
            raise OSError(self.number, os.strerror(self.number))
        return super().read(size)


@pytest.mark.parametrize("number", [errno.EIO, errno.EPERM])
def test_what_disk_or_filter_do_not_yield_is_not_the_fault_of_the_picture(number: int) -> None:
    file = Sick(encoded(photo((320, 240)), "BMP").getvalue())
    file.number = number
    picture = open_picture(file, max_pixels=MAX_PIXELS)

    with pytest.raises(OSError, match=os.strerror(number)):
        render(picture, {jpeg_of((320, 240)): io.BytesIO()}, WHITE)
