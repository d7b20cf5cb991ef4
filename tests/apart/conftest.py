"""Everything here runs apart, and with it whatever runs in the same test run."""

from __future__ import annotations

import os

import pytest

from tests.apart.machines import move_into_hub
from tests.integration.conftest import service
from tests.integration.service import APART, services

__all__ = ["service", "services"]


def pytest_configure(config: pytest.Config) -> None:
    os.environ[APART] = "1"
    move_into_hub()
