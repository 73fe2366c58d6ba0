"""An engine's answer passed on to a client as it is."""

from __future__ import annotations

from collections.abc import Callable

from gpustack.dataplane.http import heads
from gpustack.dataplane.http.reply import Reply
from gpustack.dataplane.http.request import Headers
from gpustack.dataplane.http.upstream import Address, Exchange, Failure, Upstream
from gpustack.plugin.routing import Timeouts


class Relay:
    """Joins one exchange to one reply: at the client's pace, ended when either side leaves.

    ``failed`` is called when there is no answer, with nothing sent to the client: it answers, or tries elsewhere.
    """

    __slots__ = ("_exchange", "_failed", "_reply", "_without")

    def __init__(
        self,
        reply: Reply,
        failed: Callable[[Failure], None],
        *,
        without: frozenset[bytes] = heads.NOT_FOR_CLIENTS,
    ) -> None:
        self._reply = reply
        self._failed = failed
        self._without = without
        self._exchange: Exchange | None = None

    def ask(self, upstream: Upstream, address: Address, head: bytes, body: bytes, timeouts: Timeouts) -> None:
        """Send the request; everything else follows by itself. Again after a failure, if so wished."""
        self._exchange = exchange = upstream.request(address, head, body, self, timeouts)
        self._reply.on_gone(exchange.cancel)

    def on_head(self, status: int, headers: Headers, raw_head: bytes) -> None:
        """Pass the head on."""
        self._reply.pass_head(status, headers, without=self._without)

    def on_data(self, body: bytes, raw: bytes) -> None:
        """Pass a piece on, and let the engine wait for a slow client."""
        reply, exchange = self._reply, self._exchange
        reply.pass_data(body, raw)
        if reply.paused and exchange is not None and not exchange.paused:
            exchange.pause()
            reply.on_drain(exchange.resume)

    def on_end(self, clean: bool) -> None:
        """End the answer, visibly broken when it is."""
        if clean:
            self._reply.end()
        else:
            self._reply.abort()

    def on_fail(self, failure: Failure) -> None:
        """There is no answer."""
        self._failed(failure)
