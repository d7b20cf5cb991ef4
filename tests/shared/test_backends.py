"""Which storage the settings name, and that nobody pays for one that they do not use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.settings import Settings
from shared.storage import KeepsCopies, SignsUrls, Storage
from shared.storage.backends import open_storage
from shared.storage.cached import CachedStorage
from shared.storage.disk import DiskStorage
from shared.storage.objects import ObjectStorage
from shared.telemetry.exposition import Exposition
from shared.telemetry.metrics import STORAGE_SECONDS
from shared.telemetry.tracing import traced

ROOT = Path(__file__).resolve().parents[2]


def test_unless_told_it_is_the_disk(tmp_path: Path) -> None:
    assert type(open_storage(Settings(storage_path=tmp_path), cached=True)) is DiskStorage


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_an_address_names_an_object_store_with_a_cache_for_those_who_serve(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "pictures")
    settings = Settings(storage_path=tmp_path, storage_url=f"{scheme}://bucket/prefix")

    assert type(open_storage(settings)) is ObjectStorage
    assert type(open_storage(settings, cached=True)) is CachedStorage


async def test_what_only_some_storages_do_is_found_through_copies_and_through_measurement(
    tmp_path: Path, counting: None
) -> None:
    Exposition()
    store = Settings(storage_path=tmp_path, storage_url="s3://bucket/prefix")
    disk = Settings(storage_path=tmp_path)

    def abilities(storage: Storage) -> tuple[bool, bool]:
        measured = traced(storage, "storage", STORAGE_SECONDS)
        assert vars(measured)["read"]
        return isinstance(measured, SignsUrls), isinstance(measured, KeepsCopies)

    assert abilities(open_storage(disk, cached=True)) == (False, False)
    assert abilities(open_storage(store)) == (True, False)
    assert abilities(open_storage(store, cached=True)) == (True, True)
    assert abilities(CachedStorage(DiskStorage(tmp_path), tmp_path / "cache", 1 << 20, floor=0)) == (False, True)


def test_a_store_whose_own_variables_are_missing_is_named_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)

    with pytest.raises(SettingsError, match=r"^ASGI_LOOK_STORAGE: .*MissingAccount$"):
        open_storage(Settings(storage_path=tmp_path, storage_url="az://container"))


def test_a_cache_without_room_is_none(tmp_path: Path) -> None:
    settings = Settings(storage_path=tmp_path, storage_url="s3://bucket", local_cache_bytes=0)

    assert type(open_storage(settings, cached=True)) is ObjectStorage


def test_who_is_on_a_disk_does_not_even_import_what_object_stores_need(tmp_path: Path) -> None:
    program = (
        "import sys, api.app, worker.__main__, worker.doctor; from pathlib import Path; "
        "from shared.settings import Settings; from shared.storage.backends import open_storage; "
        "open_storage(Settings(storage_path=Path(sys.argv[1])), cached=True); "
        "sys.exit(any(name.partition('.')[0] == 'obstore' for name in sys.modules))"
    )

    assert subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=False).returncode == 0
