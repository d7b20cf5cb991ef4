"""Every error asgilook raises on purpose, named for what happened."""

from __future__ import annotations


class AsgilookError(Exception):
    """Root of everything we raise on purpose."""


class SettingsError(AsgilookError):
    """A setting is missing or makes no sense; the message names its variable."""


class MismatchError(AsgilookError):
    """This process sees another storage, ledger or Redis than its companions do."""


class RedisRefuses(AsgilookError):
    """Redis answers, but does not let us in, or is not the one that we may trust; the message says what to set."""


class StorageUnavailable(AsgilookError):
    """Storage failed in a way that may pass."""


class StorageFull(StorageUnavailable):
    """Storage has no room left."""


class NoSuchKey(AsgilookError):
    """Storage holds nothing under this key."""


class LedgerUnavailable(AsgilookError):
    """The ledger failed in a way that may pass; what it was asked to write may or may not be there."""


class NothingCommitted(LedgerUnavailable):
    """The ledger failed before the commit: nothing of what it was asked to write is there, or will be."""


class LedgerNotMigrated(AsgilookError):
    """The ledger lacks its tables, or has older ones."""


class LeaseLost(AsgilookError):
    """Another attempt, a retry or a DELETE has taken the image from this attempt."""


class RenderFailure(AsgilookError):
    """Rendering failed by the file's fault; `type` is the problem type that its uploader sees."""

    type = "unreadable-image"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class UnreadableImage(RenderFailure):
    """The file is no picture that can be decoded."""

    type = "unreadable-image"


class ImageTooLarge(RenderFailure):
    """The picture has more pixels, or a longer side, than is allowed."""

    type = "image-too-large"


class RenderTimedOut(RenderFailure):
    """The picture spent its limit of CPU or wall time."""

    type = "render-timed-out"


class RenderOutOfMemory(RenderFailure):
    """The picture spent its limit of memory."""

    type = "render-out-of-memory"


class DecoderCrashed(RenderFailure):
    """The child died of a signal that nobody sent; final only when it happens a second time."""

    type = "decoder-crashed"


class NoChild(AsgilookError):
    """No child could be started in time: a trouble of this worker's, which others may not have."""


class ChildLost(AsgilookError):
    """The child was killed from outside or could not be talked to: ours to bear, not the file's."""
