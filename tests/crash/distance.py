"""A stretch of network: `python -m tests.crash.distance HOST PORT TARGET MILLISECONDS` passes bytes on, so much later.

Whoever talks to Redis over it has committed to the ledger long before Redis is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys


async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter, seconds: float) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await source.read(65536):
            await asyncio.sleep(seconds)
            target.write(data)
            await target.drain()
    target.close()


async def serve(host: str, port: int, target: int, seconds: float) -> None:
    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        # Answers come back at once: it is the way there that counts.
        await asyncio.gather(pass_on(reader, far_writer, seconds), pass_on(far_reader, writer, 0.0))

    async with await asyncio.start_server(connect, host, port) as server:
        await server.serve_forever()


if __name__ == "__main__":
    listen, target, milliseconds = map(int, sys.argv[2:])
    asyncio.run(serve(sys.argv[1], listen, target, milliseconds / 1000))
