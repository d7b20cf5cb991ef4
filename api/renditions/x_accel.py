"""Offload: the proxy in front sends a rendition's file, which is faster than reading it in this process.

The answer has no body, and one of its headers names the file. nginx (`X-Accel-Redirect`) gets an internal location of
its own; other proxies (`X-Sendfile`) get the file's path. This process judges conditions, the proxy serves ranges.
"""

from __future__ import annotations

from shared.settings import Settings
from shared.storage.disk import place_below

#: Headers that name a file to the proxy.
HEADERS = frozenset(("x-accel-redirect", "x-sendfile"))


class XAccel:
    """The offload's settings: whether a proxy sends the files, and the header that names a file."""

    def __init__(self, settings: Settings) -> None:
        self._header, self._prefix = settings.accel or ("", "")
        if self._header == "x-sendfile":
            self._prefix = f"{settings.storage_path.absolute()}/"

    @property
    def is_on(self) -> bool:
        return bool(self._header)

    def headers_for(self, key: str) -> dict[str, str]:
        """Return the header that names the file of a storage key; empty if no proxy sends files."""
        return {self._header: self._prefix + place_below(key)} if self._header else {}
