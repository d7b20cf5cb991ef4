"""The benchmarks of what users feel, run one after the other, and their results."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import machine
from bench.figures import Figure, show
from launch.processes import HERE

#: The modules of `bench` that have `figures(rounds)`, in the order of a picture's way.
MODULES = ("render", "backlog", "serving", "redis_clients", "uploads", "waiting", "scale", "rows")
#: The deadline of a module, far more than any needs.
MOST_SECONDS = 30 * 60.0


@dataclass
class Told:
    """The result of one module: its figures, the machine, and how it ended."""

    figures: list[Figure] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)
    rounds: int = 0
    seconds: float = 0.0
    #: Cores that others used meanwhile.
    others: float = 0.0
    #: Why it failed; empty if it did not.
    failure: str = ""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Told:
        return cls(**{**content, "figures": [Figure.from_json(figure) for figure in content["figures"]]})


def is_there(name: str) -> bool:
    """Return whether this checkout has this module of `bench`."""
    return importlib.util.find_spec(f"bench.{name}") is not None


def run(name: str, rounds: int) -> Told:
    """Run a module in a process of its own. Figures that came before a failure count."""
    facts, others, began = machine.facts(), machine.Others.watch(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "figures"
        lines.touch()
        command = [sys.executable, "-m", "bench.suite", name, str(rounds), str(lines)]
        failure = _end_of(subprocess.Popen(command, cwd=HERE))  # noqa: S603 - our own
        if failure and (output := lines.with_suffix(".output")).exists():
            print("".join(output.read_text(errors="replace").splitlines(keepends=True)[-30:]), file=sys.stderr)
        figures = [Figure.from_json(json.loads(line)) for line in lines.read_text().splitlines()]
    if not failure and not figures:
        failure = "it told nothing"
    return Told(figures, facts, rounds, time.monotonic() - began, others.cores(), failure)


def _end_of(process: subprocess.Popen[bytes]) -> str:
    """Wait for the end of a module; return why it failed, or an empty text."""
    try:
        code = process.wait(MOST_SECONDS)
    except subprocess.TimeoutExpired:
        # Like Ctrl-C, so that it stops its services.
        process.send_signal(signal.SIGINT)
        process.wait()
        return f"it took more than {MOST_SECONDS / 60:.0f} minutes"
    except KeyboardInterrupt:
        with contextlib.suppress(KeyboardInterrupt):
            process.wait()
        raise
    return "" if code == 0 else f"it ended with code {code}" if code > 0 else f"it was ended by signal {-code}"


def save(told: dict[str, Told], file: Path) -> None:
    """Write all results to a file, with each run of each side."""
    file.write_text(json.dumps({name: asdict(one) for name, one in told.items()}, indent=1, ensure_ascii=False) + "\n")


def load(file: Path) -> dict[str, Told]:
    """Return the results from a file; none without the file."""
    if not file.exists():
        return {}
    return {name: Told.from_json(content) for name, content in json.loads(file.read_text()).items()}


def all_figures(told: dict[str, Told]) -> list[Figure]:
    return [figure for one in told.values() for figure in one.figures]


def _noted(figures: Iterable[Figure], file: Path) -> Iterator[Figure]:
    with file.open("a") as lines:
        for figure in figures:
            lines.write(json.dumps(figure.as_json(), ensure_ascii=False) + "\n")
            lines.flush()
            yield figure


def redirect_services(file: Path) -> Path:
    """Send the output of processes that start from now on to a file, and return it. Our own output stays."""
    sys.stdout, sys.stderr = (open(os.dup(stream), "w", buffering=1) for stream in (1, 2))  # noqa: SIM115 - to our end
    with file.open("wb") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    return file


def main(name: str, rounds: int, file: Path) -> None:
    """Be the process of one module."""
    redirect_services(file.with_suffix(".output"))
    show(_noted(importlib.import_module(f"bench.{name}").figures(rounds), file))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
