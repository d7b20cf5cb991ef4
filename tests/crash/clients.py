"""Clients of a service that is being broken: they upload, retry as a well-behaved client does, vanish, and read."""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

from tests.crash.numbered import numbered, size_of
from tests.integration.faults import RawClient
from tests.integration.service import Deployed, Response, host_of

_EDGE = b"edge-of-a-part"
#: Seconds that a client waits for an answer: longer than the service's own patience with its ledger.
_PATIENCE = 30.0
#: Seconds until a client whose upload was not acknowledged sends it again, at the least and at the most.
_AGAIN = (0.1, 2.0)


@dataclass(frozen=True)
class Acknowledged:
    """An upload that was answered with 202 or 201: from `at` on it must never be lost."""

    number: int
    image_id: str
    began: float
    at: float


@dataclass(frozen=True)
class Try:
    """One try at an upload: when it ended, after how many seconds, and how, in one word."""

    at: float
    seconds: float
    outcome: str


@dataclass
class Observations:
    """What all clients saw; lists are appended to by many threads, which Python does whole."""

    acknowledged: list[Acknowledged] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    reads: Counter[str] = field(default_factory=Counter)
    #: The SHA-256 (hex) of each picture that was sent, by its number.
    digests: dict[int, str] = field(default_factory=dict)
    #: What no client should ever see, in words.
    wrong: list[str] = field(default_factory=list)


class Clients:
    """Threads that upload pictures number 0, 1, 2 … at a steady rate, and threads that read what was acknowledged."""

    def __init__(
        self, service: Deployed, *, uploads: int, rate: float, uploaders: int, readers: int, seed: int
    ) -> None:
        self.saw = Observations()
        self._service = service
        self._uploads = uploads
        self._rate = rate
        self._seed = seed
        self._numbers = iter(range(uploads))
        self._next = threading.Lock()
        self._began = time.time()
        self._given_up = threading.Event()
        self._uploaders = [threading.Thread(target=self._upload_all, args=(n,), daemon=True) for n in range(uploaders)]
        self._readers = [threading.Thread(target=self._read, args=(n,), daemon=True) for n in range(readers)]

    def start(self) -> None:
        self._began = time.time()
        for thread in (*self._uploaders, *self._readers):
            thread.start()

    @property
    def are_uploading(self) -> bool:
        return any(thread.is_alive() for thread in self._uploaders)

    def stop(self) -> None:
        """Have all come to their end; return when they have."""
        self._given_up.set()
        for thread in (*self._uploaders, *self._readers):
            thread.join()

    def _upload_all(self, which: int) -> None:
        dice = random.Random(f"{self._seed} uploader {which}")
        while not self._given_up.is_set():
            with self._next:
                number = next(self._numbers, None)
            if number is None:
                return
            self._given_up.wait(max(0.0, self._began + number / self._rate - time.time()))
            self._upload(number, numbered(number), dice)

    def _upload(self, number: int, picture: bytes, dice: random.Random) -> None:
        self.saw.digests[number] = hashlib.sha256(picture).hexdigest()
        pause = _AGAIN[0]
        while not self._given_up.is_set():
            web = dice.randrange(len(self._service.ports))
            if dice.random() < 0.05:
                self._vanish(web, picture, dice)
            began = time.time()
            try:
                answer = self._send(web, picture, dice)
            except (OSError, http.client.HTTPException) as exc:
                self._note(began, type(exc).__name__)
            else:
                self._note(began, str(answer.status))
                if answer.status in (201, 202):
                    self._note_acknowledged(number, began, answer)
                    return
                if answer.status not in (408, 503, 507):
                    self.saw.wrong.append(f"an upload got {answer.status}: {answer.body[:200]!r}")
                    return
            self._given_up.wait(dice.uniform(pause / 2, pause))
            pause = min(pause * 2, _AGAIN[1])

    def _send(self, web: int, picture: bytes, dice: random.Random) -> Response:
        headers = {"Prefer": "wait=5"} if dice.random() < 0.1 else {}
        framing = dice.choice(("length", "chunked", "form"))
        if framing == "form":
            headers["Content-Type"] = f"multipart/form-data; boundary={_EDGE.decode()}"
            head = b'--%s\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' % _EDGE
            picture = head + picture + b"\r\n--%s--\r\n" % _EDGE
        port = self._service.ports[web]
        connection = http.client.HTTPConnection(host_of(port), port, timeout=_PATIENCE)
        try:
            body = _pieces(picture) if framing == "chunked" else picture
            connection.request("POST", "/images", body, headers, encode_chunked=framing == "chunked")
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, names, answer.read())
        finally:
            connection.close()

    def _vanish(self, web: int, picture: bytes, dice: random.Random) -> None:
        """Send a part of the picture and go, in peace or with a bang."""
        began = time.time()
        with suppress(OSError):
            client = RawClient(self._service.ports[web])
            try:
                client.send(b"POST /images HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n" % len(picture))
                client.send(picture[: int(len(picture) * dice.uniform(0.01, 0.99))])
            finally:
                dice.choice((client.finish, client.reset))()
        self._note(began, "vanished")

    def _note(self, began: float, outcome: str) -> None:
        now = time.time()
        self.saw.tries.append(Try(now, now - began, outcome))

    def _note_acknowledged(self, number: int, began: float, answer: Response) -> None:
        record = answer.json
        self.saw.acknowledged.append(Acknowledged(number, record["id"], began, time.time()))

    def _read(self, which: int) -> None:
        """Read records and pictures of what was acknowledged; whatever dies meanwhile, they are there."""
        dice = random.Random(f"{self._seed} reader {which}")
        ready: set[str] = set()
        while not self._given_up.wait(dice.uniform(0.02, 0.06)):
            if not self.saw.acknowledged:
                continue
            image = dice.choice(self.saw.acknowledged[-50:])
            web = dice.randrange(len(self._service.ports))
            path = f"/images/{image.image_id}" + (".jpeg" if image.image_id in ready else "")
            try:
                answer = self._service.get(path, web=web)
            except (OSError, http.client.HTTPException) as exc:
                self.saw.reads[type(exc).__name__] += 1
                continue
            self.saw.reads[str(answer.status)] += 1
            if answer.status not in (200, 503):
                self.saw.wrong.append(f"GET {path} got {answer.status} after it was acknowledged")
            elif answer.status == 200 and answer.headers["content-type"] == "application/json":
                status = answer.json["status"]
                if status == "ready":
                    ready.add(image.image_id)
                    if answer.json["size"] != list(size_of(image.number)):
                        self.saw.wrong.append(f"{image.image_id} has the size {answer.json['size']}")
                elif status == "failed":
                    self.saw.wrong.append(f"{image.image_id} failed: {answer.json['error']}")


def _pieces(body: bytes) -> Iterator[bytes]:
    for begin in range(0, len(body), 65536):
        yield body[begin : begin + 65536]
