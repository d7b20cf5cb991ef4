"""Honest pictures: what the hostile ones are made from, and what must come out right in their midst."""

from __future__ import annotations

import functools
from pathlib import Path

import skimage.data
from PIL import Image

from tests.worker.pictures import encoded, photo, swapping_profile

SIZE = (160, 128)


@functools.cache
def honest() -> dict[str, bytes]:
    """Return one small photograph in every format that we take, and in its variants."""
    image = photo(SIZE)
    see_through = image.copy()
    see_through.putalpha(Image.linear_gradient("L").resize(SIZE))
    written = {
        "baseline.jpeg": encoded(image, "JPEG", quality=85),
        "progressive.jpeg": encoded(image, "JPEG", quality=85, progressive=True),
        "rgb.png": encoded(image, "PNG"),
        "palette.png": encoded(image.quantize(64), "PNG"),
        "plain.gif": encoded(image.quantize(64), "GIF"),
        "lossy.webp": encoded(image, "WEBP"),
        "lossless.webp": encoded(see_through, "WEBP", lossless=True),
        "raw.tiff": encoded(image, "TIFF"),
        "lzw.tiff": encoded(image, "TIFF", compression="tiff_lzw"),
        "jpeg.tiff": encoded(image, "TIFF", compression="jpeg"),
        "plain.bmp": encoded(image, "BMP"),
        "plain.avif": encoded(image, "AVIF", speed=10, max_threads=1),
        "alpha.avif": encoded(see_through, "AVIF", speed=10, max_threads=1),
    }
    return {name: file.getvalue() for name, file in written.items()}


def photographs() -> dict[str, bytes]:
    """Return good photographs by name: in the public domain, and some of 12 MP that look like one."""
    folder = Path(skimage.data.__file__).parent
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "hubble_deep_field.jpg")
    large = photo((4000, 3000))
    return {name: (folder / name).read_bytes() for name in names} | {
        "12-mp.jpeg": encoded(large, "JPEG", quality=90).getvalue(),
        "12-mp-upright.jpeg": encoded(large, "JPEG", quality=90, exif=_turned()).getvalue(),
        "12-mp-wide-gamut.jpeg": encoded(large, "JPEG", quality=80, icc_profile=swapping_profile()).getvalue(),
        "12-mp.webp": encoded(large, "WEBP", method=0).getvalue(),
    }


def _turned() -> bytes:
    orientation = Image.Exif()
    orientation[0x0112] = 6
    return orientation.tobytes()
