"""uvicorn, run by us: on sockets that are handed in, without its signals, its lifespan and its access log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

log = logging.getLogger(__name__)

_KEEP_ALIVE = 75
#: Seconds that a connection stays open at the end whose client has begun, and not yet sent a whole request's head.
_ON_THEIR_WAY = 1.0
#: Seconds that one stays open after an answer that could not say any more that it is the last one.
_UNTOLD = 0.2
#: Seconds that what is in flight has at least, and that the last word of what is cut off may take.
_LEAST, _LAST_WORD = 1.0, 0.3
#: Seconds that a client on TLS has to read what was left of its last answer; on plain HTTP it has all the time it wants.
_READ_OUT = 300.0

Tls = tuple[socket.socket, ssl.SSLContext]


class _State(ServerState):
    """What the connections of one server share."""

    #: Each answer is the last one on its connection.
    ending = False


class _Connection(HttpToolsProtocol):
    """One connection. At the end of the server it answers what has arrived or is on its way, and closes after that.

    An idle one closes at once: its client is better served by whoever comes next, who may have more to answer with.
    """

    server_state: _State
    #: Until when, on the loop's clock, a request is likely to arrive.
    _expecting = 0.0

    def expect(self) -> None:
        """Give the client its time to send a request."""
        self._expecting = self.loop.time() + _ON_THEIR_WAY

    @property
    def in_handshake(self) -> bool:
        """Whether the client has connected to a socket with TLS, and could say no more yet."""
        # uvicorn's type leaves out that there is none until then.
        return cast("asyncio.Transport | None", self.transport) is None

    # uvicorn narrows the type as well.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.expect()
        super().connection_made(transport)
        if self.server_state.ending:
            self.shutdown()

    def data_received(self, data: bytes) -> None:
        self.expect()
        super().data_received(data)

    def on_headers_complete(self) -> None:
        # Whether everything is logged may change while we run.
        self.access_log = self.access_logger.isEnabledFor(logging.INFO)
        super().on_headers_complete()
        if self.server_state.ending:
            self.cycle.keep_alive = False

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.server_state.ending:
            self._expecting = self.loop.time() + _UNTOLD
            self.shutdown()
        else:
            self._expecting = 0.0

    def shutdown(self) -> None:
        """Close as soon as nothing is under way, or on its way, on this connection; uvicorn waits for that."""
        if self.in_handshake:
            self._await_handshake()
            return
        if self.transport.is_closing():
            self._end_listening()
            return
        # uvicorn's type leaves out that there is none at first.
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is not None and not cycle.response_complete:
            # A client that was not told sends its next request on this connection, as soon as it has the answer.
            cycle.keep_alive = cycle.keep_alive and cycle.response_started
            return
        left = self._expecting - self.loop.time()
        if left > 0 or not _said_good_bye(self.transport):
            # After a stall the loop may know of the time before it knows of what has arrived meanwhile.
            self.loop.call_later(max(left, 0.02), self.shutdown)
        else:
            self.transport.close()
            self._end_listening()

    def _await_handshake(self) -> None:
        left = self._expecting - self.loop.time()
        if left > 0:
            self.loop.call_later(left, self.shutdown)
        else:
            self.connections.discard(self)

    def _end_listening(self) -> None:
        """Have TLS not wait for the client's own good-bye: one that keeps the connection for later says nothing."""
        # What is lost already may have left its descriptor to another connection.
        if (
            self in self.connections
            and _is_tls(self.transport)
            and not self.transport.get_write_buffer_size()
        ):
            with contextlib.suppress(OSError), _socket_of(self.transport) as sock:
                sock.shutdown(socket.SHUT_RD)


def _is_tls(transport: asyncio.Transport) -> bool:
    return transport.get_extra_info("ssl_object") is not None


def _socket_of(transport: asyncio.Transport) -> socket.socket:
    """Return the transport's socket with a descriptor of its own."""
    ours = transport.get_extra_info("socket")
    return socket.fromfd(ours.fileno(), ours.family, ours.type)


def _said_good_bye(transport: asyncio.Transport) -> bool:
    """Tell the client that nothing more is read, unless something has arrived that is not read yet.

    Closing would answer that with a reset. The loop closes only after other work of its own, in which more could arrive.
    TLS has a good-bye of its own, which the loop says at once when it closes.
    """
    with contextlib.suppress(OSError), _socket_of(transport) as sock:
        sock.setblocking(False)
        try:
            if sock.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            if not transport.get_write_buffer_size() and not _is_tls(transport):
                sock.shutdown(socket.SHUT_WR)
    return True


class _Server(uvicorn.Server):
    """A uvicorn server with TLS on one of its sockets, that leaves signals to the process's own supervisor."""

    server_state: _State

    def __init__(self, config: uvicorn.Config, tls: Tls | None) -> None:
        super().__init__(config)
        self.server_state = _State()
        self._tls = tls
        #: Those on TLS that there are, and for a while some that failed in their handshakes.
        self._secure: weakref.WeakSet[_Connection] = weakref.WeakSet()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on ``sockets``, and on the one with TLS, which has to come first: uvicorn says afterwards that it listens."""
        secure = [] if self._tls is None else [await self._listen_with_tls(*self._tls)]
        await super().startup(sockets)
        self.servers += secure

    async def _listen_with_tls(self, listener: socket.socket, context: ssl.SSLContext) -> asyncio.Server:
        return await asyncio.get_running_loop().create_server(
            self._secure_connection,
            sock=listener,
            ssl=context,
            ssl_shutdown_timeout=_READ_OUT,
            backlog=self.config.backlog,
        )

    def _secure_connection(self) -> _Connection:
        connection = _Connection(self.config, self.server_state, self.lifespan.state)
        connection.expect()
        self._secure.add(connection)
        return connection

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close what is idle, and wait for the rest; uvicorn does not know of those in their handshakes."""
        self.server_state.connections.update(each for each in self._secure if each.in_handshake)
        await super().shutdown(sockets)

    def accept_no_more(self) -> None:
        """Leave what connects from now on to whoever comes next; uvicorn looks only now and then whether it should end."""
        self.server_state.ending = True
        for each in getattr(self, "servers", ()):
            each.close()

    async def cut_off(self) -> None:
        """Cancel what is still in flight, which has a last word then; nobody waits for clients that do not read it."""
        if tasks := list(self.server_state.tasks):
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=_LAST_WORD)
            await asyncio.sleep(_UNTOLD)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture nothing."""
        yield


async def serve(
    app: Callable[..., Any],
    listeners: Sequence[socket.socket],
    *,
    tls: Tls | None = None,
    drain: float | Callable[[], float],
    closing: asyncio.Event,
    on_ready: Callable[[], None],
    more: Callable[[], float] = lambda: 0.0,
) -> None:
    """Answer requests on ``listeners``, and with TLS on the socket of ``tls``, until cancelled.

    Then ``closing`` is set, idle connections close, and what is in flight or on its way has ``drain`` seconds; a function
    is asked at that moment. Where that is not enough, ``more`` tells how many seconds are added.
    """
    server = _Server(
        uvicorn.Config(
            app,
            http=_Connection,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE,
        ),
        tls,
    )
    serving = asyncio.create_task(server.serve(sockets=list(listeners)), name="server: http")
    try:
        while not server.started and not serving.done():
            await asyncio.sleep(0.005)
        if server.started:
            on_ready()
        await asyncio.shield(serving)
    finally:
        closing.set()
        seconds = drain() if callable(drain) else drain
        server.accept_no_more()
        server.should_exit = True
        await _finish(server, serving, max(seconds, _LEAST), more)


async def _finish(
    server: _Server, serving: asyncio.Task[None], seconds: float, more: Callable[[], float]
) -> None:
    await asyncio.wait({serving}, timeout=seconds)
    if not serving.done():
        await asyncio.wait({serving}, timeout=more())
    if not serving.done():
        await server.cut_off()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
