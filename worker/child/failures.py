"""Turns the errors of decoders into those of the file that was decoded."""

from __future__ import annotations

import errno
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import RenderFailure, RenderOutOfMemory, UnreadableImage
from worker.capacity import BYTES_PER_PIXEL

#: Errors of the disk that the original is on, and EPERM, of the system-call filter: not the file's fault. EINVAL is: it
#: comes of a seek to an offset that makes no sense.
_NOT_THE_FILES = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EPERM}
)


@contextmanager
def blame_the_file(pixels: int) -> Iterator[None]:
    with warnings.catch_warnings():
        # Pillow warns about damage that it tolerates, and about large pictures, which have a limit of our own.
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
        mmap.mmap(-1, max(pixels, 1) * BYTES_PER_PIXEL, flags=mmap.MAP_PRIVATE).close()  # reserved, and never touched
    except (OSError, ValueError, OverflowError):
        return False
    return True


def out_of_memory() -> RenderOutOfMemory:
    return RenderOutOfMemory("The picture needs more memory than a picture may take.")
