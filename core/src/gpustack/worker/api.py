"""The worker's own port: whether it lives, and the logs of its engines. Only the server calls it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs

import uvicorn

from gpustack.worker.runners.logfile import PREVIOUS, LogReader

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_YES = ("true", "1", "yes")
#: Seconds between two looks at a log, only while somebody follows it.
_LOOK = 0.2


class Logs(Protocol):
    """Where the logs of instances are."""

    def log_of(self, instance_id: int) -> Path | None:
        """Return the log of an instance, also before it exists; None for one that is not here."""

    def lives(self, instance_id: int) -> bool:
        """Tell whether an instance has, or is getting, a process."""


class WorkerApi:
    """The ASGI application."""

    def __init__(self, door_token: str, logs: Logs) -> None:
        self._expected = f"Bearer {door_token}".encode()
        self._logs = logs
        #: Set when the worker ends: whoever follows a log is let go.
        self.closing = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        path: str = scope["path"]
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, "only GET is answered here")
        elif path == "/healthz":
            await _answer(send, 200, "ok")
        elif not path.startswith("/serveLogs/"):
            await _answer(send, 404, "there is nothing here")
        elif not self._authorized(scope):
            await _answer(send, 401, "the credential is missing or wrong")
        else:
            await self._serve_log(path.removeprefix("/serveLogs/"), scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        return hmac.compare_digest(given, self._expected)

    async def _serve_log(self, number: str, scope: Scope, receive: Receive, send: Send) -> None:
        query = parse_qs(scope["query_string"].decode("latin-1"))
        tail, follow = query.get("tail", ["-1"])[-1], query.get("follow", ["false"])[-1].lower()
        if not (number.isascii() and number.isdigit() and len(number) < 19):
            await _answer(send, 404, f"{number!r} is not the number of an instance")
            return
        if not (tail.isascii() and tail.removeprefix("-").isdigit() and len(tail) < 19):
            await _answer(send, 400, f"tail is {tail!r}; give a count of lines, or -1 for all")
            return
        path = self._logs.log_of(int(number))
        if path is None:
            await _answer(send, 404, f"instance {number} is not on this worker")
            return
        previous = query.get("previous", ["false"])[-1].lower() in _YES
        if previous and not (path := path.with_name(PREVIOUS)).exists():
            await _answer(send, 404, f"the engine of instance {number} was not started more than once")
            return
        await _start(send, 200, b"text/plain; charset=utf-8")
        if scope["method"] == "GET":
            following = follow in _YES and not previous
            pieces = self._follow(path, int(tail), int(number)) if following else _read(path, int(tail))
            await _stream(pieces, receive, send)
        else:
            await send({"type": "http.response.body", "body": b""})

    async def _follow(self, path: Path, tail: int, instance_id: int) -> AsyncGenerator[bytes]:
        """Yield the log as it grows, until its engine has ended or writes to a new log."""
        while (reader := _opened(path)) is None:
            if not self._lives(instance_id):
                return
            await asyncio.sleep(_LOOK)
        with reader:
            await asyncio.to_thread(reader.skip_to, tail)
            while True:
                # Looked at before reading: what was written up to the end is still sent.
                over = not self._lives(instance_id) or await asyncio.to_thread(reader.replaced)
                while data := await asyncio.to_thread(reader.read):
                    yield data
                if over:
                    return
                await asyncio.sleep(_LOOK)

    def _lives(self, instance_id: int) -> bool:
        return not self.closing and self._logs.lives(instance_id)


async def _stream(pieces: AsyncGenerator[bytes], receive: Receive, send: Send) -> None:
    """Send ``pieces`` until they end or the client leaves."""

    async def pump() -> None:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(pump()), asyncio.create_task(left())]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _read(path: Path, tail: int) -> AsyncGenerator[bytes]:
    """Yield the log as it is now."""
    if (reader := _opened(path)) is None:
        return
    with reader:
        await asyncio.to_thread(reader.skip_to, tail)
        while data := await asyncio.to_thread(reader.read):
            yield data


def _opened(path: Path) -> LogReader | None:
    """Return a reader of the log; None when there is none yet."""
    try:
        return LogReader(path)
    except OSError:
        return None


async def _start(send: Send, status: int, kind: bytes) -> None:
    headers = [(b"content-type", kind), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})


async def _answer(send: Send, status: int, message: str) -> None:
    if status < 400:
        kind, body = b"text/plain; charset=utf-8", message.encode()
    else:
        kind, body = b"application/json", json.dumps({"code": status, "message": message}).encode()
    await _start(send, status, kind)
    await send({"type": "http.response.body", "body": body})


class _Server(uvicorn.Server):
    """Leaves signals to whoever runs the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take no signal."""
        yield


async def serve(app: WorkerApi, sock: socket.socket) -> None:
    """Serve ``app`` on the listening socket until cancelled; then the socket is closed."""
    config = uvicorn.Config(
        app,
        access_log=False,
        date_header=False,
        interface="asgi3",
        lifespan="off",
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=1,
        ws="none",
    )
    server = _Server(config)
    serving = asyncio.create_task(server.serve(sockets=[sock]), name="worker: own port")
    try:
        await asyncio.shield(serving)
    finally:
        app.closing = server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
        sock.close()
