"""Migrate a ledger of release 0.1 while the process is killed, at each of its steps in turn.

    DATABASE_URL=… python -m tests.releases.killed

Each migration runs in a process of its own. The first is killed before its first statement, the second before its
second one, and so on. The last is killed before its COMMIT. Then one may finish. After each kill the ledger must be
what it was before. Prints the number of processes that were killed.
"""

from __future__ import annotations

import os
import signal
from itertools import count

from sqlalchemy import event
from sqlalchemy.engine import Engine

from shared.migrations.__main__ import migrate
from shared.settings import Settings
from tests.releases.ledger_0_1 import dump


def main() -> None:
    settings = Settings.from_env()
    before = dump(settings)
    for number in count(1):
        if not _is_killed_before(number, settings):
            break
        assert dump(settings) == before, f"the kill before step {number} has left a trace"
    print(number - 1)


def _is_killed_before(step: int, settings: Settings) -> bool:
    """Migrate in a child process that is killed before a step. Returns False if it has fewer steps, and finished."""
    if (child := os.fork()) == 0:
        _kill_before(step)
        migrate(settings)
        os._exit(0)
    end = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert end in (0, -signal.SIGKILL), end
    return end != 0


def _kill_before(step: int) -> None:
    """Kill this process before it executes its statement of that number, or commits as its step of that number."""
    steps = count(1)

    def reach(*_: object) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(Engine, "before_cursor_execute", reach)
    event.listen(Engine, "commit", reach)


if __name__ == "__main__":
    main()
