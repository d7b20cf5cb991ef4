"""Colour: converts any colour space, depth and transparency to 8 bits of sRGB on a background."""

from __future__ import annotations

import functools
import io
import math
from collections.abc import Sequence
from typing import cast

from PIL import ExifTags, Image, ImageChops, ImageCms, TiffImagePlugin

#: Pillow's mode for each colour space of an ICC profile.
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")
#: Larger profiles are not cached.
_MOST_KEPT_PROFILE = 1024 * 1024
#: A grid of colours over the whole RGB cube, to test whether a profile changes any colour.
_CUBE = Image.frombytes(
    "RGB",
    (17 * 17, 17),
    bytes(v for r in range(17) for g in range(17) for b in range(17) for v in (15 * r, 15 * g, 15 * b)),
)


def flatten_to_srgb(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    colour, alpha = _separate_alpha(image)
    del image
    colour = _convert_to_srgb(colour, profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return _as_rgb(colour)
    # Pasting onto a canvas is twice as fast as pasting the background over the picture.
    canvas = Image.new("RGB", colour.size, background)
    canvas.paste(colour, mask=alpha)
    return canvas


def alpha_of_others(image: Image.Image, transparent: Sequence[int]) -> Image.Image:
    levels = range(65536 if image.mode == "I" else 256)
    return functools.reduce(
        ImageChops.lighter,
        (
            band.point([0 if level == value else 255 for level in levels], "L")
            for band, value in zip(image.split(), transparent, strict=True)
        ),
    )


def _separate_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        transparent = image.info.get("transparency")
        if image.mode == "I;16" and isinstance(transparent, int):
            return _eight_bits(image), alpha_of_others(image.convert("I"), [transparent])
        return _eight_bits(image), None
    if image.has_transparency_data:
        if image.mode in ("1", "L", "LA", "La"):
            image = image.convert("LA")
            return image.getchannel("L"), image.getchannel("A")
        if image.mode != "RGBA":
            image = image.convert("RGBA")
        return image, image.getchannel("A")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if image.mode == "1" else "RGB"), None


def _eight_bits(image: Image.Image) -> Image.Image:
    # Pillow applies a TIFF's tags up to 8 bits. With more bits it returns the values as they are stored. (The image
    # here still has the TIFF's class, because Pillow turns TIFFs in place.)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    is_white_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    if image.mode.startswith("I;16"):
        low, high = 0.0, 2.0**bits - 1
        image = image.convert("I")
    else:
        if image.mode == "I" and bits == 32 and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
            image = _unsigned(image)
        # The file does not say which value is white. Take the smallest usual range that holds all values, or otherwise
        # the range of the values.
        low, high = (float(value) for value in cast("tuple[float, float]", image.getextrema()))
        usual = (255.0, 65535.0) if image.mode == "I" else (1.0, 255.0, 65535.0)
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = 0.0, 255.0
        elif white := next((white for white in usual if low >= 0 and high <= white), None):
            low, high = 0.0, white
    if is_white_zero:
        low, high = high, low
    scale = 255 / (high - low) if high != low else 1.0
    return image.point(lambda value: value * scale + (0.5 - low * scale)).convert("L")


def _unsigned(image: Image.Image) -> Image.Image:
    # Pillow has no mode for unsigned 32 bits: it reads the upper half of the values as negative.
    low, _ = cast("tuple[int, int]", image.getextrema())
    return image if low >= 0 else Image.frombytes("F", image.size, image.tobytes(), "raw", "F;32N")


def _convert_to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is not None or colour.mode == "LAB":
        colour = _as_rgb(colour) if colour.mode == "RGBA" else colour
        try:
            return _through_profile(colour, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            # Ignore a broken profile, or one for another colour space: the pixels are still usable.
            if colour.mode == "LAB":
                raise
    # RGBA needs no conversion: it can be pasted as it is.
    return colour if colour.mode == "RGBA" else _as_rgb(colour)


def _as_rgb(colour: Image.Image) -> Image.Image:
    return colour if colour.mode == "RGB" else colour.convert("RGB")


def _through_profile(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if colour.mode == "LAB":
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.buildTransform(lab, _SRGB, "LAB", "RGB").apply(colour)
    profile = profile or b""
    make = _transform_met_before if len(profile) <= _MOST_KEPT_PROFILE else _transform
    space, transform = make(profile, colour.mode)
    if transform is None:
        return _as_rgb(colour)
    if space == "RGB" and colour.mode == "L":
        colour = colour.convert("RGB")
    return transform.apply_in_place(colour) if colour.mode == "RGB" else transform.apply(colour)


def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """Return the profile's colour space, and the transform from `mode` to sRGB, or None if it changes no colour."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and mode == "L":
        mode = "RGB"
    if _MODE_OF_SPACE.get(space) != mode:
        raise ValueError(f"a profile for {space} in a picture of {mode}")
    transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    return space, transform if mode != "RGB" or _changes_colours(transform) else None


#: Cached, because most pictures have one of a few profiles: of cameras, phones and presses.
_transform_met_before = functools.lru_cache(maxsize=4)(_transform)


def _changes_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    # Most profiles are sRGB under one of many names, so compare colours, not names.
    difference = ImageChops.difference(_CUBE, transform.apply(_CUBE))
    return max(high for _, high in cast("tuple[tuple[int, int], ...]", difference.getextrema())) > 2
