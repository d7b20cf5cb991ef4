"""How the formats are put together, byte by byte: what Pillow would not write, these do."""

from __future__ import annotations

import itertools
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
EXIF_ASCII, EXIF_SHORT, EXIF_LONG, EXIF_UNDEFINED = 2, 3, 4, 7


def in_utf16(text: bytes, *, big_endian: bool = False) -> bytes:
    """Return an ASCII text as UTF-16 has it."""
    return text.decode("ascii").encode("utf-16-be" if big_endian else "utf-16-le")


# JPEG


def segment(marker: int, data: bytes, length: int | None = None) -> bytes:
    """Return a JPEG's segment; `length` is the one to claim."""
    return struct.pack(">BBH", 0xFF, marker, (len(data) + 2 if length is None else length) & 0xFFFF) + data


def segments_of(jpeg: bytes) -> list[tuple[int, bytes]]:
    """Return a JPEG's segments up to its first scan, whole."""
    found, at = [], 2
    while True:
        marker, length = struct.unpack_from(">xBH", jpeg, at)
        found.append((marker, jpeg[at : at + 2 + length]))
        at += 2 + length
        if marker == 0xDA:
            return found


def with_segments(jpeg: bytes, *inserted: bytes) -> bytes:
    """Return a JPEG with more segments, behind its JFIF header."""
    at = 4 + struct.unpack_from(">H", jpeg, 4)[0] if jpeg[2:4] == b"\xff\xe0" else 2
    return jpeg[:at] + b"".join(inserted) + jpeg[at:]


def with_frame_header(jpeg: bytes, **changed: int) -> bytes:
    """Return a JPEG that claims another `marker`, `precision`, `height`, `width` or number of `components`."""
    at = next(jpeg.index(whole) for marker, whole in segments_of(jpeg) if 0xC0 <= marker <= 0xC2)
    names = ("marker", "precision", "height", "width", "components")
    values = dict(zip(names, struct.unpack_from(">xBxxBHHB", jpeg, at), strict=True)) | changed
    header = jpeg[at : at + 1] + bytes((values["marker"],)) + jpeg[at + 2 : at + 4]
    header += struct.pack(">BHHB", *(values[name] for name in names[1:]))
    return jpeg[:at] + header + jpeg[at + 10 :]


def flat_jpeg(width: int, height: int, scans: int = 0) -> bytes:
    """Return a grey JPEG without detail; with `scans`, a progressive one of so many passes over all of it.

    Its Huffman codes have one bit each: 0 is "no difference" and "nothing more in this block".
    """
    blocks = ((width + 7) // 8) * ((height + 7) // 8)
    frame = struct.pack(">BHHB", 8, height, width, 1) + bytes((1, 0x11, 0))
    dc = segment(0xC4, bytes((0x00, 1)) + bytes(15) + b"\x00")
    start = b"\xff\xd8" + segment(0xDB, bytes(1) + bytes((1,)) * 64)
    if not scans:
        ac = segment(0xC4, bytes((0x10, 1)) + bytes(15) + b"\x00")
        scan = segment(0xDA, bytes((1, 1, 0x00, 0, 63, 0)))
        return start + segment(0xC0, frame) + dc + ac + scan + bytes((blocks * 2 + 7) // 8) + b"\xff\xd9"
    first = dc + segment(0xDA, bytes((1, 1, 0x00, 0, 0, 0))) + bytes((blocks + 7) // 8)
    # One symbol, EOB14: a run of 2^14 blocks and as many as its 14 further bits say, in which nothing changes.
    ac = segment(0xC4, bytes((0x10, 1)) + bytes(15) + b"\xe0")
    run = "0" + "1" * 14
    bits = run * (blocks // 32767 + 1)
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    refinement = segment(0xDA, bytes((1, 1, 0x00, 1, 63, 0x10))) + data
    initial = segment(0xDA, bytes((1, 1, 0x00, 1, 63, 0x01))) + data
    return start + segment(0xC2, frame) + first + ac + initial + refinement * scans + b"\xff\xd9"


# Exchangeable image file format: the body of a TIFF, of IFDs


def entry(tag: int, kind: int, values: bytes | Sequence[int], count: int | None = None) -> tuple[int, int, int, bytes]:
    """Return an entry of an IFD: tag, type, count (which may lie), and its value's bytes, little-endian."""
    if isinstance(values, bytes):
        return tag, kind, len(values) if count is None else count, values
    code = {1: "B", EXIF_SHORT: "H", EXIF_LONG: "I", 16: "Q"}[kind]
    return tag, kind, len(values) if count is None else count, struct.pack(f"<{len(values)}{code}", *values)


def ifd(entries: Iterable[tuple[int, int, int, bytes]], at: int, following: int = 0, *, big: bool = False) -> bytes:
    """Return an IFD that will lie at the offset `at`, its longer values behind it; `big` as BigTIFF has it."""
    entries = sorted(entries)
    inline, per_entry, head = (8, 20, "<Q") if big else (4, 12, "<H")
    tail = at + struct.calcsize(head) + per_entry * len(entries) + inline
    table, values = struct.pack(head, len(entries)), b""
    for tag, kind, count, value in entries:
        if len(value) > inline:
            place = (tail + len(values)).to_bytes(inline, "little")
            values += value + bytes(len(value) % 2)
        else:
            place = value.ljust(inline, b"\0")
        table += struct.pack("<HHQ" if big else "<HHI", tag, kind, count) + place
    return table + following.to_bytes(inline, "little") + values


def exif(*entries: tuple[int, int, int, bytes], tail: bytes = b"") -> bytes:
    """Return EXIF of one IFD, as a TIFF has it; `tail` lies behind."""
    return b"II*\0" + struct.pack("<I", 8) + ifd(entries, 8) + tail


def nested_exif(pointer: int, *entries: tuple[int, int, int, bytes]) -> bytes:
    """Return EXIF whose first IFD only points, by the tag `pointer`, at another, which has the entries."""
    inner = 8 + 2 + 12 + 4
    return b"II*\0" + struct.pack("<I", 8) + ifd([entry(pointer, EXIF_LONG, [inner])], 8) + ifd(entries, inner)


def tiff(
    size: tuple[int, int],
    strips: Sequence[bytes],
    *more: tuple[int, int, int, bytes],
    following: int = 0,
    big: bool = False,
    **tags: int | Sequence[int],
) -> bytes:
    """Return a TIFF of three times eight bits a pixel, unless `tags` say so; its strips come first, then its IFD."""
    head = 16 if big else 8
    offsets = list(itertools.accumulate((len(strip) for strip in strips[:-1]), initial=head))
    known: dict[str, tuple[int, int, int | Sequence[int]]] = {
        "width": (256, EXIF_LONG, size[0]),
        "height": (257, EXIF_LONG, size[1]),
        "bits": (258, EXIF_SHORT, [8, 8, 8]),
        "compression": (259, EXIF_SHORT, 1),
        "photometric": (262, EXIF_SHORT, 2),
        "offsets": (273, EXIF_LONG, offsets),
        "samples": (277, EXIF_SHORT, 3),
        "rows": (278, EXIF_LONG, size[1]),
        "counts": (279, EXIF_LONG, [len(strip) for strip in strips]),
    }
    numbers = {tag for tag, *_ in more}
    entries = [*more]
    for name, (tag, kind, usual) in known.items():
        value = tags.get(name, usual)
        if tag not in numbers:
            entries.append(entry(tag, kind, [value] if isinstance(value, int) else value))
    at = head + sum(map(len, strips))
    start = b"II+\0" + struct.pack("<HHQ", 8, 0, at) if big else b"II*\0" + struct.pack("<I", at)
    return start + b"".join(strips) + ifd(entries, at, following, big=big)


# PNG


def chunk(name: bytes, data: bytes = b"", *, length: int | None = None, crc: int | None = None) -> bytes:
    """Return a PNG's chunk; `length` and `crc` are the ones to claim."""
    claimed = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data) if length is None else length) + name + data + struct.pack(">I", claimed)


def header_chunk(width: int, height: int, depth: int = 8, colour: int = 2, *rest: int) -> bytes:
    """Return a PNG's IHDR; `rest` is compression, filter and interlace."""
    return chunk(b"IHDR", struct.pack(">II5B", width, height, depth, colour, *(rest or (0, 0, 0))))


def flat_png(width: int, height: int, depth: int = 8, colour: int = 2, *rest: int) -> bytes:
    """Return a PNG of zeros only, whatever its size is."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * depth * channels + 7) // 8
    head = header_chunk(width, height, depth, colour, *rest)
    if colour == 3:
        head += chunk(b"PLTE", bytes((200, 100, 50)))
    return PNG_SIGNATURE + head + chunk(b"IDAT", deflated_zeros(row * height)) + chunk(b"IEND")


def with_chunks(png: bytes, *inserted: bytes, before: bytes = b"IDAT") -> bytes:
    """Return a PNG with more chunks in front of the first of a name."""
    at = png.index(before) - 4
    return png[:at] + b"".join(inserted) + png[at:]


def deflated_zeros(count: int) -> bytes:
    """Return a zlib stream of so many zeros: a thousandth of them."""
    packer, piece, parts = zlib.compressobj(9), bytes(1024 * 1024), []
    for begin in range(0, count, len(piece)):
        parts.append(packer.compress(piece[: count - begin]))
    return b"".join(parts) + packer.flush()


# GIF


def sub_blocks(data: bytes) -> bytes:
    """Return data as a GIF has it: 255 bytes at a time, each with its length, then an empty one."""
    pieces = (data[at : at + 255] for at in range(0, len(data), 255))
    return b"".join(bytes((len(piece),)) + piece for piece in pieces) + b"\0"


def gif_screen(width: int, height: int, colours: bytes = bytes((0, 0, 0, 255, 120, 0))) -> bytes:
    """Return what a GIF begins with; `colours` are two, four, eight …"""
    bits = (len(colours) // 3).bit_length() - 2
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF0 | bits, 0, 0) + colours


def gif_frame(
    width: int, height: int, *, left: int = 0, top: int = 0, data: bytes | None = None, bits: int = 2
) -> bytes:
    """Return a frame: `data` is LZW; without it, one pixel of the second colour."""
    data = b"\x4c\x01" if data is None else data
    return b"," + struct.pack("<HHHHB", left, top, width, height, 0) + bytes((bits,)) + sub_blocks(data)


def gif_extension(label: int, *blocks: bytes) -> bytes:
    return b"!" + bytes((label,)) + b"".join(bytes((len(block),)) + block for block in blocks) + b"\0"


# WebP


def riff(*chunks: bytes, length: int | None = None) -> bytes:
    """Return a WebP of these chunks; `length` is the one to claim."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body


def riff_chunk(name: bytes, data: bytes, length: int | None = None) -> bytes:
    return name + struct.pack("<I", len(data) if length is None else length) + data + bytes(len(data) % 2)


def riff_chunks_of(webp: bytes) -> list[tuple[bytes, bytes]]:
    """Return a WebP's chunks, each with its name."""
    found, at = [], 12
    while at + 8 <= len(webp):
        (length,) = struct.unpack_from("<I", webp, at + 4)
        found.append((webp[at : at + 4], webp[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return found


def extended_header(flags: int, width: int, height: int) -> bytes:
    """Return a WebP's VP8X: bits for 0x20 ICC, 0x10 alpha, 0x08 EXIF, 0x04 XMP, 0x02 animation."""
    return riff_chunk(
        b"VP8X", struct.pack("<I", flags) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    )


def flat_webp(width: int, height: int, *, version: int = 0) -> bytes:
    """Return a lossless WebP of one colour in 32 bytes: of each Huffman code there is one symbol, of no bits."""
    fields = [(0x2F, 8), (width - 1, 14), (height - 1, 14), (0, 1), (version, 3), (0, 3), *[(0b0001, 4)] * 5]
    value = shift = 0
    for number, bits in fields:
        value |= number << shift
        shift += bits
    return riff(riff_chunk(b"VP8L", value.to_bytes((shift + 7) // 8 + 4, "little")))


# BMP


def bmp(
    width: int,
    height: int,
    pixels: bytes,
    *,
    depth: int = 24,
    compression: int = 0,
    palette: bytes = b"",
    gap: bytes = b"",
    header: int = 40,
    tail: bytes = b"",
    **claimed: int,
) -> bytes:
    """Return a BMP; `claimed` may give another `offset` of the pixels, `length` of the file or number of `colours`."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, depth)
    else:
        colours = claimed.get("colours", len(palette) // 4)
        info = struct.pack("<IiiHHIIiiII", header, width, height, 1, depth, compression, len(pixels), 0, 0, colours, 0)
        info = info.ljust(header, b"\0")
    offset = 14 + len(info) + len(palette) + len(gap)
    body = info + palette + gap + pixels + tail
    head = struct.pack("<2sIHHI", b"BM", claimed.get("length", 14 + len(body)), 0, 0, claimed.get("offset", offset))
    return head + body


# AVIF: boxes of the ISO base media file format


def box(name: bytes, *parts: bytes, length: int | None = None) -> bytes:
    """Return a box; `length` is the one to claim."""
    data = b"".join(parts)
    return struct.pack(">I", len(data) + 8 if length is None else length) + name + data


def full_box(name: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    return box(name, struct.pack(">I", version << 24 | flags), *parts)


def boxes_in(data: bytes) -> dict[bytes, bytes]:
    """Return the boxes that lie in `data` one behind the other, by their names (the first of each)."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        found.setdefault(name, data[at + 8 : at + length])
        at += max(length, 8)
    return found


FILE_TYPE = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")


def grid_avif(
    tile: bytes,
    columns: int,
    rows: int,
    size: tuple[int, int] | None = None,
    *,
    name: bytes = b"",
    items: int | None = None,
    extra: Mapping[bytes, bytes] | None = None,
    properties: Sequence[bytes] = (),
    loop: bool = False,
) -> bytes:
    """Return an AVIF made of tiles that are all the same one: `tile` is an AVIF, as Pillow writes it.

    `size` is the one to claim, `items` how many tiles there are, `name` an item's, `extra` further items by their type
    (`mime` has a content type), `properties` more of the whole's; with `loop` the whole is made of itself.
    """
    meta = boxes_in(boxes_in(tile)[b"meta"][4:])
    props = boxes_in(boxes_in(meta[b"iprp"])[b"ipco"])
    coded = boxes_in(tile)[b"mdat"]
    side = struct.unpack_from(">II", props[b"ispe"], 4)
    width, height = size or (columns * side[0], rows * side[1])
    count = columns * rows if items is None else items
    extra = dict(extra or {})
    grid = struct.pack(">BBBBII", 0, 1, (rows - 1) & 255, (columns - 1) & 255, width, height)
    payloads = [grid, *extra.values(), coded]
    kinds = [b"grid", *extra, *[b"av01"] * count]
    infos = b""
    for number, kind in enumerate(kinds, 1):
        more = b"application/rdf+xml\0" if kind == b"mime" else b""
        infos += full_box(b"infe", 2, number > 1, struct.pack(">HH", number, 0), kind, name + b"\0", more)
    first = 2 + len(extra)
    numbers = [1] * count if loop else list(range(first, first + count))
    spatial = [full_box(b"ispe", 0, 0, struct.pack(">II", w, h)) for w, h in ((width, height), side)]
    pixel = box(b"pixi", props[b"pixi"])
    container = box(b"ipco", spatial[0], spatial[1], pixel, box(b"av1C", props[b"av1C"]), *properties)
    others = [5 + number for number in range(len(properties))]
    associations = struct.pack(">HB", 1, 2 + len(others)) + bytes((1, 3, *others))
    associations += b"".join(
        struct.pack(">HB", number, 3) + bytes((2, 3, 0x84)) for number in range(first, first + count)
    )
    mapping = full_box(b"ipma", 0, 0, struct.pack(">I", 1 + count), associations)
    single = b"dimg" + struct.pack(">HH", 1, count) + b"".join(struct.pack(">H", n) for n in numbers)

    def whole(at: int) -> bytes:
        places = [at + sum(map(len, payloads[:number])) for number in range(len(payloads))]
        index = [*range(1 + len(extra)), *[len(payloads) - 1] * count]
        located = b"".join(
            struct.pack(">HHHII", number, 0, 1, places[which], len(payloads[which]))
            for number, which in enumerate(index, 1)
        )
        inner = (
            full_box(b"hdlr", 0, 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, 0, struct.pack(">H", 1)),
            full_box(b"iloc", 0, 0, b"\x44\x00", struct.pack(">H", len(index)), located),
            full_box(b"iinf", 0, 0, struct.pack(">H", len(kinds)), infos),
            full_box(b"iref", 0, 0, struct.pack(">I", len(single) + 4), single),
            box(b"iprp", container, mapping),
        )
        return FILE_TYPE + full_box(b"meta", 0, 0, *inner) + box(b"mdat", *payloads)

    return whole(len(whole(0)) - sum(map(len, payloads)))
