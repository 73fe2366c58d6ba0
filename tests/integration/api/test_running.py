from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpustack.dataplane.gateway.asgi import in_process
from gpustack.db import Feed, Store
from gpustack.kit.errors import GPUStackError
from gpustack.kit.net import listen
from gpustack.server.app import Listeners, bootstrap, run_server, until_ended
from gpustack.server.auth.passwords import Passwords
from gpustack.server.config import FIRST_LOGIN_FILE, ServerConfig
from gpustack.server.heartbeats import Heartbeats
from gpustack.server.listen import serve
from gpustack.server.public import Public
from gpustack.server.routing import Routing
from support.api import PASSWORD, a_catalogue


def a_config(data_dir: Path, **fields: Any) -> ServerConfig:
    base: dict[str, Any] = {
        "data_dir": data_dir,
        "bin_dir": data_dir,
        "version": "1",
        "bootstrap_password": PASSWORD,
        "drain": 1.0,
    }
    return ServerConfig(**{**base, **fields})


async def test_the_whole_server_says_when_it_answers_and_stops_on_cancel(
    database_url: str, tmp_path: Path
) -> None:
    ready = asyncio.Event()
    listener = listen(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = asyncio.create_task(
        run_server(a_config(tmp_path), database_url, a_catalogue(), Listeners(plain=(listener,)), ready.set)
    )
    async with asyncio.timeout(10):
        await ready.wait()
        async with httpx.AsyncClient(base_url=url) as client:
            assert (await client.get("/readyz")).text == "ok"

        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with pytest.raises(OSError, match=r"refused|failed"):
        await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))


async def test_a_database_out_of_reach_is_one_line_without_the_password(tmp_path: Path) -> None:
    url = "postgresql://user:sesame@127.0.0.1:1/x"
    with listen(0, host="127.0.0.1") as listener, pytest.raises(GPUStackError) as caught:
        await run_server(
            a_config(tmp_path, database_wait=0.1),
            url,
            a_catalogue(),
            Listeners(plain=(listener,)),
            lambda: None,
        )

    assert "127.0.0.1:1" in str(caught.value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("part", "name"),
    [(Routing, "apply"), (Feed, "_hand_out"), (Heartbeats, "flush")],
    ids=["routing", "feed", "heartbeats"],
)
async def test_a_server_that_lost_a_part_ends_so_that_it_is_started_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: type, name: str
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    listener = listen(0, host="127.0.0.1")
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    ready = asyncio.Event()
    running = asyncio.create_task(
        run_server(a_config(tmp_path), database_url, a_catalogue(), Listeners(plain=(listener,)), ready.set)
    )
    async with asyncio.timeout(10), httpx.AsyncClient(base_url=url) as client:
        await ready.wait()
        monkeypatch.setattr(part, name, broken)
        token = (tmp_path / "token").read_text()
        body = {
            "name": "w",
            "ip": "127.0.0.1",
            "door_token": "d" * 32,
            "worker_uuid": "u" * 8,
            "version": "1",
        }
        answer = await client.post("/v2/workers", json=body, headers={"Authorization": f"Bearer {token}"})
        worker = {"Authorization": f"Bearer {answer.json()['token']}"}
        key = {"Authorization": f"Bearer {(tmp_path / 'run' / 'cli_token').read_text()}"}
        # It may be at its end before the last request.
        with contextlib.suppress(httpx.TransportError):
            await client.post("/v2/worker-heartbeat", json={}, headers=worker)
            await client.post("/v2/models", json={"name": "m", "local_path": "/m"}, headers=key)

        with pytest.raises(GPUStackError, match="ended unexpectedly"):
            await running


async def test_of_two_servers_on_one_new_database_one_tells_the_password(
    database_url: str, tmp_path: Path
) -> None:
    homes = [tmp_path / "a", tmp_path / "b"]
    async with await Store.open(database_url) as store:
        await store.migrate()
        for home in homes:
            home.mkdir()
        await asyncio.gather(*(bootstrap(store, a_config(home, bootstrap_password=None)) for home in homes))
        [told] = [home / FIRST_LOGIN_FILE for home in homes if (home / FIRST_LOGIN_FILE).exists()]
        admin = await store.users.by_name("admin")

    assert await Passwords().verify(admin.password_hash, told.read_text().strip())


REQUEST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.fixture(params=["behind a gateway", "alone"])
def served(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """``served(app)`` serves it until the block ends or the task is cancelled; yields the port and that task."""

    @contextlib.asynccontextmanager
    async def serving(
        app: Callable[..., Any], *, drain: float = 5, more: float = 0.0
    ) -> AsyncIterator[tuple[int, asyncio.Task[None]]]:
        ready = asyncio.Event()
        listener = listen(0, host="127.0.0.1")
        port = listener.getsockname()[1]
        async with in_process() as inference:
            serves = partial(serve, app)
            if request.param == "alone":
                serves = Public(inference, app, cors=None).serve
            answering = serves(
                [listener], drain=drain, more=lambda: more, closing=asyncio.Event(), on_ready=ready.set
            )
            task = asyncio.create_task(answering)
            try:
                async with asyncio.timeout(20):
                    await ready.wait()
                    yield port, task
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    return serving


async def echo(_scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": body})


async def exchange(connection: Connection) -> bytes:
    reader, writer = connection
    writer.write(REQUEST)
    head = await reader.readuntil(b"\r\n\r\n")
    assert await reader.readexactly(2) == b"hi"
    return head


async def refuses(port: int) -> None:
    """Return when nobody takes connections any more."""
    with contextlib.suppress(OSError):
        while True:
            async with connected(port):
                await asyncio.sleep(0)


async def test_what_has_just_connected_is_answered_by_a_server_that_ends(served: Callable[..., Any]) -> None:
    async with served(echo) as (port, task), connected(port) as connection:
        task.cancel()
        await refuses(port)
        # Longer than uvicorn looks, shorter than the client's chance.
        await asyncio.sleep(0.5)

        assert b"connection: close" in await exchange(connection)
        assert await connection[0].read() == b""


async def test_an_answer_that_had_begun_before_the_end_does_not_close_its_connection(
    served: Callable[..., Any],
) -> None:
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow(scope: Any, receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        async def held(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await send({**message, "body": message["body"][:1], "more_body": True})
                begun.set()
                await may_end.wait()
                message = {**message, "body": message["body"][1:]}
            await send(message)

        await echo(scope, receive, held)

    async with served(slow) as (port, task), connected(port) as connection:
        first = asyncio.create_task(exchange(connection))
        await begun.wait()
        task.cancel()
        await refuses(port)
        # uvicorn has looked by then.
        await asyncio.sleep(0.5)
        may_end.set()

        assert b"connection: close" not in await first
        assert b"connection: close" in await exchange(connection)


async def test_a_request_that_arrived_while_an_ending_server_was_busy_is_answered(
    served: Callable[..., Any],
) -> None:
    async with served(echo) as (port, task), connected(port) as connection:
        assert b"connection: close" not in await exchange(connection)
        task.cancel()
        connection[1].write(REQUEST)
        # The loop stands still past every deadline: timers come first, then what has arrived.
        time.sleep(1.5)

        await connection[0].readuntil(b"\r\n\r\n")
        assert await connection[0].read() == b"hi"


async def test_connections_that_say_nothing_do_not_hold_an_ending_server_up(
    served: Callable[..., Any],
) -> None:
    async with served(echo) as (port, task), connected(port) as silent, connected(port) as kept:
        await exchange(kept)
        task.cancel()
        await asyncio.wait({task}, timeout=4)

        assert task.done()
        assert await silent[0].read() == b""
        assert await kept[0].read() == b""


async def never(_scope: Any, _receive: Any, _send: Any) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(("more", "at_least"), [(0.0, 1.0), (0.7, 1.7)])
async def test_what_takes_too_long_has_a_last_word(
    served: Callable[..., Any], more: float, at_least: float
) -> None:
    async with served(until_ended(never), drain=1, more=more) as (port, task), connected(port) as connection:
        connection[1].write(REQUEST)
        await asyncio.sleep(0.1)
        began = time.monotonic()
        task.cancel()

        answer = await connection[0].read()
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after" in answer
        assert b"the server was restarted before it could answer" in answer
        await asyncio.gather(task, return_exceptions=True)
        assert at_least <= time.monotonic() - began < at_least + 1.0


async def test_a_client_that_reads_nothing_does_not_hold_up_the_end(served: Callable[..., Any]) -> None:
    async def endless(_scope: Any, _receive: Any, send: Callable[..., Any]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})

    async with served(until_ended(endless), drain=1) as (port, task):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(REQUEST)
            await asyncio.sleep(0.3)
            began = time.monotonic()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert time.monotonic() - began < 2.0
