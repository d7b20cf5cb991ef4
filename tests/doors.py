"""A door in front of a Redis: it speaks TLS where it has a certificate, and can be made to lead to another Redis."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trustme

T = TypeVar("T")


class Issuer:
    """Who signs certificates that no system knows; `file` holds its own."""

    def __init__(self, folder: Path) -> None:
        self._issuer = trustme.CA()
        self.file = folder / "issuer.pem"
        self._issuer.cert_pem.write_to_path(str(self.file))

    def context(self, name: str = "127.0.0.1") -> ssl.SSLContext:
        """Return the context of a server with a certificate of this name."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._issuer.issue_cert(name).configure_cert(context)
        return context


class Door:
    """A port of 127.0.0.1, served by a thread of its own, behind which is the Redis on the port `leads_to`."""

    def __init__(self, leads_to: int, context: ssl.SSLContext | None, seconds: float = 0.0) -> None:
        self._leads_to = leads_to
        self._seconds = seconds
        self._open: set[asyncio.StreamWriter] = set()
        #: How many connections were open at once, at the most.
        self.most = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._run(asyncio.start_server(self._pass_on, "127.0.0.1", ssl=context))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def lead_to(self, port: int) -> None:
        """Fail over: every connection is lost, and the next ones lead to another Redis."""
        self._run(self._lead_to(port))

    def lead_newcomers_to(self, port: int) -> None:
        """Lead to another Redis whoever connects from now on; who is connected stays so."""
        self._leads_to = port

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _lead_to(self, port: int) -> None:
        self._leads_to = port
        self._hang_up()

    def _hang_up(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _end(self) -> None:
        self._server.close()
        self._hang_up()
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        self.most = max(self.most, len(self._open))
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._leads_to)
            try:
                ways = [self._copy(reader, inner_writer), self._copy(inner_reader, writer)]
                await asyncio.wait([asyncio.create_task(way) for way in ways], return_when=asyncio.FIRST_COMPLETED)
            finally:
                # The other way ends by it, too.
                inner_writer.transport.abort()
        except OSError:
            pass
        finally:
            self._open.discard(writer)
            writer.transport.abort()

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                await asyncio.sleep(self._seconds)  # how far away it is
                writer.write(data)
                await writer.drain()


class Doors:
    """Makes the doors of one test, and closes them."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.made: list[Door] = []

    def open(self, leads_to: int, name: str = "127.0.0.1", seconds: float = 0.0) -> Door:
        """Open a door that speaks TLS, with a certificate of this name; what passes takes so long, either way."""
        self.made.append(Door(leads_to, self.issuer.context(name), seconds))
        return self.made[-1]


@pytest.fixture(scope="session")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Issuer:
    return Issuer(tmp_path_factory.mktemp("issuer"))


@pytest.fixture
def doors(issuer: Issuer) -> Iterator[Doors]:
    doors = Doors(issuer)
    yield doors
    for door in doors.made:
        door.close()
