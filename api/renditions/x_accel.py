"""Having the proxy in front send a rendition's file, which it does faster than any process that has to read it.

Our answer has no body; one of its headers names the file. nginx (`X-Accel-Redirect`) gets an internal location of its
own, others (`X-Sendfile`) the file's path. Conditions are judged here, ranges by the proxy.
"""

from __future__ import annotations

from shared.settings import Settings
from shared.storage.disk import place_below

#: Headers by which a proxy is told which file to send.
HEADERS = frozenset(("x-accel-redirect", "x-sendfile"))


class XAccel:
    """Whether a proxy sends the files, and how it is told which."""

    def __init__(self, settings: Settings) -> None:
        self._header, self._prefix = settings.accel or ("", "")
        if self._header == "x-sendfile":
            self._prefix = f"{settings.storage_path.absolute()}/"

    @property
    def is_on(self) -> bool:
        return bool(self._header)

    def headers_for(self, key: str) -> dict[str, str]:
        """Return the header that names the file of a storage key."""
        return {self._header: self._prefix + place_below(key)} if self._header else {}
