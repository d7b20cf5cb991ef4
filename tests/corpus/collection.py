"""All specimens there are."""

from __future__ import annotations

from tests.corpus import bombs, damage, lies, metadata, polyglots, strangers
from tests.corpus.specimens import Specimen

KINDS = (bombs, damage, lies, metadata, polyglots, strangers)


def corpus() -> list[Specimen]:
    """Return every specimen, kind by kind: 10 s of work, 60 MB."""
    return [specimen for kind in KINDS for specimen in kind.specimens()]
