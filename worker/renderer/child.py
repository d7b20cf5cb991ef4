"""One child process on the parent's side: start it, exchange messages, kill it, and find out why it ended."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from shared.errors import ChildLost, DecoderCrashed, RenderTimedOut
from worker.renderer.protocol import HEADER, BadFrame, Message, length_of, pack, unpack

#: Seconds that a child has to load the decoders.
START_SECONDS = 60.0
#: Seconds that a process has to end after it has closed its side of the connection.
EXIT_SECONDS = 10.0
#: A child is replaced after so many pictures, in case one of them has taken control of it.
MOST_PICTURES = 1000
#: A child that keeps more memory between two pictures is replaced. A healthy one keeps half of this.
MOST_KEPT_BYTES = 192 * 1024 * 1024

#: The whole environment of a child. The variable makes malloc ask for pages of 2 MB (`madvise`). A large picture is
#: then decoded in two thirds of the time, because there are fewer page faults.
ENVIRONMENT = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}

_ROOT = Path(__file__).resolve().parents[2]


class Child:
    """A process and the connection to it. The child is idle when no reply is due and it expects no second order."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket) -> None:
        self.process = process
        self.is_idle = False
        self.is_taken = False
        #: Whether the child is killed only because its rendering was cancelled.
        self.is_cancelled = False
        self._connection = connection
        self._killed = False
        #: Why the child has no system-call filter; empty if it has one.
        self.unfiltered_for = ""
        self.pictures = 0

    @classmethod
    async def spawn(cls, command: Sequence[str], *limits: int) -> Child:
        """Start `command` with these arguments: the descriptor of its connection, the parent's pid, and `limits`."""
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                ours.setblocking(False)
                process = await asyncio.create_subprocess_exec(
                    *command,
                    *(str(number) for number in (theirs.fileno(), os.getpid(), *limits)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    # libtiff writes warnings to stderr that contain parts of the file.
                    stderr=asyncio.subprocess.DEVNULL,
                    env=ENVIRONMENT,
                    cwd=_ROOT,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,
                )
            except BaseException:
                ours.close()
                raise
        return cls(process, ours)

    async def warm_up(self) -> None:
        """Wait until the child has loaded the decoders. Raises ChildLost if it fails."""
        try:
            async with asyncio.timeout(START_SECONDS):
                greeting = await self.receive()
        except (EOFError, BadFrame, OSError) as exc:  # TimeoutError is an OSError
            raise ChildLost(f"a child did not come up: {exc!r}") from exc
        if greeting.get("ready") is not True or not isinstance(missing := greeting.get("missing"), str):
            raise ChildLost(f"a child did not come up: {greeting.get('reason', 'it began with something else')}")
        self.unfiltered_for = missing
        self.is_idle = True

    def is_silent(self) -> bool:
        """Return whether the child is alive and has sent nothing unasked."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return self.process.returncode is None
        except OSError:
            return False
        return False

    def is_worn_out(self) -> bool:
        """Return whether the child should be replaced."""
        return self.pictures >= MOST_PICTURES or self._resident_bytes() > MOST_KEPT_BYTES

    def _resident_bytes(self) -> int:
        try:
            return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()
        except OSError:
            return 0

    async def exchange(self, message: Message, descriptors: Iterable[int]) -> Message:
        """Send `message` with descriptors and return the reply. Raises EOFError, BadFrame or an OSError."""
        self.is_idle = False
        frame = pack(message)
        # The child has read all earlier messages, so a frame always fits into the socket's buffer.
        if socket.send_fds(self._connection, [frame], list(descriptors)) != len(frame):
            raise BadFrame("does not listen")
        return await self.receive()

    async def receive(self) -> Message:
        """Return the next message. Raises EOFError, BadFrame or an OSError."""
        return unpack(await self._read(length_of(await self._read(HEADER.size))))

    async def _read(self, count: int) -> bytes:
        loop = asyncio.get_running_loop()
        data = b""
        while len(data) < count:
            part = await loop.sock_recv(self._connection, count - len(data))
            if not part:
                raise EOFError("hung up")
            data += part
        return data

    def kill(self) -> None:
        """Kill the child and everything in its process group."""
        if self.process.returncode is None:
            # A process that has already ended has another cause of death.
            self._killed = True
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def discard(self) -> None:
        """Kill the child and close the connection. Only for the session that has taken the child."""
        self.kill()
        self._connection.close()

    async def end(self) -> None:
        """Kill the child and wait until the process is gone."""
        self.kill()
        try:
            await self.process.wait()
        finally:
            # A session that has taken the child may still read its last message.
            if not self.is_taken:
                self._connection.close()

    def distrust(self, what: str) -> ChildLost:
        """Kill the child because of `what` it did. Returns the error to raise."""
        self.is_idle = False
        self.kill()
        return ChildLost(f"child {self.process.pid} {what}")

    async def cause_of_death(self) -> Exception:
        """Wait for the end of the child. Returns the error for its exit code: RenderFailure if the file is at fault."""
        was_killed = self._killed
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                code = await self.process.wait()
        except TimeoutError:
            return self.distrust("hung up and stayed")
        if code == -signal.SIGXCPU:
            return RenderTimedOut("The picture took too much computing time to render.")
        if code < 0 and code != -signal.SIGKILL and not was_killed:
            return DecoderCrashed(f"The decoder crashed on this picture ({signal.Signals(-code).name}).")
        return ChildLost(f"child {self.process.pid} ended, exit {code}")
