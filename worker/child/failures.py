"""What an error of a decoder says about the file that it decoded."""

from __future__ import annotations

import errno
import mmap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import RenderFailure, RenderOutOfMemory, UnreadableImage
from worker.capacity import BYTES_PER_PIXEL

#: What an original's disk, not its content, answers with, or, EPERM, the filter of system calls. (A seek to a
#: nonsensical offset is the file's: EINVAL.)
_NOT_THE_FILES = frozenset(
    {errno.EIO, errno.ESTALE, errno.ENODEV, errno.ENXIO, errno.ETIMEDOUT, errno.ENOTCONN, errno.EPERM}
)


@contextmanager
def blame_the_file(pixels: int) -> Iterator[None]:
    with warnings.catch_warnings():
        # Pillow warns of what it forgives, and of large pictures, about which we have our own limit.
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


def out_of_memory() -> RenderOutOfMemory:
    return RenderOutOfMemory("The picture needs more memory than a picture may take.")
