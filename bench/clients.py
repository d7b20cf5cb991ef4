"""Clients of a service: several at once, and one that keeps its connection."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from http.client import HTTPConnection


def at_once(act: Callable[[], object], times: int) -> None:
    """Call `act` so many times at once, each in a thread. Raises the first exception of a call."""
    failures: list[BaseException] = []

    def do() -> None:
        try:
            act()
        except BaseException as exc:
            failures.append(exc)

    threads = [threading.Thread(target=do) for _ in range(times)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Client:
    """One connection to a web process."""

    def __init__(self, port: int) -> None:
        self._connection = HTTPConnection("127.0.0.1", port, timeout=60)

    def get(self, path: str, expected: int = 200, headers: Mapping[str, str] | None = None) -> tuple[bytes, str]:
        """Return the body and the ETag of an answer. Raises SystemExit for another status."""
        self._connection.request("GET", path, headers=dict(headers or {}))
        answer = self._connection.getresponse()
        body = answer.read()
        if answer.status != expected:
            raise SystemExit(f"GET {path} got {answer.status}")
        return body, answer.headers["ETag"] or ""

    def close(self) -> None:
        self._connection.close()
