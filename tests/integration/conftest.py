"""A service that the tests of one module share, for those that do it no harm."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.service import Deployed, ended, services

__all__ = ["services"]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """One web process and one worker, with the settings as they come."""
    with ended(tmp_path_factory.mktemp("shared")) as services:
        yield services.deploy()
