"""The functions at which the crash suite stops processes: they exist, or the suite would say so only minutes later."""

from __future__ import annotations

import importlib
from functools import reduce

import pytest

from tests.crash import points


def names_of(point: points.Point) -> list[str]:
    return [name for name in (point.function, point.within) if name]


@pytest.mark.parametrize("name", sorted({name for point in points.ALL for name in names_of(point)}))
def test_a_crash_point_names_a_function_that_exists(name: str) -> None:
    module, _, path = name.partition(":")

    assert callable(reduce(getattr, path.split("."), importlib.import_module(module)))
