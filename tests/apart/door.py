"""TLS in front of a Valkey that speaks none: `python -m tests.apart.door ADDRESS CERTIFICATE PORT:TARGET …`

A process of its own, unlike `tests.doors`: a test's busy threads are no network. Behind a door that leads to nobody
a client is sent away before a word of TLS, much as if the door were not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
from functools import partial

import uvloop


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _pass_on(
    target: int, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    inner: asyncio.StreamWriter | None = None
    try:
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", target)
        await writer.start_tls(context)
        ways = [asyncio.create_task(way) for way in (_copy(reader, inner), _copy(inner_reader, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
    except OSError:
        pass
    finally:
        for end in (writer, inner):
            if end is not None:
                end.transport.abort()


async def serve(address: str, certificate: str, ways: list[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    for way in ways:
        port, target = map(int, way.split(":"))
        await asyncio.start_server(partial(_pass_on, target, context), address, port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2], sys.argv[3:]))
