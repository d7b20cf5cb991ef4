"""Private names of libraries are used only as `tests.private_names` lists them, and every one of them still exists."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.private_names import DOCUMENTED, PRIVATE_NAMES, PrivateName

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("api", "worker", "shared", "launch")
LISTED = {private.name for private in PRIVATE_NAMES}

Use = tuple[str, str]


def sources() -> dict[str, ast.Module]:
    """Return the syntax tree of every module of the product by its path."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in paths}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in {"_", *DOCUMENTED}


def defined_in(trees: dict[str, ast.Module]) -> set[str]:
    """Return the private names that the product itself defines."""
    defined: set[str] = set()
    for tree in trees.values():
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    defined.add(name)
                case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.arg(arg=name):
                    defined.add(name)
    return {name for name in defined if is_private(name)}


def foreign_uses(trees: dict[str, ast.Module], ours: set[str]) -> Iterator[Use]:
    """Yield each private name that the product uses and does not define, with its place."""
    for path, tree in trees.items():
        for node in ast.walk(tree):
            for name in names_used_by(node):
                if is_private(name) and name not in ours:
                    yield f"{path}:{getattr(node, 'lineno', 0)}", name


def names_used_by(node: ast.AST) -> list[str]:
    """Return the attributes, keywords and imported names in one node, not below it."""
    match node:
        case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
            return [name]
        case ast.ImportFrom(module=module, names=imported) if not (module or "").startswith(PACKAGES):
            return [*(module or "").split("."), *(alias.name for alias in imported)]
        case ast.Import(names=imported):
            return [part for alias in imported for part in alias.name.split(".")]
        case ast.Call(func=ast.Name(id="getattr" | "setattr" | "hasattr"), args=[_, ast.Constant(str(name)), *_]):
            return [name]
    return []


def names_in(tree: ast.AST) -> set[str]:
    """Return the private names that a class defines, sets or reads on `self`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                found.add(name)
    return {name for name in found if is_private(name)}


def inherited_uses(trees: dict[str, ast.Module]) -> Iterator[Use]:
    """Yield each private name of a library's class that a class of ours, derived from it, overrides or uses."""
    for path, tree in trees.items():
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.bases]
        if not classes:
            continue
        module = importlib.import_module(path.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        for node in classes:
            for base in getattr(module, node.name).__mro__[1:]:
                if base.__module__.partition(".")[0] not in (*PACKAGES, "builtins"):
                    for name in names_in(node):
                        if has(base, name):
                            yield f"{path}:{node.lineno}", name


def has(owner: ModuleType | type, name: str) -> bool:
    """Return whether a module or class has this name, for a class also as an attribute that its methods set."""
    if hasattr(owner, name) or inspect.ismodule(owner):
        return hasattr(owner, name)
    try:
        return re.search(rf"\bself\.{name}\b", inspect.getsource(owner)) is not None
    except (OSError, TypeError):  # a class without Python source
        return False


@pytest.mark.parametrize("private", PRIVATE_NAMES, ids=lambda private: f"{private.owner}.{private.name}")
def test_every_private_name_is_still_there(private: PrivateName) -> None:
    module, _, name = private.owner.partition(":")
    owner = importlib.import_module(module)

    assert has(getattr(owner, name) if name else owner, private.name)
    assert private.reason


def test_no_other_private_name_is_used() -> None:
    trees = sources()
    used = {*foreign_uses(trees, defined_in(trees)), *inherited_uses(trees)}

    assert sorted((place, name) for place, name in used if name not in LISTED) == []
    assert LISTED - {name for _, name in used} == set()


@pytest.mark.parametrize(
    "code",
    [
        "connection._reader",
        "getattr(connection, '_reader')",
        "from redis._parsers import BaseParser",
        "import redis._parsers",
        "self._reader",
    ],
)
def test_a_private_name_would_be_found(code: str) -> None:
    trees = {"example.py": ast.parse(code)}

    assert {name for _, name in foreign_uses(trees, set())} & {"_reader", "_parsers"}


def test_a_private_name_of_a_base_class_would_be_found() -> None:
    import aiosqlite

    tree = ast.parse("class Connection:\n def __init__(self): self._tx = None\n def _execute(self): pass")

    assert [name for name in sorted(names_in(tree)) if has(aiosqlite.Connection, name)] == ["_execute", "_tx"]
