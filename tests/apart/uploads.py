"""Clients that go on uploading whatever happens, and what must be true of all that was acknowledged to them."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections import Counter
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from tests.crash.numbered import numbered
from tests.crash.retrying import ids_in_list
from tests.integration.evidence import files_of, is_at_rest, original_of, renditions_of, rows_of
from tests.integration.service import Deployed, Response

#: Seconds after which a client comes back that was told to wait for longer: there are many of us.
_AGAIN_SECONDS = 0.2


class Uploaders:
    """Threads that upload pictures number 0, 1, 2 …, each again and again until it is acknowledged."""

    def __init__(self, service: Deployed, count: int = 4) -> None:
        #: The SHA-256 (hex) of what was sent, by the id under which it was acknowledged.
        self.acknowledged: dict[str, str] = {}
        self.refused: list[Response] = []
        #: What came instead of an answer: nobody can know what became of these.
        self.unanswered: Counter[str] = Counter()
        #: Pictures that were refused, and those of them that were acknowledged later.
        self.sent_again: set[int] = set()
        self.succeeded: set[int] = set()
        #: What no client should see, in words.
        self.surprises: list[str] = []
        self._service = service
        self._next, self._numbers = threading.Lock(), iter(range(65_536))
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._upload_all, args=(number,)) for number in range(count)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Have each finish the picture that it is at."""
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def until_acknowledged(self, more: int) -> None:
        """Return when so many more uploads were acknowledged."""
        wanted = len(self.acknowledged) + more
        self._service.until(lambda: len(self.acknowledged) >= wanted, 240, f"{more} uploads more")

    def until_refused(self, more: int) -> None:
        """Return when so many more uploads were refused."""
        wanted = len(self.refused) + more
        self._service.until(lambda: len(self.refused) >= wanted, 60, f"{more} refusals more")

    def _upload_all(self, web: int) -> None:
        try:
            while not self._enough.is_set():
                with self._next:
                    number = next(self._numbers)
                self._upload(number, web)
        except BaseException as exc:  # a thread's exception would be nobody's
            self.surprises.append(repr(exc))

    def _upload(self, number: int, web: int) -> None:
        # Of small pictures only, there are enough.
        picture = numbered(number * 6)
        for _ in range(600):
            try:
                answer = self._service.upload(picture, web=web % len(self._service.ports))
            except (OSError, http.client.HTTPException) as exc:
                self.unanswered[type(exc).__name__] += 1
            else:
                if answer.status == 202:
                    self.acknowledged[str(answer.json["id"])] = hashlib.sha256(picture).hexdigest()
                    if number in self.sent_again:
                        self.succeeded.add(number)
                    return
                self.refused.append(answer)
                self.sent_again.add(number)
                if answer.status != 503 or int(answer.headers.get("retry-after", 0)) < 1:
                    self.surprises.append(f"an upload got {answer.status}, {dict(answer.headers)}: {answer.body!r}")
            threading.Event().wait(_AGAIN_SECONDS)
        self.surprises.append(f"picture {number} was never acknowledged")


def until_settled(service: Deployed, seconds: float = 240) -> None:
    """Return when every image is final, and owes nothing any more."""
    service.until(
        lambda: all(row["status"] in ("ready", "failed") and is_at_rest(row) for row in rows_of(service).values()),
        seconds,
        "settling",
    )


def shortfalls(service: Deployed, acknowledged: dict[str, str]) -> Iterator[str]:
    """Yield, in words, what of these images is missing or is not what it should be: in ledger, storage and answers."""
    rows = rows_of(service)
    stored = set(files_of(service))
    listed = Counter(ids_in_list(service))
    for image_id, digest in acknowledged.items():
        row = rows.get(image_id)
        if row is None:
            yield f"{image_id} is lost"
            continue
        if (row["status"], listed[image_id], row["original_sha256"]) != ("ready", 1, digest):
            yield f"{image_id} is {row['status']}, in the list {listed[image_id]} times"
        original = original_of(service, image_id)
        if str(original.relative_to(service.data)) not in stored or _digest(original.read_bytes()) != digest:
            yield f"the original of {image_id} is not what was sent"
        for name, (width, height, _, wanted, attempt, _) in json.loads(row["renditions"]).items():
            path = (
                f"/images/{image_id}.jpeg" if name == "image.jpeg" else f"/thumbnails/{image_id}/{width}x{height}.jpeg"
            )
            answer = service.get(path)
            if (answer.status, _digest(answer.body)) != (200, wanted):
                yield f"{path} is answered with {answer.status}, not with what its record names"
            file = renditions_of(service, image_id) / str(attempt) / name
            if str(file.relative_to(service.data)) not in stored or _digest(file.read_bytes()) != wanted:
                yield f"{file} is not what its record names"


def leftovers(service: Deployed, acknowledged: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the rows, and the originals, that no client was told of."""
    originals = {path.rpartition("/")[2] for path in files_of(service) if path.startswith("originals")}
    return sorted(rows_of(service).keys() - acknowledged.keys()), sorted(originals - acknowledged.keys())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
