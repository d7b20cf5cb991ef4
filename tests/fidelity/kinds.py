"""One file of every odd but honest kind, and what it must look like.

    @kind("png, cICP of Display P3", "colour")
    def _() -> Sample: ...

A reference never comes from Pillow: where the values in a file are known, it is arithmetic; where an encoder has
changed them for good, imagecodecs decodes the file, with a libjpeg of its own.
"""

from __future__ import annotations

import functools
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import imagecodecs
import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from skimage.transform import resize

from tests.fidelity import colours
from tests.fidelity.colours import ADOBE_RGB, BT2020, DISPLAY_P3, PROPHOTO, SRGB, Pixels, Space, Values, over, shown
from tests.fidelity.difference import BLOCK
from tests.worker.pictures import (
    encoded,
    exif_with_orientation,
    icc_profile,
    linear_grey_profile,
    png,
    without_segment,
)

WHITE = (255, 255, 255)
SIZE = (320, 240)


class Sample(NamedTuple):
    """A file, and what it must look like."""

    file: bytes
    reference: Pixels


@dataclass(frozen=True)
class Kind:
    """A kind of file: what people call it, what is odd about it, and how one is made."""

    name: str
    family: str
    make: Callable[[], Sample]


KINDS: list[Kind] = []
Maker = Callable[[], Sample]


def kind(name: str, family: str) -> Callable[[Maker], Maker]:
    """Register how a kind is made."""

    def register(make: Maker) -> Maker:
        KINDS.append(Kind(name, family, functools.cache(make)))
        return make

    return register


def named(name: str) -> Kind:
    """Return the kind of this name."""
    (found,) = (kind for kind in KINDS if kind.name == name)
    return found


@functools.cache
def photograph() -> Pixels:
    """Return a cup of coffee, as soft as a camera's pixels are, with a colour target along its lower edge.

    The photograph is scikit-image's, in the public domain; each patch of the target is one block of `difference`.
    """
    whole = imagecodecs.png_decode((Path(skimage.data.__file__).parent / "coffee.png").read_bytes())
    width, height = SIZE
    part = whole[60 : 60 + height * 5 // 8, 140 : 140 + width * 5 // 8, :3]
    pixels = colours.to_pixels(resize(part / 255, (height, width), order=3))  # type: ignore[no-untyped-call] # no types
    levels = (0.15, 0.5, 0.85)
    patches = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0)]
    target = [[0.1 + level * 0.8 * band for band in patch] for level in levels for patch in patches] + [
        [0] * 3,
        [1] * 3,
    ]
    pixels[-BLOCK:] = np.repeat(colours.to_pixels(np.array(target)), BLOCK, axis=0)
    return pixels


def grey(pixels: Pixels) -> Pixels:
    """Return the lightness of a photograph, in one band."""
    return colours.to_pixels(pixels @ np.array([0.2126, 0.7152, 0.0722]) / 255)


def thrice(band: NDArray[Any]) -> Pixels:
    """Return a band of 8 bits as grey pixels."""
    return np.repeat(np.asarray(band, np.uint8)[..., np.newaxis], 3, axis=-1)


def saved(pixels: NDArray[Any], format: str, mode: str | None = None, **options: Any) -> bytes:
    """Return a file that Pillow makes of these values."""
    image = Image.fromarray(pixels)
    if mode is not None:
        image = Image.frombytes(mode, image.size, pixels.tobytes())
    return encoded(image, format, **options).getvalue()


def coded(codec: Callable[..., Any], values: NDArray[Any], *arguments: Any, **options: Any) -> bytes:
    """Return a file that one of imagecodecs' encoders makes of these values."""
    return bytes(codec(np.ascontiguousarray(values), *arguments, **options))


def jpeg(pixels: Pixels, **options: Any) -> bytes:
    """Return a JPEG that is as good as they come."""
    return saved(pixels, "JPEG", **{"quality": 97, "subsampling": "4:4:4", **options})


# Orientation: what lies where in the file is numpy's doing, by the table in the Exif standard (4.6.5, Orientation).

_STORED: dict[int, Callable[[Pixels], Pixels]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright.swapaxes(0, 1)[::-1],
    7: lambda upright: upright.swapaxes(0, 1)[::-1, ::-1],
    8: lambda upright: upright.swapaxes(0, 1)[:, ::-1],
}


def stored(upright: Pixels, orientation: int) -> Pixels:
    """Return how a picture lies in a file of this orientation."""
    return np.ascontiguousarray(_STORED[orientation](upright))


def _turned(format: str, orientation: int, **options: Any) -> Maker:
    def make() -> Sample:
        lying = stored(photograph(), orientation)
        return Sample(saved(lying, format, exif=exif_with_orientation(orientation), **options), photograph())

    return make


for _format, _options in (
    ("JPEG", {"quality": 97, "subsampling": "4:4:4"}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {"quality": 95, "subsampling": "4:4:4"}),
):
    for _orientation in range(1, 9):
        kind(f"{_format.lower()}, orientation {_orientation}", "orientation")(
            _turned(_format, _orientation, **_options)
        )


# Colour: the photograph's values are taken for values of the space, which makes it as colourful as the space allows.


def _profiled(format: str, space: Space, version: int = 2, **options: Any) -> Maker:
    def make() -> Sample:
        file = saved(photograph(), format, icc_profile=space.profile(version), **options)
        return Sample(file, shown(photograph() / 255, space))

    return make


kind("jpeg, no profile", "colour")(lambda: Sample(jpeg(photograph()), photograph()))
_BEST: dict[str, Any] = {"quality": 97, "subsampling": "4:4:4"}
kind("jpeg, Display P3", "colour")(_profiled("JPEG", DISPLAY_P3, **_BEST))
kind("jpeg, Display P3, ICC version 4", "colour")(_profiled("JPEG", DISPLAY_P3, 4, **_BEST))
kind("jpeg, Adobe RGB", "colour")(_profiled("JPEG", ADOBE_RGB, **_BEST))
kind("jpeg, ProPhoto", "colour")(_profiled("JPEG", PROPHOTO, **_BEST))
kind("png, Display P3", "colour")(_profiled("PNG", DISPLAY_P3))
kind("tiff, Adobe RGB", "colour")(_profiled("TIFF", ADOBE_RGB, compression="tiff_lzw"))
kind("webp, Display P3", "colour")(_profiled("WEBP", DISPLAY_P3, lossless=True))
kind("avif, Display P3", "colour")(_profiled("AVIF", DISPLAY_P3, quality=95, subsampling="4:4:4"))


@kind("jpeg, Adobe RGB by its EXIF only", "colour")
def _() -> Sample:
    """As cameras write it (CIPA DC-009, 4.4): no profile, colour space 65535, interoperability R03."""
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA001] = 0xFFFF
    exif.get_ifd(0x8769)[0xA005] = {1: "R03"}
    return Sample(jpeg(photograph(), exif=exif), shown(photograph() / 255, ADOBE_RGB))


@kind("jpeg, grey with a profile", "colour")
def _() -> Sample:
    light = grey(photograph())
    expected = colours.to_pixels(colours.light_to_srgb(light / 255))
    return Sample(saved(light, "JPEG", quality=97, icc_profile=linear_grey_profile()), thrice(expected))


@kind("tiff, CIE L*a*b*", "colour")
def _() -> Sample:
    lab = _lab_of(photograph())
    values = np.round(lab * [255 / 100, 1, 1]).astype(np.int16).astype(np.uint8)
    return Sample(saved(values, "TIFF", "LAB"), colours.lab_shown(lab))


def _lab_of(pixels: Pixels) -> Values:
    light = colours.srgb_to_light(pixels / 255)
    to_d50 = colours.adaptation(colours.D65, colours.D50) @ SRGB.matrix
    relative = light @ to_d50.T / colours.xyz(*colours.D50)
    cubes = np.where(relative > (6 / 29) ** 3, np.cbrt(relative), relative * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(cubes, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _png_rows(values: NDArray[Any]) -> bytes:
    return b"".join(b"\0" + row.tobytes() for row in np.asarray(values).reshape(values.shape[0], -1))


def _rgb_png(*chunks: tuple[bytes, bytes]) -> bytes:
    return png(SIZE, 8, 2, _png_rows(photograph()), *chunks).getvalue()


def _gama(exponent: float) -> tuple[bytes, bytes]:
    return b"gAMA", struct.pack(">I", round(exponent * 100_000))


def _chrm(space: Space) -> tuple[bytes, bytes]:
    points = (space.white, *space.primaries)
    return b"cHRM", struct.pack(">8I", *(round(value * 100_000) for point in points for value in point))


kind("png, gAMA and cHRM of Adobe RGB", "colour")(
    lambda: Sample(_rgb_png(_gama(256 / 563), _chrm(ADOBE_RGB)), shown(photograph() / 255, ADOBE_RGB))
)
kind("png, gAMA of linear light", "colour")(
    lambda: Sample(_rgb_png(_gama(1.0)), colours.to_pixels(colours.light_to_srgb(photograph() / 255)))
)
kind("png, gAMA 1/2.2 and cHRM of sRGB", "colour")(lambda: Sample(_rgb_png(_gama(1 / 2.2), _chrm(SRGB)), photograph()))
kind("png, gAMA 1/2.2", "colour")(lambda: Sample(_rgb_png(_gama(1 / 2.2)), photograph()))
kind("png, sRGB before a strange gAMA", "colour")(lambda: Sample(_rgb_png((b"sRGB", b"\0"), _gama(1.0)), photograph()))
kind("png, cICP of Display P3", "colour")(
    lambda: Sample(_rgb_png((b"cICP", bytes((12, 13, 0, 1)))), shown(photograph() / 255, DISPLAY_P3))
)


@kind("png, cICP of BT.2020 and PQ", "colour")
def _() -> Sample:
    """A picture for HDR screens that stays below the white of paper, in 16 bits."""
    light = colours.srgb_to_light(photograph() / 255) * 0.6
    values = np.round(colours.light_to_pq(light) * 65535).astype(">u2")
    file = png(SIZE, 16, 2, _png_rows(values), (b"cICP", bytes((9, 16, 0, 1)))).getvalue()
    return Sample(file, shown(colours.light_to_srgb(light), BT2020))


def _avif(values: NDArray[Any], primaries: int, transfer: int, *, bits: int = 8) -> bytes:
    options = {"bitspersample": bits, "primaries": primaries, "transfer": transfer, "matrix": 1}
    return coded(imagecodecs.avif_encode, values, 98, pixelformat="yuv444", speed=8, numthreads=1, **options)


kind("avif, nclx of Display P3", "colour")(
    lambda: Sample(_avif(photograph(), 12, 13), shown(photograph() / 255, DISPLAY_P3))
)


@kind("avif, 10 bits, nclx of BT.2020 and PQ", "colour")
def _() -> Sample:
    light = colours.srgb_to_light(photograph() / 255) * 0.6
    values = np.round(colours.light_to_pq(light) * 1023).astype(np.uint16)
    return Sample(_avif(values, 9, 16, bits=10), shown(colours.light_to_srgb(light), BT2020))


# Print: without a profile the inks are pure, as browsers and ImageMagick take them to be; with one, they are what the
# press of `_press` makes of them.


def _pure(inks: Pixels) -> Pixels:
    kept = 1 - inks / 255
    return colours.to_pixels(kept[..., :3] * kept[..., 3:])


@functools.cache
def inks() -> Pixels:
    """Return the photograph in cyan, magenta, yellow and black, half of the grey that is possible in black."""
    rgb = photograph() / 255
    black = (1 - rgb.max(axis=-1, keepdims=True)) * 0.5
    return colours.to_pixels(np.concatenate([1 - rgb / (1 - black), black], axis=-1))


#: L*, a*, b*, relative to paper as profiles count, of paper and of every overprint of cyan, magenta and yellow (bits 1,
#: 2 and 4), much as on coated paper.
_OVERPRINTS = np.array(
    [(100, 0, 0), (55, -37, -50), (48, 74, -3), (24, 22, -46), (89, -5, 93), (50, -65, 27), (47, 68, 48), (23, 0, 0)],
    float,
)
_BLACK_INK = np.array([16.0, 0.0, 0.0])
_GRID = 9


def _press(coverage: Values) -> Values:
    """Return the colour that a press makes of ink coverage: dots grow, and overprints mix by the area they take."""
    grown = coverage + 0.2 * np.sin(np.pi * coverage) * coverage.clip(0, 1) ** 0.5
    cyan, magenta, yellow, black = np.moveaxis(grown.clip(0, 1), -1, 0)
    total = np.zeros((*cyan.shape, 3))
    for i, colour in enumerate(_OVERPRINTS):
        share = np.ones_like(cyan)
        for bit, ink in ((1, cyan), (2, magenta), (4, yellow)):
            share = share * (ink if i & bit else 1 - ink)
        total += share[..., None] * colour
    return np.asarray(total * (1 - black[..., None]) + _BLACK_INK * black[..., None])


@functools.cache
def press_profile() -> bytes:
    """Return an ICC profile of that press: its colours on a grid, with 16 bits."""
    steps = np.linspace(0, 1, _GRID)
    lab = _press(np.stack(np.meshgrid(steps, steps, steps, steps, indexing="ij"), axis=-1))
    coded = np.stack([lab[..., 0] * 652.8, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], axis=-1)
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    line = struct.pack(">2H", 0, 65535)
    head = b"mft2" + bytes(4) + bytes((4, 3, _GRID, 0)) + identity + struct.pack(">2H", 2, 2)
    lut = head + line * 4 + np.round(coded).clip(0, 65535).astype(">u2").tobytes() + line * 3
    return icc_profile(b"CMYK", b"Lab ", {b"A2B0": lut}, kind=b"prtr")


def _printed(inks: Pixels) -> Pixels:
    # What is darker than the press can print is black on a screen: profiles are applied with black point compensation.
    return colours.lab_shown(_press(inks / 255), darkest=float(_BLACK_INK[0]))


def _four_inks(space: str, *, marker: bool = True, profile: bool = False) -> Maker:
    def make() -> Sample:
        # Adobe's inks are inverted, and there are no others in files of their own: Chromium's, Firefox's and
        # ImageMagick's decoders invert whether or not Adobe's marker is there.
        file = coded(
            imagecodecs.jpeg8_encode, 255 - inks(), 97, colorspace="cmyk", outcolorspace=space, subsampling="444"
        )
        if profile:
            data = b"ICC_PROFILE\0\1\1" + press_profile()
            file = file[:2] + struct.pack(">BBH", 255, 0xE2, len(data) + 2) + data + file[2:]
        if not marker:
            file = without_segment(file, 0xEE)
        decoded = 255 - imagecodecs.jpeg8_decode(file, outcolorspace="cmyk")
        return Sample(file, _printed(decoded) if profile else _pure(decoded))

    return make


kind("jpeg, CMYK of Adobe", "print")(_four_inks("cmyk"))
kind("jpeg, CMYK without Adobe's marker", "print")(_four_inks("cmyk", marker=False))
kind("jpeg, YCCK of Adobe", "print")(_four_inks("ycck"))
kind("jpeg, CMYK with a profile", "print")(_four_inks("cmyk", profile=True))
kind("jpeg, CMYK with a profile, without Adobe's marker", "print")(_four_inks("cmyk", marker=False, profile=True))
kind("jpeg, YCCK with a profile", "print")(_four_inks("ycck", profile=True))


def _tiff(values: NDArray[Any], **options: Any) -> bytes:
    return coded(imagecodecs.tiff_encode, values, **options)


kind("tiff, CMYK", "print")(lambda: Sample(_tiff(inks(), photometric="separated"), _pure(inks())))
kind("tiff, CMYK of 16 bits", "print")(
    lambda: Sample(_tiff(inks().astype(np.uint16) * 257, photometric="separated"), _pure(inks()))
)
kind("tiff, CMYK with a profile", "print")(
    lambda: Sample(_tiff(inks(), photometric="separated", iccprofile=press_profile()), _printed(inks()))
)


# Depth: values of more than 8 bits that are no multiples of 257, so that their lower bytes matter.


def _deep(pixels: Pixels) -> NDArray[np.uint16]:
    ripple = np.arange(pixels.size).reshape(pixels.shape) % 251 - 125
    return (pixels.astype(np.int32) * 257 + ripple).clip(0, 65535).astype(np.uint16)


kind("png, 16 bits", "depth")(lambda: Sample(coded(imagecodecs.png_encode, _deep(photograph())), photograph()))
kind("png, 16 bits, grey", "depth")(
    lambda: Sample(coded(imagecodecs.png_encode, _deep(grey(photograph()))), thrice(grey(photograph())))
)
kind("png, 16 bits, Display P3", "depth")(
    lambda: Sample(
        _with_chunk(
            coded(imagecodecs.png_encode, _deep(photograph())),
            b"iCCP",
            b"p\0\0" + zlib.compress(DISPLAY_P3.profile()),
        ),
        shown(photograph() / 255, DISPLAY_P3),
    )
)
kind("png, 16 bits, grey, gAMA of linear light", "depth")(
    lambda: Sample(
        _with_chunk(coded(imagecodecs.png_encode, _linear(grey(photograph()))), *_gama(1.0)), thrice(grey(photograph()))
    )
)
kind("png, 16 bits, gAMA of linear light", "depth")(
    lambda: Sample(_with_chunk(coded(imagecodecs.png_encode, _linear(photograph())), *_gama(1.0)), photograph())
)


def _linear(pixels: Pixels) -> NDArray[np.uint16]:
    return np.round(colours.srgb_to_light(pixels / 255) * 65535).astype(np.uint16)


def _with_chunk(file: bytes, name: bytes, data: bytes) -> bytes:
    chunk = struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file[:33] + chunk + file[33:]  # behind the header


for _order in ("II", "MM"):
    for _packing in ("none", "lzw"):
        _how: dict[str, Any] = {"byteorder": "little" if _order == "II" else "big", "compression": _packing}
        kind(f"tiff, 16 bits, {_order}, {_packing}", "depth")(
            lambda how=_how: Sample(_tiff(_deep(photograph()), photometric="rgb", **how), photograph())  # type: ignore[misc]
        )
        kind(f"tiff, 16 bits, grey, {_order}, {_packing}", "depth")(
            lambda how=_how: Sample(_tiff(_deep(grey(photograph())), **how), thrice(grey(photograph())))  # type: ignore[misc]
        )
        kind(f"tiff, 16 bits, band by band, {_order}, {_packing}", "depth")(
            lambda how=_how: Sample(  # type: ignore[misc]
                _tiff(np.moveaxis(_deep(photograph()), -1, 0), photometric="rgb", planarconfig="separate", **how),
                photograph(),
            )
        )
kind("tiff, floats", "depth")(
    lambda: Sample(_tiff(grey(photograph()).astype(np.float32) / 255), thrice(grey(photograph())))
)
kind("avif, 12 bits", "depth")(
    lambda: Sample(
        _avif(_deep(photograph()) >> 4, 1, 13, bits=12),
        photograph(),
    )
)


@kind("tiff, 16 bits, grey, white is zero", "depth")
def _() -> Sample:
    return Sample(_tiff(65535 - _deep(grey(photograph())), photometric="miniswhite"), thrice(grey(photograph())))


@kind("tiff, 16 bits, grey, nothing said of white", "depth")
def _() -> Sample:
    return Sample(_without_photometric(_tiff(_deep(grey(photograph())))), thrice(grey(photograph())))


@kind("tiff, 8 bits, grey, nothing said of white", "depth")
def _() -> Sample:
    """The tag is required, but where it is missing libtiff takes black for zero unless the file is a fax."""
    return Sample(_without_photometric(_tiff(grey(photograph()))), thrice(grey(photograph())))


def _without_photometric(file: bytes) -> bytes:
    # Renamed to a private tag, which keeps the entry's place.
    at = file.index(struct.pack("<HHI", 262, 3, 1))
    return file[:at] + struct.pack("<H", 263) + file[at + 2 :]


def _two_tones() -> NDArray[np.bool_]:
    return grey(photograph()) > 110


kind("png, 1 bit", "depth")(
    lambda: Sample(png(SIZE, 1, 0, _png_rows(np.packbits(_two_tones(), axis=1))).getvalue(), thrice(_two_tones() * 255))
)
kind("png, 2 bits", "depth")(lambda: _few_levels(2))
kind("png, 4 bits", "depth")(lambda: _few_levels(4))
kind("tiff, 1 bit, as a fax", "depth")(
    lambda: Sample(saved(_two_tones(), "TIFF", compression="group4"), thrice(_two_tones() * 255))
)


def _few_levels(depth: int) -> Sample:
    levels = (grey(photograph()) >> (8 - depth)).astype(np.uint8)
    bits = np.unpackbits(levels[..., np.newaxis], axis=-1)[..., 8 - depth :].reshape(levels.shape[0], -1)
    file = png(SIZE, depth, 0, _png_rows(np.packbits(bits, axis=1))).getvalue()
    return Sample(file, thrice(colours.to_pixels(levels / (2**depth - 1))))


# Transparency: laid over white, in the values as they are, which is what browsers do.


def _alpha() -> Values:
    """Return a soft disc, within a margin that cannot be seen."""
    width, height = SIZE
    down, across = np.mgrid[:height, :width]
    distance = np.hypot((across - width / 2) / width, (down - height / 2) / height)
    return np.asarray(np.round((0.45 - distance).clip(0, 0.1) * 2550) / 255)


def _hidden() -> Pixels:
    """Return the photograph with a garish colour wherever it cannot be seen."""
    return np.where(_alpha()[..., np.newaxis] == 0, np.array([255, 0, 255], np.uint8), photograph())


def _with_alpha(pixels: Pixels) -> Pixels:
    return np.concatenate(
        [pixels if pixels.ndim == 3 else pixels[..., np.newaxis], colours.to_pixels(_alpha())[..., np.newaxis]], axis=-1
    )


kind("png, hidden colour under alpha", "transparency")(
    lambda: Sample(coded(imagecodecs.png_encode, _with_alpha(_hidden())), over(photograph(), _alpha(), WHITE))
)
kind("png, 16 bits with alpha", "transparency")(
    lambda: Sample(coded(imagecodecs.png_encode, _deep(_with_alpha(_hidden()))), over(photograph(), _alpha(), WHITE))
)
kind("png, grey with alpha", "transparency")(
    lambda: Sample(
        coded(imagecodecs.png_encode, _with_alpha(grey(_hidden()))), over(thrice(grey(photograph())), _alpha(), WHITE)
    )
)
kind("png, 16 bits, grey with alpha", "transparency")(
    lambda: Sample(
        coded(imagecodecs.png_encode, _deep(_with_alpha(grey(_hidden())))),
        over(thrice(grey(photograph())), _alpha(), WHITE),
    )
)
kind("png, Display P3 with alpha", "transparency")(
    lambda: Sample(
        saved(_with_alpha(_hidden()), "PNG", icc_profile=DISPLAY_P3.profile()),
        over(shown(photograph() / 255, DISPLAY_P3), _alpha(), WHITE),
    )
)
kind("webp, hidden colour under alpha", "transparency")(
    lambda: Sample(
        saved(_with_alpha(_hidden()), "WEBP", lossless=True, exact=True), over(photograph(), _alpha(), WHITE)
    )
)
kind("avif, hidden colour under alpha", "transparency")(
    lambda: Sample(
        saved(_with_alpha(_hidden()), "AVIF", quality=95, subsampling="4:4:4"), over(photograph(), _alpha(), WHITE)
    )
)
kind("tiff, hidden colour under alpha", "transparency")(
    lambda: Sample(
        _tiff(_with_alpha(_hidden()), photometric="rgb", extrasample="unassalpha"),
        over(photograph(), _alpha(), WHITE),
    )
)


@kind("tiff, multiplied by its alpha", "transparency")
def _() -> Sample:
    multiplied = colours.to_pixels(photograph() / 255 * _alpha()[..., np.newaxis])
    file = _tiff(_with_alpha(multiplied), photometric="rgb", extrasample="assocalpha")
    return Sample(file, over(photograph(), _alpha(), WHITE))


@functools.cache
def _palette() -> tuple[Pixels, NDArray[np.uint8]]:
    """Return 256 colours, the darkest first, and the photograph as their numbers."""
    image = Image.fromarray(photograph()).quantize(256, dither=Image.Dither.NONE)
    palette = np.array(image.getpalette(), np.uint8).reshape(-1, 3)
    order = np.argsort(grey(palette), kind="stable")
    return palette[order], np.argsort(order)[np.array(image)].astype(np.uint8)


def _indexed() -> Image.Image:
    palette, numbers = _palette()
    image = Image.fromarray(numbers)
    image.putpalette(palette.tobytes())
    return image


def _painted() -> Pixels:
    palette, numbers = _palette()
    return palette[numbers]


kind("png, palette", "transparency")(lambda: Sample(encoded(_indexed(), "PNG").getvalue(), _painted()))


@kind("png, palette with an alpha each", "transparency")
def _() -> Sample:
    palette, numbers = _palette()
    alphas = np.where(grey(palette) > 170, 96, 255).astype(np.uint8)
    file = encoded(_indexed(), "PNG", transparency=alphas.tobytes()).getvalue()
    return Sample(file, over(_painted(), alphas[numbers] / 255, WHITE))


@kind("gif, transparent", "transparency")
def _() -> Sample:
    _, numbers = _palette()
    common = int(np.bincount(numbers.reshape(-1)).argmax())
    file = encoded(_indexed(), "GIF", transparency=common).getvalue()
    return Sample(file, np.where((numbers == common)[..., np.newaxis], np.uint8(255), _painted()))


# Shape: how a file is laid out, and what else is in it beside the picture.


def _decoded_jpeg(file: bytes) -> Sample:
    return Sample(file, imagecodecs.jpeg8_decode(file, outcolorspace="rgb"))


kind("jpeg, progressive", "shape")(lambda: _decoded_jpeg(jpeg(photograph(), progressive=True)))
kind("jpeg, half the colours' rows", "shape")(lambda: _decoded_jpeg(jpeg(photograph(), subsampling="4:2:0")))
kind("jpeg, RGB instead of YCbCr", "shape")(
    lambda: _decoded_jpeg(coded(imagecodecs.jpeg8_encode, photograph(), 97, colorspace="rgb", outcolorspace="rgb"))
)
kind("png, interlaced", "shape")(lambda: Sample(_interlaced_png(), photograph()))
kind("gif, interlaced", "shape")(lambda: Sample(encoded(_indexed(), "GIF", interlace=1).getvalue(), _painted()))
kind("gif, a first frame that does not fill the canvas", "shape")(lambda: _partial_gif())
kind("tiff, tiled", "shape")(lambda: Sample(_tiff(photograph(), photometric="rgb", tile=(64, 64)), photograph()))
kind("tiff, jpeg inside", "shape")(
    lambda: Sample(saved(photograph(), "TIFF", compression="jpeg", quality=97), photograph())
)


def _interlaced_png() -> bytes:
    rows = b""
    for top, left, down, across in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2)):
        rows += _png_rows(photograph()[top::down, left::across])
    rows += _png_rows(photograph()[1::2])
    file = bytearray(png(SIZE, 8, 2, rows).getvalue())
    file[28] = 1
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    return bytes(file)


def _partial_gif() -> Sample:
    """The frame's place is moved, on a canvas that is larger: nothing is drawn outside, not even the background."""
    file = bytearray(encoded(_indexed(), "GIF").getvalue())
    width, height = SIZE
    file[6:10] = struct.pack("<HH", width + 40, height + 20)
    at = 13 + 3 * 2 ** ((file[10] & 7) + 1)
    while file[at : at + 2] == b"!\xf9":
        at += 8
    assert file[at] == ord(",")
    file[at + 1 : at + 5] = struct.pack("<HH", 40, 20)
    return Sample(bytes(file), np.pad(_painted(), ((20, 0), (40, 0), (0, 0)), constant_values=255))


def _others() -> list[Image.Image]:
    return [Image.fromarray(255 - photograph()), Image.fromarray(np.ascontiguousarray(photograph()[::-1]))]


def _followed(format: str, **options: Any) -> Maker:
    return lambda: Sample(saved(photograph(), format, save_all=True, append_images=_others(), **options), photograph())


kind("tiff, several pages", "shape")(_followed("TIFF"))
kind("mpo, several pictures", "shape")(_followed("MPO", **_BEST))
kind("apng", "shape")(_followed("PNG"))
kind("webp, animated", "shape")(_followed("WEBP", lossless=True))
kind("avif, animated", "shape")(_followed("AVIF", quality=95, subsampling="4:4:4"))
kind("apng, its default image is no frame", "shape")(_followed("PNG", default_image=True))


@kind("gif, animated", "shape")
def _() -> Sample:
    others = [image.quantize(64) for image in _others()]
    return Sample(encoded(_indexed(), "GIF", save_all=True, append_images=others).getvalue(), _painted())


def _of_size(width: int, height: int) -> Maker:
    def make() -> Sample:
        pixels = np.resize(photograph(), (-(-height // SIZE[1]), *photograph().shape)).reshape(-1, SIZE[0], 3)
        pixels = pixels[:height, :width]
        return Sample(coded(imagecodecs.png_encode, pixels), pixels)

    return make


kind("1 x 1", "shape")(_of_size(1, 1))
kind("1 x 65,500", "shape")(_of_size(1, 65_500))
kind("odd sides", "shape")(_of_size(319, 213))
