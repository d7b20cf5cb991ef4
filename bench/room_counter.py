"""The process that `bench.rooms` starts: web and worker in one event loop, every call of theirs counted.

It runs in the folder of the code to measure, and imports nothing of `bench`.
"""

from __future__ import annotations

import asyncio
import contextlib
import dis
import http.client
import io
import json
import os
import random
import re
import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import CodeType, FrameType

CODE = Path.cwd()
ROUNDS = 9
#: The module called, and the one that called it, where it was not the event loop.
Call = tuple[str, "str | None"]
PRODUCT = ("api", "shared", "worker")
KINDS = ("an upload, until it is settled", "a GET from memory", "a GET from Redis", "a cold GET")
_WAIT_SECONDS = 60.0
#: Before and after a request: what is left to do in the background is over. The first is drawn at random, so that
#: requests do not fall into step with periodic tasks.
_LEAST_REST_SECONDS, _MOST_REST_SECONDS, _AFTER_SECONDS = 0.3, 1.3, 0.1


class Recorder:
    """Notes the module of every call of a function of the product, in all threads."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.is_on = False
        #: Of each code object: its module, where it is the product's, and the instruction that a call begins at.
        self._codes: dict[CodeType, tuple[str | None, int]] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        if not self.is_on or event != "call":
            return
        code = frame.f_code
        if code not in self._codes:
            self._codes[code] = _module_of(code), _beginning_of(code)
        module, beginning = self._codes[code]
        # A coroutine that goes on after an `await` is past its beginning: that is no call.
        if module is not None and frame.f_lasti == beginning:
            self.calls.append((module, self._caller_of(frame)))

    def _caller_of(self, frame: FrameType) -> str | None:
        """Return the module of the product whose call or await led here; None where the event loop called."""
        caller = frame.f_back
        while caller is not None:
            if (module := self._codes.get(caller.f_code, (None, -1))[0]) is not None:
                return module
            caller = caller.f_back
        return None


def _module_of(code: CodeType) -> str | None:
    path = Path(code.co_filename)
    # What a module does when it is imported is no part of a request.
    if code.co_name == "<module>" or not path.is_relative_to(CODE):
        return None
    relative = path.relative_to(CODE)
    return relative.with_suffix("").as_posix() if relative.parts[0] in PRODUCT else None


def _beginning_of(code: CodeType) -> int:
    return next((each.offset for each in dis.get_instructions(code) if each.opname == "RESUME"), -1)


class Client(threading.Thread):
    """Sends the requests, one after the other, and prints what each of them took."""

    def __init__(self, recorder: Recorder, port: int, picture: bytes, on_end: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._recorder = recorder
        self._port = port
        self._picture = picture
        self._on_end = on_end
        self._ledger = Path(os.environ["ASGI_LOOK_STORAGE_PATH"]) / "ledger.sqlite3"

    def run(self) -> None:
        try:
            until(self._is_up, "the service")
            found: dict[str, list[list[Call]]] = {kind: [] for kind in KINDS}
            for _ in range(ROUNDS + 1):
                for kind, calls in zip(KINDS, self._round(), strict=True):
                    found[kind].append(calls)
            # The first round warms up: what is imported and connected on first use is there afterwards.
            print(json.dumps({kind: rounds[1:] for kind, rounds in found.items()}), flush=True)
        finally:
            self._on_end()

    def _round(self) -> list[list[Call]]:
        image = ""

        def upload() -> None:
            nonlocal image
            image = json.loads(self._request("POST", "/images", self._picture)[1])["id"]
            until(lambda: self._is_settled(image), "the end of an upload")

        uploaded = self._recorded(upload)
        record = json.loads(self._request("GET", f"/images/{image}")[1])
        thumbnail = record["thumbnails"][-1]
        path = thumbnail if isinstance(thumbnail, str) else thumbnail["url"]

        def get(said: str) -> None:
            headers, _ = self._request("GET", path)
            if headers["X-ASGILook-Cache"] != said:
                raise SystemExit(f"GET {path} said {headers['X-ASGILook-Cache']}, not {said}")

        cold = self._recorded(lambda: get("Miss"))
        memory = self._recorded(lambda: get("Hit"))
        # What is in memory is two seconds old at the most.
        time.sleep(2.1)
        redis = self._recorded(lambda: get("Hit"))
        return [uploaded, memory, redis, cold]

    def _recorded(self, act: Callable[[], None]) -> list[Call]:
        time.sleep(random.uniform(_LEAST_REST_SECONDS, _MOST_REST_SECONDS))  # noqa: S311 - no secret
        self._recorder.calls = []
        self._recorder.is_on = True
        act()
        time.sleep(_AFTER_SECONDS)
        self._recorder.is_on = False
        return self._recorder.calls

    def _request(self, method: str, path: str, body: bytes | None = None) -> tuple[http.client.HTTPMessage, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=_WAIT_SECONDS)) as connection:
            connection.request(method, path, body)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status >= 300:
                raise SystemExit(f"{method} {path} got {answer.status}: {content!r}")
            return answer.headers, content

    def _is_up(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException, SystemExit):
            return bool(json.loads(self._request("GET", "/readyz")[1])["status"] == "ok")
        return False

    def _is_settled(self, image: str) -> bool:
        with closing(sqlite3.connect(self._ledger)) as ledger:
            # Release 0.1 has a debt in the image's row.
            columns = {row[1] for row in ledger.execute("PRAGMA table_info(images)")}
            owing = "owed IS NOT NULL" if "owed" in columns else "id IN (SELECT image_id FROM debts)"
            query = f"SELECT status, {owing} FROM images WHERE id = ?"  # noqa: S608 - of ours
            row = ledger.execute(query, (image,)).fetchone()
        return bool(row == ("ready", 0))


def until(condition: Callable[[], bool], what: str) -> None:
    """Return once the condition holds."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come")
        time.sleep(0.02)


def picture() -> bytes:
    """Return a JPEG with two thumbnails."""
    from PIL import Image

    content = io.BytesIO()
    Image.radial_gradient("L").resize((400, 300)).convert("RGB").save(content, "JPEG")
    return content.getvalue()


async def run(recorder: Recorder) -> None:
    """Run web and worker until the client has ended."""
    import uvicorn

    from worker.__main__ import run as work

    named = re.search(r"--http (\S+)", (CODE / "Procfile").read_text())
    assert named is not None  # noqa: S101 - the Procfile names the connection's class
    port = int(os.environ["PORT"])
    config = uvicorn.Config(
        "api.asgi:application",
        host="127.0.0.1",
        port=port,
        http=named[1],
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
    )
    from shared.settings import Settings

    config.load()
    server = uvicorn.Server(config)
    working = asyncio.create_task(work(Settings.from_env()))
    serving = asyncio.create_task(server.serve())
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    Client(recorder, port, picture(), lambda: loop.call_soon_threadsafe(ended.set)).start()
    await ended.wait()
    server.should_exit = True
    await serving
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


def main() -> None:
    recorder = Recorder()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    asyncio.run(run(recorder))


if __name__ == "__main__":
    main()
