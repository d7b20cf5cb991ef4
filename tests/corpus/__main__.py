"""Write the whole corpus into a folder: `python -m tests.corpus FOLDER`."""

from __future__ import annotations

import argparse
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tests.corpus.collection import corpus
from tests.corpus.specimens import Specimen


def write(specimens: Sequence[Specimen], folder: Path) -> None:
    """Write specimens below `folder`, and a table of them: manifest.tsv."""
    lines = ["name\tbytes\tsha256\tmay become\tplanted"]
    for one in specimens:
        path = folder / one.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(one.content)
        digest, outcomes = hashlib.sha256(one.content).hexdigest(), ", ".join(sorted(one.outcomes))
        lines.append("\t".join((one.name, str(len(one.content)), digest, outcomes, one.planted.decode())))
    (folder / "manifest.tsv").write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("folder", type=Path)
    specimens = corpus()
    write(specimens, parser.parse_args().folder)
    for kind, count in Counter(one.kind for one in specimens).items():
        print(f"{kind:10} {count:5}")
    print(f"{'all':10} {len(specimens):5}  {sum(len(one.content) for one in specimens) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
