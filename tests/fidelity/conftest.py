"""The service that the integration tests have."""

from __future__ import annotations

from tests.integration.conftest import service, services

__all__ = ["service", "services"]
