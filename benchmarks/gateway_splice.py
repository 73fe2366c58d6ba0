"""The floor: ``gateway_splice.py PORT ENGINE_PORT`` carries bytes between two connections and looks at none."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import cast

import uvloop


class _Engine(asyncio.Protocol):
    """The side towards the engine."""

    def __init__(self, client: _Client) -> None:
        self._client = client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._client.joined(cast("asyncio.Transport", transport))  # uvloop's are no subclasses of it
        self._write = self._client.transport.write

    def data_received(self, data: bytes) -> None:
        self._write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.transport.close()


class _Client(asyncio.Protocol):
    """The side towards the client. What comes before the engine is reached is kept."""

    def __init__(self) -> None:
        self._kept: list[bytes] = []
        self._engine: asyncio.Transport | None = None
        self._task: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        loop = asyncio.get_running_loop()
        made = loop.create_connection(lambda: _Engine(self), "127.0.0.1", int(sys.argv[2]))
        self._task = loop.create_task(made)

    def joined(self, engine: asyncio.Transport) -> None:
        """Go on with the engine."""
        self._engine = engine
        self._task = None
        for data in self._kept:
            engine.write(data)
        self._kept.clear()

    def data_received(self, data: bytes) -> None:
        if self._engine is None:
            self._kept.append(data)
        else:
            self._engine.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self._engine is not None:
            self._engine.close()


async def _main() -> None:
    await asyncio.get_running_loop().create_server(_Client, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(_main())
