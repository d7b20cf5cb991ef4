"""Makes the storage that the settings name."""

from __future__ import annotations

from shared.settings import Settings
from shared.storage import Storage
from shared.storage.cached import CachedStorage
from shared.storage.disk import DiskStorage


def open_storage(settings: Settings, *, cached: bool = False) -> Storage:
    """Return the storage that the settings name: an object store if they name one, otherwise the disk.

    With `cached`, renditions of an object store are read through copies on this machine's disk.
    """
    if settings.storage_url is None:
        return DiskStorage(settings.storage_path)
    # Imported here, because the library takes memory and time that a disk does not need.
    from shared.storage.objects import ObjectStorage

    storage = ObjectStorage(settings.storage_url, settings.storage_path)
    if not cached or not settings.local_cache_bytes:
        return storage
    # Twice the floor: if copies filled the disk down to the floor itself, every upload would be refused.
    folder = settings.storage_path / "cache"
    return CachedStorage(storage, folder, settings.local_cache_bytes, 2 * settings.free_disk_floor)
