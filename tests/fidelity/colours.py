"""Colour spaces by arithmetic: published primaries and curves, and no colour engine in between."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.worker.pictures import icc_profile, xyz_tag

#: Values between 0 and 1.
Values = NDArray[np.floating[Any]]
#: Rows of sRGB pixels of 8 bits.
Pixels = NDArray[np.uint8]
Curve = Callable[[Values], Values]

D65 = (0.3127, 0.3290)
D50 = (0.3457, 0.3585)
#: Bradford's cone responses, with which ICC profiles are adapted to their white.
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def srgb_to_light(values: Values) -> Values:
    """Undo the curve of sRGB (IEC 61966-2-1)."""
    return np.where(values <= 0.04045, values / 12.92, ((np.maximum(values, 0) + 0.055) / 1.055) ** 2.4)


def light_to_srgb(light: Values) -> Values:
    """Apply the curve of sRGB."""
    return np.where(light <= 0.0031308, light * 12.92, 1.055 * np.maximum(light, 1e-9) ** (1 / 2.4) - 0.055)


def pq_to_light(values: Values) -> Values:
    """Undo the curve of SMPTE ST 2084; 1 is the white of paper, 203 cd/m² (ITU-R BT.2408)."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.asarray(values) ** (1 / m2)
    return np.asarray(10000 / 203 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1))


def light_to_pq(light: Values) -> Values:
    """Apply the curve of SMPTE ST 2084."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (np.asarray(light) * 203 / 10000) ** m1
    return np.asarray(((c1 + c2 * power) / (1 + c3 * power)) ** m2)


def gamma(exponent: float) -> Curve:
    """Return the curve that raises values to this power."""
    return lambda values: np.asarray(np.asarray(values) ** exponent)


@dataclass(frozen=True)
class Space:
    """A colour space: what its red, green, blue and white are, and how much light each value stands for."""

    primaries: tuple[tuple[float, float], ...]
    white: tuple[float, float]
    to_light: Curve

    @property
    def matrix(self) -> Values:
        """Return the matrix from its light to CIE XYZ."""
        columns = np.array([xyz(*point) for point in self.primaries]).T
        return columns * np.linalg.solve(columns, xyz(*self.white))

    def profile(self, version: int = 2) -> bytes:
        """Return an ICC profile of this space, its curves as tables (version 2) or as formulas (version 4)."""
        colorants = adaptation(self.white, D50) @ self.matrix
        if version == 4 and self.to_light is srgb_to_light:
            numbers = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
            curve = b"para" + bytes(4) + struct.pack(">HH5i", 3, 0, *(round(n * 65536) for n in numbers))
        else:
            table = np.round(self.to_light(np.linspace(0, 1, 1024)) * 65535).astype(">u2")
            curve = b"curv" + bytes(4) + struct.pack(">I", len(table)) + table.tobytes()
        tags = {name: xyz_tag(colorants[:, i].tolist()) for i, name in enumerate((b"rXYZ", b"gXYZ", b"bXYZ"))}
        curves = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
        return icc_profile(b"RGB ", b"XYZ ", tags | curves, version=version)


SRGB = Space(((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)), D65, srgb_to_light)
DISPLAY_P3 = Space(((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, srgb_to_light)
ADOBE_RGB = Space(((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, gamma(563 / 256))
PROPHOTO = Space(((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105)), D50, gamma(1.8))
BT2020 = Space(((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)), D65, srgb_to_light)


def shown(values: Values, space: Space) -> Pixels:
    """Return what values (0 to 1) of this space look like on an sRGB screen, which clips what it cannot show."""
    to_srgb = np.linalg.inv(SRGB.matrix) @ adaptation(space.white, D65) @ space.matrix
    return to_pixels(light_to_srgb(np.clip(space.to_light(values) @ to_srgb.T, 0, 1)))


def lab_to_xyz(lab: Values) -> Values:
    """Return CIE XYZ of CIE L*a*b*, both relative to D50."""
    lightness, a, b = np.moveaxis(lab, -1, 0)
    middle = (lightness + 16) / 116
    cubes = np.stack([middle + a / 500, middle, middle - b / 200], axis=-1)
    return np.where(cubes > 6 / 29, cubes**3, 3 * (6 / 29) ** 2 * (cubes - 4 / 29)) * xyz(*D50)


def lab_shown(lab: Values, darkest: float = 0) -> Pixels:
    """Return what CIE L*a*b* looks like on an sRGB screen, whose black stands for the darkest L* that there is."""
    white, black = xyz(*D50), lab_to_xyz(np.array([darkest, 0.0, 0.0]))
    colour = (lab_to_xyz(lab) - black) * white / (white - black)
    light = colour @ (np.linalg.inv(SRGB.matrix) @ adaptation(D50, D65)).T
    return to_pixels(light_to_srgb(np.clip(light, 0, 1)))


def to_pixels(values: Values) -> Pixels:
    """Round values between 0 and 1 to 8 bits."""
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def over(colour: Pixels, alpha: Values, background: tuple[int, int, int]) -> Pixels:
    """Lay a picture over a background, as browsers do."""
    covered = alpha[..., np.newaxis]
    return to_pixels((colour * covered + np.array(background) * (1 - covered)) / 255)


def xyz(x: float, y: float) -> Values:
    """Return CIE XYZ of a colour given by its x and y."""
    return np.array([x / y, 1.0, (1 - x - y) / y])


def adaptation(source: tuple[float, float], target: tuple[float, float]) -> Values:
    """Return the matrix from XYZ under one white to XYZ under another."""
    gain = (_BRADFORD @ xyz(*target)) / (_BRADFORD @ xyz(*source))
    return np.asarray(np.linalg.inv(_BRADFORD) @ np.diag(gain) @ _BRADFORD)
