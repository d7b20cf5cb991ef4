"""Honest files that met with an accident: cut off at every tenth, and with some bits of theirs flipped."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator

from tests.corpus.honest import honest
from tests.corpus.specimens import ANYTHING, EITHER, EMPTY, FOREIGN, UNREADABLE, Specimen

#: Of each variant of each format so many files, by how many of their bits are flipped.
FLIPS = (1, 1, 2, 4, 8, 64)
#: Behind the first bytes, where most flips change what a decoder believes about all that follows.
HEAD = 256


def specimens() -> Iterator[Specimen]:
    for variant, content in honest().items():
        yield from _truncated(variant, content)
        yield from _flipped(variant, content)
        # A few bytes that are right, and rubbish behind them.
        dice = random.Random(f"rubbish {variant}")
        for kept in (16, 64, len(content) // 2):
            name = f"damage/{variant}-rubbish-behind-{kept}"
            rubbish = dice.randbytes(len(content) - kept)
            yield Specimen(name, content[:kept] + rubbish, ANYTHING)
    yield Specimen("damage/nothing-at-all", b"", EMPTY)


def _truncated(variant: str, content: bytes) -> Iterator[Specimen]:
    for tenths in range(1, 10):
        # Without its last bytes a picture may be whole for all that one can see of it, but not without a tenth.
        yield Specimen(f"damage/{variant}-first-{tenths}0-percent", content[: len(content) * tenths // 10], UNREADABLE)
    for length, outcomes in ((2, FOREIGN), (12, FOREIGN | UNREADABLE), (len(content) - 1, EITHER)):
        yield Specimen(f"damage/{variant}-first-{length}-bytes", content[:length], outcomes)


def _flipped(variant: str, content: bytes) -> Iterator[Specimen]:
    for number, flips in enumerate(FLIPS):
        # By a seed that is the same on every machine: hash() of a text is not.
        dice = random.Random(zlib.crc32(f"{variant} {number}".encode()))
        damaged = bytearray(content)
        for _ in range(flips):
            at = dice.randrange(HEAD if dice.random() < 0.5 else len(content))
            damaged[at] ^= 1 << dice.randrange(8)
        yield Specimen(f"damage/{variant}-{flips}-bits-flipped-{number}", bytes(damaged), ANYTHING)
