"""An engine that does what a test tells it to: streams step by step, dies, hangs, remembers what it saw."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Self

Script = Callable[["Seen", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass
class FakeEngine:
    """Listens on loopback while entered; ``script`` answers."""

    script: Script
    port: int = 0
    seen: list[Seen] = field(default_factory=list)
    connections: int = 0
    #: Set by a test to let a stream go on, and by scripts when they see the client go.
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    aborted: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 27)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *error: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                seen = await _read(reader)
                self.seen.append(seen)
                await self.script(seen, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Seen(method, path, headers, body)


async def says_ok(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer with the request's own body, as JSON."""
    body = json.dumps({"echo": json.loads(seen.body or b"null"), "path": seen.path}).encode()
    head = (
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nserver: engine\r\nset-cookie: a=b\r\n"
        f"access-control-allow-origin: *\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    await writer.drain()


async def is_loading(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer as llama.cpp does before its model is loaded."""
    body = b'{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}'
    head = f"HTTP/1.1 503 Service Unavailable\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def hangs_up_silently(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End before answering."""
    raise ConnectionError


async def dies_in_the_middle_of_a_stream(
    seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Send one event and end."""
    writer.write(STREAM_HEAD + chunk(b'data: {"n": 1}\n\n'))
    await writer.drain()
    raise ConnectionError


async def dies_in_the_middle_of_json(
    seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    """Announce more than it sends."""
    writer.write(b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{"half":')
    await writer.drain()
    raise ConnectionError


def streams(engine: FakeEngine) -> Script:
    """Send an event, wait for ``go_on``, send another and finish; notice when the client leaves before."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b'data: {"n": 1}\n\n'))
        await writer.drain()
        await _or_gone(engine, reader)
        writer.write(chunk(b'data: {"n": 2}\n\n') + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        await writer.drain()

    return script


def thinks(engine: FakeEngine) -> Script:
    """Answer nothing until ``go_on``; notice when the client leaves before."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _or_gone(engine, reader)
        await says_ok(seen, reader, writer)

    return script


async def _or_gone(engine: FakeEngine, reader: asyncio.StreamReader) -> None:
    gone = asyncio.create_task(reader.read(1))
    allowed = asyncio.create_task(engine.go_on.wait())
    tasks: set[asyncio.Task[Any]] = {gone, allowed}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            engine.aborted.set()
            raise ConnectionError
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
