"""Pictures for the tests of rendering, each made from nothing and the same at every run."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from shared.renditions import Size
from worker.renderer.outputs import Output

RED, GREEN, BLUE, YELLOW = (220, 20, 20), (20, 160, 20), (20, 20, 220), (220, 220, 20)


def jpeg_of(size: Size) -> Output:
    """Return the output that is a JPEG of this size."""
    return Output(f"{size[0]}x{size[1]}", "jpeg", size)


def encoded(image: Image.Image, format: str, **options: Any) -> io.BytesIO:
    """Return `image` as a file of this format."""
    file = io.BytesIO()
    image.save(file, format, **options)
    file.seek(0)
    return file


def photo(size: tuple[int, int]) -> Image.Image:
    """Return something like a photo: slow gradients, edges, some noise."""
    across = Image.linear_gradient("L").rotate(90).resize(size)
    down = Image.linear_gradient("L").resize(size)
    image = Image.merge("RGB", (across, down, Image.radial_gradient("L").resize(size)))
    draw = ImageDraw.Draw(image)
    for i in range(1, 12):
        x, y, side = size[0] * i // 13, size[1] * (i * 5 % 13) // 13, min(size) // 7
        draw.ellipse((x, y, x + side, y + side), fill=(i * 20, 255 - i * 15, i * 70 % 256))
        draw.line((0, y, x, 0), fill=(255 - i * 20, i * 9, 128), width=3)
    grain = Image.frombytes("L", (256, 256), bytes((i * 2654435761 >> 11) % 256 for i in range(256 * 256)))
    noise = Image.new("L", size)
    for top in range(0, size[1], 256):
        for left in range(0, size[0], 256):
            noise.paste(grain, (left, top))
    return Image.blend(image, Image.merge("RGB", (noise,) * 3), 0.05)


def quartered(size: tuple[int, int] = (96, 64)) -> Image.Image:
    """Return a picture that tells how it is turned: red and green above, blue and yellow below."""
    width, height = size
    image = Image.new("RGB", size, RED)
    image.paste(GREEN, (width // 2, 0, width, height // 2))
    image.paste(BLUE, (0, height // 2, width // 2, height))
    image.paste(YELLOW, (width // 2, height // 2, width, height))
    return image


def exif_with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png(size: tuple[int, int], depth: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> io.BytesIO:
    """Return a PNG of these raw rows (each begins with its filter's byte), and chunks in front of them."""
    header = struct.pack(">IIBBBBB", *size, depth, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return io.BytesIO(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts
        )
    )


def grey_tiff(
    size: tuple[int, int], depth: int, rows: bytes, *, is_white_zero: bool = False, sample_format: int = 1
) -> io.BytesIO:
    """Return a greyscale TIFF, little-endian and uncompressed, of these raw rows."""
    photometric = 0 if is_white_zero else 1
    tags = {256: size[0], 257: size[1], 258: depth, 259: 1, 262: photometric, 277: 1, 278: size[1], 279: len(rows)}
    tags |= {273: 8 + 2 + 12 * 10 + 4, 339: sample_format}
    entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, tags[tag]) for tag in sorted(tags))
    return io.BytesIO(b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + rows)


def segments(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Return the markers of a JPEG up to its scan, each with what it holds."""
    found: list[tuple[int, bytes]] = []
    at = 2
    while not found or found[-1][0] != 0xDA:
        marker, length = struct.unpack_from(">xBH", jpeg, at)
        found.append((marker, jpeg[at + 4 : at + 2 + length]))
        at += 2 + length
    return found


def without_segment(jpeg: bytes, unwanted: int) -> bytes:
    """Return a JPEG without its segments of this marker."""
    found = segments(jpeg)
    start = 2 + sum(4 + len(data) for _, data in found)
    kept = b"".join(struct.pack(">BBH", 255, m, len(data) + 2) + data for m, data in found if m != unwanted)
    return jpeg[:2] + kept + jpeg[start:]


_SRGB_COLORANTS = ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141))


def swapping_profile() -> bytes:
    """Return an ICC profile in which red and green have changed places."""
    red, green, blue = _SRGB_COLORANTS
    tags = {b"rXYZ": xyz_tag(green), b"gXYZ": xyz_tag(red), b"bXYZ": xyz_tag(blue)}
    return icc_profile(b"RGB ", b"XYZ ", tags | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _gamma(2.2)))


def linear_grey_profile() -> bytes:
    """Return an ICC profile for grey levels that are proportional to light."""
    return icc_profile(b"GRAY", b"XYZ ", {b"kTRC": _gamma(1.0)})


def all_green_inks_profile() -> bytes:
    """Return an ICC profile of a press on which every ink but black is the same green."""
    paper, ink, black = (255, 128, 128), (128, 60, 180), (0, 128, 128)  # L, a, b of 8 bits
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    table = bytes(range(256))
    cube = bytes(paper + black) + bytes(ink + black) * 7
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0)) + identity + table * 4 + cube + table * 3
    return icc_profile(b"CMYK", b"Lab ", {b"A2B0": lut}, kind=b"prtr")


def icc_profile(
    space: bytes, connection: bytes, tags: dict[bytes, bytes], *, kind: bytes = b"mntr", version: int = 2
) -> bytes:
    """Return an ICC profile with these tags, and those that every profile needs."""
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), b"wtpt": xyz_tag(_D50), **tags}
    body, index, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        index += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    # Its own length comes in front; of the rest only the version, the kinds, the mark and the illuminant matter.
    number = {2: 0x02100000, 4: 0x04200000}[version]
    header = struct.pack(">4xI4s4s4s12x4s28x", number, kind, space, connection, b"acsp") + xyz_tag(_D50)[8:]
    data = bytes(4) + header.ljust(124, b"\0") + struct.pack(">I", len(tags)) + index + body
    return struct.pack(">I", len(data)) + data[4:]


_D50 = (0.9642, 1.0, 0.8249)


def xyz_tag(value: Sequence[float]) -> bytes:
    """Return what an ICC profile says a colour is in CIE XYZ."""
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(v * 65536)) for v in value)


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))
