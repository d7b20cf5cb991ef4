"""What comes back of every kind of picture: its size, its colours, and nothing else that was in the file."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from PIL import Image

from tests.integration.service import Deployed
from tests.worker.pictures import BLUE, GREEN, RED, YELLOW, encoded, exif_with_orientation, quartered

pytestmark = pytest.mark.processes

Colour = tuple[int, int, int]
WHITE = (255, 255, 255)


def with_alpha() -> bytes:
    """Return a PNG whose right half cannot be seen."""
    image = quartered((640, 360))
    mask = Image.new("L", image.size, 255)
    mask.paste(0, (320, 0, 640, 360))
    image.putalpha(mask)
    return encoded(image, "PNG").getvalue()


def from_a_phone() -> bytes:
    """Return a JPEG that was taken upright and stored lying, with a comment."""
    options = {"quality": 95, "exif": exif_with_orientation(6), "comment": b"at home"}
    return encoded(quartered((640, 360)), "JPEG", **options).getvalue()


def file_of(format: str, mode: str = "RGB", **options: object) -> Callable[[], bytes]:
    # An adaptive palette: the usual one has other colours.
    picture = quartered((640, 360)).convert(mode, palette=Image.Palette.ADAPTIVE)
    return lambda: encoded(picture, format, **options).getvalue()


QUARTERS = (RED, GREEN, BLUE, YELLOW)


@pytest.mark.parametrize(
    ("picture", "size", "quarters"),
    [
        pytest.param(with_alpha, (640, 360), (RED, WHITE, BLUE, WHITE), id="png-with-alpha"),
        pytest.param(file_of("WEBP", quality=95), (640, 360), QUARTERS, id="webp"),
        pytest.param(file_of("TIFF", compression="tiff_lzw"), (640, 360), QUARTERS, id="tiff"),
        pytest.param(file_of("AVIF", quality=95), (640, 360), QUARTERS, id="avif"),
        pytest.param(file_of("GIF", "P"), (640, 360), QUARTERS, id="gif"),
        pytest.param(file_of("BMP"), (640, 360), QUARTERS, id="bmp"),
        pytest.param(file_of("JPEG", "CMYK", quality=95), (640, 360), QUARTERS, id="cmyk-jpeg"),
        # Turned a quarter to the right: what was below left is above left.
        pytest.param(from_a_phone, (360, 640), (BLUE, RED, YELLOW, GREEN), id="phone-jpeg"),
    ],
)
def test_what_comes_back_looks_like_what_was_sent(
    service: Deployed, picture: Callable[[], bytes], size: tuple[int, int], quarters: tuple[Colour, ...]
) -> None:
    answer = service.upload(picture(), wait=20)

    assert answer.status == 201, answer.body
    width, height = size
    sizes = [(width, height), (width // 2, height // 2), (width // 4, height // 4)]
    paths = [answer.json["image"], *answer.json["thumbnails"]]
    assert answer.json["size"] == list(size)
    for path, expected in zip(paths, sizes, strict=True):
        with Image.open(io.BytesIO(service.get(path).body)) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", expected)
            assert_quarters(image, quarters)
            assert not image.getexif()
            assert image.info.keys() <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}


def assert_quarters(image: Image.Image, quarters: tuple[Colour, ...]) -> None:
    width, height = image.size
    for i, expected in enumerate(quarters):
        seen = image.getpixel((width * (1 + 2 * (i % 2)) // 4, height * (1 + 2 * (i // 2)) // 4))
        assert isinstance(seen, tuple)
        assert max(abs(a - b) for a, b in zip(seen, expected, strict=True)) <= 12, (i, seen, expected)
