"""TLS in front of a Valkey that speaks none: `python -m tests.apart.door ADDRESS CERTIFICATE PORT:TARGET …`

A process of its own, unlike `tests.doors`: a test's busy threads are no network. Where nobody is behind the door, a
client is sent away before a word of TLS, much as if the door were not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import sys

import uvloop


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _pass_on(client: socket.socket, target: int, context: ssl.SSLContext) -> None:
    loop = asyncio.get_running_loop()
    try:
        inner_reader, inner = await asyncio.open_connection("127.0.0.1", target)
    except OSError:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        return
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, client, ssl=context)
    except OSError:
        inner.transport.abort()
        return
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    ways = [asyncio.create_task(_copy(reader, inner)), asyncio.create_task(_copy(inner_reader, writer))]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for end in (inner.transport, transport):
        # The other way ends by it, too.
        end.abort()
    await asyncio.wait(ways)


async def _serve(address: str, port: int, target: int, context: ssl.SSLContext) -> None:
    loop, passing = asyncio.get_running_loop(), set[asyncio.Task[None]]()
    with socket.create_server((address, port), backlog=512) as server:
        server.setblocking(False)
        while True:
            client, _ = await loop.sock_accept(server)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            passing.add(task := asyncio.create_task(_pass_on(client, target, context)))
            task.add_done_callback(passing.discard)


async def main(address: str, certificate: str, ways: list[str]) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    served = ((int(port), int(target)) for port, target in (way.split(":") for way in ways))
    await asyncio.gather(*(_serve(address, port, target, context) for port, target in served))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
