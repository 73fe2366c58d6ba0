"""A door that gives way to another one cuts nobody off."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpustack.dataplane.door import LIMITS, DoorServer, DoorService, Records
from gpustack.dataplane.http import Upstream

HEALTH = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@dataclass
class Ending:
    """A door whose clock is the test's own."""

    server: DoorServer
    port: int
    now: float = 1000.0

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect, and return once the door knows of it."""
        before = self.server.accepted
        connection = await asyncio.open_connection("127.0.0.1", self.port)
        while self.server.accepted == before:
            await asyncio.sleep(0.005)
        return connection

    def drain(self, seconds: float) -> asyncio.Task[None]:
        """Begin to end."""
        return asyncio.create_task(self.server.drain(seconds))


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Ending]:
    upstream = Upstream(LIMITS)
    server = DoorServer(DoorService(Records(tmp_path, tmp_path / "token"), upstream, lambda: None), LIMITS)
    listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    made = Ending(server, listener.sockets[0].getsockname()[1])
    server.clock = lambda: made.now
    try:
        async with asyncio.timeout(30):
            yield made
    finally:
        listener.close()
        server.close()
        upstream.close()


async def test_who_has_just_connected_is_answered(door: Ending) -> None:
    reader, writer = await door.connect()
    ending = door.drain(60)
    await asyncio.sleep(0.1)  # it has looked at what there is
    writer.write(HEALTH)
    answer = await reader.read()
    await ending
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert b"connection: close" in answer
    writer.close()


async def test_a_connection_that_nobody_uses_is_closed_at_once(door: Ending) -> None:
    reader, writer = await door.connect()
    writer.write(HEALTH)
    await reader.readuntil(b"ok")
    door.now += 1.5
    await door.drain(60)
    assert await reader.read() == b""
    writer.close()


async def test_who_has_just_connected_and_says_nothing_is_not_waited_for(door: Ending) -> None:
    reader, writer = await door.connect()
    ending = door.drain(60)
    await asyncio.sleep(0.1)
    assert not ending.done()
    door.now += 1.5
    await ending
    assert await reader.read() == b""
    writer.close()


async def test_what_is_left_when_the_time_is_over_is_cut_off(door: Ending) -> None:
    reader, writer = await door.connect()
    writer.write(HEALTH[:10])  # a request that does not come to its end
    ending = door.drain(60)
    await asyncio.sleep(0.1)
    assert not ending.done()
    door.now += 61
    await ending
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()
