"""Opening: reads the header of an original for its size, orientation and colour profile. Decodes no pixels."""

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
from shared.renditions import MAX_SIDE, Size
from worker.child import profiles
from worker.child.failures import blame_the_file

#: Importing a plugin registers its format. No other format can be opened.
PLUGINS = (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

# Pillow's own JPEG opener also reads the index of further pictures that phones append (MPO), and fails if the index is
# broken. Only the first picture is served, so this opener ignores the index.
Image.register_open("JPEG", JpegImagePlugin.JpegImageFile, lambda prefix: prefix.startswith(b"\xff\xd8\xff"))
# A child has one core. By default libavif starts a thread for each core of the machine. Each thread takes a stack and
# an arena of the child's address space.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
# By default Pillow refuses a PNG whose text or profile unpacks to more than 1 MiB. Prompts of generated pictures and
# profiles of printers may be larger. Pillow's limit for all text of a file, 64 MiB, stays.
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 1024 * 1024

if HAS_HEIF:
    import pillow_heif

    # Read only the main picture, and decode its tiles one after the other. `decode_threads=1` would start a second
    # thread.
    pillow_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False, decode_threads=0)
    # HEIF is never written, and its encoder would start a thread for each core.
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
    """A picture whose header was read. `size` is the size after orientation."""

    size: Size
    format: str
    _image: ImageFile.ImageFile | None
    transpose: Image.Transpose | None
    profile: bytes | None

    def take(self) -> ImageFile.ImageFile:
        """Return the image and drop the reference to it, so that the caller can free its memory after the next step."""
        image, self._image = self._image, None
        if image is None:
            raise ValueError("this picture was rendered before")
        return image


def open_picture(file: BinaryIO, *, max_pixels: int, max_side: int = MAX_SIDE) -> OpenedPicture:
    """Read the header of the picture in `file`, which must stay open until the picture is rendered.

    Raises UnreadableImage, ImageTooLarge or RenderOutOfMemory, each with a message for the client.
    """
    # Pillow refuses at twice this limit, before WebP's decoder allocates the canvas.
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
        # The PNG plugin's own `getexif` would decode the pixels first, to find EXIF behind them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:
        # Ignore broken EXIF: the picture is shown as it is stored.
        orientation = 1
    if not isinstance(orientation, int) or orientation not in _TRANSPOSE:
        orientation = 1
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow turns a TIFF by this orientation when it loads the pixels. It has already swapped the sides, but by the
        # TIFF tag alone. The two differ if only XMP has the orientation.
        if (image.tag_v2.get(ExifTags.Base.Orientation) in _SWAPS_SIDES) != (orientation in _SWAPS_SIDES):
            width, height = height, width
        return (width, height), None
    if orientation in _SWAPS_SIDES:
        width, height = height, width
    return (width, height), _TRANSPOSE.get(orientation)


def _profile(image: ImageFile.ImageFile) -> bytes | None:
    """Return the embedded ICC profile, or one made from other information in the file. None means sRGB or unknown."""
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
    # CIPA DC-009, 4.4: cameras embed no profile of Adobe RGB. They set the colour space to "uncalibrated" and write
    # this mark.
    try:
        exif = Image.Image.getexif(image)
        is_uncalibrated = exif.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.ColorSpace) == 0xFFFF
        return is_uncalibrated and str(exif.get_ifd(ExifTags.IFD.Interop).get(1, "")).startswith("R03")
    except Exception:
        return False  # broken EXIF, as in `_orientation`
