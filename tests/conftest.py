"""What the tests of every room share; each plugin is a module with fixtures and what goes with them."""

from __future__ import annotations

pytest_plugins = (
    "tests.postgresql",
    "tests.ledgers",
    "tests.valkey",
    "tests.services",
    "tests.doors",
    "tests.objects",
)
