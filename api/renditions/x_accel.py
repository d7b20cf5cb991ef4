"""Handing a picture over to the server in front of us, which sends files faster than anybody who has to read them.

We answer headers only; one of them says which file. nginx (`X-Accel-Redirect`) is told an internal location of its own,
others (`X-Sendfile`) the file's path. Conditions are ours to judge, ranges theirs.
"""

from __future__ import annotations

from shared.settings import Settings
from shared.storage.disk import place_below

#: By what a header tells the server in front which file to send.
HEADERS = frozenset(("x-accel-redirect", "x-sendfile"))


class HandingOver:
    """Whether pictures are handed over, and how."""

    def __init__(self, settings: Settings) -> None:
        self._header, self._prefix = settings.accel or ("", "")
        if self._header == "x-sendfile":
            self._prefix = f"{settings.storage_path.absolute()}/"

    @property
    def is_on(self) -> bool:
        return bool(self._header)

    def headers_for(self, key: str) -> dict[str, str]:
        """Return what says where the picture under a storage key is."""
        return {self._header: self._prefix + place_below(key)} if self._header else {}
