"""One picture to JPEGs: open by its header, decode, orient, convert to sRGB, flatten, then a ladder of halvings."""

from __future__ import annotations

import errno
import functools
import io
import math
import mmap
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO, Protocol, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageChops,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from shared.errors import ImageTooLarge, RenderFailure, RenderOutOfMemory, UnreadableImage
from shared.formats import HAS_HEIF, PILLOW_FORMATS, TAKEN
from shared.images import MAX_SIDE, Size
from worker.capacity import BYTES_PER_PIXEL
from worker.child import profiles

QUALITY = 85

#: Naming the plugins registers them; a format that is not among them cannot be opened by accident.
PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Pillow's own JPEG opener reads on into the pictures that a phone appends (MPO) and fails where their index is
# broken. We serve the first picture only, so the index is never looked at.
Image.register_open("JPEG", JpegImagePlugin.JpegImageFile, lambda prefix: prefix.startswith(b"\xff\xd8\xff"))
# A child is one slot on one core. libavif would start a thread for every core of the machine, and each would take
# its stack and its arena from the child's address space.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# Pillow refuses a picture whose text or profile unpacks to more than 1 MiB: a generated picture's recipe may, and a
# printer's profile. All of a file's text together may still have 64 MiB, nothing of which is kept.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 1024 * 1024

if HAS_HEIF:
    import pillow_heif

    # No more of a file than its picture, and its tiles one after the other; 1 would be a thread beside this one.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=0)
    # It is not for us to write, and its encoder starts a thread for every core.
    del Image.SAVE["HEIF"], Image.SAVE_ALL["HEIF"]

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = (5, 6, 7, 8)

#: What Pillow multiplies the grey levels of a PNG by, by the raw mode of its 2 and 4 bits.
_STRETCH = {"L;2": 85, "L;4": 17}

#: Of raw modes in which white is zero, those in which black is.
_UPRIGHT = {"1;I": "1", "1;IR": "1;R"} | {f"L;{bits}I{fill}": f"L;{bits}{fill}" for bits in "24" for fill in ("", "R")}
_UPRIGHT |= {"L;I": "L", "L;IR": "L;R"}

#: The mode in which Pillow hands pixels of an ICC profile's colour space to the colour engine.
_MODE_OF_SPACE = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
_SRGB = ImageCms.createProfile("sRGB")
#: Bytes of a profile that is remembered until other ones come.
_MOST_KEPT_PROFILE = 1024 * 1024
#: Colours on a grid over the whole cube, to find out what a profile does to them.
_CUBE = Image.frombytes(
    "RGB",
    (17 * 17, 17),
    bytes(v for r in range(17) for g in range(17) for b in range(17) for v in (15 * r, 15 * g, 15 * b)),
)

#: What an original's disk, not its content, answers with, or, EPERM, the filter of system calls. (A seek to a
#: nonsensical offset is the file's: EINVAL.)
_NOT_THE_FILES = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EPERM}
)


class Writable(Protocol):
    """What a JPEG is written to: a raw file, which may take less than it is given, or a buffer in memory."""

    def write(self, data: memoryview, /) -> int: ...


@dataclass
class Picture:
    """An opened picture of which only the header was read; `size` is what it will have when oriented."""

    size: Size
    format: str
    _image: ImageFile.ImageFile | None
    _transpose: Image.Transpose | None
    _profile: bytes | None

    def _take(self) -> ImageFile.ImageFile:
        # The only reference is handed on, so that each step's memory is free as soon as the next step is done.
        image, self._image = self._image, None
        if image is None:
            raise ValueError("this picture was rendered before")
        return image


def open_picture(file: BinaryIO, *, max_pixels: int, max_side: int = MAX_SIDE) -> Picture:
    """Read the header of the picture in `file`, which must stay open until the picture is rendered.

    Raises UnreadableImage, ImageTooLarge, RenderOutOfMemory: each with a sentence for its uploader.
    """
    # Pillow refuses at twice its own limit, and does so before WebP's decoder takes memory for the canvas.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    with _blaming_the_file(max_pixels):
        try:
            image = Image.open(file, formats=PILLOW_FORMATS)
        except Image.DecompressionBombError as exc:
            raise ImageTooLarge(f"The picture has more than the {max_pixels:,} pixels allowed.") from exc
        except UnidentifiedImageError as exc:
            raise UnreadableImage(f"This is no picture that we can read ({TAKEN}), or its start is damaged.") from exc
        size, transpose = _orientation(image)
        profile = _profile(image)
    width, height = size
    if max(size) > max_side:
        raise ImageTooLarge(f"The picture has {width:,} x {height:,} pixels; a side may have at most {max_side:,}.")
    if width * height > max_pixels:
        raise ImageTooLarge(f"The picture has {width:,} x {height:,} pixels; at most {max_pixels:,} are allowed.")
    return Picture(size, image.format or "", image, transpose, profile)


def render(
    picture: Picture,
    outputs: Mapping[Size, Writable],
    background: tuple[int, int, int],
    largest_written: Callable[[Size], None] = lambda size: None,
) -> dict[str, float]:
    """Write a JPEG of each size asked for into its file and return the stages' milliseconds.

    A size is the picture's own, or one on its ladder of halvings. `largest_written` is told the first of several
    when it is written. Raises UnreadableImage or RenderOutOfMemory for what the file did; whatever fails in encoding or
    writing comes out as it is, since that is ours.
    """
    unwritten = dict(outputs)
    if strangers := unwritten.keys() - set(_levels(picture.size)):
        raise ValueError(f"not on the ladder of {picture.size}: {sorted(strangers)}")
    stages: dict[str, float] = {}
    with _blaming_the_file(math.prod(picture.size)):
        with _timed(stages, "decode"):
            image = _decode(picture)
        with _timed(stages, "colour"):
            level = _flatten_to_srgb(image, picture._profile, background)
            del image
    # Pillow would carry a comment over into the JPEG.
    level.info.clear()
    try:
        for size in _levels(picture.size):
            with _timed(stages, "scale"):
                level = _scale(level, size, is_first=level.size == picture.size)
            if size in unwritten:
                with _timed(stages, "encode"):
                    _encode(level, unwritten.pop(size))
                if not unwritten:
                    break
                if len(unwritten) == len(outputs) - 1:
                    largest_written(size)
    except MemoryError as exc:
        raise _out_of_memory() from exc
    return stages


def _levels(size: Size) -> Iterator[Size]:
    width, height = size
    while width and height:
        yield width, height
        width, height = width // 2, height // 2


def _scale(level: Image.Image, size: Size, *, is_first: bool) -> Image.Image:
    if level.size == size:
        return level
    if not is_first:
        return level.resize(size, Image.Resampling.LANCZOS)
    # A box filter is as good as any for one exact halving and ten times as fast; a second one in a row shows. Along an
    # odd side it would shift the picture by half a pixel: there the halving is left to a filter.
    across, down = (2 if side % 2 == 0 else 1 for side in level.size)
    if across == down == 1:
        return level.resize(size, Image.Resampling.BICUBIC)  # two thirds of LANCZOS's time, on all these pixels
    halved = level.reduce((across, down))
    return halved if halved.size == size else halved.resize(size, Image.Resampling.LANCZOS)


def _encode(level: Image.Image, file: Writable) -> None:
    # Into memory first: writing to a descriptor by itself, Pillow takes no notice of a short write.
    jpeg = io.BytesIO()
    level.save(jpeg, "JPEG", quality=QUALITY, subsampling="4:2:0", optimize=False, progressive=False)
    rest = jpeg.getbuffer()
    while rest:
        rest = rest[file.write(rest) :]


def _orientation(image: ImageFile.ImageFile) -> tuple[Size, Image.Transpose | None]:
    try:
        # Not the PNG plugin's own method: that decodes the pixels first, in case there is EXIF behind them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # The pixels do not depend on the EXIF: where that is garbage, they are shown as they lie.
        orientation = 1
    if not isinstance(orientation, int) or orientation not in _TRANSPOSE:
        orientation = 1
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns a TIFF by itself as it loads, by the same EXIF, but swaps the sides beforehand by the tag alone:
        # the two differ where the orientation stands in XMP only.
        if (image.tag_v2.get(ExifTags.Base.Orientation) in _SWAPS_SIDES) != (orientation in _SWAPS_SIDES):
            width, height = height, width
        return (width, height), None
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    return (width, height), _TRANSPOSE.get(orientation)


def _profile(image: ImageFile.ImageFile) -> bytes | None:
    """Return the ICC profile that is embedded, or that says what the file says of its colours in another way."""
    embedded = image.info.get("icc_profile")
    if isinstance(image, PngImagePlugin.PngImageFile):
        file = cast("BinaryIO", image.fp)
        position = file.tell()
        named = profiles.of_png(file)
        file.seek(position)
        if named is not None:
            return named
    if isinstance(embedded, bytes):
        return embedded
    if "gamma" in image.info and "srgb" not in image.info:
        return profiles.of_gamma(image.info["gamma"], image.info.get("chromaticity"))
    if isinstance(image, AvifImagePlugin.AvifImageFile):
        return profiles.of_avif(cast("BinaryIO", image.fp))
    if "nclx_profile" in image.info:
        nclx = image.info["nclx_profile"]
        return profiles.of_code_points(nclx["color_primaries"], nclx["transfer_characteristics"])
    return profiles.of_adobe_rgb() if _is_marked_adobe_rgb(image) else None


def _is_marked_adobe_rgb(image: ImageFile.ImageFile) -> bool:
    # CIPA DC-009, 4.4: cameras embed no profile, but name the colour space "uncalibrated" and set a mark of their own.
    try:
        exif = Image.Image.getexif(image)
        is_uncalibrated = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) == 0xFFFF
        return is_uncalibrated and str(exif.get_ifd(ExifTags.IFD.Interop).get(1, "")).startswith("R03")
    except Exception:
        return False  # garbage, as in `_orientation`


def _decode(picture: Picture) -> Image.Image:
    opened = picture._take()
    image: Image.Image = opened
    if isinstance(opened, PngImagePlugin.PngImageFile):
        _load_png(opened)
    elif isinstance(opened, GifImagePlugin.GifImageFile):
        image = _load_gif(opened)
    elif isinstance(opened, TiffImagePlugin.TiffImageFile):
        _load_tiff(opened)
    else:
        # A CMYK JPEG comes out inverted whether or not it has Adobe's marker, and so it does from browsers: the only
        # ones without it are Adobe's that lost it on their way.
        opened.load()
    del opened
    if picture._transpose is not None:
        image = image.transpose(picture._transpose)
    if image.size != picture.size:
        raise UnreadableImage("The picture's size is not the one that its header tells.")
    return image


def _load_png(image: PngImagePlugin.PngImageFile) -> None:
    # The transparent colour is named in the file's own depth. Pillow fits the pixels to 8 bits and not the colour, and
    # once it has loaded them it does not know the depth any more.
    raw_mode = str(image.tile[0].args)
    transparent = image.info.get("transparency")
    if raw_mode == "RGB;16B" and isinstance(transparent, tuple):
        # Two colours may differ in their lower bytes only.
        alpha = _alpha_of_others(_lower_bytes(image), [value & 255 for value in transparent])
        image.load()
        alpha = ImageChops.lighter(alpha, _alpha_of_others(image, [value >> 8 for value in transparent]))
        image.info.pop("transparency", None)
        image.putalpha(alpha)
        return
    image.load()
    if raw_mode in _STRETCH and isinstance(transparent, int):
        stretch = _STRETCH[raw_mode]
        image.info["transparency"] = transparent % (255 // stretch + 1) * stretch


def _load_gif(image: GifImagePlugin.GifImageFile) -> Image.Image:
    # Where the first frame does not reach, nothing has been drawn. Pillow fills it with a colour, unless there is one
    # that is transparent.
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
    # Where Pillow reads a TIFF by other rules than libtiff, its raw modes are corrected.
    tags = image.tag_v2
    is_deep = tags.get(ExifTags.Base.BitsPerSample, (1,))[0] == 16
    is_fax = tags.get(ExifTags.Base.Compression, 1) in (2, 3, 4)
    for i, tile in enumerate(image.tile):
        if not isinstance(tile.args, tuple):
            continue
        raw_mode, *rest = tile.args
        if tile.codec_name == "raw" and is_deep and raw_mode in ("R", "G", "B"):
            # Band by band, and taken for 8 bits.
            raw_mode = f"{raw_mode};16{'L' if tags.prefix == b'II' else 'B'}"
        elif ExifTags.Base.PhotometricInterpretation not in tags and not is_fax:
            # Nothing says whether black is zero: it is, unless the file is a fax.
            raw_mode = _UPRIGHT.get(raw_mode, raw_mode)
        image.tile[i] = tile._replace(args=(raw_mode, *rest))
    image.load()


def _lower_bytes(image: PngImagePlugin.PngImageFile) -> Image.Image:
    # Of the two bytes of a value Pillow keeps the upper one: of little-endian values, which these are not, the second.
    file = cast("BinaryIO", image.fp)
    position = file.tell()
    file.seek(0)
    again = PngImagePlugin.PngImageFile(file)
    again.tile = [tile._replace(args="RGB;16L") for tile in again.tile]
    again.load()
    file.seek(position)
    return again


def _alpha_of_others(image: Image.Image, transparent: Sequence[int]) -> Image.Image:
    levels = range(65536 if image.mode == "I" else 256)
    return functools.reduce(
        ImageChops.lighter,
        (
            band.point([0 if level == value else 255 for level in levels], "L")
            for band, value in zip(image.split(), transparent, strict=True)
        ),
    )


def _flatten_to_srgb(image: Image.Image, profile: bytes | None, background: tuple[int, int, int]) -> Image.Image:
    colour, alpha = _separate_alpha(image)
    del image
    colour = _convert_to_srgb(colour, profile)
    if alpha is None or alpha.getextrema() == (255, 255):
        return _as_rgb(colour)
    # Twice as fast as to paste the background over the picture.
    canvas = Image.new("RGB", colour.size, background)
    canvas.paste(colour, mask=alpha)
    return canvas


def _separate_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        transparent = image.info.get("transparency")
        if image.mode == "I;16" and isinstance(transparent, int):
            return _eight_bits(image), _alpha_of_others(image.convert("I"), [transparent])
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
    # A TIFF stays what it was opened as, since it is turned in its place. Its tags are still to be heeded: for 8 bits
    # and fewer Pillow does it, for more it hands out the values as they lie in the file.
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    bits = tags.get(ExifTags.Base.BitsPerSample, (16,))[0]
    is_white_zero = tags.get(ExifTags.Base.PhotometricInterpretation) == 0
    if image.mode.startswith("I;16"):
        low, high = 0.0, 2.0**bits - 1
        image = image.convert("I")
    else:
        if image.mode == "I" and bits == 32 and tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
            image = _unsigned(image)
        # Nothing says what white is: the least customary range that holds all values, or the values' own.
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
    # Pillow has no mode for 32 bits without a sign: the upper half of the values comes out below zero.
    low, _ = cast("tuple[int, int]", image.getextrema())
    return image if low >= 0 else Image.frombytes("F", image.size, image.tobytes(), "raw", "F;32N")


def _convert_to_srgb(colour: Image.Image, profile: bytes | None) -> Image.Image:
    if profile is not None or colour.mode == "LAB":
        colour = _as_rgb(colour) if colour.mode == "RGBA" else colour
        try:
            return _through_profile(colour, profile)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            # A broken profile, or one of another kind of colour, is no reason to refuse the pixels.
            if colour.mode == "LAB":
                raise
    # What has its alpha with it can be pasted as it is.
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
    """Return the profile's colour space, and what takes its colours in a picture of `mode` to sRGB, if they change."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space == "RGB" and mode == "L":
        mode = "RGB"
    if _MODE_OF_SPACE.get(space) != mode:
        raise ValueError(f"a profile for {space} in a picture of {mode}")
    transform = ImageCms.buildTransform(source, _SRGB, mode, "RGB")
    return space, transform if mode != "RGB" or _changes_colours(transform) else None


#: The same few cameras, phones and presses come again and again.
_transform_met_before = functools.lru_cache(maxsize=4)(_transform)


def _changes_colours(transform: ImageCms.ImageCmsTransform) -> bool:
    # Most profiles are sRGB under one of its many names: no name is asked for, only what the profile does.
    difference = ImageChops.difference(_CUBE, transform.apply(_CUBE))
    return max(high for _, high in cast("tuple[tuple[int, int], ...]", difference.getextrema())) > 2


@contextmanager
def _blaming_the_file(pixels: int) -> Iterator[None]:
    with warnings.catch_warnings():
        # Pillow warns of what it forgives, and of large pictures, about which we have our own limit.
        warnings.simplefilter("ignore")
        try:
            yield
        except RenderFailure:
            raise
        except MemoryError as exc:
            raise _out_of_memory() from exc
        except Exception as exc:
            if isinstance(exc, OSError) and exc.errno in _NOT_THE_FILES:
                raise
            if "out of memory" in str(exc).lower():
                raise _out_of_memory() from exc
            if not _has_room_for(pixels):
                # libwebp and libjpeg do not tell a lack of memory from damage.
                raise RenderOutOfMemory(
                    "The picture needs more memory than a picture may take, or it is damaged."
                ) from exc
            raise UnreadableImage("The picture cannot be decoded: it is damaged or incomplete.") from exc


def _has_room_for(pixels: int) -> bool:
    try:
        mmap.mmap(-1, max(pixels, 1) * BYTES_PER_PIXEL, flags=mmap.MAP_PRIVATE).close()  # taken, and never touched
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _out_of_memory() -> RenderOutOfMemory:
    return RenderOutOfMemory("The picture needs more memory than a picture may take.")


@contextmanager
def _timed(stages: dict[str, float], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        stages[name] = round(stages.get(name, 0.0) + (time.perf_counter() - start) * 1000, 3)
