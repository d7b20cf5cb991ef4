"""The doctor's output: a line for each finding, and a table at the end."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass

from worker.doctor.diagnosis import Finding, Kind

#: The most lines for each kind. All findings are counted.
_MOST_LINES = 20

#: What --mend does about each kind.
_REMEDIES = {
    Kind.ORIGINAL_WITHOUT_ROW: "removes it",
    Kind.RENDITIONS_WITHOUT_ROW: "removes them",
    Kind.STALE_ATTEMPT: "removes it",
    Kind.STALE_FILE: "removes it",
    Kind.RENDITION_BROKEN: "has a worker make it again",
    Kind.BEYOND_MENDING: "cannot help: DELETE the image, and upload it again",
    Kind.ORIGINAL_TORN: "cannot help: nothing can be made of it any more",
    Kind.ORIGINAL_MISSING: "cannot help: an unfinished image fails by itself, a failed one cannot be retried",
    Kind.READY_WITHOUT_ORIGINAL: "leaves it: renditions cannot be made anew any more",
}
_KIND_WIDTH = max(len(kind) for kind in Kind)

#: Flushes, so that findings appear as they come, also through a pipe.
_print = functools.partial(print, flush=True)


@dataclass(frozen=True)
class Outcome:
    """The outcome of mending a finding. `said` is empty if nothing was tried."""

    is_mended: bool = False
    said: str = ""


class Report:
    """Prints the first findings of each kind as they come, and counts all."""

    def __init__(self, mend: bool) -> None:
        self._mend = mend
        self.found = Counter[Kind]()
        self.mended = Counter[Kind]()
        self.rows = 0
        self.files = 0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, or everything was mended."""
        return all(self.mended[kind] == count for kind, count in self.found.items() if kind.is_wrong)

    def add(self, finding: Finding, outcome: Outcome) -> None:
        """Print and count one finding."""
        kind = finding.kind
        self.found[kind] += 1
        self.mended[kind] += outcome.is_mended
        if self.found[kind] <= _MOST_LINES:
            said = "; ".join(text for text in (finding.detail, outcome.said) if text)
            _print(f"{kind:{_KIND_WIDTH}}  {finding.key}" + (f"  ({said})" if said else ""))
        elif self.found[kind] == _MOST_LINES + 1:
            _print(f"{kind:{_KIND_WIDTH}}  … and more, which are counted below")

    def sum_up(self) -> None:
        """Print the table."""
        _print(f"Looked at {self.rows:,} rows and {self.files:,} files.")
        if not self.found:
            _print("Nothing is wrong.")
            return
        _print(f"\n{'what is wrong':{_KIND_WIDTH}}  {'found':>9}  {'mended':>9}  what --mend does")
        for kind in Kind:
            if count := self.found[kind]:
                _print(f"{kind:{_KIND_WIDTH}}  {count:9,}  {self.mended[kind]:9,}  {_REMEDIES[kind]}")
        if self._mend:
            if self.mended[Kind.RENDITION_BROKEN]:
                _print("\nRenditions are made again by the workers: look again in a while.")
            return
        if self.found[Kind.ORIGINAL_WITHOUT_ROW]:
            _print("\nAn original without a row is an upload that was never acknowledged. But where the ledger is")
            _print("a copy, and older than the storage, it is an upload that the ledger forgot: do not mend then.")
        _print("\nNothing was changed.")
