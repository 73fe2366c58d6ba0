"""What no data path takes, wherever it runs: in a gateway, in the server's own process, inside another program's server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from gpustack.dataplane.gateway.asgi import in_process
from gpustack.kit.net import listen
from gpustack.plugin.routing import Principal, RoutingTable, digest
from support.gateway import KEY, SOON, a_gateway, a_recorder, a_route, a_target, in_the_server, status_of

BODY = b'{"model": "tiny", "messages": []}'
START = b"POST /v1/chat/completions HTTP/1.1\r\n"
AUTH = f"Authorization: Bearer {KEY}\r\n".encode()
HOST = b"Host: a\r\n"
SIZE = b"Content-Length: %d\r\n" % len(BODY)

#: What is sent, and the status of its refusal.
REFUSED: dict[str, tuple[bytes, int]] = {
    "no Host": (START + AUTH + SIZE + b"\r\n" + BODY, 400),
    "two Hosts": (START + HOST + HOST + AUTH + SIZE + b"\r\n" + BODY, 400),
    "another coding": (
        START + HOST + AUTH + b"Transfer-Encoding: gzip, chunked\r\n\r\n21\r\n" + BODY + b"\r\n0\r\n\r\n",
        501,
    ),
    "an upgrade": (START + HOST + AUTH + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", 501),
    "many headers": (START + HOST + AUTH + SIZE + b"X: y\r\n" * 200 + b"\r\n" + BODY, 431),
    "a long header": (START + HOST + AUTH + SIZE + b"X: " + b"y" * 70_000 + b"\r\n\r\n" + BODY, 431),
    "a long path": (
        START.replace(b" HTTP", b"?" + b"x" * 9000 + b" HTTP") + HOST + AUTH + SIZE + b"\r\n" + BODY,
        414,
    ),
    "an escaped slash": (
        START.replace(b"chat/", b"chat%2F") + HOST + AUTH + SIZE + b"\r\n" + BODY,
        404,
    ),
    "a wrong key before the body": (
        START + HOST + b"Authorization: Bearer sk-wrong\r\nExpect: 100-continue\r\n" + SIZE + b"\r\n",
        401,
    ),
    "too much, announced": (START + HOST + AUTH + b"Content-Length: 73400320\r\n\r\nx", 413),
}
#: What another program's server has decided before it asks us.
OURS_ALONE: dict[str, tuple[bytes, int]] = {
    "HTTP/0.9": (b"GET /v1/models\r\n\r\n", 505),
    "HTTP/0.9 with its name": (b"GET /v1/models HTTP/0.9\r\n" + HOST + AUTH + b"\r\n", 505),
}


@contextlib.asynccontextmanager
async def embedded(tmp_path: Path) -> AsyncIterator[tuple[int, Callable[[RoutingTable], None]]]:
    """The data path as an application under a plain uvicorn."""
    del tmp_path
    async with in_process() as app:
        listener = listen(0, host="127.0.0.1")
        config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        async with asyncio.timeout(SOON):
            while not server.started:
                await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1], app.apply
        finally:
            server.should_exit = True
            await serving


def running(start: Any) -> Any:
    @contextlib.asynccontextmanager
    async def place(tmp_path: Path) -> AsyncIterator[tuple[int, Callable[[RoutingTable], None]]]:
        async with start(tmp_path) as found:
            yield found.port, found.gateway.apply

    return place


PLACES = {"gateway": running(a_gateway), "in the server": running(in_the_server), "embedded": embedded}


async def first_words(port: int, data: bytes) -> bytes:
    """Return what is said first to ``data``, after which the client waits."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        async with asyncio.timeout(SOON):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()


def a_table(port: int) -> RoutingTable:
    route = a_route(a_target(1, port))
    return RoutingTable(
        version=1,
        routes={route.name: route},
        principals={digest(KEY): Principal(user_id=1, username="alice", key_id=7)},
    )


CASES = [(place, case) for place in PLACES for case in REFUSED]
CASES += [(place, case) for place in PLACES if place != "embedded" for case in OURS_ALONE]


@pytest.mark.parametrize(("place", "case"), CASES)
async def test_what_could_be_misread_reaches_no_engine(tmp_path: Path, place: str, case: str) -> None:
    data, status = (REFUSED | OURS_ALONE)[case]
    async with a_recorder() as (engine, heads), PLACES[place](tmp_path) as (port, apply):
        apply(a_table(engine))
        assert status_of(await first_words(port, data)) == status
        # What is sound is answered meanwhile.
        assert status_of(await first_words(port, START + HOST + AUTH + SIZE + b"\r\n" + BODY)) == 200
    assert len(heads) == 1


@pytest.mark.parametrize("place", ["gateway", "in the server"])
async def test_a_trailer_is_no_header(tmp_path: Path, place: str) -> None:
    chunks = b"21\r\n" + BODY + b"\r\n0\r\nAuthorization: Bearer sk-other\r\n\r\n"
    async with a_recorder() as (engine, heads), PLACES[place](tmp_path) as (port, apply):
        apply(a_table(engine))
        data = START + HOST + AUTH + b"Transfer-Encoding: chunked\r\n\r\n" + chunks
        assert status_of(await first_words(port, data)) == 200
    assert b"sk-other" not in heads[0]
