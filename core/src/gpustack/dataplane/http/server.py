"""What all connections of clients share: limits, the sweep, counters, and a way to end in order."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from email.utils import formatdate

from gpustack.dataplane.http.holding import Bodies
from gpustack.dataplane.http.known import KnownRequests
from gpustack.dataplane.http.limits import Limits
from gpustack.dataplane.http.proxies import TrustedProxies
from gpustack.dataplane.http.request import ErrorBody, Refusal, Request, Service, openai_error
from gpustack.dataplane.http.server_protocol import ServerProtocol

_RETRY_AFTER = 5
#: Seconds without a request after which none is taken to be on its way.
_QUIET = 1.0
#: Seconds between two looks at what is left, at the end.
_LOOK = 0.05


class HttpServer:
    """Serves clients of any number of listeners on one event loop.

        server = HttpServer(service)
        server.start()
        listener = await loop.create_server(server.protocol, sock=listening)
        ...
        listener.close()
        await server.drain(30.0)

    The counters grow from 0 and are for reading. ``bytes_out`` is what bodies held, counted when an answer ends.
    Raises ValueError when a trusted proxy is no network.
    """

    def __init__(
        self, service: Service, limits: Limits | None = None, *, error_body: ErrorBody = openai_error
    ) -> None:
        self.service = service
        self.limits = limits or Limits()
        self.proxies = TrustedProxies(self.limits.trusted_proxies)
        self.known = KnownRequests()
        self.connections: set[ServerProtocol] = set()
        self.draining = False
        self.bodies = Bodies(self.limits)
        self.accepted = self.requests = self.bad_requests = self.timeouts = self.clients_left = 0
        self.bytes_in = self.bytes_out = 0
        #: What Date says.
        self.date = formatdate(usegmt=True).encode()
        #: Monotonic seconds, of the event loop as soon as there is one.
        self.clock = time.monotonic
        #: Has something called when others had their turn; None until there is an event loop.
        self.soon: Callable[[Callable[[], None]], object] | None = None
        self._error_body = error_body
        self._timer: asyncio.TimerHandle | None = None

    @property
    def buffered(self) -> int:
        """Bytes of bodies that are held for all clients together."""
        return self.bodies.total

    def protocol(self) -> ServerProtocol:
        """Make the protocol of a new connection."""
        return ServerProtocol(self)

    def start(self) -> None:
        """Begin to look for what is due. Called on the event loop; a second call does nothing."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self.clock = loop.time
            self.soon = loop.call_soon
            self._timer = loop.call_later(self.limits.sweep_seconds, self._sweep)

    async def drain(self, seconds: float) -> None:
        """End in order: unused connections at once, others with their answer, what is left after ``seconds`` hard.

        Who has just connected, or has just had an answer that could not say yet that it is the last one, may have
        sent a request that has not come here: such a connection is unused only when it has been quiet for a while.
        Listeners are to be closed before.
        """
        await self.settle(seconds)
        self.close()

    async def settle(self, seconds: float) -> bool:
        """Do the same without the hard end; tell whether nobody is left."""
        self.draining = True
        end = self.clock() + seconds
        while True:
            await _hear_everything()
            now = self.clock()
            self._close_unused(now)
            if not self.connections or now >= end:
                return not self.connections
            await asyncio.sleep(_LOOK)

    def _close_unused(self, now: float) -> None:
        latest = now - _QUIET + self.limits.keep_alive_seconds
        for connection in list(self.connections):
            # What is unused is due when the time to keep it is over, counted from its last use.
            if connection.idle and connection.due <= latest:
                connection.close()

    def close(self) -> None:
        """End everything at once."""
        self.draining = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in list(self.connections):
            connection.abort()

    def refusal(self, request: Request | None, status: int, message: str, code: str) -> Refusal:
        """Return an answer of this layer's own that ends the connection."""
        headers = [(b"content-type", b"application/json")]
        if status == 503:
            headers.append((b"retry-after", b"%d" % _RETRY_AFTER))
        return Refusal(status, tuple(headers), self._error_body(request, status, message, code), close=True)

    # What connections call ------------------------------------------------------------------------------

    def add(self, connection: ServerProtocol) -> bool:
        """Take note of a new connection; tell whether there is room for it."""
        self.accepted += 1
        self.connections.add(connection)
        return len(self.connections) <= self.limits.connections

    def remove(self, connection: ServerProtocol) -> None:
        """Forget a connection."""
        self.connections.discard(connection)

    def _sweep(self) -> None:
        """Look at every connection: one timer for all is cheaper than one for each."""
        now = self.clock()
        self.date = formatdate(usegmt=True).encode()
        due = [each for each in self.connections if each.due <= now or each.reader.due <= now]
        for connection in due:
            connection.sweep(now)
        self._timer = asyncio.get_running_loop().call_later(self.limits.sweep_seconds, self._sweep)


async def _hear_everything() -> None:
    """Let the loop take what has come already: after a stall it knows of the time first."""
    for _ in range(2):
        await asyncio.sleep(0)
