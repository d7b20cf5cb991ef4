"""What uvicorn imports: the application behind its guard."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import signal
import sys

from api.app import create_app
from api.server.connection import Connection
from api.server.graceful_shutdown import EndAtOnce
from shared.errors import AsgilookError
from shared.settings import Settings
from shared.telemetry import logs

_PR_SET_PDEATHSIG = 1


def die_with_supervisor() -> None:
    """End this process when uvicorn's supervisor (WEB_CONCURRENCY) ends or is killed: an orphan would keep the port."""
    supervisor = multiprocessing.parent_process()
    if supervisor is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != supervisor.pid:
            sys.exit(1)


die_with_supervisor()
try:
    settings = Settings.from_env()
    logs.configure(settings.log_level)
    application = create_app(settings, middleware=[EndAtOnce()])
    Connection.configure(settings, application)
    # All objects that exist now live as long as the process: the garbage collector need not visit them.
    gc.freeze()
except AsgilookError as exc:
    print(f"asgilook: the web process cannot run: {exc}", file=sys.stderr)
    # At exit code 3, and no other, uvicorn's supervisor ends too. At any other code it starts the process again.
    sys.exit(3)
