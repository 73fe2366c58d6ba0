"""A server with TLS on one of its sockets: what clients get of it, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack.kit.net import listen
from gpustack.server.listen import serve
from gpustack.server.tls import Certificates

HOST = "127.0.0.1"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AnApp:
    """Answers with the scheme; once it is :attr:`told` at ``/late`` and, in part, at ``/slow``; at ``/big`` with much."""

    BIG = b"x" * 8_000_000

    def __init__(self) -> None:
        self.told = asyncio.Event()
        self.begun = asyncio.Event()

    async def __call__(self, scope: Any, _receive: Any, send: Callable[..., Any]) -> None:
        if scope["path"] == "/late":
            self.begun.set()
            await self.told.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        body = self.BIG if scope["path"] == "/big" else scope["scheme"].encode()
        if scope["path"] == "/slow":
            await send({"type": "http.response.body", "body": b"begun ", "more_body": True})
            self.begun.set()
            await self.told.wait()
        await send({"type": "http.response.body", "body": body})


@dataclass
class Served:
    app: AnApp
    plain: socket.socket
    secure: socket.socket
    port: int
    plain_port: int
    task: asyncio.Task[None]
    files: tuple[Path, Path]
    client: ssl.SSLContext

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @contextlib.asynccontextmanager
    async def connected(self, client: ssl.SSLContext | None = None) -> AsyncIterator[Connection]:
        reader, writer = await asyncio.open_connection(
            HOST, self.port, ssl=client or self.client, server_hostname="localhost"
        )
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def ends(self) -> None:
        """Ask for the end, and return once nobody takes connections any more."""
        self.task.cancel()
        with contextlib.suppress(OSError):
            while True:
                _, writer = await asyncio.open_connection(HOST, self.plain_port)
                writer.transport.abort()
                await asyncio.sleep(0)


@pytest.fixture
def pairs(a_pair: Callable[..., Any]) -> list[Any]:
    """Return pairs that the client trusts; the server has the first one."""
    return [a_pair(), a_pair()]


@pytest.fixture
async def served(
    pairs: list[Any],
    trusting: Callable[..., ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Served]:
    monkeypatch.setattr("gpustack.server.listen._ON_THEIR_WAY", 0.4)
    app, ready, files = AnApp(), asyncio.Event(), pairs[0].write(tmp_path)
    plain, secure = listen(0, host=HOST), listen(0, host=HOST)
    port, plain_port = secure.getsockname()[1], plain.getsockname()[1]
    tls = secure, Certificates(*files).context
    task = asyncio.create_task(
        serve(app, [plain], tls=tls, drain=5, closing=asyncio.Event(), on_ready=ready.set)
    )
    try:
        async with asyncio.timeout(20):
            await ready.wait()
            yield Served(app, plain, secure, port, plain_port, task, files, trusting(*pairs))
    finally:
        app.told.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def get(connection: Connection, path: str = "/") -> tuple[bytes, bytes]:
    """Return the head of an answer and its body."""
    reader, writer = connection
    writer.write(REQUEST.replace(b"/", path.encode(), 1))
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return head, body


def shown(connection: Connection) -> Any:
    return connection[1].get_extra_info("ssl_object").getpeercert(binary_form=True)


async def within(seconds: float, task: asyncio.Task[None]) -> bool:
    await asyncio.wait({task}, timeout=seconds)
    return task.done()


async def test_the_loop_is_the_one_that_is_meant(request: pytest.FixtureRequest) -> None:
    assert ("uvloop" in type(asyncio.get_running_loop()).__module__) == ("uvloop" in request.node.name)


async def test_one_application_answers_with_and_without_tls(served: Served) -> None:
    async with httpx.AsyncClient(verify=served.client) as client:
        assert (await client.get(served.url)).text == "https"
        assert (await client.get(f"http://{HOST}:{served.plain_port}")).text == "http"
    async with httpx.AsyncClient() as stranger:
        with pytest.raises(httpx.ConnectError, match="self-signed"):
            await stranger.get(served.url)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
async def test_versions_that_are_spoken(served: Served, version: str) -> None:
    served.client.minimum_version = served.client.maximum_version = ssl.TLSVersion[version]
    async with served.connected() as connection:
        assert (await get(connection))[1] == b"https"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_older_versions_are_refused(served: Served) -> None:
    served.client.minimum_version = served.client.maximum_version = ssl.TLSVersion.TLSv1_1
    served.client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        async with served.connected():
            pass
    served.client.maximum_version = ssl.TLSVersion.TLSv1_2
    async with served.connected() as connection:
        assert (await get(connection))[1] == b"https"


async def test_a_new_certificate_is_for_new_connections_and_old_ones_go_on(
    served: Served, pairs: list[Any], tmp_path: Path
) -> None:
    certfile, keyfile = served.files
    async with served.connected() as old:
        answer = asyncio.create_task(get(old, "/slow"))
        await served.app.begun.wait()

        certfile.write_bytes(pairs[1].pem)
        async with served.connected() as between:
            assert shown(between) == pairs[0].der
            assert (await get(between))[1] == b"https"
        keyfile.write_bytes(pairs[1].key_pem())
        async with served.connected() as new:
            assert shown(new) == pairs[1].der
            assert (await get(new))[1] == b"https"

        served.app.told.set()
        assert (await answer)[1] == b"begun https"
        assert (await get(old))[1] == b"https"
        assert shown(old) == pairs[0].der


async def test_at_the_end_requests_finish_and_idle_connections_close(served: Served) -> None:
    async with served.connected() as idle, served.connected() as busy:
        await get(idle)
        answer = asyncio.create_task(get(busy, "/slow"))
        await served.app.begun.wait()
        await served.ends()

        assert await idle[0].read() == b""
        assert not await within(0.3, served.task)
        served.app.told.set()
        assert (await answer)[1] == b"begun https"
        head, body = await get(busy)
        assert b"connection: close" in head
        assert body == b"https"
        assert await busy[0].read() == b""
        assert await within(1, served.task)
    assert served.plain.fileno() == served.secure.fileno() == -1


@pytest.mark.parametrize("path", ["/", "/slow", "/late"])
async def test_clients_that_do_not_say_good_bye_do_not_hold_up_the_end(served: Served, path: str) -> None:
    """Those of connection pools look at a connection only when they need it."""

    def connect() -> ssl.SSLSocket:
        raw = socket.create_connection((HOST, served.port))
        client = served.client.wrap_socket(raw, server_hostname="localhost")
        client.sendall(REQUEST.replace(b"/", path.encode(), 1))
        return client

    def read(client: ssl.SSLSocket) -> None:
        while not client.recv(1000).endswith(b"0\r\n\r\n"):
            pass

    with await asyncio.to_thread(connect) as client:
        if path == "/":
            await asyncio.to_thread(read, client)
        else:
            await served.app.begun.wait()
        await served.ends()
        await asyncio.sleep(0.25)  # uvicorn has looked by then
        served.app.told.set()
        if path != "/":
            await asyncio.to_thread(read, client)

        assert await within(0.8, served.task)
        assert client.recv(1) == b""


async def test_a_client_that_reads_slowly_gets_the_whole_of_its_last_answer(served: Served) -> None:
    async with served.connected() as connection:
        connection[1].transport.pause_reading()  # type: ignore[attr-defined]
        answer = asyncio.create_task(get(connection, "/big"))
        await asyncio.sleep(0.1)
        await served.ends()
        await asyncio.sleep(0.4)
        assert not served.task.done()
        connection[1].transport.resume_reading()  # type: ignore[attr-defined]

        assert (await answer)[1] == AnApp.BIG
        assert await within(1, served.task)


async def test_who_is_in_a_handshake_at_the_end_is_answered(served: Served) -> None:
    with socket.create_connection((HOST, served.port)) as raw:
        raw.setblocking(False)
        await asyncio.sleep(0.05)
        await served.ends()
        await asyncio.sleep(0.25)  # uvicorn has looked by then
        assert not served.task.done()
        reader, writer = await asyncio.open_connection(
            sock=raw, ssl=served.client, server_hostname="localhost"
        )
        head, body = await get((reader, writer))

        assert b"connection: close" in head
        assert body == b"https"
        writer.close()
        assert await within(1, served.task)


async def test_who_never_comes_to_a_handshake_does_not_hold_up_the_end(served: Served) -> None:
    with socket.create_connection((HOST, served.port)):
        await asyncio.sleep(0.05)
        began = time.monotonic()
        served.task.cancel()

        assert await within(2.5, served.task)
        assert time.monotonic() - began < 0.9


async def test_who_comes_late_and_says_nothing_does_not_hold_up_the_end(served: Served) -> None:
    with socket.create_connection((HOST, served.port)) as raw:
        raw.setblocking(False)
        async with served.connected() as busy:
            answer = asyncio.create_task(get(busy, "/slow"))
            await served.app.begun.wait()
            await served.ends()
            await asyncio.sleep(0.5)
            reader, writer = await asyncio.open_connection(
                sock=raw, ssl=served.client, server_hostname="localhost"
            )
            served.app.told.set()

            assert (await answer)[1] == b"begun https"
            async with asyncio.timeout(2):
                assert await reader.read() == b""
            writer.close()
        assert await within(0.5, served.task)


@pytest.mark.parametrize(
    "said",
    [REQUEST, b"", b"\x16\x03\x01\xff\xff" + b"\xff" * 600, b"\x16\x03\x01\x02", b"\0" * 100_000],
    ids=["plain HTTP", "nothing", "a broken hello", "half a hello", "zeros"],
)
async def test_what_is_no_tls_does_no_harm(
    served: Served, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    trouble: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: trouble.append(context))
    for rude in (False, True):
        reader, writer = await asyncio.open_connection(HOST, served.port)
        writer.write(said)
        if rude:
            writer.transport.abort()
        elif not writer.transport.is_closing():
            writer.write_eof()
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()

    async with served.connected() as connection:
        assert (await get(connection))[1] == b"https"
    assert not trouble
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]
    assert not [each for each in caplog.records if each.exc_info]


async def test_what_is_no_http_is_refused_over_tls_too(served: Served) -> None:
    async with served.connected() as (reader, writer):
        writer.write(b"\0\1\2\r\n\r\n")

        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_a_client_that_vanishes_amid_an_answer_does_no_harm(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    async with served.connected() as (_, writer):
        writer.write(REQUEST.replace(b"/", b"/slow", 1))
        await served.app.begun.wait()
    served.app.told.set()
    async with served.connected() as connection:
        assert (await get(connection))[1] == b"https"
    assert not [each for each in caplog.records if each.levelno > logging.DEBUG]
