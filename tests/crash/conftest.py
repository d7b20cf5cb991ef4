"""The crash suite: real processes from the Procfile's lines, a real Valkey, real signals, broken on purpose."""

from __future__ import annotations

from tests.crash.disks import mounting
from tests.integration.service import services

__all__ = ["mounting", "services"]
