"""ICC profiles for colour spaces that a file describes by a few numbers instead of embedding a profile.

PNG has chunks for them (cICP, or gAMA and cHRM), AVIF and HEIF have a box, and cameras write a mark into the EXIF. Pure
functions, without Pillow. Each function returns None for broken or unknown values, and for sRGB.

This module is longer than 250 lines, because the formulas of colour are one topic and are read together.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

Point = tuple[float, float]
#: Red, green, blue and white, each as x and y of CIE 1931.
Primaries = tuple[Point, Point, Point, Point]
Vector = tuple[float, float, float]
Matrix = tuple[Vector, Vector, Vector]
#: Returns the light for a value from 0 to 1. Light of 1 is the white of paper.
Curve = Callable[[float], float]

_D65, _D50 = (0.3127, 0.3290), (0.3457, 0.3585)
_SRGB: Primaries = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
_ADOBE_RGB: Primaries = ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), _D65)
_SMPTE_C: Primaries = ((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65)

#: ITU-T H.273, table 2. Number 2 stands for "unspecified".
_PRIMARIES: dict[int, Primaries] = {
    1: _SRGB,
    2: _SRGB,
    5: ((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), _D65),
    6: _SMPTE_C,
    7: _SMPTE_C,
    9: ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65),
}

#: Converts XYZ to Bradford's cone responses, in which colours are adapted from one white to another.
_BRADFORD: Matrix = ((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296))
_BRADFORD_INVERSE: Matrix = (
    (0.9869929055, -0.1470542564, 0.1599626517),
    (0.4323052697, 0.5183602715, 0.0492912282),
    (-0.0085286646, 0.0400428217, 0.9684866958),
)

#: Steps of a curve's table. Of PQ's values, the lower half covers all that an ordinary screen can show.
_STEPS = 4096
#: The most chunks or boxes, and the most bytes, that are read in front of the pixels. No honest file has so many.
_MAX_PARTS, _MAX_META = 1000, 1 << 20

_WHITE_OF_PAPER = 203.0  # cd/m², ITU-R BT.2408
_SHOULDER = 0.8


def of_gamma(gamma: float, chromaticities: Sequence[float] | None) -> bytes | None:
    """Return the profile of a PNG's gAMA and cHRM chunks. For a PNG without a profile and without the sRGB chunk."""
    if not 0.05 < gamma < 20:
        return None
    points = _SRGB
    if chromaticities is not None:
        white, red, green, blue = zip(chromaticities[::2], chromaticities[1::2], strict=True)
        points = (red, green, blue, white)
    is_srgb = all(
        abs(a - b) < 0.002 for one, two in zip(points, _SRGB, strict=True) for a, b in zip(one, two, strict=True)
    )
    # By convention, files with sRGB's curve have 1/2.2 in gAMA.
    if is_srgb and abs(gamma * 2.2 - 1) < 0.02:
        return None
    return _profile(points, _power(1 / gamma))


def of_adobe_rgb() -> bytes | None:
    """Return the profile of Adobe RGB (1998)."""
    return _profile(_ADOBE_RGB, _power(563 / 256))


def of_code_points(primaries: int, transfer: int) -> bytes | None:
    """Return the profile for code points of ITU-T H.273."""
    points, curve = _PRIMARIES.get(primaries), _CURVES.get(transfer)
    return _profile(points, curve) if points and curve else None


def of_png(file: BinaryIO) -> bytes | None:
    """Return the profile of a PNG's cICP chunk, which takes precedence over an embedded one (PNG, 3rd edition, 4.3)."""
    file.seek(8)
    for _ in range(_MAX_PARTS):
        head = file.read(8)
        if len(head) < 8:
            break
        length, name = struct.unpack(">I4s", head)
        if name == b"cICP" and length == 4:
            primaries, transfer, *_ = file.read(4)
            return of_code_points(primaries, transfer)
        if name in (b"PLTE", b"IDAT"):
            break
        file.seek(length + 4, 1)
    return None


def of_avif(file: BinaryIO) -> bytes | None:
    """Return the profile of the colour box of an AVIF's primary item (ISO/IEC 23008-12; 14496-12, 12.1.5)."""
    try:
        meta = _meta(file)[4:]
        boxes = dict(_boxes(meta))
        item = boxes[b"pitm"]
        primary = int.from_bytes(item[4 : 8 if item[0] else 6])
        properties = dict(_boxes(boxes[b"iprp"]))
        colour = list(_boxes(properties[b"ipco"]))
        for index in _associated(properties[b"ipma"], primary):
            name, box = colour[index - 1] if index else (b"", b"")
            if name == b"colr" and box[:4] == b"nclx":
                primaries, transfer = struct.unpack_from(">HH", box, 4)
                return of_code_points(primaries, transfer)
    except (struct.error, KeyError, IndexError):
        pass
    return None


def _meta(file: BinaryIO) -> bytes:
    file.seek(0)
    for _ in range(_MAX_PARTS):
        head = file.read(8)
        length, name = struct.unpack(">I4s", head)
        if name == b"meta":
            return file.read(min(max(length - 8, 0), _MAX_META))
        if length < 8:  # 0 is "to the end of the file", 1 is a 64-bit length: neither comes before a meta box
            break
        file.seek(length - 8, 1)
    return b""


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        if length < 8:
            return
        yield name, data[at + 8 : at + length]
        at += length


def _associated(box: bytes, wanted: int) -> list[int]:
    version, flags = box[0], box[3]
    (count,) = struct.unpack_from(">I", box, 4)
    at = 8
    for _ in range(min(count, _MAX_PARTS)):
        item_bytes = 4 if version else 2
        item = int.from_bytes(box[at : at + item_bytes])
        indexes, at = box[at + item_bytes], at + item_bytes + 1
        width = 2 if flags & 1 else 1
        if item == wanted:
            # The highest bit says whether the property is essential.
            mask = 0x7FFF if width == 2 else 0x7F
            return [int.from_bytes(box[at + i * width : at + (i + 1) * width]) & mask for i in range(indexes)]
        at += indexes * width
    return []


def _power(exponent: float) -> Curve:
    return lambda value: float(value**exponent)


def _srgb(value: float) -> float:
    return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4


def _pq(value: float) -> float:
    power = value ** (32 / 2523)
    light = (max(power - 3424 / 4096, 0) / (2413 / 128 - 2392 / 128 * power)) ** (16384 / 2610)
    return _shoulder(light * 10_000 / _WHITE_OF_PAPER)


def _hlg(value: float) -> float:
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = value**2 / 3 if value <= 0.5 else (math.exp((value - c) / a) + b) / 12
    return _shoulder(light**1.2 * 1000 / _WHITE_OF_PAPER)


def _shoulder(light: float) -> float:
    # Light above 0.8 of the white of paper is compressed into 0.8 to 1. Cutting it off at 1 would erase the shape of
    # clouds and lamps.
    if light <= _SHOULDER:
        return light
    excess = (light - _SHOULDER) / (1 - _SHOULDER)
    return _SHOULDER + (1 - _SHOULDER) * excess / (1 + excess)


#: ITU-T H.273, table 3. The curves of video are treated as sRGB's, as screens do.
_CURVES: dict[int, Curve] = dict.fromkeys((1, 2, 6, 13, 14, 15), _srgb) | {
    4: _power(2.2),
    5: _power(2.8),
    8: _power(1.0),
    16: _pq,
    18: _hlg,
}


@functools.lru_cache(maxsize=8)
def _profile(points: Primaries, curve: Curve) -> bytes | None:
    if points == _SRGB and curve is _srgb:
        return None
    try:
        colorants = _colorants(points)
    except ZeroDivisionError:
        return None
    if not all(-2 < value < 2 for column in colorants for value in column):
        return None
    table = [round(min(max(curve(i / (_STEPS - 1)), 0), 1) * 65535) for i in range(_STEPS)]
    # ICC.1:2001-04, 6.1 and 6.5: a profile of version 2 with a matrix and three curves.
    curves = b"curv" + bytes(4) + struct.pack(f">I{_STEPS}H", _STEPS, *table)
    tags = {
        b"wtpt": _xyz_tag(_xyz(_D50)),
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz_tag, colorants), strict=True)),
    }
    start = 128 + 4 + 12 * (len(tags) + 3)
    body, index = curves, b"".join(struct.pack(">4sII", n, start, len(curves)) for n in (b"rTRC", b"gTRC", b"bTRC"))
    for name, data in tags.items():
        index += struct.pack(">4sII", name, start + len(body), len(data))
        body += data
    header = struct.pack(">8xI4s4s4s12x4s28x", 0x02100000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    header = (header.ljust(68, b"\0") + _xyz_tag(_xyz(_D50))[8:]).ljust(128, b"\0")
    profile = header + struct.pack(">I", len(tags) + 3) + index + body
    return struct.pack(">I", len(profile)) + profile[4:]


def _xyz_tag(value: Vector) -> bytes:
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in value))


def _colorants(points: Primaries) -> Matrix:
    """Return the XYZ of full red, green and blue, adapted to the white of ICC profiles (D50)."""
    *primaries, white = points
    red, green, blue = (_xyz(point) for point in primaries)
    # Cramer's rule: the shares of red, green and blue that add up to white.
    target, whole = _xyz(white), _determinant(red, green, blue)
    shares = (
        _determinant(target, green, blue) / whole,
        _determinant(red, target, blue) / whole,
        _determinant(red, green, target) / whole,
    )
    seen, wanted = _applied(_BRADFORD, target), _applied(_BRADFORD, _xyz(_D50))

    def adapted(colour: Vector, share: float) -> Vector:
        cones = _applied(_BRADFORD, colour)
        light = [cone * share * to / of for cone, to, of in zip(cones, wanted, seen, strict=True)]
        return _applied(_BRADFORD_INVERSE, (light[0], light[1], light[2]))

    return adapted(red, shares[0]), adapted(green, shares[1]), adapted(blue, shares[2])


def _xyz(point: Point) -> Vector:
    x, y = point
    return x / y, 1.0, (1 - x - y) / y


def _determinant(one: Vector, two: Vector, three: Vector) -> float:
    return (
        one[0] * (two[1] * three[2] - two[2] * three[1])
        - two[0] * (one[1] * three[2] - one[2] * three[1])
        + three[0] * (one[1] * two[2] - one[2] * two[1])
    )


def _applied(rows: Matrix, vector: Vector) -> Vector:
    x, y, z = (sum(a * b for a, b in zip(row, vector, strict=True)) for row in rows)
    return x, y, z
