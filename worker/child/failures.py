"""Turns errors of decoders into a RenderFailure of the file, unless the file is not at fault."""

from __future__ import annotations

import errno
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import RenderFailure, RenderOutOfMemory, UnreadableImage
from worker.capacity import BYTES_PER_PIXEL

#: Errors of the disk that holds the original, and EPERM from the system-call filter. The file is not at fault for them.
#: EINVAL is not among them: a damaged file causes a seek to an invalid offset.
_NOT_THE_FILES = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EPERM}
)


@contextmanager
def blame_the_file(pixels: int) -> Iterator[None]:
    with warnings.catch_warnings():
        # Pillow warns about damage that it tolerates, and about large pictures. `open_picture` has its own limit.
        warnings.simplefilter("ignore")
        try:
            yield
        except RenderFailure:
            raise
        except MemoryError as exc:
            raise out_of_memory() from exc
        except Exception as exc:
            if isinstance(exc, OSError) and exc.errno in _NOT_THE_FILES:
                raise
            if "out of memory" in str(exc).lower():
                raise out_of_memory() from exc
            if not _has_room_for(pixels):
                # libwebp and libjpeg report a lack of memory as damage.
                raise RenderOutOfMemory(
                    "The picture needs more memory than a picture may take, or it is damaged."
                ) from exc
            raise UnreadableImage("The picture cannot be decoded: it is damaged or incomplete.") from exc


def _has_room_for(pixels: int) -> bool:
    try:
        mmap.mmap(-1, max(pixels, 1) * BYTES_PER_PIXEL, flags=mmap.MAP_PRIVATE).close()  # reserves, but never touches
    except (OSError, ValueError, OverflowError):
        return False
    return True


def out_of_memory() -> RenderOutOfMemory:
    return RenderOutOfMemory("The picture needs more memory than a picture may take.")
