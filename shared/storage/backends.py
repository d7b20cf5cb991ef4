"""Which storage the settings name."""

from __future__ import annotations

from shared.settings import Settings
from shared.storage import Storage
from shared.storage.disk import DiskStorage


def open_storage(settings: Settings, *, cached: bool = False) -> Storage:
    """Return the storage that the settings name: an object store where there is one, else the disk.

    With `cached`, what is read from an object store is kept on this machine's disk for the next time.
    """
    if settings.storage_url is None:
        return DiskStorage(settings.storage_path)
    # Imported by those who use it: it costs memory and time that a disk does not.
    if cached and settings.local_cache_bytes:
        from shared.storage.cached import CachedObjectStorage

        # At the floor itself uploads would be refused, for as long as the copies stay.
        return CachedObjectStorage(
            settings.storage_url, settings.storage_path, settings.local_cache_bytes, 2 * settings.free_disk_floor
        )
    from shared.storage.objects import ObjectStorage

    return ObjectStorage(settings.storage_url, settings.storage_path)
