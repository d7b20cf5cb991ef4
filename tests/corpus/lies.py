"""Files whose headers, lengths, counts and offsets do not tell the truth, or lead in a circle."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from tests.corpus.formats import (
    EXIF_ASCII,
    EXIF_LONG,
    EXIF_SHORT,
    FILE_TYPE,
    PNG_SIGNATURE,
    bmp,
    box,
    chunk,
    entry,
    exif,
    extended_header,
    flat_jpeg,
    flat_png,
    flat_webp,
    full_box,
    gif_extension,
    gif_frame,
    gif_screen,
    grid_avif,
    header_chunk,
    nested_exif,
    riff,
    riff_chunk,
    segment,
    tiff,
    with_chunks,
    with_frame_header,
    with_segments,
)
from tests.corpus.honest import SIZE, honest
from tests.corpus.specimens import EITHER, FOREIGN, READY, TOO_LARGE, UNREADABLE, Specimen
from tests.worker.pictures import encoded

Made = Iterator[tuple[str, bytes, frozenset[str]]]


def specimens() -> Iterator[Specimen]:
    for make in (_jpegs, _exif, _pngs, _gifs, _webps, _tiffs, _tiff_codecs, _bmps, _avifs):
        for name, content, outcomes in make():
            yield Specimen(f"lies/{name}", content, outcomes)


def _jpegs() -> Made:
    photo = honest()["baseline.jpeg"]
    yield "jpeg-0-wide", with_frame_header(photo, width=0), UNREADABLE
    yield "jpeg-0-high", with_frame_header(photo, height=0), UNREADABLE
    yield "jpeg-65501-wide", with_frame_header(photo, width=65501, height=1), TOO_LARGE
    yield "jpeg-65535-high", with_frame_header(photo, width=1, height=65535), TOO_LARGE
    yield "jpeg-wider-than-its-data", with_frame_header(photo, width=320), EITHER
    yield "jpeg-narrower-than-its-data", with_frame_header(photo, width=80), EITHER
    for components in (0, 1, 2, 4, 255):
        yield f"jpeg-{components}-components", with_frame_header(photo, components=components), EITHER
    for precision in (0, 1, 12, 16, 255):
        yield f"jpeg-precision-{precision}", with_frame_header(photo, precision=precision), UNREADABLE
    for marker in (0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD):
        outcomes = READY if marker == 0xC1 else EITHER
        yield f"jpeg-frame-of-kind-{marker - 0xC0}", with_frame_header(photo, marker=marker), outcomes
    for marker, name in ((0xDB, "quantization"), (0xC4, "codes"), (0xDA, "scan"), (0xC0, "frame")):
        at = photo.index(bytes((0xFF, marker)))
        (length,) = struct.unpack_from(">H", photo, at + 2)
        whole = photo[at : at + 2 + length]
        yield f"jpeg-without-a-{name}", photo.replace(whole, b""), EITHER if marker == 0xC4 else UNREADABLE
        yield f"jpeg-twice-a-{name}", photo.replace(whole, whole * 2), EITHER
        for claimed in (0, 1, 2, 65535):
            yield f"jpeg-{name}-of-{claimed}-bytes", photo.replace(whole, segment(marker, whole[4:], claimed)), EITHER
    for sampling in (0x00, 0x01, 0x55, 0x44, 0xFF):
        at = photo.index(b"\xff\xc0") + 11
        yield f"jpeg-sampling-{sampling:02x}", photo[:at] + bytes((sampling,)) + photo[at + 1 :], EITHER
    yield "jpeg-restarts-everywhere", with_segments(photo, segment(0xDD, b"\0\1")), EITHER
    yield "jpeg-adobe-of-a-third-kind", with_segments(photo, segment(0xEE, b"Adobe\0\x64\0\0\0\0\x09")), EITHER
    thumbnail = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\xff\xff")
    yield "jpeg-jfif-thumbnail-that-is-not-there", photo[:2] + thumbnail + photo[2:], READY
    profile = segment(0xE2, b"ICC_PROFILE\0\xff\0" + bytes(64))
    yield "jpeg-profile-part-255-of-0", with_segments(photo, profile), READY
    lying = bytearray(128) + struct.pack(">I", 0xFFFFFFFF) + b"desc" + struct.pack(">II", 0xFFFFFFF0, 0xFFFFFFF0)
    lying[36:40] = b"acsp"
    yield "jpeg-profile-of-4-billion-tags", with_segments(photo, segment(0xE2, b"ICC_PROFILE\0\1\1" + lying)), READY
    yield "jpeg-no-end-but-more-of-it", photo[:-2] + photo[2:], EITHER
    yield "jpeg-two-starts", b"\xff\xd8" * 1000 + photo, EITHER
    yield "jpeg-only-a-start-and-an-end", b"\xff\xd8\xff\xd9", UNREADABLE
    yield "jpeg-progressive-without-its-scans", _only_first_scan(flat_jpeg(64, 64, scans=3)), EITHER
    index = b"MPF\0II*\0" + struct.pack("<I", 8) + b"\xff\xff" + b"\xff" * 64
    yield "jpeg-mpo-index-that-lies", with_segments(photo, segment(0xE2, index)), READY


def _only_first_scan(jpeg: bytes) -> bytes:
    first = jpeg.index(b"\xff\xda")
    return jpeg[: jpeg.index(b"\xff\xc4", first)] + b"\xff\xd9"


def _exif() -> Made:
    """Yield JPEGs, some PNGs and WebPs, around EXIF that lies: the pixels are honest."""
    head = b"II*\0" + struct.pack("<I", 8)
    lies = {
        "loop": head + struct.pack("<H", 0) + struct.pack("<I", 8),
        "pointing-to-itself": head + struct.pack("<HHHII", 1, 0x8769, EXIF_LONG, 1, 8),
        "gps-pointing-to-itself": nested_exif(0x8825, entry(0x8825, EXIF_LONG, [26])),
        "65535-entries": head + b"\xff\xff" + bytes(64),
        "4-billion-values": exif(entry(270, EXIF_ASCII, struct.pack("<I", 26), 0xFFFFFFFF)),
        "beyond-the-end": exif(entry(270, EXIF_ASCII, struct.pack("<I", 0xFFFFFFF0), 100)),
        "first-ifd-beyond-the-end": b"II*\0" + struct.pack("<I", 0xFFFFFFF0),
        "unknown-type": exif(entry(274, 99, b"\6\0\0\0", 1)),
        "orientation-0": exif(entry(274, EXIF_SHORT, [0])),
        "orientation-9": exif(entry(274, EXIF_SHORT, [9])),
        "orientation-65535": exif(entry(274, EXIF_SHORT, [65535])),
        "orientation-as-text": exif(entry(274, EXIF_ASCII, b"6\0")),
        "orientation-many-times": exif(entry(274, EXIF_SHORT, list(range(1000)))),
        "orientation-twice": exif(entry(274, EXIF_SHORT, [6]), entry(274, EXIF_SHORT, [3])),
        "no-order-of-bytes": b"XX*\0" + bytes(60),
        "empty": b"",
        "half-an-entry": head + b"\1\0\x12\1\3\0",
        "fraction-by-zero": exif(entry(282, 5, bytes(8), 1), entry(283, 10, bytes(8), 1)),
    }
    jpeg, png, webp = (honest()[name] for name in ("baseline.jpeg", "rgb.png", "lossy.webp"))
    for name, lie in lies.items():
        yield f"exif-{name}.jpeg", with_segments(jpeg, segment(0xE1, b"Exif\0\0" + lie)), READY
        if name not in ("loop", "pointing-to-itself", "4-billion-values", "beyond-the-end", "empty", "half-an-entry"):
            continue
        yield f"exif-{name}.png", with_chunks(png, chunk(b"eXIf", lie)), READY
        yield f"exif-{name}.webp", riff(extended_header(8, *SIZE), webp[12:], riff_chunk(b"EXIF", lie)), READY


def _pngs() -> Made:
    photo = honest()["rgb.png"]
    start, rest = photo[:8], photo[33:]
    end = chunk(b"IEND")
    for width, height in ((0, 0), (0, 1), (1, 0), (2**31, 1), (2**32 - 1, 2**32 - 1)):
        outcomes = UNREADABLE if width * height == 0 else TOO_LARGE | UNREADABLE
        yield f"png-{width}x{height}", start + header_chunk(width, height) + rest, outcomes
    yield "png-2147483647x1", start + header_chunk(2**31 - 1, 1) + rest, TOO_LARGE
    yield "png-65501x1", flat_png(65501, 1), TOO_LARGE
    yield "png-1x65501", flat_png(1, 65501), TOO_LARGE
    yield "png-65500x1", flat_png(65500, 1), READY
    yield "png-higher-than-its-data", start + header_chunk(SIZE[0], 1000) + rest, EITHER
    yield "png-lower-than-its-data", start + header_chunk(SIZE[0], 10) + rest, EITHER
    for depth, colour in ((0, 2), (3, 0), (17, 2), (255, 6), (1, 2), (16, 3), (8, 1), (8, 5), (8, 255)):
        made = start + header_chunk(*SIZE, depth, colour) + rest
        yield f"png-depth-{depth}-colour-{colour}", made, UNREADABLE
    for number, name in enumerate(("compression", "filter", "interlace")):
        odd = [0, 0, 0]
        odd[number] = 7
        yield f"png-unknown-{name}", start + header_chunk(*SIZE, 8, 2, *odd) + rest, EITHER
    yield "png-interlaced-by-its-header-alone", start + header_chunk(*SIZE, 8, 2, 0, 0, 1) + rest, EITHER
    yield "png-two-headers", start + header_chunk(*SIZE) + header_chunk(1, 1) + rest, EITHER
    yield "png-no-header", start + rest, UNREADABLE
    yield "png-only-a-header", photo[:33], UNREADABLE
    yield "png-no-pixels", photo[:33] + end, UNREADABLE
    yield "png-empty-pixels", photo[:33] + chunk(b"IDAT") + end, UNREADABLE
    yield "png-no-end", photo[:-12], EITHER
    yield "png-header-of-12-bytes", start + chunk(b"IHDR", photo[16:28]) + rest, UNREADABLE
    for length in (2**31, 2**32 - 1, 2**24):
        lying = chunk(b"prVt", b"x" * 16, length=length)
        yield f"png-chunk-of-{length}-bytes", with_chunks(photo, lying), UNREADABLE
        at = photo.index(b"IDAT") - 4
        yield f"png-pixels-of-{length}-bytes", photo[:at] + struct.pack(">I", length) + photo[at + 4 :], EITHER
        again = photo[:-12] + chunk(b"IDAT", b"x" * 16, length=length)
        yield f"png-more-pixels-of-{length}-bytes", again, EITHER
    for part in (b"IHDR", b"IDAT", b"IEND"):
        at = photo.index(part) - 4
        (length,) = struct.unpack_from(">I", photo, at)
        broken = photo[: at + 8 + length] + b"\0\0\0\0" + photo[at + 12 + length :]
        yield f"png-wrong-crc-of-{part.decode()}", broken, EITHER
    yield "png-wrong-crc-of-a-text", with_chunks(photo, chunk(b"tEXt", b"a\0b", crc=1)), EITHER
    yield "png-name-that-is-none", with_chunks(photo, chunk(b"\0\1\2\3", b"x")), EITHER
    yield "png-critical-chunk-that-nobody-knows", with_chunks(photo, chunk(b"ABCD", b"x")), EITHER
    palette = honest()["palette.png"]
    at, idat = palette.index(b"PLTE") - 4, palette.index(b"IDAT") - 4
    yield "png-palette-that-is-not-there", palette[:at] + palette[idat:], EITHER
    yield "png-palette-of-one", palette[:at] + chunk(b"PLTE", b"\0\0\0") + palette[idat:], EITHER
    yield "png-palette-of-2000", palette[:at] + chunk(b"PLTE", bytes(6000)) + palette[idat:], EITHER
    yield "png-palette-of-a-half", palette[:at] + chunk(b"PLTE", bytes(4)) + palette[idat:], EITHER
    yield "png-more-alphas-than-colours", with_chunks(palette, chunk(b"tRNS", bytes(3000))), EITHER
    yield "png-alpha-of-one-byte", with_chunks(photo, chunk(b"tRNS", b"\0")), EITHER
    yield "png-alpha-of-no-bytes", with_chunks(photo, chunk(b"tRNS")), EITHER
    for number in (5, 255):
        rows = (bytes((number,)) + bytes(SIZE[0] * 3)) * SIZE[1]
        made = PNG_SIGNATURE + header_chunk(*SIZE) + chunk(b"IDAT", zlib.compress(rows)) + end
        yield f"png-filter-{number}", made, EITHER
    for name, data in {
        "gAMA": bytes(4), "cHRM": b"\xff" * 32, "pHYs": b"\xff" * 9, "sBIT": b"\xff", "bKGD": b"\xff", "hIST": b"\xff",
        "sRGB": b"\xff", "tIME": b"\xff" * 7, "iCCP": b"name\0\7garbage", "sPLT": b"x\0\7", "cICP": b"\xff" * 4,
    }.items():  # fmt: skip
        yield f"png-wild-{name}", with_chunks(photo, chunk(name.encode(), data)), EITHER
        yield f"png-empty-{name}", with_chunks(photo, chunk(name.encode())), EITHER
    frames = {"0-frames": (0, 0), "4-billion-frames": (2**32 - 1, 2**32 - 1)}
    for name, counts in frames.items():
        yield f"png-{name}", with_chunks(photo, chunk(b"acTL", struct.pack(">II", *counts))), EITHER
    first = chunk(b"fcTL", struct.pack(">5IHHBB", 0, 2**31, 2**31, 2**31, 2**31, 0, 0, 0, 0))
    moving = chunk(b"acTL", struct.pack(">II", 2, 0)) + first
    yield "png-frame-outside", with_chunks(photo, moving), EITHER
    yield "png-frames-in-disorder", with_chunks(photo, moving + chunk(b"fdAT", struct.pack(">I", 9) + bytes(9))), EITHER


def _gifs() -> Made:
    frame, end = gif_frame(1, 1), b";"
    yield "gif-0x0", gif_screen(0, 0) + gif_frame(0, 0) + end, UNREADABLE
    yield "gif-0x0-frame", gif_screen(64, 64) + gif_frame(0, 0) + end, EITHER
    yield "gif-no-frame", gif_screen(64, 64) + end, UNREADABLE
    yield "gif-nothing-behind-the-screen", gif_screen(64, 64), UNREADABLE
    yield "gif-larger-frame-than-screen", gif_screen(8, 8) + gif_frame(100, 100) + end, EITHER
    yield "gif-frame-outside", gif_screen(8, 8) + gif_frame(8, 8, left=65535, top=65535) + end, TOO_LARGE | UNREADABLE
    yield "gif-frame-without-data", gif_screen(8, 8) + gif_frame(8, 8, data=b"") + end, EITHER
    yield "gif-no-colours", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + frame + end, EITHER
    yield "gif-colours-that-are-not-there", b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0xF7, 0, 0) + frame + end, EITHER
    for bits in (0, 1, 9, 12, 13, 255):
        yield f"gif-codes-of-{bits}-bits", gif_screen(8, 8) + gif_frame(8, 8, bits=bits) + end, EITHER
    yield "gif-codes-of-the-future", gif_screen(8, 8) + gif_frame(8, 8, data=b"\xff" * 500) + end, EITHER
    yield "gif-only-clear-codes", gif_screen(64, 64) + gif_frame(64, 64, data=b"\x24\x49\x92" * 20_000) + end, EITHER
    yield (
        "gif-block-without-end",
        gif_screen(8, 8) + b"," + struct.pack("<HHHHBB", 0, 0, 8, 8, 0, 2) + b"\xff",
        UNREADABLE,
    )
    yield "gif-unknown-blocks", gif_screen(8, 8) + b"\x99" * 10_000 + frame + end, EITHER
    control = gif_extension(0xF9, b"\xff\xff\xff\xff")
    yield "gif-wild-control", gif_screen(8, 8) + control + frame + end, EITHER
    yield "gif-control-of-no-bytes", gif_screen(8, 8) + gif_extension(0xF9) + frame + end, EITHER
    loop = gif_extension(0xFF, b"NETSCAPE2.0", b"\1")
    yield "gif-loop-of-half-a-number", gif_screen(8, 8) + loop + frame + end, EITHER
    yield "gif-version-that-never-was", b"GIF99a" + gif_screen(8, 8)[6:] + frame + end, FOREIGN
    second = gif_frame(65535, 65535, left=65535)
    yield "gif-huge-second-frame", gif_screen(8, 8) + gif_frame(8, 8) + second + end, EITHER


def _webps() -> Made:
    photo = honest()["lossy.webp"][12:]
    flat = flat_webp(64, 64)[12:]
    for length in (0, 4, 10, 2**31, 2**32 - 2):
        yield f"webp-of-{length}-bytes", riff(photo, length=length), EITHER
    for length in (0, 1, 2**31, 2**32 - 1):
        yield f"webp-pixels-of-{length}-bytes", riff(riff_chunk(b"VP8 ", photo[8:], length)), EITHER
    yield "webp-canvas-of-another-size", riff(extended_header(0, 1000, 1000), photo), EITHER
    yield "webp-huge-canvas-for-a-small-picture", riff(extended_header(0, 2**24, 2**24), photo), TOO_LARGE | UNREADABLE
    yield "webp-canvas-without-a-picture", riff(extended_header(0, 64, 64)), UNREADABLE
    yield "webp-all-flags", riff(extended_header(0xFF, *SIZE), photo), EITHER
    yield "webp-no-chunk", riff(), UNREADABLE
    yield "webp-two-pictures", riff(photo, photo), EITHER
    yield "webp-version-7", flat_webp(64, 64, version=7), UNREADABLE
    for name in ("VP8 ", "VP8L", "ALPH", "ANIM", "ANMF", "ICCP", "EXIF", "XMP "):
        yield f"webp-only-an-empty-{name.strip()}", riff(riff_chunk(name.encode(), b"")), UNREADABLE
        lying = riff(extended_header(0x3E, 64, 64), riff_chunk(name.encode(), b"\xff" * 32), flat)
        yield f"webp-rubbish-in-{name.strip()}", lying, EITHER
    outside = riff_chunk(b"ANMF", b"\xff" * 16 + flat)
    yield "webp-frame-outside", riff(extended_header(2, 64, 64), riff_chunk(b"ANIM", bytes(6)), outside), EITHER
    yield "webp-animation-of-nothing", riff(extended_header(2, 64, 64), riff_chunk(b"ANIM", bytes(6))), UNREADABLE


def _tiffs() -> Made:
    size, pixels = (16, 16), [bytes(range(256)) * 3]
    whole = tiff(size, pixels)
    start = struct.unpack_from("<I", whole, 4)[0]
    for offset in (0, 4, 7, len(whole), 2**31, 2**32 - 1):
        yield f"tiff-first-ifd-at-{offset}", whole[:4] + struct.pack("<I", offset) + whole[8:], UNREADABLE
    yield "tiff-next-page-is-the-first", tiff(size, pixels, following=start), READY
    yield "tiff-next-page-beyond-the-end", tiff(size, pixels, following=2**32 - 1), READY
    for tag, name in ((34665, "exif"), (34853, "gps"), (330, "sub-ifd"), (40965, "interoperability")):
        yield f"tiff-{name}-is-the-first-ifd", tiff(size, pixels, entry(tag, EXIF_LONG, [start])), EITHER
        yield f"tiff-{name}-beyond-the-end", tiff(size, pixels, entry(tag, EXIF_LONG, [2**32 - 1])), EITHER
    yield "tiff-65535-entries", whole[:start] + b"\xff\xff" + whole[start + 2 :], EITHER
    yield "tiff-no-entries", whole[:start] + b"\0\0" + whole[start + 2 :], UNREADABLE
    for count in (0, 2**16, 2**31, 2**32 - 1):
        yield f"tiff-text-of-{count}", tiff(size, pixels, entry(270, EXIF_ASCII, struct.pack("<I", 8), count)), EITHER
        yield f"tiff-{count}-strips", tiff(size, pixels, entry(273, EXIF_LONG, struct.pack("<I", 8), count)), EITHER
    for kind in (0, 13, 14, 99, 65535):
        yield f"tiff-value-of-type-{kind}", tiff(size, pixels, entry(270, kind, b"text", 4)), EITHER
        yield f"tiff-width-of-type-{kind}", tiff(size, pixels, entry(256, kind, b"\x10\0\0\0", 1)), EITHER
    for width, height in ((0, 16), (16, 0), (2**31, 1), (2**32 - 1, 2**32 - 1), (65501, 1), (1, 65501)):
        outcomes = TOO_LARGE | UNREADABLE if width * height else UNREADABLE
        yield f"tiff-{width}x{height}", tiff((width, height), pixels), outcomes
    yield "tiff-no-rows-in-a-strip", tiff(size, pixels, rows=0), EITHER
    yield "tiff-no-samples", tiff(size, pixels, samples=0), UNREADABLE
    yield "tiff-strip-beyond-the-end", tiff(size, pixels, offsets=2**32 - 1), UNREADABLE
    yield "tiff-strip-of-4-billion-bytes", tiff(size, pixels, counts=2**32 - 1), EITHER
    yield "tiff-photometric-65535", tiff(size, pixels, photometric=65535), UNREADABLE
    yield "tiff-compression-0", tiff(size, pixels, compression=0), UNREADABLE
    for samples in (2, 4, 5, 255, 65535):
        yield f"tiff-{samples}-samples", tiff(size, pixels, samples=samples), EITHER
    for bits in (0, 1, 3, 7, 12, 31, 64, 1000, 65535):
        yield f"tiff-{bits}-bits", tiff(size, pixels, entry(258, EXIF_SHORT, [bits] * 3)), EITHER
    for photometric in (0, 1, 3, 4, 5, 6, 8, 9, 10, 32803, 32844, 32845, 34892):
        yield f"tiff-photometric-{photometric}", tiff(size, pixels, photometric=photometric), EITHER
    yield "tiff-planes-of-their-own", tiff(size, pixels, entry(284, EXIF_SHORT, [2])), EITHER
    yield "tiff-planes-in-no-known-way", tiff(size, pixels, entry(284, EXIF_SHORT, [7])), EITHER
    yield "tiff-alpha-that-is-not-there", tiff(size, pixels, entry(338, EXIF_SHORT, [1, 1, 1, 1])), EITHER
    yield (
        "tiff-palette-of-one",
        tiff(size, pixels, entry(320, EXIF_SHORT, [0, 0, 0]), photometric=3, samples=1, bits=8),
        EITHER,
    )
    for wide, high in ((0, 0), (16, 2**31), (2**31, 2**31), (3, 5)):
        tiles = [entry(322, EXIF_LONG, [wide]), entry(323, EXIF_LONG, [high])]
        tiles += [entry(324, EXIF_LONG, [8]), entry(325, EXIF_LONG, [768])]
        yield f"tiff-tiles-of-{wide}x{high}", tiff(size, pixels, *tiles), EITHER
    for predictor in (2, 3, 65535):
        packed = [zlib.compress(pixels[0])]
        yield (
            f"tiff-predictor-{predictor}",
            tiff(size, packed, entry(317, EXIF_SHORT, [predictor]), compression=8),
            EITHER,
        )
    for orientation in (0, 5, 9, 65535):
        yield f"tiff-orientation-{orientation}", tiff(size, pixels, entry(274, EXIF_SHORT, [orientation])), READY
    yield "tiff-fill-order-2", tiff(size, pixels, entry(266, EXIF_SHORT, [2])), EITHER
    yield "tiff-big", tiff(size, pixels, big=True, offsets=16), READY
    yield (
        "tiff-big-with-4-billion-values",
        tiff(size, pixels, entry(270, 2, bytes(8), 2**40), big=True, offsets=16),
        EITHER,
    )
    yield "tiff-big-in-the-old-way", b"II+\0\4\0\0\0" + whole[8:], UNREADABLE
    yield "tiff-big-without-an-end", b"II+\0\x08\0\0\0" + struct.pack("<Q", 2**63), UNREADABLE
    yield "tiff-big-endian-by-its-head-alone", b"MM\0*" + whole[4:], UNREADABLE
    loop = tiff(size, pixels, entry(34665, EXIF_LONG, [start]), following=start)
    yield "tiff-loop-in-every-way", loop, EITHER


def _tiff_codecs() -> Made:
    """Yield every compression that libtiff has a codec for, over rubbish, of three bytes a pixel and of one bit."""
    codecs = {
        2: "ccitt", 3: "fax-3", 4: "fax-4", 5: "lzw", 6: "old-jpeg", 7: "jpeg", 8: "deflate", 32771: "ccitt-words",
        32773: "packbits", 32809: "thunderscan", 32766: "next", 32908: "pixar-film", 32909: "pixar-log",
        32946: "old-deflate", 34661: "jbig", 34676: "sgi-log", 34677: "sgi-log-24", 34712: "jpeg-2000", 34887: "lerc",
        34925: "lzma", 50000: "zstd", 50001: "webp", 65535: "unknown",
    }  # fmt: skip
    rubbish = bytes((i * 2654435761 >> 11) % 256 for i in range(3000))
    for number, name in codecs.items():
        yield f"tiff-{name}-rubbish", tiff((64, 64), [rubbish], compression=number), EITHER
        yield f"tiff-{name}-bits-of-rubbish", _fax(number, rubbish), EITHER


def _fax(compression: int, strip: bytes) -> bytes:
    return tiff((64, 64), [strip], compression=compression, bits=1, samples=1, photometric=0)


def _bmps() -> Made:
    row = bytes(range(192))
    pixels = row * 64
    grey = bytes(value for level in range(256) for value in (level, level, level, 0))
    for width, height in ((0, 0), (0, 64), (64, 0), (-64, 64), (-(2**31), 1), (64, -(2**31)), (2**31 - 1, 2**31 - 1)):
        outcomes = TOO_LARGE | UNREADABLE if abs(height) > 64 else EITHER if width < 0 else UNREADABLE
        yield f"bmp-{width}x{height}", bmp(width, height, pixels), outcomes | TOO_LARGE
    yield "bmp-from-its-top", bmp(64, -64, pixels), READY
    yield "bmp-65501x1", bmp(65501, 1, bytes(65501 * 3 + 1)), TOO_LARGE
    yield "bmp-1x65501", bmp(1, 65501, bytes(65501 * 4)), TOO_LARGE
    yield "bmp-of-os-2", bmp(64, 64, pixels, header=12), READY
    for header in (16, 52, 56, 64, 108, 124):
        yield f"bmp-header-of-{header}", bmp(64, 64, pixels, header=header), EITHER
    for header in (0, 13, 39, 41, 2**16, 2**32 - 1):
        made = bmp(64, 64, pixels)
        yield f"bmp-header-of-{header}", made[:14] + struct.pack("<I", header) + made[18:], FOREIGN
    for depth in (0, 2, 3, 5, 16, 32, 48, 64, 65535):
        yield f"bmp-depth-{depth}", bmp(64, 64, pixels, depth=depth), EITHER
    for compression in (1, 2, 3, 4, 5, 6, 11, 99, 2**32 - 1):
        yield f"bmp-compression-{compression}", bmp(64, 64, pixels, compression=compression), EITHER
    for offset in (0, 10, 2**20, 2**31, 2**32 - 1):
        yield f"bmp-pixels-at-{offset}", bmp(64, 64, pixels, offset=offset), EITHER
    for length in (0, 2**32 - 1):
        yield f"bmp-of-{length}-bytes", bmp(64, 64, pixels, length=length), READY
    for colours in (1, 257, 65536, 2**31, 2**32 - 1):
        yield f"bmp-{colours}-colours", bmp(64, 64, bytes(4096), depth=8, palette=grey, colours=colours), EITHER
    tricks = {
        "end-at-once": b"\0\1",
        "lines-without-end": b"\0\0" * 10_000,
        "runs-past-the-line": b"\xff\1" * 1000,
        "skip-outside": b"\0\2\xff\xff" * 100,
        "half-a-skip": b"\0\2\xff",
        "half-a-literal": b"\0\xff\1\2\3",
        "runs-of-nothing": b"\0\3\0\0" * 500,
        "nothing": b"",
    }
    for name, data in tricks.items():
        for depth, compression in ((8, 1), (4, 2)):
            made = bmp(64, 64, data, depth=depth, compression=compression, palette=grey[: 4 << depth])
            yield f"bmp-rle-{depth}-{name}", made, EITHER
    for masks in (b"\0" * 16, b"\xff" * 16, b"\1\0\0\0" * 4):
        made = bmp(64, 64, bytes(4 * 64 * 64), depth=32, compression=3, header=56)
        at = 14 + 40
        yield f"bmp-masks-{masks[:4].hex()}", made[:at] + masks + made[at + 16 :], EITHER


def _avifs() -> Made:
    tile = encoded(Image.new("RGB", (64, 64), (200, 100, 50)), "AVIF", speed=10, max_threads=1).getvalue()
    whole = grid_avif(tile, 2, 2)
    yield "avif-grid", whole, READY
    yield "avif-grid-larger-than-its-tiles", grid_avif(tile, 2, 2, (1000, 1000)), UNREADABLE
    yield "avif-grid-of-0x0", grid_avif(tile, 2, 2, (0, 0)), UNREADABLE
    yield "avif-grid-of-4-billion", grid_avif(tile, 1, 1, (2**32 - 1, 2**32 - 1)), TOO_LARGE | UNREADABLE
    yield "avif-grid-of-too-few-tiles", grid_avif(tile, 16, 16, items=3), UNREADABLE
    yield "avif-grid-of-too-many-tiles", grid_avif(tile, 1, 1, items=300), UNREADABLE
    yield "avif-grid-of-no-tiles", grid_avif(tile, 1, 1, items=0), UNREADABLE
    yield "avif-grid-of-itself", grid_avif(tile, 2, 2, loop=True), UNREADABLE
    turned = {
        "turned": box(b"irot", b"\1"), "turned-in-no-known-way": box(b"irot", b"\xff"), "mirrored": box(b"imir", b"\1"),
        "cropped-to-nothing": box(b"clap", bytes(32)), "cropped-wildly": box(b"clap", b"\xff" * 32),
        "odd-aspect": box(b"pasp", struct.pack(">II", 0, 0)), "unknown-property": box(b"wxyz", b"\xff" * 16),
    }  # fmt: skip
    for name, made in turned.items():
        yield f"avif-{name}", grid_avif(tile, 2, 2, properties=[made]), EITHER
    yield "avif-only-its-type", FILE_TYPE, UNREADABLE
    yield "avif-empty-meta", FILE_TYPE + full_box(b"meta", 0, 0), UNREADABLE
    yield "avif-no-meta", FILE_TYPE + box(b"mdat", bytes(64)), UNREADABLE
    meta = whole[len(FILE_TYPE) :]
    for length in (0, 1, 2, 7, 2**31, 2**32 - 1):
        yield f"avif-meta-of-{length}-bytes", FILE_TYPE + struct.pack(">I", length) + meta[4:], EITHER
        yield f"avif-free-box-of-{length}-bytes", whole + box(b"free", bytes(16), length=length), EITHER
    yield "avif-box-of-2-to-the-63", whole + struct.pack(">I4sQ", 1, b"free", 2**63), EITHER
    nested = b""
    for _ in range(5000):
        nested = box(b"moov", nested)
    yield "avif-5000-boxes-in-each-other", whole + nested, EITHER
    yield "avif-type-of-itself-twice", FILE_TYPE + whole, EITHER
    for part in (b"hdlr", b"pitm", b"iloc", b"iinf", b"iref", b"iprp", b"ipco", b"ipma", b"ispe", b"av1C", b"infe"):
        at = whole.index(part)
        yield f"avif-no-{part.decode()}", whole[:at] + b"free" + whole[at + 4 :], EITHER
        data = whole[: at + 8] + b"\xff" * 8 + whole[at + 16 :]
        yield f"avif-wild-{part.decode()}", data, EITHER | TOO_LARGE
    moving = FILE_TYPE.replace(b"avifmif1", b"avismif1")
    yield "avif-moving-by-its-type-alone", moving + whole[len(FILE_TYPE) :], EITHER
