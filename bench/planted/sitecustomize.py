"""Has the worker that finds this folder on its PYTHONPATH start children that obey planted faults (bench.next_job)."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

if sys.orig_argv[1:3] == ["-m", "worker"]:
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from worker.renderer.pool import Renderer

    _PLANTED = (sys.executable, "-m", "tests.worker.hostile")
    Renderer.__init__ = functools.partialmethod(Renderer.__init__, command=_PLANTED)  # type: ignore[method-assign,assignment] # that is the plant
