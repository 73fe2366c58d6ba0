"""A gateway's HTTP layer on loopback sockets, clients that write bytes, and engines that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
import uvloop

from gpustack.dataplane.http import (
    BodyPlan,
    Failure,
    HttpServer,
    Limits,
    Refusal,
    Relay,
    Reply,
    Request,
    Upstream,
    host_header,
    request_head,
    request_line,
)
from gpustack.plugin.routing import Timeouts


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


#: Seconds for anything that should happen at once, on a machine that does much else.
SOON = 20.0


class Client:
    """A socket and what came from it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read one head."""
        async with asyncio.timeout(SOON):
            raw = await self.reader.readuntil(b"\r\n\r\n")
        first, *lines = raw.decode("latin-1").split("\r\n")[:-2]
        fields = dict(line.split(": ", 1) for line in lines)
        assert len(fields) == len(lines), "no header comes twice"
        return int(first.split(" ")[1]), fields

    async def answer(self) -> tuple[int, bytes]:
        """Read one answer with a Content-Length or in chunks."""
        status, fields = await self.head()
        async with asyncio.timeout(SOON):
            if "content-length" in fields:
                return status, await self.reader.readexactly(int(fields["content-length"]))
            assert fields["transfer-encoding"] == "chunked"
            body = b""
            while size := int((await self.reader.readuntil(b"\r\n")).split(b";")[0], 16):
                body += (await self.reader.readexactly(size + 2))[:-2]
            while await self.reader.readuntil(b"\r\n") != b"\r\n":
                pass  # a trailer
            return status, body

    async def rest(self) -> bytes:
        """Read to the end of the connection, an orderly one or not."""
        found = b""
        async with asyncio.timeout(SOON):
            with contextlib.suppress(ConnectionError):
                while piece := await self.reader.read(65536):
                    found += piece
        return found

    async def gone(self) -> None:
        """Wait for the end of the connection, without a word."""
        assert await self.rest() == b""

    def close(self) -> None:
        self.writer.transport.abort()


Script = Callable[[Client], Awaitable[None]]


class Gateway:
    """Answers some paths by itself and sends the others to an engine."""

    def __init__(self, limits: Limits, timeouts: Timeouts) -> None:
        self.server = HttpServer(self, limits)
        self.upstream = Upstream(limits)
        self.timeouts = timeouts
        self.engine: tuple[str, int] = ("127.0.0.1", 1)
        self.port = 0
        #: Whether every path goes to the engine, as it is.
        self.sends_all_on = False
        self.handled: list[bytes] = []
        self.failures: list[Failure] = []
        self.waiting: list[Reply] = []

    def begin(self, request: Request) -> Refusal | BodyPlan:
        if request.path == b"/refused":
            return Refusal(401, (), b"no")
        return BodyPlan()

    def handle(self, request: Request, reply: Reply) -> None:
        self.handled.append(request.path)
        if request.path == b"/later":
            self.waiting.append(reply)
        elif request.path == b"/engine" or self.sends_all_on:
            self._ask(request, reply)
        else:
            said = {
                "path": request.path.decode(),
                "size": len(request.body),
                "peer": request.peer,
                "tls": request.tls,
            }
            reply.answer(200, [(b"content-type", b"application/json")], json.dumps(said).encode())

    def _ask(self, request: Request, reply: Reply) -> None:
        def failed(failure: Failure) -> None:
            self.failures.append(failure)
            reply.answer(504 if failure.timed_out else 502, [], failure.message.encode())

        target = b"/v1/x" if request.path == b"/engine" else request.path
        first = request_line(request.method, target, host_header(*self.engine))
        head = request_head(first, request, len(request.body))
        Relay(reply, failed).ask(self.upstream, self.engine, head, request.body, self.timeouts)


class Lab:
    """Everything that one test opens."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self._stack = stack

    async def gateway(
        self,
        engine: Script | None = None,
        *,
        host: str = "127.0.0.1",
        timeouts: Timeouts | None = None,
        tls: ssl.SSLContext | None = None,
        **limits: Any,
    ) -> Gateway:
        """Start one, with an engine that follows a script on each of its connections."""
        made = Gateway(Limits(**{"sweep_seconds": 0.02, **limits}), timeouts or Timeouts())
        made.server.start()
        made.upstream.start()
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(made.server.protocol, host, 0, backlog=4096, ssl=tls)
        made.port = listener.sockets[0].getsockname()[1]
        self._stack.callback(made.upstream.close)
        self._stack.callback(made.server.close)
        self._stack.callback(listener.close)
        if engine is not None:
            made.engine = await self.engine(engine, host)
        return made

    async def engine(self, script: Script, host: str = "127.0.0.1") -> tuple[str, int]:
        """Start an engine; a script that returns ends the connection."""
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tasks.add(task)
            try:
                with contextlib.suppress(
                    ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError
                ):
                    await script(Client(reader, writer))
            finally:
                writer.close()

        async def end() -> None:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        server = await asyncio.start_server(serve, host, 0)
        self._stack.push_async_callback(end)
        self._stack.callback(server.close)
        return host, server.sockets[0].getsockname()[1]

    async def client(
        self,
        gateway: Gateway,
        host: str = "127.0.0.1",
        *,
        limit: int = 1 << 16,
        tls: ssl.SSLContext | None = None,
    ) -> Client:
        """Connect."""
        made = Client(*await asyncio.open_connection(host, gateway.port, limit=limit, ssl=tls))
        self._stack.callback(made.close)
        return made

    async def undisturbed(self, gateway: Gateway) -> None:
        """Another client is answered."""
        other = await self.client(gateway)
        await other.send(get(b"/other"))
        assert (await other.answer())[0] == 200
        other.close()


def get(path: bytes, *lines: bytes) -> bytes:
    """Return a request."""
    return b"GET %b HTTP/1.1\r\nHost: a\r\n%b\r\n" % (path, b"".join(line + b"\r\n" for line in lines))


def post(path: bytes, body: bytes, *lines: bytes) -> bytes:
    """Return a request with a body."""
    fields = b"".join(line + b"\r\n" for line in lines)
    return b"POST %b HTTP/1.1\r\nHost: a\r\n%bContent-Length: %d\r\n\r\n%b" % (path, fields, len(body), body)


async def request_of(engine: Client) -> tuple[bytes, bytes]:
    """Read one request as an engine gets it: head and body."""
    head = await engine.reader.readuntil(b"\r\n\r\n")
    at = head.lower().find(b"content-length: ")
    size = int(head[at + 16 :].split(b"\r\n")[0]) if at >= 0 else 0
    return head, await engine.reader.readexactly(size)


async def eventually(true: Callable[[], bool]) -> None:
    """Wait until ``true``."""
    async with asyncio.timeout(SOON):
        while not true():
            await asyncio.sleep(0.005)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with contextlib.AsyncExitStack() as stack:
        yield Lab(stack)
    await asyncio.sleep(0)
