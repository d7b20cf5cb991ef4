"""Decoding: returns the pixels of an opened picture, upright. Corrects where Pillow deviates from the formats."""

from __future__ import annotations

from typing import BinaryIO, cast

from PIL import ExifTags, GifImagePlugin, Image, ImageChops, PngImagePlugin, TiffImagePlugin

from shared.errors import UnreadableImage
from worker.child.colour import alpha_of_others
from worker.child.opening import OpenedPicture

#: The factor by which Pillow multiplies the grey levels of a PNG with 2 or 4 bits, by raw mode.
_STRETCH = {"L;2": 85, "L;4": 17}

#: The raw mode in which zero is black, for each raw mode in which zero is white.
_UPRIGHT = {"1;I": "1", "1;IR": "1;R"} | {f"L;{bits}I{fill}": f"L;{bits}{fill}" for bits in "24" for fill in ("", "R")}
_UPRIGHT |= {"L;I": "L", "L;IR": "L;R"}


def decode(picture: OpenedPicture) -> Image.Image:
    opened = picture.take()
    image: Image.Image = opened
    if isinstance(opened, PngImagePlugin.PngImageFile):
        _load_png(opened)
    elif isinstance(opened, GifImagePlugin.GifImageFile):
        image = _load_gif(opened)
    elif isinstance(opened, TiffImagePlugin.TiffImageFile):
        _load_tiff(opened)
    else:
        # Pillow inverts every CMYK JPEG, with or without Adobe's marker, and browsers do the same. Files without the
        # marker come from Adobe's software too, and have lost it.
        opened.load()
    del opened
    if picture.transpose is not None:
        image = image.transpose(picture.transpose)
    if image.size != picture.size:
        raise UnreadableImage("The picture's size is not the one that its header tells.")
    return image


def _load_png(image: PngImagePlugin.PngImageFile) -> None:
    # The transparent colour has the depth of the file. Pillow converts the pixels to 8 bits, but not this colour. After
    # loading, the depth is not known any more, so it is read first.
    raw_mode = str(image.tile[0].args)
    transparent = image.info.get("transparency")
    if raw_mode == "RGB;16B" and isinstance(transparent, tuple):
        # Compare both bytes of each value: two colours may differ only in their lower bytes.
        alpha = alpha_of_others(_lower_bytes(image), [value & 255 for value in transparent])
        image.load()
        alpha = ImageChops.lighter(alpha, alpha_of_others(image, [value >> 8 for value in transparent]))
        image.info.pop("transparency", None)
        image.putalpha(alpha)
        return
    image.load()
    if raw_mode in _STRETCH and isinstance(transparent, int):
        stretch = _STRETCH[raw_mode]
        image.info["transparency"] = transparent % (255 // stretch + 1) * stretch


def _load_gif(image: GifImagePlugin.GifImageFile) -> Image.Image:
    # The area outside of the first frame is transparent. Pillow fills it with a colour, unless the file names a
    # transparent one.
    frame = image.tile[0].extents if image.tile else None
    image.load()
    if frame is None or frame == (0, 0, *image.size) or "transparency" in image.info:
        return image
    drawn = Image.new("L", image.size)
    drawn.paste(255, frame)
    colour = image.convert("RGB")
    colour.putalpha(drawn)
    return colour


def _load_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    # Correct the raw modes in which Pillow deviates from libtiff.
    tags = image.tag_v2
    is_deep = tags.get(ExifTags.Base.BitsPerSample, (1,))[0] == 16
    is_fax = tags.get(ExifTags.Base.Compression, 1) in (2, 3, 4)
    for i, tile in enumerate(image.tile):
        if not isinstance(tile.args, tuple):
            continue
        raw_mode, *rest = tile.args
        if tile.codec_name == "raw" and is_deep and raw_mode in ("R", "G", "B"):
            # The bands are stored one after the other. Pillow would read them as 8 bits.
            raw_mode = f"{raw_mode};16{'L' if tags.prefix == b'II' else 'B'}"
        elif ExifTags.Base.PhotometricInterpretation not in tags and not is_fax:
            # The tag that says whether zero is black or white is missing. Then zero is black, except in a fax.
            raw_mode = _UPRIGHT.get(raw_mode, raw_mode)
        image.tile[i] = tile._replace(args=(raw_mode, *rest))
    image.load()


def _lower_bytes(image: PngImagePlugin.PngImageFile) -> Image.Image:
    # Pillow keeps the upper one of two bytes. If the raw mode says little-endian, it keeps the lower one.
    file = cast("BinaryIO", image.fp)
    position = file.tell()
    file.seek(0)
    again = PngImagePlugin.PngImageFile(file)
    again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
    again.load()
    file.seek(position)
    return again
