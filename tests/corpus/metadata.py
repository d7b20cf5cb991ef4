"""Honest pictures with a text planted in every place where a file can say something beside its pixels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

from tests.corpus.formats import (
    EXIF_ASCII,
    EXIF_LONG,
    EXIF_UNDEFINED,
    PNG_SIGNATURE,
    bmp,
    box,
    chunk,
    entry,
    exif,
    extended_header,
    full_box,
    gif_extension,
    gif_frame,
    gif_screen,
    grid_avif,
    header_chunk,
    ifd,
    in_utf16,
    nested_exif,
    riff,
    riff_chunk,
    segment,
    sub_blocks,
    tiff,
    with_chunks,
    with_segments,
)
from tests.corpus.honest import SIZE, honest
from tests.corpus.specimens import READY, Specimen, text_for
from tests.worker.pictures import encoded, linear_grey_profile, photo, swapping_profile

#: Puts a text into a picture.
Plant = Callable[[bytes], bytes]


def specimens() -> Iterator[Specimen]:
    places = {**_in_jpeg(), **_in_png(), **_in_gif(), **_in_webp(), **_in_tiff(), **_in_bmp(), **_in_avif()}
    for place, plant in places.items():
        name = f"metadata/{place}"
        text = text_for(name)
        yield Specimen(name, plant(text), READY, text)


def _exif_places() -> dict[str, Plant]:
    """Return EXIF, as a TIFF has it, with the text in each of its places."""

    def in_thumbnail(text: bytes) -> bytes:
        thumbnail = with_segments(encoded(photo((16, 16)), "JPEG").getvalue(), segment(0xFE, text))
        first = ifd([entry(271, EXIF_ASCII, b"Maker\0")], 8)
        second_at = 8 + len(first)
        data_at = second_at + 2 + 3 * 12 + 4
        pointers = [entry(259, 3, [6]), entry(513, EXIF_LONG, [data_at]), entry(514, EXIF_LONG, [len(thumbnail)])]
        first = ifd([entry(271, EXIF_ASCII, b"Maker\0")], 8, second_at)
        return b"II*\0" + struct.pack("<I", 8) + first + ifd(pointers, second_at) + thumbnail

    return {
        "description": lambda text: exif(entry(270, EXIF_ASCII, text + b"\0")),
        "artist": lambda text: exif(entry(315, EXIF_ASCII, text + b"\0")),
        "copyright": lambda text: exif(entry(33432, EXIF_ASCII, text + b"\0")),
        "software": lambda text: exif(entry(305, EXIF_ASCII, text + b"\0")),
        "title-of-windows": lambda text: exif(entry(0x9C9B, 1, in_utf16(text) + b"\0\0")),
        "author-of-windows": lambda text: exif(entry(0x9C9D, 1, in_utf16(text) + b"\0\0")),
        "gps-area": lambda text: nested_exif(0x8825, entry(28, EXIF_UNDEFINED, b"ASCII\0\0\0" + text)),
        "gps-method": lambda text: nested_exif(0x8825, entry(27, EXIF_UNDEFINED, b"ASCII\0\0\0" + text)),
        "gps-date": lambda text: nested_exif(0x8825, entry(29, EXIF_ASCII, text + b"\0")),
        "maker-note": lambda text: nested_exif(0x8769, entry(0x927C, EXIF_UNDEFINED, b"Maker\0\0\0" + text)),
        "user-comment": lambda text: nested_exif(0x8769, entry(0x9286, EXIF_UNDEFINED, b"ASCII\0\0\0" + text)),
        "user-comment-utf-16": lambda text: nested_exif(
            0x8769, entry(0x9286, EXIF_UNDEFINED, b"UNICODE\0" + in_utf16(text, big_endian=True))
        ),
        "serial-number": lambda text: nested_exif(0x8769, entry(0xA431, EXIF_ASCII, text + b"\0")),
        "owner": lambda text: nested_exif(0x8769, entry(0xA430, EXIF_ASCII, text + b"\0")),
        "private-tag": lambda text: exif(entry(0xFDE8, EXIF_UNDEFINED, text)),
        "orientation-and-description": lambda text: exif(entry(274, 3, [6]), entry(270, EXIF_ASCII, text + b"\0")),
        "behind-the-last-value": lambda text: exif(entry(271, EXIF_ASCII, b"Maker\0"), tail=text),
        "thumbnail": in_thumbnail,
    }


def _xmp(text: bytes) -> bytes:
    return (
        b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF '
        b'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description xmlns:dc="http://purl.org/dc/'
        b'elements/1.1/"><dc:creator>'
        + text
        + b'</dc:creator></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
    )


def _photoshop(resource: int, data: bytes) -> bytes:
    padded = data + bytes(len(data) % 2)
    return b"8BIM" + struct.pack(">HHI", resource, 0, len(data)) + padded


def _iptc(text: bytes) -> bytes:
    return b"".join(b"\x1c\x02" + struct.pack(">BH", number, len(text)) + text for number in (5, 80, 90, 116, 120))


def _profiles() -> dict[str, Plant]:
    """Return profiles that are honest, and change colours, with the text in each of their places."""

    def described(text: bytes) -> bytes:
        old = b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)
        return _with_tag(swapping_profile(), b"desc", old)

    def in_many_languages(text: bytes) -> bytes:
        words = in_utf16(text, big_endian=True)
        return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(words), 28) + words

    return {
        "description": described,
        "copyright": lambda text: _with_tag(swapping_profile(), b"cprt", b"text" + bytes(4) + text + b"\0"),
        "copyright-utf-16": lambda text: _with_tag(swapping_profile(), b"cprt", in_many_languages(text)),
        "maker": lambda text: _with_tag(swapping_profile(), b"dmnd", b"text" + bytes(4) + text + b"\0"),
        "private-tag": lambda text: _with_tag(swapping_profile(), b"PrVt", b"data" + bytes(4) + text),
        "behind-its-tags": lambda text: swapping_profile() + text,
    }


def _with_tag(profile: bytes, name: bytes, data: bytes) -> bytes:
    """Return an ICC profile with one more tag, or another in its place."""
    (count,) = struct.unpack_from(">I", profile, 128)
    tags = {}
    for number in range(count):
        signature, offset, length = struct.unpack_from(">4sII", profile, 132 + 12 * number)
        tags[signature] = profile[offset : offset + length]
    tags[name] = data
    index, body, at = b"", b"", 132 + 12 * len(tags)
    for signature, value in tags.items():
        index += struct.pack(">4sII", signature, at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    made = profile[4:128] + struct.pack(">I", len(tags)) + index + body
    return struct.pack(">I", len(made) + 4) + made


def _in_jpeg() -> dict[str, Plant]:
    jpeg = honest()["baseline.jpeg"]
    grey = encoded(photo(SIZE).convert("L"), "JPEG").getvalue()

    def with_segment(marker: int, before: bytes = b"", behind: bytes = b"") -> Plant:
        return lambda text: with_segments(jpeg, segment(marker, before + text + behind))

    def around(make: Plant, marker: int, head: bytes) -> Plant:
        return lambda text: with_segments(jpeg, segment(marker, head + make(text)))

    def in_parts(text: bytes) -> bytes:
        profile = _profiles()["private-tag"](text)
        middle = profile.index(text) - 10
        parts = (profile[:middle], profile[middle:])
        return with_segments(
            jpeg, *[segment(0xE2, b"ICC_PROFILE\0" + bytes((n, 2)) + part) for n, part in enumerate(parts, 1)]
        )

    def extended_xmp(text: bytes) -> bytes:
        packet = _xmp(text)
        head = b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">II", len(packet), 0)
        return with_segments(jpeg, segment(0xE1, head + packet))

    def in_second_picture(text: bytes) -> bytes:
        file, second = io.BytesIO(), photo(SIZE)
        photo(SIZE).save(file, "MPO", save_all=True, append_images=[second])
        made = file.getvalue()
        return made + with_segments(jpeg, segment(0xE1, b"Exif\0\0" + _exif_places()["artist"](text)))

    def in_extension(text: bytes) -> bytes:
        thumbnail = with_segments(encoded(photo((16, 16)), "JPEG").getvalue(), segment(0xFE, text))
        return with_segments(jpeg, segment(0xE0, b"JFXX\0\x10" + thumbnail))

    def in_thumbnail(text: bytes) -> bytes:
        pixels = (text * 8)[:48]  # 4 x 4, three bytes each
        return jpeg[:2] + segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\4\4" + pixels) + jpeg[20:]

    def in_spare_table(text: bytes) -> bytes:
        return with_segments(jpeg, segment(0xDB, bytes((3,)) + text.ljust(64, b"\1")))

    def in_spare_codes(text: bytes) -> bytes:
        counts = bytes(7) + bytes((len(text),)) + bytes(8)
        return with_segments(jpeg, segment(0xC4, bytes((0x13,)) + counts + text))

    places: dict[str, Plant] = {
        "comment": with_segment(0xFE),
        "comments": lambda text: with_segments(jpeg, *[segment(0xFE, text)] * 50),
        "xmp": around(_xmp, 0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
        "xmp-utf-16": lambda text: with_segments(
            jpeg,
            segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + b"\xff\xfe" + _xmp(text).decode().encode("utf-16-le")),
        ),
        "extended-xmp": extended_xmp,
        "iptc": around(lambda text: _photoshop(0x0404, _iptc(text)), 0xED, b"Photoshop 3.0\0"),
        "photoshop-caption": around(lambda text: _photoshop(0x03F0, text), 0xED, b"Photoshop 3.0\0"),
        "photoshop-thumbnail": around(lambda text: _photoshop(0x040C, bytes(28) + text), 0xED, b"Photoshop 3.0\0"),
        "profile-in-two-parts": in_parts,
        "adobe-with-more-behind": lambda text: with_segments(jpeg, segment(0xEE, b"Adobe\0\x64\0\0\0\0\1" + text)),
        "second-picture": in_second_picture,
        "multi-picture-index": with_segment(0xE2, b"MPF\0II*\0"),
        "content-credentials": with_segment(0xEB, b"JP\0\1\0\0\0\1\0\0\0\x40jumb\0\0\0\x20jumd"),
        "picture-info": with_segment(0xEC, b"[picture info]\r\nName="),
        "ducky": with_segment(0xEC, b"Ducky\0\2\0\x20"),
        "jfif-extension": in_extension,
        "jfif-thumbnail": in_thumbnail,
        "spare-quantization-table": in_spare_table,
        "spare-huffman-codes": in_spare_codes,
        "behind-the-end": lambda text: jpeg + text,
        "far-behind-the-end": lambda text: jpeg + bytes(100_000) + text,
        "in-front-of-the-end": lambda text: jpeg[:-2] + text + jpeg[-2:],
        "a-comment-in-front-of-the-end": lambda text: jpeg[:-2] + segment(0xFE, text) + jpeg[-2:],
        "grey-profile": lambda text: with_segments(
            grey,
            segment(
                0xE2,
                b"ICC_PROFILE\0\1\1" + _with_tag(linear_grey_profile(), b"cprt", b"text" + bytes(4) + text + b"\0"),
            ),
        ),
    }
    for number in range(16):
        places[f"application-{number}"] = with_segment(0xE0 + number, b"Private\0")
    for name, make in _exif_places().items():
        places[f"exif-{name}"] = around(make, 0xE1, b"Exif\0\0")
    for name, make in _profiles().items():
        places[f"profile-{name}"] = around(make, 0xE2, b"ICC_PROFILE\0\1\1")
    return {f"jpeg-{name}": plant for name, plant in places.items()}


def _in_png() -> dict[str, Plant]:
    png = honest()["rgb.png"]

    def with_chunk(name: bytes, before: bytes = b"", make: Plant = bytes, where: bytes = b"IDAT") -> Plant:
        return lambda text: with_chunks(png, chunk(name, before + make(text)), before=where)

    def packed_profile(make: Plant) -> Plant:
        return lambda text: with_chunks(png, chunk(b"iCCP", b"ICC\0\0" + zlib.compress(make(text))))

    def behind_pixels(text: bytes) -> bytes:
        at = png.index(b"IDAT") - 4
        (length,) = struct.unpack_from(">I", png, at)
        return png[:at] + chunk(b"IDAT", png[at + 8 : at + 8 + length] + text) + chunk(b"IEND")

    def below_the_picture(text: bytes) -> bytes:
        row = (b"\0" + text * 30)[: 1 + 64 * 3]
        rows = (bytes(1) + bytes(64 * 3)) * 64 + row * 10
        return PNG_SIGNATURE + header_chunk(64, 64) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")

    def in_spare_colours(text: bytes) -> bytes:
        colours = (bytes(3) + text * 40)[: 256 * 3]
        rows = zlib.compress((bytes(1) + bytes(64)) * 64)
        head = header_chunk(64, 64, 8, 3) + chunk(b"PLTE", colours)
        return PNG_SIGNATURE + head + chunk(b"IDAT", rows) + chunk(b"IEND")

    def in_a_frame(text: bytes) -> bytes:
        control = struct.pack(">5IHHBB", 0, *SIZE, 0, 0, 1, 10, 0, 0)
        moving = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", control)
        later = chunk(b"fcTL", struct.pack(">I", 1) + control[4:]) + chunk(b"fdAT", struct.pack(">I", 2) + text)
        return with_chunks(with_chunks(png, moving), later, before=b"IEND")

    places: dict[str, Plant] = {
        "text": with_chunk(b"tEXt", b"Comment\0"),
        "text-behind-the-pixels": with_chunk(b"tEXt", b"Comment\0", where=b"IEND"),
        "packed-text": with_chunk(b"zTXt", b"Comment\0\0", zlib.compress),
        "international-text": with_chunk(b"iTXt", b"Comment\0\0\0en\0Comment\0"),
        "packed-international-text": with_chunk(b"iTXt", b"Comment\0\1\0en\0Comment\0", zlib.compress),
        "xmp": with_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0", _xmp),
        "keyword": lambda text: with_chunks(png, chunk(b"tEXt", text + b"\0value")),
        "exif-as-text": with_chunk(
            b"tEXt", b"Raw profile type exif\0\nexif\n  100\n", lambda text: text + b"\n" + text.hex().encode()
        ),
        "exif-behind-the-pixels": with_chunk(b"eXIf", b"", _exif_places()["artist"], b"IEND"),
        "private-chunk": with_chunk(b"prVt"),
        "private-chunk-behind-the-pixels": with_chunk(b"prVt", where=b"IEND"),
        "content-credentials": with_chunk(b"caBX", b"\0\0\0\x40jumb"),
        "suggested-palette": lambda text: with_chunks(png, chunk(b"sPLT", text + b"\0\x08" + bytes(6))),
        "name-of-a-profile": lambda text: with_chunks(
            png, chunk(b"iCCP", text + b"\0\0" + zlib.compress(swapping_profile()))
        ),
        "behind-the-end": lambda text: png + text,
        "a-chunk-behind-the-end": lambda text: png + chunk(b"tEXt", b"a\0" + text),
        "behind-the-pixels": behind_pixels,
        "below-the-picture": below_the_picture,
        "spare-colours": in_spare_colours,
        "a-later-frame": in_a_frame,
    }
    for name, make in _exif_places().items():
        places[f"exif-{name}"] = with_chunk(b"eXIf", b"", make)
    for name, make in _profiles().items():
        places[f"profile-{name}"] = packed_profile(make)
    return {f"png-{name}": plant for name, plant in places.items()}


def _in_gif() -> dict[str, Plant]:
    screen, frame, end = gif_screen(64, 64), gif_frame(1, 1), b";"
    spare = bytes((0, 0, 0, 255, 255, 255))

    def with_extension(label: int, *before: bytes) -> Plant:
        return lambda text: screen + gif_extension(label, *before, text) + frame + end

    return {
        "gif-comment": with_extension(0xFE),
        "gif-comment-behind-the-frame": lambda text: screen + frame + gif_extension(0xFE, text) + end,
        "gif-comment-of-a-later-frame": lambda text: screen + frame + gif_extension(0xFE, text) + frame + end,
        "gif-xmp": lambda text: (
            screen + b"!\xff\x0bXMP DataXMP" + _xmp(text) + bytes(range(255, -1, -1)) + b"\0" + frame
        ),
        "gif-profile": with_extension(0xFF, b"ICCRGBG1012"),
        "gif-application": with_extension(0xFF, b"PRIVATE1.00"),
        "gif-plain-text": with_extension(0x01, struct.pack("<4H4B", 0, 0, 64, 64, 8, 8, 1, 0)),
        "gif-unknown-extension": with_extension(0x99),
        "gif-behind-the-pixels": lambda text: (
            screen + b"," + struct.pack("<4HBB", 0, 0, 1, 1, 0, 2) + sub_blocks(b"\x4c\x01" + text) + end
        ),
        "gif-behind-the-end": lambda text: screen + frame + end + text,
        "gif-spare-colours": lambda text: gif_screen(64, 64, (spare + text * 40)[: 256 * 3]) + frame + end,
    }


def _in_webp() -> dict[str, Plant]:
    picture = honest()["lossy.webp"][12:]
    lossless = honest()["lossless.webp"]
    pixels = lossless[lossless.index(b"VP8L") :]

    def extended(flags: int, name: bytes, make: Plant = bytes) -> Plant:
        return lambda text: riff(extended_header(flags, *SIZE), picture, riff_chunk(name, make(text)))

    def in_a_frame(text: bytes) -> bytes:
        wide, high = ((side - 1).to_bytes(3, "little") for side in SIZE)
        head = bytes(6) + wide + high + bytes(4)
        frames = [riff_chunk(b"ANMF", head + picture), riff_chunk(b"ANMF", head + picture + riff_chunk(b"prVt", text))]
        return riff(extended_header(2, *SIZE), riff_chunk(b"ANIM", bytes(6)), *frames)

    places: dict[str, Plant] = {
        "xmp": extended(4, b"XMP ", _xmp),
        "xmp-without-its-flag": extended(0, b"XMP ", _xmp),
        "unknown-chunk": extended(0, b"prVt"),
        "unknown-chunk-in-a-plain-file": lambda text: riff(picture, riff_chunk(b"prVt", text)),
        "lossless-exif": lambda text: riff(
            extended_header(0x18, *SIZE), pixels, riff_chunk(b"EXIF", _exif_places()["artist"](text))
        ),
        "behind-the-end": lambda text: riff(picture) + text,
        "a-later-frame": in_a_frame,
    }
    for name, make in _exif_places().items():
        places[f"exif-{name}"] = extended(8, b"EXIF", make)
    for name, make in _profiles().items():
        places[f"profile-{name}"] = lambda text, make=make: riff(  # type: ignore[misc] # a default is no argument
            extended_header(0x20, *SIZE), riff_chunk(b"ICCP", make(text)), picture
        )
    return {f"webp-{name}": plant for name, plant in places.items()}


def _in_tiff() -> dict[str, Plant]:
    size, pixels = (64, 64), [bytes(range(256)) * 48]

    def with_tag(number: int, kind: int = EXIF_UNDEFINED, make: Plant = bytes) -> Plant:
        return lambda text: tiff(size, pixels, entry(number, kind, make(text) + b"\0" * (kind == EXIF_ASCII)))

    def on_a_second_page(text: bytes) -> bytes:
        first = tiff(size, pixels)
        (start,) = struct.unpack_from("<I", first, 4)
        first = tiff(size, pixels, following=len(first))
        entries = [entry(256, 3, [1]), entry(257, 3, [1]), entry(270, EXIF_ASCII, text + b"\0"), entry(273, 4, [8])]
        assert start
        return first + ifd(entries, len(first))

    def in_sub_ifd(text: bytes) -> bytes:
        place = len(tiff(size, pixels, entry(330, EXIF_LONG, [0])))
        return tiff(size, pixels, entry(330, EXIF_LONG, [place])) + ifd([entry(270, EXIF_ASCII, text + b"\0")], place)

    texts = {"document": 269, "description": 270, "make": 271, "model": 272, "page": 285, "software": 305, "date": 306,
             "artist": 315, "computer": 316, "ink-names": 333, "image-id": 32781, "copyright": 33432,
             "geo": 34737, "camera": 50708}  # fmt: skip
    places: dict[str, Plant] = {name: with_tag(number, EXIF_ASCII) for name, number in texts.items()}
    places |= {
        "xmp": with_tag(700, 1, _xmp),
        "iptc": with_tag(33723, EXIF_UNDEFINED, _iptc),
        "photoshop": with_tag(34377, EXIF_UNDEFINED, lambda text: _photoshop(0x0404, _iptc(text))),
        "photoshop-layers": with_tag(37724),
        "private-tag": with_tag(65000),
        "windows-title": with_tag(0x9C9B, 1, in_utf16),
        "second-page": on_a_second_page,
        "sub-ifd": in_sub_ifd,
        "behind-the-end": lambda text: tiff(size, pixels) + text,
        "between-strip-and-ifd": lambda text: tiff(size, [pixels[0] + text], counts=len(pixels[0])),
    }
    for name, make in _profiles().items():
        places[f"profile-{name}"] = with_tag(34675, EXIF_UNDEFINED, make)
    for pointer, name in ((34665, "exif"), (34853, "gps")):
        places[f"{name}-ifd"] = lambda text, pointer=pointer: _tiff_with_ifd(size, pixels, pointer, text)  # type: ignore[misc] # a default is no argument
    return {f"tiff-{name}": plant for name, plant in places.items()}


def _tiff_with_ifd(size: tuple[int, int], pixels: list[bytes], pointer: int, text: bytes) -> bytes:
    place = len(tiff(size, pixels, entry(pointer, EXIF_LONG, [0])))
    number = 0x9286 if pointer == 34665 else 28
    inner = ifd([entry(number, EXIF_UNDEFINED, b"ASCII\0\0\0" + text)], place)
    return tiff(size, pixels, entry(pointer, EXIF_LONG, [place])) + inner


def _in_bmp() -> dict[str, Plant]:
    pixels = bytes(range(192)) * 64

    def with_profile(kind: bytes, make: Plant) -> Plant:
        def plant(text: bytes) -> bytes:
            profile = make(text)
            header = bytearray(bmp(64, 64, pixels, header=124, tail=profile))
            # Of the fifth header: the kind of colour space, then where the profile lies, from the header's start.
            header[14 + 56 : 14 + 60] = kind
            struct.pack_into("<II", header, 14 + 112, 124 + len(pixels), len(profile))
            return bytes(header)

        return plant

    return {
        "bmp-gap": lambda text: bmp(64, 64, pixels, gap=text),
        "bmp-behind-the-end": lambda text: bmp(64, 64, pixels, tail=text),
        "bmp-spare-colours": lambda text: bmp(64, 64, bytes(4096), depth=8, palette=(bytes(4) + text * 60)[:1024]),
        "bmp-embedded-profile": with_profile(b"DEBM", _profiles()["private-tag"]),
        "bmp-linked-profile": with_profile(b"KNIL", lambda text: b"C:\\Users\\" + text + b".icc\0"),
        "bmp-header-beyond-its-end": lambda text: (
            bmp(64, 64, pixels, header=124)[:54] + text + bmp(64, 64, pixels, header=124)[54 + len(text) :]
        ),
        "bmp-behind-the-end-of-its-runs": lambda text: bmp(
            64, 64, (b"\x40\1\0\0" * 64) + b"\0\1" + text, depth=8, compression=1, palette=bytes(range(256)) * 4
        ),
    }


def _in_avif() -> dict[str, Plant]:
    tile = encoded(Image.new("RGB", (64, 64), (200, 100, 50)), "AVIF", speed=10, max_threads=1).getvalue()
    image = photo(SIZE)

    def written(option: str, make: Plant) -> Plant:
        return lambda text: encoded(image, "AVIF", speed=10, max_threads=1, **{option: make(text)}).getvalue()

    def with_item(kind: bytes, make: Plant = bytes) -> Plant:
        return lambda text: grid_avif(tile, 2, 2, extra={kind: make(text)})

    plain = honest()["plain.avif"]
    places: dict[str, Plant] = {
        "exif": written("exif", _exif_places()["artist"]),
        "exif-maker-note": written("exif", _exif_places()["maker-note"]),
        "exif-gps-area": written("exif", _exif_places()["gps-area"]),
        "xmp": written("xmp", _xmp),
        "free-box": lambda text: plain + box(b"free", text),
        "skip-box": lambda text: plain + box(b"skip", text),
        "uuid-box": lambda text: plain + box(b"uuid", bytes(range(16)), text),
        "unknown-box": lambda text: plain + box(b"prVt", text),
        "second-mdat": lambda text: plain + box(b"mdat", text),
        "names-of-items": lambda text: grid_avif(tile, 2, 2, name=text),
        "exif-item-that-is-not-exif": with_item(b"Exif", lambda text: bytes(4) + _exif_places()["artist"](text)),
        "mime-item": with_item(b"mime", _xmp),
        "unknown-item": with_item(b"prVt"),
        "unknown-property": lambda text: grid_avif(tile, 2, 2, properties=[box(b"prVt", text)]),
        "user-description": lambda text: grid_avif(
            tile, 2, 2, properties=[full_box(b"udes", 0, 0, b"en\0" + text + b"\0\0\0")]
        ),
        "profile-of-a-grid": lambda text: grid_avif(
            tile, 2, 2, properties=[box(b"colr", b"prof", _profiles()["copyright"](text))]
        ),
    }
    for name in ("private-tag", "copyright-utf-16", "behind-its-tags"):
        places[f"profile-{name}"] = written("icc_profile", _profiles()[name])
    return {f"avif-{name}": plant for name, plant in places.items()}
