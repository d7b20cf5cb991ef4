"""Make the data folder that release 0.1.0 leaves behind, with images in every status and with every debt.

    git worktree add ../asgilook-0.1 1800fe8
    cd ../asgilook-0.1
    python .../tests/releases/make_0_1.py

Run it where 0.1.0 is checked out, with a Python that has its packages. It starts 0.1.0's own processes there (release
step, Valkey, web, workers) and stops or kills them at the moments that leave the debts. Nothing is written into the
ledger by hand. This file imports nothing of the product: 0.1.0 stays as it is, while the code beside this file changes.

It writes two files beside itself:

- `data-0.1.0.tar.gz`: the folder that `ASGI_LOOK_STORAGE_PATH` named, without Valkey's.
- `data-0.1.0.json`: for each image its case, its row's status and debt, the record that `GET /images/{id}` answered
  at the end, the SHA-256 of each picture, and the pictures whose files are missing.

Ids and times are those of the run, so each run makes another tarball. The cases and the pictures are the same.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

COMMIT = "1800fe8"
HERE = Path(__file__).resolve().parent
TARBALL = HERE / "data-0.1.0.tar.gz"
LISTING = HERE / "data-0.1.0.json"
#: Gives thumbnails of 160x128 and 80x64.
SIZE = (320, 256)
#: Seconds after which the script gives up; nothing should need them.
PATIENCE = 30.0

#: What the ledger says of each case in the end: the status, the debt, whether a worker is named in the row.
CASES: dict[str, tuple[str, str | None, bool]] = {
    "queued": ("queued", None, False),
    "processing": ("processing", None, True),
    "ready": ("ready", None, False),
    "ready, original gone": ("ready", None, False),
    "ready, owing tokens": ("ready", "tokens", False),
    "ready, owing leftovers": ("ready", "leftovers", False),
    "ready, wanting thumbnails": ("ready", "thumbnails", False),
    "ready, thumbnails claimed": ("ready", "thumbnails", True),
    "failed": ("failed", None, False),
    "failed, owing tokens": ("failed", "tokens", False),
    "deleting, owing tokens": ("deleting", "tokens", False),
    "deleting, owing leftovers": ("deleting", "leftovers", False),
}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF")

_VALKEY = """
import os, sys
from pathlib import Path
from parts import valkey_command
command = valkey_command(Path(sys.argv[1]), int(sys.argv[2]))
os.execv(command[0], command)
"""


def picture(number: int) -> bytes:
    """Return a small picture that no other number has; its format changes with the number."""
    across, down = Image.linear_gradient("L").rotate(90).resize(SIZE), Image.linear_gradient("L").resize(SIZE)
    image = Image.merge("RGB", (across, down, Image.new("L", SIZE, 20 * number)))
    draw = ImageDraw.Draw(image)
    for i in range(1, 7):
        x, y = SIZE[0] * i // 8, SIZE[1] * ((i * 3 + number) % 8) // 8
        draw.ellipse((x, y, x + 40, y + 30), fill=(i * 40, 255 - i * 30, number * 70 % 256))
    file = io.BytesIO()
    image.save(file, FORMATS[number % len(FORMATS)])
    return file.getvalue()


def torn_picture(number: int) -> bytes:
    """Return a PNG that ends within its pixels."""
    file = io.BytesIO()
    Image.open(io.BytesIO(picture(number))).convert("RGB").save(file, "PNG")
    return file.getvalue()[:300]


def until(condition: Callable[[], object], what: str) -> None:
    """Return once `condition()` is true."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} has not come true in {PATIENCE:.0f} s")
        time.sleep(0.01)  # between two looks


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Release:
    """0.1.0 in processes that this script starts, freezes and kills."""

    def __init__(self, code: Path, folder: Path, **env: str) -> None:
        self.data = folder / "data"
        self._code = code
        self._folder = folder
        self._valkey_folder = folder / "valkey"
        self._valkey_folder.mkdir()
        self._port, self._valkey_port = free_port(), free_port()
        self._running: list[subprocess.Popen[bytes]] = []
        procfile = (line.partition(":") for line in (code / "Procfile").read_text().splitlines())
        self._commands = {name: ["/bin/sh", "-c", f"exec {command.strip()}"] for name, _, command in procfile}
        self._env = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOST": "127.0.0.1",
            "PORT": str(self._port),
            "ASGI_LOOK_STORAGE_PATH": str(self.data),
            "REDIS_URL": f"redis://127.0.0.1:{self._valkey_port}/0",
            **env,
        }

    # Processes

    def migrate(self) -> None:
        if self._start("release", self._commands["release"]).wait(PATIENCE) != 0:
            raise RuntimeError((self._folder / "release.log").read_text())

    def start_web(self) -> subprocess.Popen[bytes]:
        web = self._start("web", self._commands["web"])
        until(self._answers, "web's answer")
        return web

    def start_worker(self, name: str, **env: str) -> subprocess.Popen[bytes]:
        worker = self._start(name, self._commands["worker"], **env)
        log = self._folder / f"{name}.log"
        until(lambda: "the worker is ready" in log.read_text(), f"readiness of {name}")
        return worker

    def start_valkey(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", _VALKEY, str(self._valkey_folder), str(self._valkey_port)]
        valkey = self._start("valkey", command)
        until(self._valkey_answers, "Valkey's answer")
        return valkey

    def end_of(self, name: str, command: Sequence[str] = ()) -> int:
        """Start a process that is expected to end by itself; return its exit code."""
        return self._start(name, command or self._commands[name]).wait(PATIENCE)

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        """End a process in peace."""
        process.terminate()
        process.wait(PATIENCE)

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a process, and a worker's children, with a bang."""
        children = children_of(process.pid)
        process.kill()
        process.wait()
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)

    def close(self) -> None:
        """Kill what is still running."""
        for process in self._running:
            if process.poll() is None:
                self.kill(process)

    def _start(self, name: str, command: Sequence[str], **env: str) -> subprocess.Popen[bytes]:
        with (self._folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self._code, env={**self._env, **env}, stdout=log, stderr=log, start_new_session=True
            )
        self._running.append(process)
        return process

    def _answers(self) -> bool:
        try:
            return self.request("GET", "/healthz")[0] == 200
        except OSError:
            return False

    def _valkey_answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._valkey_port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    # The API

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Send one request; return the answer's status and body."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE)) as connection:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()

    def upload(self, content: bytes) -> str:
        """Upload a picture; return the image's id."""
        status, body = self.request("POST", "/images", content, **{"Content-Type": "application/octet-stream"})
        expect(status, 202)
        return str(json.loads(body)["id"])

    def record(self, image_id: str) -> Any:
        """Return the image's record, or None where it is not found."""
        status, body = self.request("GET", f"/images/{image_id}")
        return json.loads(body) if status == 200 else None

    # The ledger and the disk

    def row(self, image_id: str) -> dict[str, Any]:
        """Return the image's row."""
        with contextlib.closing(sqlite3.connect(self.data / "ledger.sqlite3", timeout=PATIENCE)) as connection:
            connection.row_factory = sqlite3.Row
            return dict(connection.execute("SELECT * FROM images WHERE id = ?", (image_id,)).fetchone())

    def until_row(self, image_id: str, **values: Any) -> None:
        """Return once the image's row has these values."""
        until(lambda: values.items() <= self.row(image_id).items(), f"{values} of {image_id}")

    def original(self, image_id: str) -> Path:
        return self.data / "originals" / image_id[:5] / image_id[5:8] / image_id

    def attempts(self, image_id: str) -> Path:
        """Return the folder that has a folder for each attempt."""
        return self.data / "renditions" / image_id[:5] / image_id[5:8] / image_id

    def lose_thumbnail(self, image_id: str) -> str:
        """Remove a thumbnail's file and ask for it, so that the image owes its thumbnails; return its path."""
        path = str(self.record(image_id)["thumbnails"][0])
        (self.attempts(image_id) / "1" / path.rpartition("/")[2]).unlink()
        expect(self.request("GET", path)[0], 503)
        self.until_row(image_id, owed="thumbnails")
        return path


@contextlib.contextmanager
def frozen_children(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    """Keep a worker's children frozen for the block: what it claims meanwhile is not rendered."""
    children = children_of(worker.pid)
    for child in children:
        os.kill(child, signal.SIGSTOP)
    yield
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGCONT)


def children_of(parent: int) -> list[int]:
    """Return the process ids of a process's children."""
    listing = Path(f"/proc/{parent}/task/{parent}/children")
    return [int(pid) for pid in listing.read_text().split()] if listing.exists() else []


def expect(found: object, expected: object) -> None:
    """Raise RuntimeError where something is not as this script needs it."""
    if found != expected:
        raise RuntimeError(f"{found!r} instead of {expected!r}")


def bring_about(release: Release) -> dict[str, Any]:
    """Have 0.1.0 make an image of each case; return the listing.

    Two debts are due 10 s after they were made, and two leases are over after 12 s. A worker that is alive then would
    pay them, so the order is the one in which the last worker ends before that. `listing_of` checks that it did.
    """
    ids: dict[str, str] = {}
    missing: dict[str, str] = {}
    release.migrate()
    valkey = release.start_valkey()
    web = release.start_web()

    worker = release.start_worker("worker-without-originals", ASGI_LOOK_KEEP_ORIGINALS="0")
    gone = ids["ready, original gone"] = release.upload(picture(0))
    release.until_row(gone, status="ready", owed=None)
    expect(release.original(gone).exists(), False)
    release.stop(worker)

    worker = release.start_worker("worker", ASGI_LOOK_RENDER_SLOTS="2")
    others = ("ready, original gone", "ready, owing tokens")
    to_begin_with = [case for case in CASES if case.startswith(("ready", "deleting")) and case not in others]
    for number, case in enumerate(to_begin_with, start=1):
        ids[case] = release.upload(picture(number))
        release.until_row(ids[case], status="ready", owed=None)
    ids["failed"] = release.upload(torn_picture(0))
    release.until_row(ids["failed"], status="failed", owed=None)

    # A worker that dies while it holds a conversion and another image's thumbnails.
    claimed = ids["ready, thumbnails claimed"]
    with frozen_children(worker):
        ids["processing"] = release.upload(picture(9))
        release.until_row(ids["processing"], status="processing")
        missing[claimed] = release.lose_thumbnail(claimed)
        until(lambda: release.row(claimed)["worker"], "the claim of thumbnails")
        release.kill(worker)

    # A second attempt is published while Redis is away: its tokens are changed when Redis is back, by web, which
    # leaves the first attempt's folder to the workers. The same happens to what a deleted image has on the disk.
    superseded, deleted = ids["ready, owing leftovers"], ids["deleting, owing leftovers"]
    worker = release.start_worker("worker-for-leftovers", ASGI_LOOK_RENDER_SLOTS="2")
    with frozen_children(worker):
        release.lose_thumbnail(superseded)
        until(lambda: release.row(superseded)["worker"], "the claim of thumbnails")
        release.kill(valkey)
    release.until_row(superseded, published=2, owed="tokens")
    expect(release.request("DELETE", f"/images/{deleted}")[0], 204)
    release.kill(worker)
    valkey = release.start_valkey()
    for image_id in (superseded, deleted):
        release.until_row(image_id, owed="leftovers")

    # Outcomes that are committed while Redis is away.
    worker = release.start_worker("worker-for-tokens", ASGI_LOOK_RENDER_SLOTS="2")
    ready, failed = "ready, owing tokens", "failed, owing tokens"
    with frozen_children(worker):
        ids[ready], ids[failed] = release.upload(picture(10)), release.upload(torn_picture(1))
        for case in (ready, failed):
            release.until_row(ids[case], status="processing")
        release.kill(valkey)
    for case in (ready, failed):
        release.until_row(ids[case], owed="tokens")
    release.kill(worker)

    # With no worker and no Redis whatever is asked for stays asked for.
    wanting = ids["ready, wanting thumbnails"]
    missing[wanting] = release.lose_thumbnail(wanting)
    ids["queued"] = release.upload(picture(11))
    expect(release.request("DELETE", f"/images/{ids['deleting, owing tokens']}")[0], 204)
    listing = listing_of(release, ids, missing)
    # In peace: the ledger is then one file, without a journal beside it.
    release.stop(web)
    return listing


def listing_of(release: Release, ids: dict[str, str], missing: dict[str, str]) -> dict[str, Any]:
    """Return what is in the folder. Raises RuntimeError where a case is not what it is called."""
    images: dict[str, Any] = {}
    for case, (status, owed, has_worker) in CASES.items():
        image_id = ids[case]
        record = release.record(image_id)
        row = release.row(image_id)
        expect((case, row["status"], row["owed"], row["worker"] is not None), (case, status, owed, has_worker))
        paths = [record["image"], *record["thumbnails"]] if status == "ready" else []
        lost = [missing[image_id]] if image_id in missing else []
        images[image_id] = {
            "case": case,
            "status": status,
            "owed": owed,
            "record": record,
            "pictures": {path: digest_of(release, path) for path in paths if path not in lost},
            "missing": lost,
        }
    superseded = release.attempts(ids["ready, owing leftovers"])
    expect(sorted(path.name for path in superseded.iterdir()), ["1", "2"])
    for case in ("deleting, owing tokens", "deleting, owing leftovers"):
        expect(release.original(ids[case]).exists() and release.attempts(ids[case]).exists(), True)
    return {"release": "0.1.0", "commit": COMMIT, "images": images}


def digest_of(release: Release, path: str) -> str:
    """Return the SHA-256 of a picture that is served."""
    status, body = release.request("GET", path)
    expect(status, 200)
    return hashlib.sha256(body).hexdigest()


def pack(data: Path) -> None:
    """Write the folder as a tarball that tells nothing of the machine that it was made on."""
    expect(sorted(path.name for path in data.glob("ledger.sqlite3*")), ["ledger.sqlite3"])
    now = int(time.time())

    def anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = now
        return member

    with (
        TARBALL.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        tar.add(data, arcname="data", filter=anonymous)


def main() -> None:
    code = Path.cwd()
    head = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    expect(head[: len(COMMIT)], COMMIT)
    with tempfile.TemporaryDirectory() as folder:
        release = Release(code, Path(folder))
        try:
            listing = bring_about(release)
        finally:
            release.close()
        pack(release.data)
    LISTING.write_text(json.dumps(listing, indent=1) + "\n")
    print(f"{TARBALL}: {TARBALL.stat().st_size} bytes")


if __name__ == "__main__":
    main()
