"""Clients as they ought to be: they upload and read steadily, and try again, elsewhere, where that is called for."""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Self

from tests.integration.faults import small_picture
from tests.integration.service import Deployed, Response, Service, host_of

#: Seconds that a client thinks between two requests.
_PACE_SECONDS = 0.05
#: How often a request is tried at the most; each time at the next web process.
_MOST_TRIES = 60


class Clients:
    """Several uploaders and readers at several web processes, from the block's begin to its end.

    A connection that is refused, or closed before the first byte of an answer, and `503` with `Retry-After` are tried
    again. Whatever else is no success is a surprise.
    """

    def __init__(self, service: Deployed, *, uploaders: int, readers: int) -> None:
        self.acknowledged: list[str] = []
        self.surprises: list[str] = []
        self.answers: Counter[str] = Counter()
        self.retries: Counter[str] = Counter()
        #: What `Retry-After` the acknowledged were told.
        self.told_to_wait: Counter[str] = Counter()
        self._service = service
        self._ended = threading.Event()
        roles = [self._upload] * uploaders + [self._read] * readers
        self._threads = [threading.Thread(target=self._go_on, args=[role, number]) for number, role in enumerate(roles)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    @property
    def summary(self) -> str:
        return f"answers: {dict(self.answers)}, tried again: {dict(self.retries)}"

    def _go_on(self, act: Callable[[_Client, random.Random], None], number: int) -> None:
        client, choices = _Client(self, number), random.Random(number)
        try:
            while not self._ended.is_set():
                act(client, choices)
                self._ended.wait(_PACE_SECONDS)
        except Exception as exc:  # a thread's exception would be nobody's
            self.surprises.append(repr(exc))
        finally:
            client.hang_up()

    def _upload(self, client: _Client, choices: random.Random) -> None:
        picture, headers = small_picture(), {"Content-Type": "image/png"}
        how = choices.choice(["raw", "multipart", "wait"])
        if how == "multipart":
            head = b'--edge\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n'
            picture, headers = (
                head + picture + b"\r\n--edge--\r\n",
                {"Content-Type": "multipart/form-data; boundary=edge"},
            )
        elif how == "wait":
            headers["Prefer"] = "wait=1"
        answer = client.ask("POST", "/images", picture, headers)
        if answer.status in (201, 202):
            self.acknowledged.append(str(answer.json["id"]))
            self.told_to_wait[answer.headers.get("retry-after", "")] += 1
        else:
            self.surprises.append(f"{how} upload: {answer.status} {answer.body!r}")

    def _read(self, client: _Client, choices: random.Random) -> None:
        page = client.ask("GET", "/images?limit=20&order=desc")
        paths = [page_path for image in page.json for page_path in (f"/images/{image['id']}", image["image"])]
        answers = [page, *(client.ask("GET", path) for path in choices.sample(paths, min(2, len(paths))))]
        self.surprises += [f"read: {answer.status} {answer.body[:200]!r}" for answer in answers if answer.status != 200]


def ids_in_list(service: Service) -> list[str]:
    """Return the ids of all images in the list, in its order."""
    ids: list[str] = []
    after = ""
    while page := service.get(f"/images?limit=1000{after}").json:
        ids += [str(image["id"]) for image in page]
        after = f"&after={page[-1]['sequence']}"
    return ids


class _Client:
    """One client with one connection, kept alive while it lasts."""

    def __init__(self, clients: Clients, number: int) -> None:
        self._clients = clients
        self._web = number
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Response:
        """Return the answer to a request, after as many tries as it takes."""
        for _ in range(_MOST_TRIES):
            try:
                answer = self._try(method, path, body, headers or {})
            except (ConnectionError, http.client.RemoteDisconnected) as exc:
                self._put_off(type(exc).__name__, 0.05)
                continue
            if answer.status == 503 and "retry-after" in answer.headers:
                self._put_off("503", float(answer.headers["retry-after"]))
                continue
            self._clients.answers[f"{method} {answer.status}"] += 1
            return answer
        raise AssertionError(f"{method} {path} came to nothing in {_MOST_TRIES} tries")

    def hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _try(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Response:
        if self._connection is None:
            port = self._clients._service.ports[self._web % len(self._clients._service.ports)]
            self._connection = http.client.HTTPConnection(host_of(port), port, timeout=40)
        self._connection.request(method, path, body or None, headers)
        response = self._connection.getresponse()
        names = {name.lower(): value for name, value in response.getheaders()}
        try:
            return Response(response.status, names, response.read())
        except ConnectionError as exc:
            raise AssertionError(f"an answer to {method} {path} broke off") from exc

    def _put_off(self, why: str, seconds: float) -> None:
        self._clients.retries[why] += 1
        self.hang_up()
        self._web += 1
        time.sleep(seconds)  # as Retry-After asks, or so as not to be a nuisance
