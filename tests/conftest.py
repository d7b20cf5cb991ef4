"""What the tests of every room share; each plugin is a module with fixtures and what goes with them."""

from __future__ import annotations

import pytest

pytest_plugins = (
    "tests.postgresql",
    "tests.ledgers",
    "tests.valkey",
    "tests.services",
    "tests.doors",
    "tests.objects",
)


def pytest_sessionstart(session: pytest.Session) -> None:
    """With machines of their own for services, the tests' own place is in the middle of them."""
    if _are_apart():
        from tests.apart.machines import move_into_hub

        move_into_hub()


def pytest_sessionfinish(session: pytest.Session) -> None:
    if _are_apart():
        from tests.apart.stores import end_stores

        end_stores()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, where services have machines of their own, what is about one machine, and tell why."""
    if not _are_apart():
        return
    for item in items:
        if (mark := item.get_closest_marker("one_machine")) is not None:
            item.add_marker(pytest.mark.skip(reason=f"about one machine: {mark.args[0]}"))


def _are_apart() -> bool:
    # Asked by its module's name later than here: a plugin that was imported before would lose pytest's assertions.
    from tests.integration.service import is_apart

    return is_apart()
