"""Opening: read an original's header, and tell its size, orientation and colours before anything is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from shared.errors import ImageTooLarge, UnreadableImage
from shared.formats import HAS_HEIF, PILLOW_FORMATS, TAKEN
from shared.images import MAX_SIDE, Size
from worker.child import profiles
from worker.child.failures import blame_the_file

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


@dataclass
class OpenedPicture:
    """An opened picture of which only the header was read; `size` is what it will have when oriented."""

    size: Size
    format: str
    _image: ImageFile.ImageFile | None
    transpose: Image.Transpose | None
    profile: bytes | None

    def take(self) -> ImageFile.ImageFile:
        # The only reference is handed on, so that each step's memory is free as soon as the next step is done.
        image, self._image = self._image, None
        if image is None:
            raise ValueError("this picture was rendered before")
        return image


def open_picture(file: BinaryIO, *, max_pixels: int, max_side: int = MAX_SIDE) -> OpenedPicture:
    """Read the header of the picture in `file`, which must stay open until the picture is rendered.

    Raises UnreadableImage, ImageTooLarge, RenderOutOfMemory: each with a sentence for its uploader.
    """
    # Pillow refuses at twice its own limit, and does so before WebP's decoder takes memory for the canvas.
    Image.MAX_IMAGE_PIXELS = (max_pixels + 1) // 2
    with blame_the_file(max_pixels):
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
    return OpenedPicture(size, image.format or "", image, transpose, profile)


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
