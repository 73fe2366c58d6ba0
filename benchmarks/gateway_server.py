"""A stand-in for the server: ``gateway_server.py SOCKET`` tells a gateway an empty change, and keeps what it metered.

Delivering usage is a part of a gateway's work, and one without a server would look for it all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys

import uvloop

from gpustack.dataplane.table import wire
from gpustack.dataplane.table.wire import Change, Kept, Metered


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(EOFError, OSError):
        wire.from_gateway(await wire.read(reader))  # Hello
        writer.write(wire.framed(Change(1)))
        while True:
            message = wire.from_gateway(await wire.read(reader))
            if isinstance(message, Metered):
                writer.write(wire.framed(Kept(message.number)))
    writer.close()


async def _main() -> None:
    await asyncio.start_unix_server(_serve, sys.argv[1], limit=wire.LONGEST)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main())
