"""What the doctor prints: a line for each finding, and a table at the end."""

from __future__ import annotations

import functools
import sys
import time
from dataclasses import dataclass

from worker.doctor.diagnosis import MADE_AGAIN, Finding, Kind

#: What --mend does about each kind.
_REMEDIES = {
    Kind.ORIGINAL_WITHOUT_ROW: "removes it",
    Kind.RENDITIONS_WITHOUT_ROW: "removes them",
    Kind.STALE_ATTEMPT: "removes it",
    Kind.RENDITION_MISSING: "has a worker make it again",
    Kind.RENDITION_TORN: "has a worker make it again",
    Kind.BEYOND_MENDING: "cannot help: DELETE the image, and upload it again",
    Kind.ORIGINAL_TORN: "cannot help: nothing can be made of it any more",
    Kind.UNFINISHED_WITHOUT_ORIGINAL: "leaves it: it fails by itself (worker-lost), at its 20th loss",
    Kind.FAILED_WITHOUT_ORIGINAL: "cannot help: it cannot be retried, only DELETEd",
    Kind.READY_WITHOUT_ORIGINAL: "leaves it: renditions cannot be made anew any more",
}
_KIND_WIDTH = max(len(kind) for kind in Kind)
_PROGRESS_EVERY_SECONDS = 10.0


#: Flushed, so that findings are seen as they come, also through a pipe.
_print = functools.partial(print, flush=True)


@dataclass(frozen=True)
class Outcome:
    """What became of a finding. `said` is empty where nothing was tried."""

    is_mended: bool = False
    said: str = ""


@dataclass
class Tally:
    """How many findings of one kind there are, how many are mended, and the bytes that mending all would free."""

    found: int = 0
    mended: int = 0
    frees: int = 0


class Report:
    """Prints findings as they come, `most` of each kind, and counts all."""

    def __init__(self, most: int, mend: bool) -> None:
        self._most = most
        self._mend = mend
        self._began = self._told_at = time.monotonic()
        self.tallies: dict[Kind, Tally] = {}
        self.rows = 0
        self.files = 0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, or everything was mended."""
        return all(tally.mended == tally.found for kind, tally in self.tallies.items() if kind.is_wrong)

    def add(self, finding: Finding, outcome: Outcome) -> None:
        """Print and count one finding."""
        tally = self.tallies.setdefault(finding.kind, Tally())
        tally.found += 1
        tally.mended += outcome.is_mended
        tally.frees += finding.frees
        if tally.found <= self._most:
            said = "; ".join(text for text in (finding.detail, outcome.said) if text)
            _print(f"{finding.kind:{_KIND_WIDTH}}  {finding.key}" + (f"  ({said})" if said else ""))
        elif tally.found == self._most + 1 and self._most:
            _print(f"{finding.kind:{_KIND_WIDTH}}  … and more, which are counted below")

    def looked_at(self, rows: int = 0, files: int = 0) -> None:
        """Count what was looked at. Print the counts to stderr now and then, so that a long run is seen to go on."""
        self.rows += rows
        self.files += files
        if time.monotonic() - self._told_at >= _PROGRESS_EVERY_SECONDS:
            self._told_at = time.monotonic()
            print(f"{self.rows:,} rows and {self.files:,} files looked at", file=sys.stderr)

    def sum_up(self, is_complete: bool) -> None:
        """Print the table."""
        seconds = time.monotonic() - self._began
        if self.tallies and self._most:
            _print("")
        if not is_complete:
            _print("Stopped early: what follows is not all.")
        _print(f"Looked at {self.rows:,} rows and {self.files:,} files in {seconds:.1f} s.")
        if not self.tallies:
            _print("Nothing is wrong." if is_complete else "Nothing was found wrong so far.")
            return
        mended = "mended  " if self._mend else ""
        _print("")
        _print(f"{'what is wrong':{_KIND_WIDTH}}  {'found':>9}  {mended}{'frees':>9}  what --mend does")
        for kind in Kind:
            if (tally := self.tallies.get(kind)) is None:
                continue
            mended = f"{tally.mended:6,}  " if self._mend else ""
            frees = _in_units(tally.frees) if tally.frees else ""
            _print(f"{kind:{_KIND_WIDTH}}  {tally.found:9,}  {mended}{frees:>9}  {_REMEDIES[kind]}")
        _print("")
        for line in self._advice():
            _print(line)

    def _advice(self) -> list[str]:
        advice = []
        if not self._mend and Kind.ORIGINAL_WITHOUT_ROW in self.tallies:
            advice += [
                "An original without a row is an upload that was never acknowledged. But where the ledger is",
                "a copy, and older than the storage, it is an upload that the ledger forgot: do not mend then.",
            ]
        if not self._mend:
            advice.append("Nothing was changed.")
        elif any(self.tallies[kind].mended for kind in MADE_AGAIN if kind in self.tallies):
            advice.append("Renditions are made again by the workers: look again in a while.")
        return advice


def _in_units(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
