"""What is in a service's object store, looked at and broken as tests do it with files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath, PurePosixPath
from typing import Any

import obstore
from obstore.store import S3Store


def store_of(env: Mapping[str, str]) -> Any:
    """Return the store below the prefix that a service's settings name."""
    return S3Store.from_url(
        env["ASGI_LOOK_STORAGE"],
        endpoint=env["AWS_ENDPOINT_URL"],
        access_key_id=env["AWS_ACCESS_KEY_ID"],
        secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
        region=env["AWS_REGION"],
        client_options={"allow_http": True},
    )


@dataclass(frozen=True)
class StoredFile:
    """A key, or a folder of keys, with those methods of a path that tests use."""

    store: Any
    path: PurePosixPath

    def __str__(self) -> str:
        return str(self.path)

    def __truediv__(self, name: str) -> StoredFile:
        return StoredFile(self.store, self.path / name)

    def joinpath(self, name: str) -> StoredFile:
        return self / name

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def parent(self) -> StoredFile:
        return StoredFile(self.store, self.path.parent)

    def relative_to(self, data: PurePath) -> PurePosixPath:
        """Return its key: in a store everything is relative to the prefix."""
        return self.path

    def files(self) -> list[str]:
        """Return all keys below it."""
        return sorted(meta["path"] for page in obstore.list(self.store, str(self.path)) for meta in page)

    def iterdir(self) -> Iterator[StoredFile]:
        depth = len(self.path.parts)
        for name in sorted({PurePosixPath(key).parts[depth] for key in self.files()}):
            yield self / name

    def exists(self) -> bool:
        try:
            obstore.head(self.store, str(self.path))
        except FileNotFoundError:
            return bool(self.files())
        return True

    def read_bytes(self) -> bytes:
        return bytes(obstore.get(self.store, str(self.path)).bytes())

    def write_bytes(self, content: bytes) -> int:
        obstore.put(self.store, str(self.path), content)
        return len(content)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """There are no folders to be made."""

    def unlink(self) -> None:
        assert self.exists(), self.path
        obstore.delete(self.store, str(self.path))
