"""The entry point of `./run`: `python launch`, from any folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

# Python puts this folder first. The packages are in its parent.
sys.path[0] = str(Path(__file__).resolve().parent.parent)

from launch.launcher import Launcher, say  # noqa: E402 - found by the line above
from launch.options import Options  # noqa: E402
from launch.processes import LaunchError, Signals  # noqa: E402


def main() -> int:
    """Run the service. Returns the exit code."""
    signals = Signals()
    try:
        Launcher(Options.read(sys.argv[1:], os.environ), signals).run()
    except (LaunchError, OSError) as exc:
        say(f"asgilook: {exc}", sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Not sys.exit: a Ctrl-C during Python's shutdown would change the exit code.
    os._exit(main())
