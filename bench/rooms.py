"""How many modules a reader has to follow for one request: `python -m bench.rooms [--code FOLDER] [--names]`.

Web and worker run in one process (`bench.room_counter`). It notes each call of a function of `api`, `shared` or
`worker`, in all threads, with the module that called it. Four requests are made, in nine rounds:

- an upload of a JPEG with two thumbnails, until it is settled,
- a GET of a thumbnail that is in no cache, then from memory, then, when memory has dropped it, from Redis.

A module is **entered** when one of its functions is called. It is **turned back into** when it is called by a module
that was entered through it: a callback, which a reader cannot follow downwards. What is not in every round belongs to
periodic tasks and does not count; nor does the child, which is another process, nor what an import runs.

`--code` measures the code in another folder, `--names` prints the modules.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.service import until
from launch.processes import HERE, Part, free_port
from launch.valkey import is_valkey_up, valkey_command

Call = tuple[str, "str | None"]


@dataclass(frozen=True)
class Way:
    """The modules of one kind of request."""

    entered: tuple[str, ...]
    turned_back_into: tuple[str, ...]


def way_of(rounds: Sequence[Sequence[Call]]) -> Way:
    """Return what was entered in every round, and turned back into in the one with the fewest calls."""
    in_every_round = set[str].intersection(*({module for module, _ in calls} for calls in rounds))
    first_caller: dict[str, str | None] = {}
    turned_back_into: dict[str, None] = {}
    for module, caller in min(rounds, key=len):
        if module not in in_every_round:
            continue
        if module not in first_caller:
            first_caller[module] = caller
        elif module != caller and module in _path_to(caller, first_caller):
            turned_back_into[module] = None
    return Way(tuple(first_caller), tuple(turned_back_into))


def _path_to(module: str | None, first_caller: dict[str, str | None]) -> list[str]:
    """Return the modules through which a module was first entered, itself included."""
    path: list[str] = []
    while module is not None and module not in path:
        path.append(module)
        module = first_caller.get(module)
    return path


def measure(code: Path) -> dict[str, Way]:
    """Return the ways of all four kinds of request in the code of a folder."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        (folder / "valkey").mkdir()
        valkey = Part("Valkey", valkey_command(folder / "valkey", port), os.environ).start()
        env = {
            **os.environ,
            "HOST": "127.0.0.1",
            "PORT": str(free_port()),
            "REDIS_URL": f"redis://127.0.0.1:{port}/0",
            "ASGI_LOOK_STORAGE_PATH": str(folder / "data"),
            "ASGI_LOOK_LOG_LEVEL": "WARNING",
            "PYTHONPATH": str(code),
        }
        try:
            until(lambda: valkey.process is not None and is_valkey_up(port, valkey.process.pid))
            subprocess.run([sys.executable, "-m", "shared.migrations"], cwd=code, env=env, check=True)
            counter = [sys.executable, "-P", str(HERE / "bench" / "room_counter.py")]
            found = subprocess.run(counter, cwd=code, env=env, check=True, stdout=subprocess.PIPE).stdout  # noqa: S603 - our own
        finally:
            if valkey.process is not None:
                valkey.process.kill()
                valkey.process.wait()
    return {kind: way_of(rounds) for kind, rounds in json.loads(found.splitlines()[-1]).items()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.rooms", description="Count the modules of a request.")
    parser.add_argument("--code", type=Path, default=HERE, help="the folder of the code to measure")
    parser.add_argument("--names", action="store_true", help="print the modules, too")
    arguments = parser.parse_args()
    code = arguments.code.resolve()
    ways = measure(code)
    print("| request | entered | turned back into | lines of those entered |\n|---|---|---|---|")
    for kind, way in ways.items():
        lines = sum(len((code / f"{module}.py").read_text().splitlines()) for module in way.entered)
        print(f"| {kind} | {len(way.entered)} | {len(way.turned_back_into)} | {lines:,} |")
    for kind, way in ways.items() if arguments.names else ():
        print(f"\n{kind}: {', '.join(way.entered)}\nback into: {', '.join(way.turned_back_into)}")


if __name__ == "__main__":
    main()
