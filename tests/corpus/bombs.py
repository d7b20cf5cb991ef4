"""Small files that ask for much: pixels, memory or time."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.corpus.formats import (
    EXIF_SHORT,
    EXIF_UNDEFINED,
    PNG_SIGNATURE,
    bmp,
    chunk,
    deflated_zeros,
    entry,
    exif,
    extended_header,
    flat_jpeg,
    flat_png,
    flat_webp,
    gif_extension,
    gif_frame,
    gif_screen,
    grid_avif,
    header_chunk,
    riff,
    riff_chunk,
    segment,
    tiff,
    with_chunks,
    with_frame_header,
    with_segments,
)
from tests.corpus.honest import honest
from tests.corpus.specimens import EITHER, READY, TIMED_OUT, TOO_LARGE, UNREADABLE, Specimen
from tests.worker.pictures import encoded

#: 49 MP: as expensive as a picture may be without being refused.
SIDE = 7000


def specimens() -> Iterator[Specimen]:
    for make in (_jpegs, _pngs, _gifs, _webps, _tiffs, _bmps, _avifs):
        for name, content, outcomes in make():
            yield Specimen(f"bombs/{name}", content, outcomes)


Made = Iterator[tuple[str, bytes, frozenset[str]]]


def _jpegs() -> Made:
    photo = honest()["baseline.jpeg"]
    yield "jpeg-20000x20000", flat_jpeg(20000, 20000), TOO_LARGE
    yield "jpeg-65500x65500-by-its-header", with_frame_header(photo, width=65500, height=65500), TOO_LARGE
    yield "jpeg-49mp", flat_jpeg(SIDE, SIDE), READY
    yield "jpeg-65500x763", flat_jpeg(65500, 763), READY
    yield "jpeg-763x65500-progressive", flat_jpeg(763, 65500, scans=1), READY
    yield "jpeg-49mp-20-scans", flat_jpeg(SIDE, SIDE, scans=20), READY
    yield "jpeg-49mp-6000-scans", flat_jpeg(SIDE, SIDE, scans=6000), TIMED_OUT
    yield "jpeg-1mp-4000-scans", flat_jpeg(1024, 1024, scans=4000), READY | TIMED_OUT
    yield "jpeg-49mp-cmyk", encoded(Image.new("CMYK", (SIDE, SIDE)), "JPEG", quality=30).getvalue(), READY
    yield "jpeg-100000-empty-comments", with_segments(photo, segment(0xFE, b"") * 100_000), READY
    yield "jpeg-30-full-comments", with_segments(photo, segment(0xFE, bytes(65533)) * 30), READY
    yield "jpeg-a-megabyte-of-fill", with_segments(photo, b"\xff" * 1_000_000), READY
    yield "jpeg-30-full-exif", with_segments(photo, segment(0xE1, b"Exif\0\0" + bytes(65527)) * 30), READY
    yield "jpeg-30-full-xmp", with_segments(photo, *[_extended_xmp(part) for part in range(30)]), READY
    yield "jpeg-32-full-icc", with_segments(photo, *[_icc(part) for part in range(1, 33)]), READY
    yield "jpeg-exif-of-60000-comments", with_segments(photo, segment(0xE1, b"Exif\0\0" + _crowded_exif())), READY


def _extended_xmp(part: int) -> bytes:
    head = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", 30 * 65000, part * 65000)
    return segment(0xE1, head + b" " * 65000)


def _icc(part: int) -> bytes:
    return segment(0xE2, b"ICC_PROFILE\0" + bytes((part, 32)) + bytes(65519))


def _crowded_exif() -> bytes:
    return exif(*[entry(0xFDE8 + number % 500, EXIF_UNDEFINED, bytes(8), 60000) for number in range(3000)])


def _pngs() -> Made:
    photo = honest()["rgb.png"]
    yield "png-20000x20000-in-48-kB", flat_png(20000, 20000, 1, 0), TOO_LARGE
    yield "png-60000x60000-by-its-header", PNG_SIGNATURE + header_chunk(60000, 60000) + chunk(b"IDAT"), TOO_LARGE
    yield "png-49mp-1-bit", flat_png(SIDE, SIDE, 1, 0), READY
    yield "png-49mp-palette", flat_png(SIDE, SIDE, 8, 3), READY
    yield "png-49mp-rgba", flat_png(SIDE, SIDE, 8, 6), READY
    yield "png-49mp-16-bit-rgba", flat_png(SIDE, SIDE, 16, 6), READY
    yield "png-65500x763-interlaced", _interlaced(65500, 763), READY
    bomb = zlib.compress(bytes(100_000_000), 9)
    yield "png-ztxt-of-100-MB", with_chunks(photo, chunk(b"zTXt", b"Comment\0\0" + bomb)), EITHER
    yield "png-itxt-of-100-MB", with_chunks(photo, chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)), EITHER
    yield "png-iccp-of-100-MB", with_chunks(photo, chunk(b"iCCP", b"ICC\0\0" + bomb)), EITHER
    small = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(1_000_000), 9))
    yield "png-200-ztxt-of-1-MB", with_chunks(photo, small * 200), EITHER
    yield "png-idat-of-100-MB-for-160x128", _with_more_pixels(photo, bomb), EITHER
    yield "png-100000-empty-chunks", with_chunks(photo, chunk(b"prVt") * 100_000), READY
    yield "png-100000-empty-idat", with_chunks(photo, chunk(b"IDAT") * 100_000, before=b"IEND"), EITHER
    yield "png-text-of-2-MB", with_chunks(photo, chunk(b"tEXt", b"Comment\0" + b"x" * 2_000_000)), READY
    frames = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "png-2-billion-frames", with_chunks(photo, frames), READY


def _interlaced(width: int, height: int) -> bytes:
    # Seven passes: where each begins, and its steps.
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    total = sum(-(-(height - y) // dy) * (1 + 3 * -(-(width - x) // dx)) for x, y, dx, dy in passes)
    data = chunk(b"IDAT", deflated_zeros(total))
    return PNG_SIGNATURE + header_chunk(width, height, 8, 2, 0, 0, 1) + data + chunk(b"IEND")


def _with_more_pixels(png: bytes, stream: bytes) -> bytes:
    return png[: png.index(b"IDAT") - 4] + chunk(b"IDAT", stream) + chunk(b"IEND")


def _gifs() -> Made:
    frame = gif_frame(1, 1)
    yield "gif-100000-frames", gif_screen(64, 64) + frame * 100_000 + b";", READY
    yield "gif-100000-comments", gif_screen(64, 64) + gif_extension(0xFE, b"x") * 100_000 + frame + b";", READY
    yield "gif-a-comment-of-2-MB", gif_screen(64, 64) + b"!\xfe" + (b"\xff" + b"x" * 255) * 8_000 + b"\0" + frame, READY
    yield "gif-65535x65535-screen", gif_screen(65535, 65535) + frame + b";", TOO_LARGE
    yield "gif-65535x65535-frame", gif_screen(1, 1) + gif_frame(65535, 65535) + b";", TOO_LARGE
    yield "gif-49mp-screen-for-one-pixel", gif_screen(SIDE, SIDE) + frame + b";", READY
    yield "gif-49mp", encoded(Image.new("P", (SIDE, SIDE)), "GIF").getvalue(), READY
    yield "gif-100000-extensions-and-no-frame", gif_screen(64, 64) + gif_extension(0xF9, bytes(4)) * 100_000, UNREADABLE


def _webps() -> Made:
    yield "webp-16383x16383", flat_webp(16383, 16383), TOO_LARGE
    yield "webp-49mp-in-32-bytes", flat_webp(SIDE, SIDE), READY
    yield "webp-16383x3051-in-32-bytes", flat_webp(16383, 3051), READY
    canvas = extended_header(0x02, 16_777_216, 256)
    yield "webp-16777216x256-canvas", riff(canvas, *_animation(1)), TOO_LARGE | UNREADABLE
    yield "webp-10000-frames", riff(extended_header(0x02, 64, 64), *_animation(10_000)), READY
    photo = honest()["lossy.webp"][12:]
    yield (
        "webp-100000-empty-chunks",
        riff(extended_header(0, 160, 128), photo, riff_chunk(b"prVt", b"") * 100_000),
        EITHER,
    )
    yield "webp-exif-of-2-MB", riff(extended_header(8, 160, 128), photo, riff_chunk(b"EXIF", bytes(2_000_000))), EITHER
    yield (
        "webp-icc-of-2-MB",
        riff(extended_header(0x20, 160, 128), riff_chunk(b"ICCP", bytes(2_000_000)), photo),
        EITHER,
    )


def _animation(frames: int) -> list[bytes]:
    picture = flat_webp(64, 64)[12:]
    head = bytes(6) + (63).to_bytes(3, "little") * 2 + bytes(4)
    return [riff_chunk(b"ANIM", bytes(6)), riff_chunk(b"ANMF", head + picture) * frames]


def _tiffs() -> Made:
    row = SIDE * 3
    yield "tiff-20000x20000-deflate", tiff((20000, 20000), [deflated_zeros(1000)], compression=8), TOO_LARGE
    yield "tiff-49mp-deflate", tiff((SIDE, SIDE), [deflated_zeros(row * SIDE)], compression=8), READY
    packed = b"\x81\0" * (row * 100 // 128 + 1)
    yield "tiff-49mp-packbits-from-one-strip", _one_strip_again(packed, 70, 100, compression=32773), READY
    yield "tiff-49mp-raw-from-one-strip", _one_strip_again(bytes(row), SIDE, 1), READY
    yield (
        "tiff-deflate-of-100-MB-for-160x128",
        tiff((160, 128), [zlib.compress(bytes(100_000_000))], compression=8),
        EITHER,
    )
    strips = [bytes(3)] * 20_000
    yield "tiff-20000-strips", tiff((1, 20_000), strips, rows=1), READY
    yield "tiff-10000-pages", _pages(10_000), READY
    yield "tiff-49mp-16-bit", _deep_tiff(), READY
    yield (
        "tiff-jpeg-inside-of-20000x20000",
        tiff((160, 128), [flat_jpeg(20000, 2000)], compression=7, photometric=1, samples=1, bits=8),
        EITHER,
    )
    yield "tiff-description-of-2-MB", tiff((16, 16), [bytes(768)], entry(270, 2, b"x" * 2_000_000)), READY
    yield (
        "tiff-5000-entries",
        tiff((16, 16), [bytes(768)], *[entry(40000 + n, 1, bytes(1)) for n in range(5000)]),
        READY,
    )


def _one_strip_again(strip: bytes, strips: int, rows: int, compression: int = 1) -> bytes:
    """Return a picture of 49 MP, all of whose strips lie at the same place."""
    return tiff(
        (SIDE, SIDE), [strip], offsets=[8] * strips, counts=[len(strip)] * strips, rows=rows, compression=compression
    )


def _deep_tiff() -> bytes:
    stream = deflated_zeros(SIDE * SIDE * 2)
    return tiff((SIDE, SIDE), [stream], entry(258, EXIF_SHORT, [16]), compression=8, photometric=1, samples=1)


def _pages(count: int) -> bytes:
    file = io.BytesIO(tiff((16, 16), [bytes(768)], following=0))
    first = file.getvalue()
    # Each page is the first one's IFD again, and points at the next.
    (start,) = struct.unpack_from("<I", first, 4)
    entries = struct.unpack_from("<H", first, start)[0]
    table = first[start : start + 2 + 12 * entries]
    pages, at = [first[: start + 2 + 12 * entries]], start + len(table) + 4
    values = first[start + len(table) + 4 :]
    at += len(values)
    pages.append(struct.pack("<I", at) + values)
    for number in range(1, count):
        following = at + len(table) + 4 if number < count - 1 else 0
        pages.append(table + struct.pack("<I", following))
        at = following
    return b"".join(pages)


def _bmps() -> Made:
    yield "bmp-20000x20000-by-its-header", bmp(20000, 20000, bytes(1000)), TOO_LARGE
    yield "bmp-2147483647x1", bmp(2**31 - 1, 1, bytes(1000)), TOO_LARGE
    grey = bytes(value for level in range(256) for value in (level, level, level, 0))
    runs = b"\xff\x07" * (SIDE // 255) + bytes((SIDE % 255, 7)) + b"\0\0"
    yield "bmp-49mp-rle", bmp(SIDE, SIDE, runs * SIDE + b"\0\1", depth=8, compression=1, palette=grey), READY
    yield "bmp-20000x20000-rle", bmp(20000, 20000, runs + b"\0\1", depth=8, compression=1, palette=grey), TOO_LARGE
    yield "bmp-49mp-1-bit", bmp(SIDE, SIDE, bytes(876 * SIDE), depth=1, palette=grey[:8]), READY
    yield "bmp-49mp-rle-of-nothing", bmp(SIDE, SIDE, b"\0\1", depth=8, compression=1, palette=grey), EITHER
    deltas = b"\0\2\0\xff" * 30 + b"\0\1"
    yield "bmp-49mp-rle-of-skips", bmp(SIDE, SIDE, deltas, depth=8, compression=1, palette=grey), EITHER


def _avifs() -> Made:
    flat = encoded(Image.new("RGB", (1024, 1024), (200, 100, 50)), "AVIF", speed=10, max_threads=1).getvalue()
    yield "avif-49mp-grid", grid_avif(flat, 7, 7, (SIDE, SIDE)), READY
    yield "avif-16384x12288-grid", grid_avif(flat, 16, 12), TOO_LARGE
    # These are past a limit of the decoder's own, which says of them only that it does not take them.
    yield "avif-20480x20480-grid", grid_avif(flat, 20, 20), TOO_LARGE | UNREADABLE
    yield "avif-65536x65536-grid", grid_avif(flat, 64, 64), TOO_LARGE | UNREADABLE
    yield "avif-1000000000x1-by-its-header", grid_avif(flat, 1, 1, (10**9, 1)), TOO_LARGE | UNREADABLE
    yield "avif-20000-items", grid_avif(flat, 1, 1, items=20_000), EITHER
    image = Image.new("RGB", (16, 16))
    frames = [Image.new("RGB", (16, 16), (n, 0, 0)) for n in range(100)]
    moving = encoded(image, "AVIF", speed=10, max_threads=1, save_all=True, append_images=frames)
    yield "avif-101-frames", _of_no_date(moving.getvalue()), READY


def _of_no_date(avif: bytes) -> bytes:
    """Return a moving AVIF without the times at which it was made, which differ from run to run."""
    made = bytearray(avif)
    for name in (b"mvhd", b"tkhd", b"mdhd"):
        at = made.index(name) + 4
        length = 16 if made[at] else 8  # two times, of 8 bytes in version 1
        made[at + 4 : at + 4 + length] = bytes(length)
    return bytes(made)
