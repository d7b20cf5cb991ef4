"""The launcher: starts Valkey, the migrations and the Procfile's parts, restarts parts that end, and ends all parts."""

from __future__ import annotations

import fcntl
import http.client
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import IO

from launch.options import Options
from launch.processes import LaunchError, Part, Signals, free_port, read_procfile
from launch.valkey import is_valkey_up, set_aside, valkey_command

REDIS_SECONDS = 5.0
READY_SECONDS = 60.0
RESTART_SECONDS = 1.0
#: Seconds after the grace in which workers hand their images back.
HAND_BACK_SECONDS = 1.5
VALKEY_GRACE_SECONDS = 1.0


class Stopped(Exception):
    """The launcher was asked to stop."""


class Launcher:
    """One run of the service, from the first check to the end of the last process."""

    def __init__(self, options: Options, signals: Signals) -> None:
        self.options = options
        self.signals = signals
        self.valkey: list[Part] = []
        self.parts: list[Part] = []
        self.env = {
            **os.environ,
            "HOST": options.host,
            "PORT": str(options.port),
            "REDIS_URL": options.redis_url,
            "ASGI_LOOK_STORAGE_PATH": str(options.storage),
            "ASGI_LOOK_GRACE_SECONDS": str(options.grace),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }

    def run(self) -> None:
        """Serve until asked to stop. Raises LaunchError if the service cannot be started."""
        check_port(self.options.host, self.options.port)
        with lock_folder(self.options.storage):
            try:
                self._start()
                self._keep_running()
            except Stopped:
                say("asgilook is stopping (Ctrl-C again: at once)")
            finally:
                self._end(self.parts, self.options.grace + HAND_BACK_SECONDS)
                self._end(self.valkey, VALKEY_GRACE_SECONDS)

    def _start(self) -> None:
        if self.options.redis_url:
            self._await_redis()
        else:
            self._start_valkey()
        commands = read_procfile()
        release = Part("release", commands["release"], self.env).start()
        self.parts = [release]
        while release.is_running:
            self._pause(None)
        if release.end != "ended with code 0":
            raise LaunchError(f"the release step {release.end}")
        names = ["web", *["worker"] * self.options.workers]
        self.parts = [Part(name, commands[name], self.env).start() for name in names]
        self._await_ready()

    def _await_redis(self) -> None:
        # Imported here, because these imports take half of the start-up time, and only this method needs them.
        from shared.errors import AsgilookError
        from shared.redis.clients import ask_once, refusal_in
        from shared.settings import Settings

        try:
            settings = Settings.from_env(self.env)
        except AsgilookError as exc:
            raise LaunchError(str(exc)) from exc
        deadline = time.monotonic() + REDIS_SECONDS
        while True:
            try:
                ask_once(settings)
                return
            except AsgilookError as exc:
                if why := refusal_in(exc):
                    raise LaunchError(f"REDIS_URL: {why}") from exc
                if time.monotonic() > deadline:
                    raise LaunchError(f"REDIS_URL: no Redis answers: {exc}") from exc
            self._pause(0.2)

    def _start_valkey(self) -> None:
        folder = self.options.storage / "valkey"
        for start in range(3):  # another process may take the free port before Valkey does
            if start == 2 and (aside := set_aside(folder)):
                say(f"asgilook: Valkey does not start on what it has kept, and starts empty; see {aside}", sys.stderr)
            port = free_port()
            valkey = Part("Valkey", valkey_command(folder, port), self.env).start()
            self.valkey = [valkey]
            deadline = time.monotonic() + READY_SECONDS
            while valkey.process and valkey.is_running and time.monotonic() < deadline:
                if is_valkey_up(port, valkey.process.pid):
                    self.env["REDIS_URL"] = f"redis://127.0.0.1:{port}/0"
                    return
                self._pause(0.02)
            if valkey.is_running:
                # Valkey runs, so its port and its file are not the cause. Another start would not help.
                raise LaunchError(f"Valkey does not answer after {READY_SECONDS:.0f} s, see {folder}/valkey.log")
        raise LaunchError(f"Valkey {valkey.end}, see {folder}/valkey.log; or set REDIS_URL to a Redis of yours")

    def _await_ready(self) -> None:
        # If the server listens on all addresses, ask it at the loopback address.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.options.host, self.options.host)  # noqa: S104 - compared
        deadline = time.monotonic() + READY_SECONDS
        while (answer := ask_readyz(host, self.options.port)) != "ok":
            for part in self.parts:
                if not part.is_running:
                    raise LaunchError(f"{part.name} {part.end} before the service was ready")
            if time.monotonic() > deadline:
                raise LaunchError(f"not ready after {READY_SECONDS:.0f} s: {answer}")
            self._pause(0.1)
        address = f"[{host}]" if ":" in host else host
        say(f"asgilook is ready: http://{address}:{self.options.port} (Ctrl-C stops it)")

    def _keep_running(self) -> None:
        while True:
            ended = [part for part in (*self.valkey, *self.parts) if not part.is_running]
            for part in ended:
                say(f"asgilook: {part.name} {part.end}; starting it again", sys.stderr)
            # The pause keeps a part that ends at once from being started in a tight loop.
            self._pause(RESTART_SECONDS if ended else None)
            for part in ended:
                part.start()

    def _pause(self, seconds: float | None) -> None:
        if not self.signals.requests:
            self.signals.pause(seconds)
        if self.signals.requests:
            raise Stopped

    def _end(self, parts: Sequence[Part], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        processes = [part.process for part in parts if part.process and part.is_running]
        for process in processes:
            process.terminate()
        while any(process.poll() is None for process in processes):
            left = deadline - time.monotonic()
            if left <= 0 or self.signals.requests > 1:
                break
            self.signals.pause(left)
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def check_port(host: str, port: int) -> None:
    """Raise LaunchError if this process cannot listen on this host and port."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(address)
                listener.listen()
    except (OSError, UnicodeError) as exc:
        raise LaunchError(f"HOST, PORT: cannot listen on {host} port {port}: {reason(exc)}") from exc


def lock_folder(folder: Path) -> IO[bytes]:
    """Lock the storage folder until the returned file is closed. Raises LaunchError."""
    try:
        (folder / "valkey").mkdir(parents=True, exist_ok=True)
        lock = (folder / "run.lock").open("ab")
    except (OSError, ValueError) as exc:
        raise LaunchError(f"ASGI_LOOK_STORAGE_PATH: cannot write to {folder}: {reason(exc)}") from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        lock.close()
        raise LaunchError(f"ASGI_LOOK_STORAGE_PATH: another ./run is using {folder}") from exc
    return lock


def ask_readyz(host: str, port: int) -> str:
    """Return "ok" if /readyz says so, otherwise a text about the fault."""
    try:
        with closing(http.client.HTTPConnection(host, port, timeout=2)) as connection:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            body = response.read().decode()
        status = json.loads(body).get("status")
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as exc:
        return str(exc)
    return "ok" if response.status == 200 and status == "ok" else " ".join(body.split())


def reason(exc: Exception) -> str:
    """Return the text of an error, for an OSError without its number and path."""
    return (exc.strerror or str(exc)) if isinstance(exc, OSError) else str(exc)


def say(line: str, stream: IO[str] = sys.stdout) -> None:
    """Print a line. A closed stream is no error."""
    with suppress(OSError):
        os.write(stream.fileno(), f"{line}\n".encode())
