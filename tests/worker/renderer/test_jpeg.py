"""The parser that stands between a child and what is published: what our encoder writes passes, nothing else does."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import pytest

from shared.renditions import Size
from tests.worker.pictures import encoded, jpeg_of, photo, segments
from worker.child import opening, rendering
from worker.renderer.jpeg import ForeignJpeg, size_of

NOISE = encoded(photo((320, 180)), "PNG")


def rendition(size: Size = (320, 180)) -> bytes:
    """Return a JPEG as a child makes it."""
    output = io.BytesIO()
    picture = opening.open_picture(encoded(photo(size), "PNG"), max_pixels=50_000_000)
    rendering.render(picture, {jpeg_of(size): output}, (255, 255, 255))
    return output.getvalue()


OURS = rendition()
SCAN = OURS.index(b"\xff\xda")


@pytest.mark.parametrize("size", [(320, 180), (1, 1), (3, 5), (1, 3000), (3000, 1), (640, 481)])
def test_what_our_encoder_writes_is_ours(size: Size) -> None:
    assert size_of(rendition(size)) == size


def with_segment(marker: int, content: bytes, at: int = SCAN) -> bytes:
    return OURS[:at] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + OURS[at:]


def foreign(**options: object) -> bytes:
    return encoded(photo((320, 180)), "JPEG", **options).getvalue()


@pytest.mark.parametrize(
    "jpeg",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\xff\xd8\xff\xd9", id="a beginning and an end"),
        pytest.param(OURS[:-2], id="no end"),
        pytest.param(OURS[: SCAN + 14], id="no scan"),
        pytest.param(OURS[: SCAN + 14] + b"\xff\xd9", id="an empty scan"),
        pytest.param(OURS[: SCAN + 14] + b"\xff\xff\xd9", id="an end that is filled, and no scan"),
        pytest.param(OURS + b"\0", id="a byte behind"),
        pytest.param(OURS + OURS, id="two pictures"),
        pytest.param(OURS + b"<script>\xff\xd9", id="a payload before a second end"),
        pytest.param(OURS[:-2] + b"\xff\xff\xd9", id="a filled end"),
        pytest.param(OURS[:-2] + b"\xff\xd0\xff\xd9", id="a restart marker"),
        pytest.param(b"\0" + OURS, id="a byte in front"),
        pytest.param(with_segment(0xFE, b"a comment"), id="a comment"),
        pytest.param(with_segment(0xE1, b"Exif\0\0"), id="EXIF"),
        pytest.param(with_segment(0xE2, b"ICC_PROFILE\0"), id="a profile"),
        pytest.param(with_segment(0xE0, b"JFXX\0\x10"), id="a JFIF extension"),
        pytest.param(with_segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0"), id="a second JFIF header"),
        pytest.param(with_segment(0xE1, b"", at=2), id="something before the JFIF header"),
        pytest.param(OURS[:2] + OURS[20:], id="no JFIF header"),
        pytest.param(OURS.replace(b"JFIF\0\1\1\0\0\1\0\1\0\0", b"JFIF\0\1\1\0\0\1\0\1\1\1"), id="a JFIF thumbnail"),
        pytest.param(with_segment(0xDB, bytes(65)), id="a table again"),
        pytest.param(with_segment(0xDB, bytes([2, *bytes(64)])), id="a table too many"),
        pytest.param(with_segment(0xDB, bytes(64)), id="a table too short"),
        pytest.param(with_segment(0xDB, b""), id="a segment of no table"),
        pytest.param(with_segment(0xDC, b"\0\1"), id="a number of lines"),
        pytest.param(with_segment(0xDD, b"\0\1"), id="restart intervals"),
        pytest.param(with_segment(0xC0, b"\x08\0\1\0\1\3\x01\x22\0\x02\x11\1\x03\x11\1"), id="a second frame"),
        pytest.param(foreign(progressive=True), id="progressive"),
        pytest.param(foreign(subsampling="4:4:4"), id="other subsampling"),
        pytest.param(foreign(comment=b"hello"), id="an encoder's comment"),
        pytest.param(encoded(photo((320, 180)).convert("L"), "JPEG").getvalue(), id="grey"),
        pytest.param(encoded(photo((320, 180)).convert("CMYK"), "JPEG").getvalue(), id="CMYK"),
        pytest.param(NOISE.getvalue(), id="a PNG"),
    ],
)
def test_what_our_encoder_does_not_write_is_foreign(jpeg: bytes) -> None:
    with pytest.raises(ForeignJpeg):
        size_of(jpeg)


def altered(change: Callable[[bytearray], None]) -> bytes:
    copy = bytearray(OURS)
    change(copy)
    return bytes(copy)


def test_no_cut_through_a_rendition_is_ours() -> None:
    for end in [*range(SCAN + 16), *range(SCAN + 16, len(OURS), 97)]:
        with pytest.raises(ForeignJpeg):
            size_of(OURS[:end])


def test_a_scan_is_read_to_its_end_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is one of 200 MB, of a child that was taken over, without the rest of the worker standing still for it."""
    monkeypatch.setattr("worker.renderer.jpeg._SEARCHED_AT_ONCE", 7)
    start, scan = SCAN + 14, b"\xff\0" * 20
    assert size_of(OURS) == (320, 180)
    assert size_of(OURS[:start] + scan + b"\xff\xd9") == (320, 180)

    for at in range(len(scan) + 1):
        with pytest.raises(ForeignJpeg):
            size_of(OURS[:start] + scan[:at] + b"\xff\xfe" + scan[at:] + b"\xff\xd9")


def test_what_stands_before_a_scan_is_bounded() -> None:
    """Else a header of 200 MB, of nothing but segments, would keep the worker busy for a minute, and be remembered."""
    with pytest.raises(ForeignJpeg, match="no frame, or no scan"):
        size_of(with_segment(0xDB, bytes(5000)))


def test_no_length_that_lies_is_believed() -> None:
    """Whatever a segment says of itself: another size than the picture's, or none at all."""
    position = 2
    for _, content in segments(OURS):
        for length in (0, 1, 2, len(content) + 1, len(content) + 3, 65_535):

            def lie(copy: bytearray, at: int = position + 2, length: int = length) -> None:
                struct.pack_into(">H", copy, at, length)

            with pytest.raises(ForeignJpeg):
                size_of(altered(lie))
        position += 4 + len(content)


@pytest.mark.parametrize(("width", "height"), [(0, 180), (320, 0)])
def test_a_side_of_nothing_is_foreign(width: int, height: int) -> None:
    frame = OURS.index(b"\xff\xc0")

    with pytest.raises(ForeignJpeg):
        size_of(altered(lambda copy: struct.pack_into(">HH", copy, frame + 5, height, width)))
