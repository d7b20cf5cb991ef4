"""Python imports this before anything else: from here on time.time, by which arq goes, is CLOCK_SHIFT_SECONDS off.

A ledger on SQLite asks the machine, not Python: its clock is everybody's, as the contract has it.
"""

from __future__ import annotations

import os
import time

_seconds = float(os.environ["CLOCK_SHIFT_SECONDS"])
_time, _time_ns = time.time, time.time_ns

time.time = lambda: _time() + _seconds
time.time_ns = lambda: _time_ns() + int(_seconds * 1_000_000_000)
