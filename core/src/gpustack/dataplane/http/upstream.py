"""Requests to engines: pooled connections, time-outs for each step, no limit for a whole answer."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Protocol

import msgspec

from gpustack.dataplane.http.engine import EngineConnection
from gpustack.dataplane.http.heads import FieldCache
from gpustack.dataplane.http.known import KnownAnswer, KnownAnswers
from gpustack.dataplane.http.limits import Limits
from gpustack.dataplane.http.request import Headers
from gpustack.plugin.routing import Timeouts

Address = tuple[str, int]
#: Takes a whole answer: its head, the digits of its length, and its body.
AtOnce = Callable[[KnownAnswer, bytes, bytes], None]
#: Takes a whole chunk as it came, the last of which ends an event, and where in it the data begins.
AtChunk = Callable[[bytes, int], None]
#: Seconds after a request within which the end of a connection that was used before is taken for one that had
#: begun before the request came.
_STALE = 0.05


class Stage(enum.Enum):
    """How far an exchange had come when it failed."""

    #: Nobody answers there.
    CONNECT = "connect"
    #: The request was sent, no valid head came back.
    HEAD = "head"
    #: The answer had begun.
    BODY = "body"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no answer, or no whole one. ``message`` follows the word "engine".

    ``started`` tells whether the engine may have begun to work on the request: without it the request can be
    sent elsewhere, whatever it asks.
    """

    stage: Stage
    started: bool
    message: str
    timed_out: bool = False


class Sink(Protocol):
    """Takes an answer. Nothing is called before :meth:`Upstream.request` has returned, nor after a cancel."""

    def on_head(self, status: int, headers: Headers, raw_head: bytes) -> None:
        """The final answer begins. Names are lower case; ``raw_head`` ends with the empty line."""
        ...

    def on_data(self, body: bytes, raw: bytes) -> None:
        """A piece: ``body`` without the framing, and ``raw`` as it came; both can be empty.

        The first follows at once after :meth:`on_head`, whatever has come.
        """
        ...

    def on_end(self, clean: bool) -> None:
        """The answer has ended; it is not whole unless ``clean``, and ``Exchange.failure`` says why. The last call."""
        ...

    def on_fail(self, failure: Failure) -> None:
        """There will be no answer; :meth:`on_head` was not called. The last call."""
        ...


class Exchange(msgspec.Struct, eq=False):
    """One request and its answer, as long as that takes. ``retried`` says that a stale connection was in the way.

    A Struct, as making one costs a fraction of an ``__init__``, and is done for each request.
    """

    _upstream: Upstream
    address: Address
    head: bytes
    body: bytes
    sink: Sink
    timeouts: Timeouts
    at_once: AtOnce | None = None
    #: Set by a sink that has heard the head, and sends chunks on as they are: those that are whole and end with an event
    #: may then come here instead of to ``on_data``, whose ``body`` is what lies between ``start`` and the last two bytes.
    at_chunk: AtChunk | None = None
    connection: EngineConnection | None = None
    failure: Failure | None = None
    ended: bool = False
    paused: bool = False
    retried: bool = False
    _task: asyncio.Task[None] | None = None

    @property
    def head_only(self) -> bool:
        """Whether the answer has no body, whatever its head says."""
        return self.head.startswith(b"HEAD ")

    def cancel(self) -> None:
        """Nobody wants the answer any more: the sink hears nothing more, and the engine's connection ends."""
        if self.ended:
            return
        self.over()
        if self._task is not None:
            self._task.cancel()
        if self.connection is not None:
            self.connection.give_up()

    def pause(self) -> None:
        """Let the engine wait; what has been read already may still come."""
        if not self.paused and not self.ended:
            self.paused = True
            if self.connection is not None:
                self.connection.pause()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        if self.paused and not self.ended:
            self.paused = False
            if self.connection is not None:
                self.connection.resume()

    # What connections call ------------------------------------------------------------------------------

    def connect(self, task: asyncio.Task[None] | None) -> None:
        """Note who makes the connection."""
        self._task = task

    def whole(self) -> None:
        """The answer has come to its end."""
        self.over().on_end(True)

    def broken(self, begun: bool, message: str, *, timed_out: bool = False) -> None:
        """The request has been sent and its answer is not whole."""
        sink = self.over()
        self.failure = Failure(Stage.BODY if begun else Stage.HEAD, True, message, timed_out)
        if begun:
            sink.on_end(False)
        else:
            sink.on_fail(self.failure)

    def unreached(self, message: str, *, timed_out: bool) -> None:
        """No connection could be made."""
        sink = self.over()
        # The engine that ended a connection with the request on it may have ended of the request.
        self.failure = Failure(Stage.CONNECT, self.retried, message, timed_out)
        sink.on_fail(self.failure)

    def over(self) -> Sink:
        """Let go of everything: a sink knows its exchange, and only the collector finds circles."""
        sink, self.sink = self.sink, _NOBODY
        self.at_once = self.at_chunk = None
        self.ended = True
        self.head = self.body = b""
        return sink


class _Nobody:
    """Takes the place of a sink after its last call."""

    def on_head(self, status: int, headers: Headers, raw_head: bytes) -> None: ...

    def on_data(self, body: bytes, raw: bytes) -> None: ...

    def on_end(self, clean: bool) -> None: ...

    def on_fail(self, failure: Failure) -> None: ...


_NOBODY = _Nobody()


class Upstream:
    """Connections to all engines of a process, on one event loop. ``limits`` are the gateway's own.

    ``start`` begins the sweep that holds the time-outs; without it none but that for connecting is held.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.fields = FieldCache()
        self.known = KnownAnswers()
        self.active: set[EngineConnection] = set()
        self._idle: dict[Address, list[EngineConnection]] = {}
        #: None until somebody says.
        self._wanted: set[Address] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self.clock: Callable[[], float] = time.monotonic
        #: Has something called when others had their turn; None until there is an event loop.
        self.soon: Callable[[Callable[[], None]], object] | None = None
        #: For reading; they grow from 0.
        self.connects = self.stale = self.bytes_in = 0

    def start(self) -> None:
        """Begin to look for what is due. Called on the event loop; a second call does nothing."""
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self.clock = loop.time
            self.soon = loop.call_soon
            self._timer = loop.call_later(self.limits.sweep_seconds, self._sweep)

    def close(self) -> None:
        """Close the unused connections, and no longer keep any."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.forget_all_but(())

    def request(
        self,
        address: Address,
        head: bytes,
        body: bytes,
        sink: Sink,
        timeouts: Timeouts,
        at_once: AtOnce | None = None,
    ) -> Exchange:
        """Send a request; the answer goes to ``sink``, not before this has returned.

        ``head`` comes from :func:`gpustack.dataplane.http.heads.request_head`. An answer that has come whole, with a
        head that is known, goes to ``at_once`` instead, if that is given, as the first and last call; it is not for HEAD.
        """
        exchange = Exchange(self, address, head, body, sink, timeouts, at_once)
        idle = self._idle.get(address)
        if idle:
            now = self.clock()
            longest = self.limits.idle_seconds
            while idle:
                connection = idle.pop()
                if connection.send_again(exchange, now, longest):
                    return exchange
                connection.drop()
        self._connect(exchange)
        return exchange

    def forget_all_but(self, wanted: Collection[Address]) -> None:
        """Close the unused connections to everything not in ``wanted``, now and whenever one is done with."""
        self._wanted = set(wanted)
        for address in [each for each in self._idle if each not in wanted]:
            for connection in self._idle.pop(address):
                connection.drop()

    def want(self, addresses: Iterable[Address]) -> None:
        """Keep connections to these, too, from now on."""
        if self._wanted is not None:
            self._wanted.update(addresses)

    # What connections call ------------------------------------------------------------------------------

    def put_back(self, connection: EngineConnection) -> None:
        """Keep a connection for the next request, or not."""
        address = connection.address
        idle = self._idle.get(address)
        # An engine that is to end waits until nobody is connected.
        if self._closed or (self._wanted is not None and address not in self._wanted):
            connection.drop()
            return
        if idle is None:
            idle = self._idle[address] = []
        if len(idle) >= self.limits.idle_connections:
            connection.drop()
            return
        connection.idle_since = self.clock()
        idle.append(connection)

    def forget(self, connection: EngineConnection) -> None:
        """An unused connection is gone."""
        idle = self._idle.get(connection.address)
        if idle is not None and connection in idle:
            idle.remove(connection)

    def died(self, exchange: Exchange, connection: EngineConnection, *, silent: bool) -> None:
        """A connection ended before the head of an answer."""
        waited = self.clock() - connection.sent_at
        if silent and connection.reused and not exchange.retried and waited < _STALE:
            # The engine closed it as we took it. An end that comes later may be the request's own doing.
            self.stale += 1
            exchange.retried = True
            self._connect(exchange)
            return
        exchange.broken(False, "ended the connection before it answered")

    # Connecting -----------------------------------------------------------------------------------------

    def _send(self, connection: EngineConnection, exchange: Exchange) -> None:
        connection.send(exchange, self.clock())
        if exchange.paused:
            connection.pause()

    def _connect(self, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        exchange.connect(loop.create_task(self._open(loop, exchange), name="connect to an engine"))

    async def _open(self, loop: asyncio.AbstractEventLoop, exchange: Exchange) -> None:
        address = exchange.address
        self.connects += 1
        try:
            async with asyncio.timeout(exchange.timeouts.connect):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(self, address), *address
                )
        except TimeoutError:
            exchange.unreached("cannot be reached in time", timed_out=True)
            return
        except (OSError, ValueError):  # UnicodeError: no host name
            exchange.unreached("cannot be reached", timed_out=False)
            return
        exchange.connect(None)
        self._send(connection, exchange)

    def _sweep(self) -> None:
        now = self.clock()
        for connection in [each for each in self.active if each.due <= now]:
            connection.time_out()
        oldest = now - self.limits.idle_seconds
        for address, idle in list(self._idle.items()):
            while idle and idle[0].idle_since <= oldest:
                idle[0].drop()
            if not idle:
                del self._idle[address]
        self._timer = asyncio.get_running_loop().call_later(self.limits.sweep_seconds, self._sweep)
