"""The errors that asgilook raises on purpose. Each is named for what happened."""

from __future__ import annotations


class AsgilookError(Exception):
    """The base of all errors that asgilook raises."""


class SettingsError(AsgilookError):
    """A setting is missing or invalid. The message names its variable."""


class MismatchError(AsgilookError):
    """This process sees another storage, ledger or Redis than the other processes of the service."""


class RedisRefuses(AsgilookError):
    """Redis refuses the connection, or its certificate is not trusted. The message says what to set."""


class StorageUnavailable(AsgilookError):
    """Storage failed in a way that may be temporary."""


class StorageFull(StorageUnavailable):
    """Storage has no room left."""


class NoSuchKey(AsgilookError):
    """Storage holds nothing under this key."""


class StorageConflict(AsgilookError):
    """Another writer was faster, or a resumable draft has another length than its writer expects."""


class TooManyPieces(AsgilookError):
    """A resumable draft has too many pieces to be continued. Only a new upload can help."""


class LedgerUnavailable(AsgilookError):
    """The ledger failed in a way that may be temporary. A write may or may not have been committed."""


class NothingCommitted(LedgerUnavailable):
    """The ledger failed before the commit: the write did not happen, and will not happen later."""


class LedgerNotMigrated(AsgilookError):
    """The ledger's tables are missing or older than this code."""


class ReleaseStillRunning(AsgilookError):
    """The ledger cannot be migrated: a process of the former release still works on it."""


class LeaseLost(AsgilookError):
    """Another attempt, a retry or a DELETE took the image from this attempt."""


class UploadRefused(AsgilookError):
    """An upload is refused, and nothing of it is kept. The message, if there is one, may be shown to the client."""


class EmptyUpload(UploadRefused):
    """The file has no bytes."""


class UnknownFormat(UploadRefused):
    """The file's first bytes are not of an accepted format."""


class UploadTooLarge(UploadRefused):
    """The file is larger than allowed."""

    def __init__(self, at_most: int) -> None:
        super().__init__(f"At most {at_most:,} bytes are taken.")


class TruncatedUpload(UploadRefused):
    """The content ended before its announced length."""


class DigestMismatch(UploadRefused):
    """The content has another digest than the one that came with it."""


class DiskAtFloor(UploadRefused):
    """The upload would leave less free disk space than must stay free."""


class TooManyWaiting(UploadRefused):
    """The largest allowed number of images is already waiting."""


class RenderFailure(AsgilookError):
    """Rendering failed because of the file. `type` is the problem type in the image's record."""

    type: str

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class UnreadableImage(RenderFailure):
    """The file cannot be decoded."""

    type = "unreadable-image"


class ImageTooLarge(RenderFailure):
    """The image has more pixels, or a longer side, than is allowed."""

    type = "image-too-large"


class RenderTimedOut(RenderFailure):
    """Rendering reached its limit of CPU time or of elapsed time."""

    type = "render-timed-out"


class RenderOutOfMemory(RenderFailure):
    """Rendering reached its limit of memory."""

    type = "render-out-of-memory"


class DecoderCrashed(RenderFailure):
    """The child crashed. The image fails only at the second crash."""

    type = "decoder-crashed"


class NoChild(AsgilookError):
    """No child could be started in time. This worker is in trouble; other workers may be fine."""


class ChildLost(AsgilookError):
    """The child was killed from outside or did not answer. The file is not at fault."""
