"""What the doctor tells a person: a line for each finding, a table at the end, how far it is in between."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import TextIO

from worker.doctor.diagnosis import MADE_AGAIN, Finding, Kind

#: What --mend does about each kind.
_REMEDIES = {
    Kind.ORIGINAL_WITHOUT_ROW: "removes it",
    Kind.RENDITIONS_WITHOUT_ROW: "removes them",
    Kind.STALE_ATTEMPT: "removes it",
    Kind.OLD_DRAFT: "removes it",
    Kind.RENDITION_MISSING: "has a worker make it again",
    Kind.RENDITION_TORN: "has a worker make it again",
    Kind.BEYOND_MENDING: "cannot help: DELETE the image, and upload it again",
    Kind.ORIGINAL_TORN: "cannot help: nothing can be made of it any more",
    Kind.UNFINISHED_WITHOUT_ORIGINAL: "leaves it: it fails by itself (worker-lost), at its 20th loss",
    Kind.FAILED_WITHOUT_ORIGINAL: "cannot help: it cannot be retried, only DELETEd",
    Kind.READY_WITHOUT_ORIGINAL: "leaves it: renditions cannot be made anew any more",
}
_KIND_WIDTH = max(len(kind) for kind in Kind)
_PROGRESS_EVERY_SECONDS = 0.5


@dataclass(frozen=True)
class Outcome:
    """What became of a finding; `said` is empty where nobody tried."""

    is_mended: bool = False
    said: str = ""


@dataclass
class Tally:
    """How many findings of one kind there are, how many of them are mended, and the bytes that all would free."""

    found: int = 0
    mended: int = 0
    frees: int = 0


class Report:
    """Prints findings as they come, at most so many of a kind, and counts them all."""

    def __init__(self, most: int, mend: bool) -> None:
        self._most = most
        self._mend = mend
        self._progress = _Progress(sys.stderr)
        self._began = time.monotonic()
        self.tallies: dict[Kind, Tally] = {}
        self.rows = 0
        self.files = 0

    @property
    def is_well(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return all(tally.mended == tally.found for kind, tally in self.tallies.items() if kind.is_wrong)

    def add(self, finding: Finding, outcome: Outcome) -> None:
        """Tell and count one finding."""
        tally = self.tallies.setdefault(finding.kind, Tally())
        tally.found += 1
        tally.mended += outcome.is_mended
        tally.frees += finding.frees
        if tally.found <= self._most:
            said = "; ".join(text for text in (finding.detail, outcome.said) if text)
            self._print(f"{finding.kind:{_KIND_WIDTH}}  {finding.key}" + (f"  ({said})" if said else ""))
        elif tally.found == self._most + 1 and self._most:
            self._print(f"{finding.kind:{_KIND_WIDTH}}  … and more, which are counted below")

    def looked_at(self, rows: int = 0, files: int = 0) -> None:
        """Count what was looked at, and tell it now and then."""
        self.rows += rows
        self.files += files
        self._progress.show(f"{self.rows:,} rows and {self.files:,} files looked at")

    def sum_up(self, is_complete: bool) -> None:
        """Print the table."""
        seconds = time.monotonic() - self._began
        if self.tallies and self._most:
            self._print("")
        if not is_complete:
            self._print("Stopped early: what follows is not all.")
        self._print(f"Looked at {self.rows:,} rows and {self.files:,} files in {seconds:.1f} s.")
        if not self.tallies:
            self._print("Nothing is wrong." if is_complete else "Nothing was found wrong so far.")
            return
        mended = "mended  " if self._mend else ""
        self._print("")
        self._print(f"{'what is wrong':{_KIND_WIDTH}}  {'found':>9}  {mended}{'frees':>9}  what --mend does")
        for kind in Kind:
            if (tally := self.tallies.get(kind)) is None:
                continue
            mended = f"{tally.mended:6,}  " if self._mend else ""
            frees = _in_units(tally.frees) if tally.frees else ""
            self._print(f"{kind:{_KIND_WIDTH}}  {tally.found:9,}  {mended}{frees:>9}  {_REMEDIES[kind]}")
        self._print("")
        for line in self._advice():
            self._print(line)

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

    def _print(self, line: str) -> None:
        self._progress.clear()
        print(line, flush=True)


class _Progress:
    """One line on a terminal that is written over; nothing where it is none."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_shown = False
        self._shown_at = time.monotonic()

    def show(self, line: str) -> None:
        if self._stream.isatty() and time.monotonic() - self._shown_at >= _PROGRESS_EVERY_SECONDS:
            print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
            self._is_shown = True
            self._shown_at = time.monotonic()

    def clear(self) -> None:
        if self._is_shown:
            print("\r\x1b[K", end="", file=self._stream, flush=True)
            self._is_shown = False


def _in_units(count: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
