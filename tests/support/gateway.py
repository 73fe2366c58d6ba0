"""A gateway in this process, on real sockets, with engines that do as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from gpustack.dataplane.admission import Admission
from gpustack.dataplane.asgi import answer as answer_now
from gpustack.dataplane.choosing import Chooser
from gpustack.dataplane.gateway import Books, Gateway, Parts
from gpustack.dataplane.gateway.asgi import in_process
from gpustack.dataplane.gateway.backstage import ServerSide
from gpustack.dataplane.http import HttpServer, Limits, Upstream
from gpustack.dataplane.metering.access_log import AccessLog
from gpustack.dataplane.metering.journal import Journal
from gpustack.kit.net import listen
from gpustack.plugin.routing import Principal, Route, RoutingTable, Target, UsageRecord, digest
from gpustack.server.public import Public
from gpustack.testing.fakes.engine import FakeEngine

KEY = "sk-alice"
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}
#: The body of that, the head of an answer but for its end, a secret of an installation, and the cookie of a browser.
ASKED = json.dumps(CHAT).encode()
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
MARK = b"a-secret-of-this-installation"
COOKIE = "gpustack_session"
#: Seconds for what should happen at once, on a machine that does much else.
SOON = 20.0


@dataclass
class Running:
    """A gateway that runs; ``client`` shows alice's key."""

    gateway: Gateway
    upstream: Upstream
    journal: Journal
    client: httpx.AsyncClient
    url: str
    server: HttpServer
    routes: dict[str, Route] = field(default_factory=dict)
    principals: dict[str, Principal] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return int(self.url.rpartition(":")[2])

    def apply(self, *routes: Route, **principal: Any) -> None:
        """Serve these routes as well; the fields of ``principal`` are those of alice."""
        self.routes |= {name: route for route in routes for name in (route.name, *route.aliases)}
        alice = Principal(user_id=1, username="alice", key_id=7, **principal)
        self.principals = {digest(KEY): alice}
        self.gateway.apply(RoutingTable(version=1, routes=dict(self.routes), principals=self.principals))

    async def records(self, count: int = 1) -> list[UsageRecord]:
        """Return the first ``count`` records of usage, in the order in which they were written."""
        async with asyncio.timeout(10):
            found: list[UsageRecord] = []
            while len(found) < count:
                batch = await self.journal.next_batch(100)
                found += batch.records
                await self.journal.acknowledge(batch)
        return found

    @property
    def busy(self) -> dict[str, int]:
        """What is not at rest: exchanges with engines, requests counted at instances, turns, bytes of bodies, tasks."""
        admission = self.gateway.admission
        tallies = [each.tally.total for each in self.gateway.chooser._instances.values()]
        turns = [count for _, *counts in admission.survey() for count in counts]
        buckets = admission._buckets
        tasks = [each for each in asyncio.all_tasks() if "connect to an engine" in each.get_name()]
        found = {
            "exchanges": len(self.upstream.active),
            "at instances": sum(tallies),
            "turns": sum(map(abs, turns)),
            "requests of keys": sum(map(abs, buckets.numbers[4 + buckets.seat :: buckets._width].tolist())),
            "bytes": self.server.buffered,
            "tasks": len(tasks),
        }
        return {name: count for name, count in found.items() if count}

    async def at_rest(self) -> None:
        """Wait until nothing is left of all requests."""
        async with asyncio.timeout(SOON):
            while self.busy:
                await asyncio.sleep(0.01)

    async def say(self, data: bytes) -> bytes:
        """Send ``data`` over a connection of its own and return all that comes until it ends."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        found = b""
        try:
            async with asyncio.timeout(SOON):
                with contextlib.suppress(ConnectionError):
                    writer.write(data)
                    while piece := await reader.read(65536):
                        found += piece
        finally:
            writer.transport.abort()
        return found


def a_target(number: int, engine: FakeEngine | int, **more: Any) -> Target:
    port = engine if isinstance(engine, int) else int(engine.url.rpartition(":")[2])
    return Target(instance_id=number, host="127.0.0.1", port=port, **more)


def a_route(*targets: Target, name: str = "tiny", **more: Any) -> Route:
    return Route(name=name, created=5, targets=targets, categories=("llm",), **more)


@contextlib.asynccontextmanager
async def a_gateway(
    tmp_path: Path,
    *,
    limits: Limits | None = None,
    access_log: Path | None = None,
    server_at: tuple[int, bytes] | None = None,
    **parts: Any,
) -> AsyncIterator[Running]:
    """``server_at`` is the port of what stands for the server, and the mark that it knows the gateway by."""
    loop = asyncio.get_running_loop()
    limits = limits or Limits(sweep_seconds=0.05)
    upstream = Upstream(limits)
    upstream.start()
    if server_at is not None:
        parts["backstage"] = ServerSide(upstream, ("127.0.0.1", server_at[0]), server_at[1])
    async with contextlib.AsyncExitStack() as stack:
        journal = await stack.enter_async_context(Journal(tmp_path / "usage", memory=tmp_path))
        log = None if access_log is None else stack.enter_context(AccessLog(access_log))
        gateway = Gateway(
            Parts(
                upstream=upstream,
                chooser=Chooser(),
                admission=Admission(loop.time, loop),
                books=Books(journal=journal, access_log=log),
                **parts,
            )
        )
        server = HttpServer(gateway, limits)
        server.start()
        listener = await loop.create_server(server.protocol, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
        async with httpx.AsyncClient(
            base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=20
        ) as client:
            try:
                yield Running(gateway, upstream, journal, client, url, server)
            finally:
                listener.close()
                server.close()
                upstream.close()
                # What hears of the end gives up in turn what it has at engines.
                for _ in range(5):
                    await asyncio.sleep(0)


async def nothing_but_models(scope: Any, receive: Any, send: Any) -> None:
    """An application that has only what is for models, and says so."""
    del receive
    body = json.dumps({"path": scope["path"]}).encode()
    await answer_now(send, 404, [(b"content-type", b"application/json")], body)


@contextlib.asynccontextmanager
async def in_the_server(
    tmp_path: Path, *, app: Any = nothing_but_models, limits: Limits | None = None
) -> AsyncIterator[Running]:
    """The same as :func:`a_gateway` in the process of a server without gateways, with ``app`` behind it."""
    async with contextlib.AsyncExitStack() as stack:
        journal = await stack.enter_async_context(Journal(tmp_path / "usage", memory=tmp_path))
        inference = await stack.enter_async_context(in_process(Books(journal=journal)))
        public = Public(inference, app, cors=None, limits=limits or Limits(sweep_seconds=0.05))
        listener = listen(0, host="127.0.0.1")
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        ready = asyncio.Event()
        serving = asyncio.create_task(
            public.serve([listener], drain=0.0, closing=asyncio.Event(), on_ready=ready.set)
        )
        stack.push_async_callback(_end, serving, public)
        await ready.wait()
        client = await stack.enter_async_context(
            httpx.AsyncClient(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=20)
        )
        gateway = public.gateway
        yield Running(gateway, gateway.upstream, journal, client, url, public.http)


async def _end(serving: asyncio.Task[None], public: Public) -> None:
    public.http.close()  # nobody is to be waited for
    serving.cancel()
    await asyncio.gather(serving, return_exceptions=True)


#: Answers one connection.
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def an_engine(answer: bytes | Script) -> AsyncIterator[int]:
    """Something that answers each connection with the same bytes once a request has come, or as it is told."""

    open_ones: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
            if callable(answer):
                await answer(reader, writer)
            else:
                await request_of(reader)
                writer.write(answer)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        open_ones.discard(writer)  # what has ended cannot be broken off

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in open_ones:
            writer.transport.abort()
        await asyncio.sleep(0)


async def request_of(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read one request; return its head and its body."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def a_recorder(answer: bytes = b"{}") -> AsyncIterator[tuple[int, list[bytes]]]:
    """An engine or a server that answers everything with one JSON document; yields its port and the heads it got."""
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head, _ = await request_of(reader)
            heads.append(head)
            body = b"" if head.startswith(b"HEAD ") else answer
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
                % (len(answer), body)
            )

    async with an_engine(serve) as port:
        yield port, heads


async def nobody() -> int:
    """Return a port where nobody listens."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def a_request(
    first: str = "POST /v1/chat/completions", *lines: str, body: bytes = b"", key: str | None = KEY
) -> bytes:
    """Return a request that ends its connection."""
    fields = ["Host: gateway", "Connection: close", *lines]
    if key is not None:
        fields.append(f"Authorization: Bearer {key}")
    if body:
        fields.append(f"Content-Length: {len(body)}")
    return (
        f"{first} HTTP/1.1\r\n".encode()
        + "".join(f"{line}\r\n" for line in fields).encode("latin-1")
        + b"\r\n"
        + body
    )


def status_of(answer: bytes) -> int:
    """Return the status of an answer as it came over the wire."""
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    return int(answer[9:12])


def fields_of(head: bytes, name: str) -> list[bytes]:
    """Return the values of a header. An underscore counts as a hyphen, as some frameworks have it."""
    pairs = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    return [value.strip() for key, _, value in pairs if key.lower().replace(b"_", b"-") == name.encode()]
