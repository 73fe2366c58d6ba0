"""A small HTTP/1.1 client for engines: keep-alive, streaming, abort at once, no total time limit.

    async with upstream.request("POST", host, port, "/v1/embeddings", headers, body) as exchange:
        exchange.status, exchange.headers
        async for piece in exchange: ...

Leaving the block before the answer is complete closes the connection, which is how an engine learns that
nobody listens any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import sys
import time
from collections.abc import AsyncIterator, Collection, Sequence
from types import TracebackType
from typing import Self, cast

import httptools

#: Bytes of an answer that may wait for a slow client before the engine is made to wait.
_HIGH_WATER = 256 * 1024
_MAX_HEAD = 64 * 1024
#: Seconds after a request within which the end of an idle connection is taken for one that had begun before.
_STALE = 0.05
#: Seconds that unused connections are kept. Engines close theirs after 5 s and do not look whether a request came in the
#: same moment; and one that is to end waits until nobody is connected.
_IDLE = 2.0
#: llama.cpp closes a connection after a stream, at some time, although it has said that it keeps it.
_STREAM = b"text/event-stream"

Headers = Sequence[tuple[bytes, bytes]]


def _readable(fd: int) -> bool:
    if sys.platform == "win32":
        return bool(select.select([fd], [], [], 0)[0])
    # Unlike select it takes descriptors of any number.
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


class ConnectFailed(Exception):
    """Nobody answers there; not a byte of the request was sent."""


class UpstreamDied(Exception):
    """The connection ended, or its answer was no HTTP, before the answer was complete."""


class _Connection(asyncio.Protocol):
    """One connection; carries one exchange at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.closed = False
        self.used = False
        self.idle_since = 0.0
        self._lost_at = 0.0
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.head_done = False
        self.done = False
        self.heard = False
        self.framed = False
        self.keep = False
        self._excess = False
        self._interim = False
        self._head_size = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._paused = False
        self._sent_at = 0.0

    # What the event loop calls --------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not subclasses of asyncio's.
        self.transport = cast("asyncio.Transport", transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._lost_at = time.monotonic()
        if self.head_done and not self.done and not self.framed and error is None:
            self.done = True  # an answer that ends with the connection
        self._writable.set()
        self._wake()

    def data_received(self, data: bytes) -> None:
        if self.done or not self.used:
            self.abort()  # bytes that nobody asked for
            return
        self.heard = True
        if not self.head_done:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.abort()
        if not self.head_done and self._head_size > _MAX_HEAD:
            self.abort()
        self._wake()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the parser calls ------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._excess = self.done  # a second answer to one request is nobody's

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_done:
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self._excess:
            return
        self.status = self._parser.get_status_code()
        self._interim = 100 <= self.status < 200
        if self._interim:
            self.headers = []
            return
        self.framed = any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers)
        streams = any(name == b"content-type" and value.startswith(_STREAM) for name, value in self.headers)
        self.keep = self._parser.should_keep_alive() and not streams
        self.head_done = True

    def on_body(self, body: bytes) -> None:
        if self._excess:
            return
        self._parts.append(body)
        self._size += len(body)
        if self._size > _HIGH_WATER and not self._paused:
            self._paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if not self._interim:
            self.done = True

    # What an exchange calls -----------------------------------------------------------------------------

    async def send(self, head: bytes, body: bytes) -> None:
        self._reset()
        self.used = True
        self._sent_at = time.monotonic()
        self.transport.write(head)
        if body:
            self.transport.write(body)
        await self._writable.wait()

    async def wait(self) -> None:
        """Return when something arrived or the connection ended."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> bytes:
        """Return what of the body has arrived since the last call."""
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if self._paused and not self.closed:
            self._paused = False
            self.transport.resume_reading()
        return data

    def abort(self) -> None:
        self.closed = True
        self.transport.abort()

    def reusable(self) -> bool:
        return (
            self.done
            and self.keep
            and not self._excess
            and not self.closed
            and not self.transport.is_closing()
        )

    def is_quiet(self) -> bool:
        """Tell whether the other side has neither closed it nor said anything, as far as the system knows.

        The event loop may not have come to hear of it yet, and what is sent to the dead cannot be told from what
        killed them.
        """
        if self.closed or self.transport.is_closing():
            return False
        fd = self.transport.get_extra_info("socket").fileno()
        return not _readable(fd)

    def was_stale(self) -> bool:
        """Tell whether the engine closed this connection as we took it, and so has not begun to work.

        An end that comes later may be the request's own doing.
        """
        return not self.heard and 0.0 <= self._lost_at - self._sent_at < _STALE

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Exchange:
    """The answer to one request."""

    def __init__(self, connection: _Connection) -> None:
        self._connection = connection
        self.status = connection.status
        self.headers: list[tuple[bytes, bytes]] = connection.headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the pieces of the body as they arrive. Raises UpstreamDied when it ends too early."""
        connection = self._connection
        while True:
            if piece := connection.take():
                yield piece
            elif connection.done:
                return
            elif connection.closed:
                raise UpstreamDied("ended in the middle of its answer")
            else:
                await connection.wait()


class Upstream:
    """Connections to many engines. ``idle`` is how many unused ones are kept for each, ``idle_seconds`` how long."""

    def __init__(self, *, connect_timeout: float = 5.0, idle: int = 64, idle_seconds: float = _IDLE) -> None:
        self._timeout = connect_timeout
        self._keep = idle
        self._keep_seconds = idle_seconds
        self._sweep: asyncio.TimerHandle | None = None
        self._idle: dict[tuple[str, int], list[_Connection]] = {}
        #: None until somebody says.
        self._wanted: Collection[tuple[str, int]] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the unused connections."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connections in self._idle.values():
            for connection in connections:
                connection.abort()
        self._idle.clear()

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, host: str, port: int, target: str, headers: Headers, body: bytes = b""
    ) -> AsyncIterator[Exchange]:
        """Send a request and wait for the head of the answer, as long as that takes.

        ``target`` is path and query, ``headers`` hold neither Host nor Content-Length. Raises ConnectFailed
        when nothing was sent, UpstreamDied when the connection ended before an answer began: then the engine may
        have worked on the request, or died of it.
        """
        head = _head(method, host, port, target, headers, len(body))
        connection = await self._exchange(host, port, head, body)
        try:
            yield Exchange(connection)
        finally:
            self._put_back((host, port), connection)

    async def _exchange(self, host: str, port: int, head: bytes, body: bytes) -> _Connection:
        idle = self._take_idle(host, port)
        if idle is None:
            return await self._send(await self._connect(host, port), head, body)
        try:
            return await self._send(idle, head, body)
        except UpstreamDied:
            if not idle.was_stale():
                raise
        try:
            fresh = await self._connect(host, port)
        except ConnectFailed as error:
            raise UpstreamDied("ended before it answered") from error
        return await self._send(fresh, head, body)

    @staticmethod
    async def _send(connection: _Connection, head: bytes, body: bytes) -> _Connection:
        """Return the connection once the head of the answer has come."""
        try:
            await connection.send(head, body)
            while not connection.head_done:
                if connection.closed:
                    raise UpstreamDied("ended before it answered")
                await connection.wait()
        except BaseException:
            connection.abort()
            raise
        return connection

    def _take_idle(self, host: str, port: int) -> _Connection | None:
        idle = self._idle.get((host, port), [])
        newest = time.monotonic() - self._keep_seconds
        while idle:
            connection = idle.pop()
            if connection.idle_since > newest and connection.is_quiet():
                return connection
            connection.abort()
        return None

    async def _connect(self, host: str, port: int) -> _Connection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._timeout):
                _, made = await loop.create_connection(_Connection, host, port)
        except (OSError, TimeoutError) as error:
            raise ConnectFailed(f"cannot be reached at {host}:{port}") from error
        return made

    def _put_back(self, where: tuple[str, int], connection: _Connection) -> None:
        # An engine that is to end waits until nobody is connected.
        if not connection.reusable() or (self._wanted is not None and where not in self._wanted):
            connection.abort()
            return
        idle = self._idle.setdefault(where, [])
        idle[:] = [each for each in idle if not each.closed]
        if len(idle) >= self._keep:
            connection.abort()
        else:
            connection.idle_since = time.monotonic()
            idle.append(connection)
            self._sweep_later()

    def _sweep_later(self) -> None:
        if self._sweep is None:
            self._sweep = asyncio.get_running_loop().call_later(self._keep_seconds, self._close_old)

    def _close_old(self) -> None:
        """Close what has been unused for long."""
        self._sweep = None
        newest = time.monotonic() - self._keep_seconds
        for where, connections in list(self._idle.items()):
            for connection in connections:
                if connection.idle_since <= newest:
                    connection.abort()
            connections[:] = [each for each in connections if not each.closed]
            if not connections:
                del self._idle[where]
        if self._idle:
            self._sweep_later()

    def forget_all_but(self, wanted: Collection[tuple[str, int]]) -> None:
        """Close the unused connections to everything that is not in ``wanted``, now and whenever one is done with.

        ``wanted`` is asked whenever that is: it may change meanwhile.
        """
        self._wanted = wanted
        for where in [each for each in self._idle if each not in wanted]:
            for connection in self._idle.pop(where):
                connection.abort()


def _head(method: str, host: str, port: int, target: str, headers: Headers, length: int) -> bytes:
    shown = f"[{host}]" if ":" in host else host
    lines = [f"{method} {target} HTTP/1.1".encode(), f"host: {shown}:{port}".encode()]
    lines += [name + b": " + value for name, value in headers]
    if length or method in ("POST", "PUT", "PATCH"):
        lines.append(b"content-length: %d" % length)
    return b"\r\n".join([*lines, b"", b""])
