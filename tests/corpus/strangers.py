"""What is no picture of a format that we take, whatever it calls itself; most of it Pillow would open."""

from __future__ import annotations

import gzip
import io
import json
import struct
import zipfile
from collections.abc import Iterator

from tests.corpus.formats import bmp, box, segment, tiff
from tests.corpus.honest import SIZE, honest
from tests.corpus.specimens import FOREIGN, UNREADABLE, Specimen
from tests.worker.pictures import encoded, photo

#: What Ghostscript would run, if anything ever handed it over.
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(%pipe%touch /tmp/pwned) (w) file\n%%EOF\n"
)
HTML = b"<!DOCTYPE html><html><body><script>alert(document.domain)</script></body></html>"


def specimens() -> Iterator[Specimen]:
    for name, content in {**openable(), **_by_their_magic(), **_of_other_kinds()}.items():
        yield Specimen(f"strangers/{name}", content, FOREIGN)
    # Where the extra for it is installed, the door lets it in; there is no picture in it.
    heic = box(b"ftyp", b"heic", bytes(4), b"mif1heic") + box(b"meta", bytes(64))
    yield Specimen("strangers/heic", heic, FOREIGN | UNREADABLE)
    for name, content in _in_disguise().items():
        yield Specimen(f"strangers/{name}", content, UNREADABLE)


def openable() -> dict[str, bytes]:
    """Return what Pillow writes and reads beside our formats."""
    image = photo(SIZE)
    written = {
        name.lower(): encoded(image, name)
        for name in ("DIB", "EPS", "ICO", "ICNS", "JPEG2000", "PCX", "PPM", "SGI", "TGA", "DDS", "QOI")
    }
    written["msp"] = encoded(image.convert("1"), "MSP")
    written["xbm"] = encoded(image.convert("1"), "XBM")
    written["spider"] = encoded(image.convert("F"), "SPIDER")
    written["blp"] = encoded(image.quantize(256), "BLP")
    written["tga-rle"] = encoded(image, "TGA", compression="tga_rle")
    written["pbm"] = encoded(image.convert("1"), "PPM")
    return {name: file.getvalue() for name, file in written.items()}


def _by_their_magic() -> dict[str, bytes]:
    """Return what the openers of Pillow's other plugins look for, with little behind it."""
    body = bytes(range(256)) * 4
    flic = struct.pack("<IHHHHHHI", 4096, 0xAF12, 1, 64, 64, 8, 3, 10)
    return {
        "bufr": b"BUFR" + body,
        "cur": b"\0\0\2\0\1\0\x20\x20\0\0\0\0\0\0" + body,
        "dcx": struct.pack("<III", 0x3ADE68B1, 12, 0) + body,
        "fits": b"SIMPLE  =                    T".ljust(80) + b"BITPIX  =                    8".ljust(80) + body,
        "fli": flic + body,
        "fpx": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + body,
        "ftex": b"FTEX" + body,
        "gbr": struct.pack(">IIII4s", 28, 2, 16, 16, b"GIMP") + body,
        "grib": b"GRIB\0\0\0\1" + body,
        "hdf5": b"\x89HDF\r\n\x1a\n" + body,
        "im": b"Image type: RGB image\r\nImage size (x*y): 16*16\r\n\x1a".ljust(512, b"\0") + body,
        "imt": b"10\nwidth 8\nheight 8\n\x0c" + body,
        "iptc": b"\x1c\x03\x00\x00\x01\x01" + body,
        "mcidas": b"\0\0\0\0\0\0\0\4" + body,
        "mpeg": b"\0\0\1\xb3\x10\x00\x10\x13" + body,
        "palm": encoded(photo(SIZE).convert("1"), "PALM").getvalue(),
        "pcd": bytes(2048) + b"PCD_" + body,
        "pixar": b"\200\350\000\000" + body,
        "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + bytes(12) + body,
        "sun": struct.pack(">8I", 0x59A66A95, 16, 16, 24, 768, 1, 0, 0) + body,
        "wal": b"texture".ljust(32, b"\0") + struct.pack("<II", 16, 16) + body,
        "wmf": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<4hH", 0, 0, 64, 64, 72) + body,
        "emf": b"\1\0\0\0" + bytes(36) + b" EMF" + body,
        "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "  c #ff0000", " "};\n',
        "xv-thumbnail": b"P7 332\n#END_OF_COMMENTS\n8 8 255\n" + body,
        "eps-of-dos": b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 32, len(POSTSCRIPT)) + bytes(20) + POSTSCRIPT,
    }


def _of_other_kinds() -> dict[str, bytes]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr(zipfile.ZipInfo("photo.jpg"), honest()["baseline.jpeg"])
    return {
        "postscript": POSTSCRIPT,
        "html": HTML,
        "svg": b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"><image href="file:///etc/passwd"/></svg>',
        "svg-with-entities": b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY a SYSTEM "file:///etc/passwd">]><svg>&a;</svg>',
        "imagemagick-script": b"push graphic-context\nviewbox 0 0 64 64\nimage over 0,0 0,0 'ephemeral:/tmp/x'\n",
        "imagemagick-msl": b'<?xml version="1.0"?><image><read filename="/etc/passwd"/></image>',
        "javascript": b"alert(1);//",
        "php": b"<?php system($_GET['c']); ?>",
        "shell": b"#!/bin/sh\ntouch /tmp/pwned\n",
        "elf": b"\x7fELF\2\1\1" + bytes(57),
        "dos-program": b"MZ" + bytes(62) + b"PE\0\0",
        "java-class": b"\xca\xfe\xba\xbe\0\0\0\x34" + bytes(56),
        "zip": archive.getvalue(),
        "gzip": gzip.compress(honest()["baseline.jpeg"], mtime=0),
        "tar": b"photo.jpg".ljust(257, b"\0") + b"ustar\x0000" + bytes(248),
        "rar": b"Rar!\x1a\x07\x01\0" + bytes(56),
        "pdf": b"%PDF-1.4\n1 0 obj<</Type/Catalog/OpenAction<</S/JavaScript/JS(app.alert(1))>>>>endobj\n%%EOF",
        "sqlite": b"SQLite format 3\0" + bytes(84),
        "pickle": b"\x80\x04\x95\x10\0\0\0\0\0\0\0\x8c\x05posix\x8c\x06system\x93.",
        "msgpack": b"\x81\xa2ok\xc3",
        "json": json.dumps({"image": "data:image/png;base64,AAAA"}).encode(),
        "mp4": box(b"ftyp", b"isom", bytes(4), b"isomiso2avc1mp41") + box(b"moov", bytes(64)),
        "jpeg-xl": b"\xff\x0a" + bytes(62),
        "jpeg-xl-in-boxes": box(b"JXL ", b"\r\n\x87\n") + box(b"ftyp", b"jxl ", bytes(4), b"jxl "),
        "avi": b"RIFF" + struct.pack("<I", 64) + b"AVI LIST" + bytes(56),
        "wav": b"RIFF" + struct.pack("<I", 64) + b"WAVEfmt " + bytes(56),
        "crw": b"II\x1a\0\0\0HEAPCCDR" + bytes(64),
        "raf": b"FUJIFILMCCD-RAW " + bytes(64),
        "zeros": bytes(1024),
        "spaces": b" " * 1024,
        "one-byte": b"\xff",
        "text-that-begins-with-bm": b"BMX bicycles are fun, and this text is long enough to have a header.",
        "jpeg-behind-a-newline": b"\n" + honest()["baseline.jpeg"],
        "png-of-a-text-transfer": honest()["rgb.png"].replace(b"\r\n", b"\n"),
        "jpeg-in-base64": b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ==",
    }


def _in_disguise() -> dict[str, bytes]:
    """Return strangers behind the first bytes of a format that we take: the door lets them in, and no decoder does."""
    starts = {
        "jpeg": b"\xff\xd8\xff\xe0",
        "png": b"\x89PNG\r\n\x1a\n",
        "gif": b"GIF89a",
        "webp": b"RIFF\xff\xff\0\0WEBP",
        "tiff": b"II*\0",
        "tiff-big-endian": b"MM\0*",
        "bmp": b"BM" + bytes(12) + b"\x28\0\0\0",
        "avif": box(b"ftyp", b"avif", bytes(4), b"avif"),
    }
    behind = {
        "postscript": POSTSCRIPT,
        "html": HTML + bytes(64),
        "elf": b"\x7fELF\2\1\1" + bytes(121),
        "ones": b"\xff" * 512,
    }
    made = {f"{other}-behind-{start}": starts[start] + content for start in starts for other, content in behind.items()}
    eps = openable()["eps"]
    made["eps-in-a-jpeg-segment-alone"] = b"\xff\xd8" + segment(0xE0, eps[:60000]) + b"\xff\xd9"
    made["bmp-with-a-jpeg-in-it"] = bmp(*SIZE, honest()["baseline.jpeg"], depth=0, compression=4)
    made["bmp-with-a-png-in-it"] = bmp(*SIZE, honest()["rgb.png"], depth=0, compression=5)
    made["heif-that-calls-itself-avif"] = box(b"ftyp", b"avif", bytes(4), b"heicavif") + box(b"meta", bytes(64))
    made["tiff-with-a-png-in-it"] = tiff(SIZE, [honest()["rgb.png"]], compression=50001)
    return made


def undisguised() -> list[bytes]:
    """Return all that Pillow would open: for those who ask its openers and not the door."""
    return [*openable().values(), *_by_their_magic().values(), POSTSCRIPT]
