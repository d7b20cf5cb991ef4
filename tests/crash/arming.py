"""Processes that break themselves at a named point, and what they tell of it: how a test uses `hook/`.

ambush = Ambush(tmp_path, Arm("shared.ledger:Ledger.claim", "after"))
worker = service.start_worker(**ambush.env)
...
assert worker.wait(30) == -signal.SIGKILL
assert ambush.reached()
"""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

HOOK = Path(__file__).parent / "hook"


@dataclass(frozen=True)
class Arm:
    """A point of a process, and what it does to itself there.

    `stop` waits for SIGCONT, `note` goes on, and `hold` keeps a coroutine's task from ever beginning what it was to do.
    `skip` leaves the function out, at each call.

    `function` is `module:qualified name`. Only the call number `call` counts, among those that are made `within`
    another function, where one is given, and are `about` what is found in the arguments: in that one's, or its own.
    """

    function: str
    when: Literal["before", "after"]
    action: Literal["kill", "stop", "note", "hold", "skip"] = "kill"
    call: int = 1
    within: str = ""
    about: str = ""


#: For a worker that is to have one image in its hands, and not another one besides while it stores the first.
ONE_AT_A_TIME = Arm("worker.slots:Slot.leave", "before", "skip")


class Ambush:
    """What one process is armed with; `env` is for the process, and for no other."""

    def __init__(self, folder: Path, *arms: Arm) -> None:
        self._marks = [folder / f"reached-{uuid.uuid4().hex}" for _ in arms]
        armed = [asdict(arm) | {"mark": str(mark)} for arm, mark in zip(arms, self._marks, strict=True)]
        self.env = {"PYTHONPATH": str(HOOK), "CRASH_ARMS": json.dumps(armed)}

    def reached(self, number: int = -1) -> bool:
        """Tell whether the process has come to the point of an arm, the last one unless told."""
        return self._marks[number].exists()


def is_stopped(process: subprocess.Popen[bytes]) -> bool:
    """Tell whether a process of ours has stopped. Raises AssertionError where it has ended instead."""
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG)
    assert state is None or state.si_code == os.CLD_STOPPED, "it has ended instead"
    return state is not None


def all_stopped(processes: Sequence[subprocess.Popen[bytes]]) -> bool:
    """Tell whether all of them have stopped."""
    return all(is_stopped(process) for process in processes)
