"""What is not for models goes to an ASGI application of the same process, where there are no gateway processes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from gpustack.dataplane.asgi import Message, Receive, Scope, Send
from gpustack.dataplane.http import HOP_BY_HOP, Headers, Reply, Request
from gpustack.kit.errors import GPUStackError

log = logging.getLogger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]

#: What the HTTP layer says itself.
_OURS = HOP_BY_HOP | {b"content-length", b"date", b"server"}


class Application:
    """Answers requests by ``app``, each in a task of its own, with its body as one message."""

    def __init__(self, app: App) -> None:
        self._app = app
        self.tasks: set[asyncio.Task[None]] = set()

    def __call__(self, request: Request, reply: Reply) -> None:
        """Answer with what the application says."""
        task = asyncio.create_task(self._answer(request, reply), name="server: a request")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def cut_off(self, seconds: float) -> None:
        """Cancel what is in flight, which has ``seconds`` for a last word."""
        if tasks := list(self.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=seconds)

    async def _answer(self, request: Request, reply: Reply) -> None:
        exchange = _Exchange(request, reply)
        try:
            await self._app(_scope_of(request), exchange.receive, exchange.send)
        except GPUStackError as error:
            log.warning("%s: %s", request.path.decode("latin-1"), error)
        except Exception:
            log.exception("%s: a request failed", request.path.decode("latin-1"))
        finally:
            exchange.close()


class _Exchange:
    """One request and its answer, in ASGI's messages."""

    def __init__(self, request: Request, reply: Reply) -> None:
        self._request, self._reply = request, reply
        self._given = False
        self._status = 0
        self._headers: Headers = []
        self._length: int | None = None
        #: Set when the client has left, and when it has caught up.
        self._gone, self._moved = asyncio.Event(), asyncio.Event()
        reply.on_gone(self._left)

    async def receive(self) -> Message:
        """Return the body, and after that wait for the client to leave, or for the end of the answer."""
        if not self._given:
            self._given = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Write a piece of the answer; to a client that has left nothing is written."""
        if message["type"] == "http.response.start":
            self._begin(message)
        elif message["type"] == "http.response.body":
            await self._write(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"a message of the type {message['type']} is no answer to HTTP")

    def close(self) -> None:
        """The application says no more: an answer that is not whole ends its connection."""
        if self._reply.ended or self._reply.gone:
            return
        if self._reply.status:
            self._reply.abort()
        else:
            text = b'{"code":500,"reason":"InternalServerError","message":"the server failed to answer; its log says why"}'
            self._reply.answer(500, [(b"content-type", b"application/json")], text)

    def _begin(self, message: Message) -> None:
        if self._status:
            raise RuntimeError("an answer has begun already")
        self._status = message["status"]
        for name, value in message.get("headers", ()):
            key, field = bytes(name).lower(), bytes(value)
            if key == b"content-length":
                self._length = int(field)
            elif key not in _OURS:
                self._headers.append((key, field))

    async def _write(self, body: bytes, *, more: bool) -> None:
        reply = self._reply
        if not self._status:
            raise RuntimeError("an answer has to begin with its status")
        if reply.ended or reply.gone:
            return
        if not reply.status:
            if not more and not self._request.head_only:
                reply.answer(self._status, self._headers, body)
                self._gone.set()
                return
            length = self._length
            if length is None and not more:
                length = len(body)
            reply.start(self._status, self._headers, length)
        reply.write(body)
        if not more:
            reply.end()
            self._gone.set()
            return
        while reply.paused and not reply.gone:
            self._moved.clear()
            reply.on_drain(self._moved.set)
            await self._moved.wait()

    def _left(self) -> None:
        self._gone.set()
        self._moved.set()


def _scope_of(request: Request) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": request.version,
        "method": request.method.decode(),
        "scheme": "https" if request.tls else "http",
        "path": unquote(request.path.decode("latin-1")),
        "raw_path": request.path,
        "query_string": request.query,
        "root_path": "",
        "headers": request.headers,
        "client": (request.peer, 0) if request.peer else None,
        "server": None,
    }
