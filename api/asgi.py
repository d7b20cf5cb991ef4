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
    """End with uvicorn's supervisor (WEB_CONCURRENCY) even if it is killed: an orphan would hold the port."""
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
    # The garbage collector skips what is loaded by now: it stays.
    gc.freeze()
except AsgilookError as exc:
    print(f"asgilook: the web process cannot run: {exc}", file=sys.stderr)
    # The one code at which uvicorn's supervisor ends too, instead of starting the same again and again.
    sys.exit(3)
