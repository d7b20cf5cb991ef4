"""Scale: `python -m bench.scale [rounds]`: web's memory, images a second, the CPU of a view, start and rest.

Each part is a module of its own and can be run alone.
"""

from __future__ import annotations

from collections.abc import Iterator

from bench import pace, rest, views, web_memory
from bench.figures import ROUNDS, Figure, rounds_asked_for, show


def figures(rounds: int = ROUNDS) -> Iterator[Figure]:
    for part in (web_memory, pace, views, rest):
        yield from part.figures(rounds)


if __name__ == "__main__":
    show(figures(rounds_asked_for()))
