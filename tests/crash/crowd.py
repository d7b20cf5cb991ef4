"""Many clients at work on every web process at once, each request at any of them: they write, read, and note it all."""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from tests.crash.sightings import GONE, NOT_READY, Sighting, Sightings
from tests.integration.service import Deployed, Response, host_of
from tests.worker.pictures import encoded, photo

#: Images that one writer keeps; of more, one is deleted.
_KEPT = 4
#: How often a writer who looks in vain deletes something meanwhile, for all that Redis may be frozen.
_DELETES_MEANWHILE = 0.02
#: Seconds that an image may take to its end, a sweep's wake-up after a lost one included.
_PATIENCE = 60.0
#: Seconds between two looks or two tries, and between two pieces of a writer's work: the least and the most.
_LOOKS = (0.0, 0.02)
_WORKS = (0.0, 0.2)

#: Lists that are asked for again and again, and among how many others a list is that has hardly a copy.
_LISTS = ("/images?limit=1000", "/images?limit=1000&order=desc", "/images?order=desc&limit=5")
_RARE_LISTS = 100
_PROBLEMS = {"no-such-image": GONE, "not-ready": NOT_READY, "image-failed": "failed"}


@functools.cache
def tiny_picture() -> bytes:
    """Return a picture that is rendered in a moment, with one thumbnail where they may be as small as 16 pixels."""
    return encoded(photo((64, 48)), "JPEG").getvalue()


def no_picture() -> bytes:
    """Return what begins like a JPEG and fails to be one."""
    return tiny_picture()[:100]


class Crowd:
    """Writers and readers in threads; `seen` is what they saw, `wrong` what no client should ever see, in words."""

    def __init__(self, service: Deployed, *, writers: int, readers: int, seed: int) -> None:
        self.seen = Sightings()
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self._service = service
        self._seed = seed
        self._enough = threading.Event()
        self._counting = threading.Lock()
        #: Images that something has happened to lately: readers look at these.
        self._recent: deque[str] = deque(maxlen=12)
        self._deleted: deque[str] = deque(maxlen=12)
        self._records: dict[str, Any] = {}
        works = [*[self._write] * writers, *[self._read] * readers]
        self._threads = [
            threading.Thread(target=self._work, args=(number, work), daemon=True) for number, work in enumerate(works)
        ]

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Have them all work for the block, and come to an end with it."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._enough.set()
            for thread in self._threads:
                thread.join()

    @property
    def is_whole(self) -> bool:
        """Whether nobody has stopped by an error of their own."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def reads(self) -> int:
        """How many records and lists were read."""
        return self.counts["records"] + self.counts["lists"]

    def _work(self, number: int, work: Callable[[Client], None]) -> None:
        client = Client(self, self._service, random.Random(f"{self._seed} client {number}"))
        try:
            while not self._enough.is_set():
                work(client)
        finally:
            client.hang_up()

    # What writers do

    def _write(self, client: Client) -> None:
        dice = client.dice
        if dice.random() < 0.15:
            self._write_failure(client)
        else:
            self._write_picture(client)
        while len(client.kept) > _KEPT:
            self._delete_one(client)
        client.pause(_WORKS)

    def _write_picture(self, client: Client) -> None:
        image_id = client.upload(tiny_picture(), wait=client.dice.random() < 0.25)
        if image_id is None:
            return
        self._recent.append(image_id)
        if self._until_final(client, image_id, "ready"):
            client.kept.append(image_id)
            # It was ready only just now: every copy of a list must know.
            for _ in range(3):
                client.look_at_list(client.dice.choice(_LISTS))

    def _write_failure(self, client: Client) -> None:
        image_id = client.upload(no_picture(), wait=False)
        if image_id is None:
            return
        self._recent.append(image_id)
        if self._until_final(client, image_id, "failed") and client.retry(image_id):
            self._recent.append(image_id)
            if self._until_final(client, image_id, "failed"):
                client.kept.append(image_id)

    def _until_final(self, client: Client, image_id: str, wanted: str) -> bool:
        deadline = time.monotonic() + _PATIENCE
        while not self._enough.is_set():
            look = client.dice.choice((client.look_at, client.look_at_picture))
            state = look(image_id)
            if state in ("ready", "failed", GONE):
                if state != wanted:
                    self.wrong.append(f"{image_id} is {state}, not {wanted}")
                return state == wanted
            if time.monotonic() > deadline:
                self.wrong.append(f"{image_id} is {state} for ever")
                return False
            if client.kept and client.dice.random() < _DELETES_MEANWHILE:
                self._delete_one(client)
            client.pause()
        return False

    def _delete_one(self, client: Client) -> None:
        image_id = client.kept.pop(client.dice.randrange(len(client.kept)))
        while client.delete(image_id) is None and not self._enough.is_set():
            client.pause()
        self._deleted.append(image_id)
        # Those who come right behind a DELETE.
        client.look_at(image_id)
        client.look_at_list(client.dice.choice(_LISTS))

    # What readers do

    def _read(self, client: Client) -> None:
        dice = client.dice
        images = tuple(self._deleted if dice.random() < 0.1 else self._recent)
        kind = dice.random()
        if kind < 0.1:
            # Read from the ledger, it tells what the copies of others may not know yet.
            client.look_at_list(f"/images?limit={1000 - dice.randrange(_RARE_LISTS)}")
        elif kind < 0.4 or not images:
            client.look_at_list(dice.choice(_LISTS))
        elif kind < 0.8:
            client.look_at(dice.choice(images))
        else:
            client.look_at_picture(dice.choice(images))

    # What clients tell

    def count(self, *names: str) -> None:
        with self._counting:
            self.counts.update(names)

    def note_record(self, record: Any) -> None:
        """Note the record of a ready image, which is one and the same for ever."""
        if record["sequence"] is not None:
            self.seen.sequences[record["id"]] = record["sequence"]
        if record["status"] == "ready" and self._records.setdefault(record["id"], record) != record:
            self.wrong.append(f"{record['id']} has two records: {record} and {self._records[record['id']]}")

    def wait(self, seconds: float) -> None:
        """Wait so long, or until it is enough."""
        self._enough.wait(seconds)


class Client:
    """One client: a connection to each web process, dice of its own, and the images that it has."""

    def __init__(self, crowd: Crowd, service: Deployed, dice: random.Random) -> None:
        self.dice = dice
        self.kept: list[str] = []
        self._crowd = crowd
        self._seen = crowd.seen
        self._connections = [http.client.HTTPConnection(host_of(port), port, timeout=30) for port in service.ports]

    def hang_up(self) -> None:
        for connection in self._connections:
            connection.close()

    def pause(self, seconds: tuple[float, float] = _LOOKS) -> None:
        self._crowd.wait(self.dice.uniform(*seconds))

    def upload(self, content: bytes, wait: bool) -> str | None:
        """Upload a file; return the id of what it became, if that was told."""
        sent = self._send("POST", "/images", content, {"Prefer": "wait=10"} if wait else {})
        if sent is None:
            return None
        began, ended, request, answer = sent
        if answer.status not in (201, 202):
            self._complain(request, answer)
            return None
        record = answer.json
        image_id = str(record["id"])
        self._crowd.note_record(record)
        self._note(began, ended, request, {image_id: record["status"]})
        return image_id

    def retry(self, image_id: str) -> bool:
        """Have a failed image tried again; tell whether that was accepted."""
        began = time.monotonic()
        retries = self._seen.retried[image_id]
        retries.append((began, math.inf))
        sent = self._send("POST", f"/images/{image_id}/retry")
        if sent is not None and sent[3].status == 202:
            retries[-1] = (began, sent[1])
            return True
        if sent is not None:
            self._complain(sent[2], sent[3])
        return False

    def delete(self, image_id: str) -> int | None:
        """Delete an image; return the status of the answer, if there was one."""
        is_first = self._seen.deleted.setdefault(image_id, began := time.monotonic()) == began
        sent = self._send("DELETE", f"/images/{image_id}")
        if sent is None:
            return None
        began, ended, request, answer = sent
        if answer.status == 204:
            self._seen.deleters[image_id] = (request.rpartition(" at ")[2], ended)
        if answer.status == 204 or (answer.status == 404 and not is_first):
            self._note(began, ended, request, {image_id: GONE})
        else:
            self._complain(request, answer)
        return answer.status

    def look_at(self, image_id: str) -> str | None:
        """Read an image's record; return its status, or GONE."""
        sent = self._send("GET", f"/images/{image_id}")
        if sent is None:
            return None
        began, ended, request, answer = sent
        if answer.status == 200:
            record = answer.json
            self._crowd.note_record(record)
            state = str(record["status"])
        elif (state := self._problem(answer)) != GONE:
            self._complain(request, answer)
            return None
        self._note(began, ended, request, {image_id: state})
        self._crowd.count("records", f"records: {answer.headers.get('x-asgilook-cache', 'never cached')}")
        return state

    def look_at_picture(self, image_id: str) -> str | None:
        """Read an image's JPEG or its thumbnail; return what that says of its status, or GONE."""
        path = self.dice.choice((f"/images/{image_id}.jpeg", f"/thumbnails/{image_id}/32x24.jpeg"))
        sent = self._send("GET", path)
        if sent is None:
            return None
        began, ended, request, answer = sent
        if answer.status == 200:
            state = "ready"
        elif not (state := self._problem(answer)):
            self._complain(request, answer)
            return None
        self._note(began, ended, request, {image_id: state})
        self._crowd.count("pictures", f"pictures: {answer.headers.get('x-asgilook-cache', 'never cached')}")
        return state

    def look_at_list(self, path: str) -> None:
        """Read a list of ready images, from its beginning or from its end."""
        sent = self._send("GET", path)
        if sent is None:
            return
        began, ended, request, answer = sent
        if answer.status != 200:
            self._complain(request, answer)
            return
        records = answer.json
        for record in records:
            self._crowd.note_record(record)
        sequences = [record["sequence"] for record in records]
        newest_first = "desc" in path
        if sequences != sorted(set(sequences), reverse=newest_first):
            self._crowd.wrong.append(f"{request} is in no order: {sequences}")
        end = sequences[-1] if "link" in answer.headers else (-math.inf if newest_first else math.inf)
        covers = (end, math.inf) if newest_first else (-math.inf, end)
        self._note(began, ended, request, {record["id"]: record["status"] for record in records}, covers)
        self._crowd.count("lists", f"lists: {answer.headers.get('x-asgilook-cache', 'none')}")

    def _send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[float, float, str, Response] | None:
        """Return when the request began, when its answer was complete, its name, and the answer, if one came."""
        web = self.dice.randrange(len(self._connections))
        connection = self._connections[web]
        began = time.monotonic()
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            # It may be elsewhere by now.
            connection.host = host_of(connection.port)
            self._crowd.count(f"no answer: {type(exc).__name__}")
            self.pause()
            return None
        ended = time.monotonic()
        names = {name.lower(): value for name, value in answer.getheaders()}
        return began, ended, f"{method} {path} at web {web}", Response(answer.status, names, content)

    def _note(
        self,
        began: float,
        ended: float,
        request: str,
        states: dict[str, str],
        covers: tuple[float, float] | None = None,
    ) -> None:
        self._seen.all.append(Sighting(began, ended, request, states, covers))

    def _problem(self, answer: Response) -> str:
        """Return what a refusal says of the image, or nothing."""
        if answer.status != 404:
            return ""
        return _PROBLEMS.get(json.loads(answer.body)["type"].rpartition(":")[2], "")

    def _complain(self, request: str, answer: Response) -> None:
        self._crowd.wrong.append(f"{request} got {answer.status}: {answer.body[:200]!r}")
