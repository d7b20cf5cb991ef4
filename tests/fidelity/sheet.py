"""Contact sheets, to be looked at: what a file must look like, what we make of it, and by how much the two differ.

    python -m tests.fidelity.sheet docs

writes `fidelity.jpg`, every kind, and `fidelity-tutorial.jpg`, some beside what falcon's tutorial makes of them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tests.fidelity import tutorial
from tests.fidelity.colours import Pixels
from tests.fidelity.difference import difference
from tests.fidelity.kinds import KINDS, Kind, named
from tests.fidelity.rendered import decoded, renditions

#: Of the many that differ in a number only, one is shown.
_ALIKE = ("II, lzw", "MM", "ICC version 4", "profile, without Adobe's marker", "1 x 65,500", "gAMA 1/2.2")

BESIDE_THE_TUTORIAL = (
    *(f"jpeg, orientation {number}" for number in range(2, 9)),
    "jpeg, Display P3",
    "jpeg, Adobe RGB",
    "jpeg, ProPhoto",
    "png, cICP of BT.2020 and PQ",
    "jpeg, CMYK without Adobe's marker",
    "jpeg, CMYK with a profile",
    "jpeg, YCCK with a profile",
    "png, 16 bits, grey",
    "tiff, 16 bits, band by band, MM, none",
    "png, hidden colour under alpha",
    "gif, a first frame that does not fill the canvas",
    "png, palette with an alpha each",
    "tiff, multiplied by its alpha",
)

_GAP, _TEXT = 8, 26
_INK, _PAPER, _RULE = (30, 30, 30), (255, 255, 255), (200, 200, 200)


def main(folder: Path) -> None:
    """Write both sheets."""
    shown = [kind for kind in KINDS if kind.family != "orientation" and not any(part in kind.name for part in _ALIKE)]
    turned = [kind for kind in KINDS if kind.name.startswith("jpeg, orientation")]
    rows = [_row(kind, with_tutorial=False) for kind in (*turned, *shown)]
    every = _sheet(rows, ("reference", "rendition"), 5, (108, 81))
    every.save(folder / "fidelity.jpg", quality=66, optimize=True)
    beside = _sheet(
        [_row(named(name), with_tutorial=True) for name in BESIDE_THE_TUTORIAL],
        ("reference", "the tutorial's way", "asgilook"),
        2,
        (160, 120),
    )
    beside.save(folder / "fidelity-tutorial.jpg", quality=85, optimize=True)


Row = tuple[str, list[tuple[Pixels, str]]]


def _row(kind: Kind, *, with_tutorial: bool) -> Row:
    sample = kind.make()
    pictures = [(sample.reference, "")]
    for make in (tutorial.rendition, _ours) if with_tutorial else (_ours,):
        try:
            pixels = decoded(make(sample.file))
        except Exception as exc:
            pictures.append((np.full_like(sample.reference, 230), type(exc).__name__))
            continue
        pictures.append((pixels, _verdict(pixels, sample.reference)))
    return kind.name, pictures


def _ours(file: bytes) -> bytes:
    return next(iter(renditions(file).values()))


def _verdict(pixels: Pixels, reference: Pixels) -> str:
    if pixels.shape != reference.shape:
        return f"{pixels.shape[1]} x {pixels.shape[0]} for {reference.shape[1]} x {reference.shape[0]}"
    return f"dE {difference(pixels, reference)}"


def _fitted(pixels: Pixels, cell: tuple[int, int]) -> Image.Image:
    image = Image.fromarray(pixels)
    image.thumbnail(cell, Image.Resampling.LANCZOS)
    return image if image.size != (1, 1) else image.resize((16, 16))


def _sheet(rows: list[Row], headings: tuple[str, ...], columns: int, cell: tuple[int, int]) -> Image.Image:
    width, height = cell
    across, down = len(headings) * (width + 2) + 2 * _GAP, height + _TEXT + _GAP
    deep = -(-len(rows) // columns)
    sheet = Image.new("RGB", (columns * across, _TEXT + deep * down), _PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column in range(columns):
        for i, heading in enumerate(headings):
            draw.text((column * across + _GAP + i * (width + 2), 6), heading, _INK, font)
    for number, (name, pictures) in enumerate(rows):
        left, top = number // deep * across + _GAP, _TEXT + number % deep * down
        draw.text((left, top), name, _INK, font)
        for i, (pixels, verdict) in enumerate(pictures):
            picture = _fitted(pixels, cell)
            x, y = left + i * (width + 2), top + 14
            draw.rectangle((x, y, x + width - 1, y + height - 1), outline=_RULE)
            sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
            draw.text((x, y + height + 1), verdict, _INK, font)
    return sheet


if __name__ == "__main__":
    main(Path(sys.argv[1]))
