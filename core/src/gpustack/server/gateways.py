"""The server's side of its gateways: each gets the routing table and every change, and has its records of usage kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Protocol, Self

import msgspec

from gpustack.dataplane.table import wire
from gpustack.dataplane.table.wire import Begin, Change, Hello, Kept, Load, Metered, Wake, Whole
from gpustack.kit import local_sockets
from gpustack.kit.errors import GPUStackError
from gpustack.kit.tasks import Tasks
from gpustack.plugin import Verdict
from gpustack.plugin.routing import RoutingDelta, RoutingTable, UsageRecord
from gpustack.server.loads import Loads
from gpustack.server.routing import Listener

log = logging.getLogger(__name__)

#: Bytes that may wait for a gateway that does not read; it then has to begin anew.
_BEHIND = 64 << 20
#: Seconds before records that could not be kept are tried again.
_AGAIN = 1.0

#: Keeps records, each once however often it comes.
Keep = Callable[[Sequence[UsageRecord]], Awaitable[None]]


class Tables(Protocol):
    """Where the routing table comes from, as :class:`gpustack.server.routing.Routing` has it."""

    table: RoutingTable

    def listen(self, callback: Listener) -> Callable[[], None]:
        """Have ``callback`` called with every table from the next one on; the function returned ends that."""


class Gateways:
    """All gateways of this machine. ``loads`` is told what they have to do, and which route somebody waits for."""

    def __init__(self, path: Path, routing: Tables, keep: Keep, loads: Loads) -> None:
        self._path = path
        self._routing = routing
        self._keep = keep
        self._loads = loads
        self._writers: dict[asyncio.StreamWriter, Hello] = {}
        #: Who is told the whole table just now: one that begins anew may not mix with one before it.
        self._telling: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}
        #: Connections that nobody serves yet, and nobody will when this ends.
        self._accepted: set[socket.socket] = set()
        self._tasks = Tasks("gateways")
        #: Called when one comes or goes.
        self.changed: Callable[[], None] = lambda: None

    @property
    def pids(self) -> list[int]:
        """The processes that are connected."""
        return sorted(each.pid for each in list(self._writers.values()))

    def health(self, wanted: int) -> Verdict:
        """Tell whether the ``wanted`` processes are connected; from any thread. Those of before a restart count as well."""
        here = len(self._writers)
        if not here:
            return Verdict.no(
                "no gateway process is connected with the server; they serve by the table that they have"
            )
        return Verdict(
            ok=True, reason="" if here >= wanted else f"{here} of {wanted} gateway processes are connected"
        )

    async def __aenter__(self) -> Self:
        """Listen. Raises GPUStackError when the socket cannot be had."""
        self._listener = listener = local_sockets.listen_local(self._path)
        listener.setblocking(False)
        self._place = self._path.stat().st_ino
        self._forget = self._routing.listen(self._changed)
        self._tasks.start("accept", self._accept(listener))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let all go; they serve on with what they have."""
        self._forget()
        await self._tasks.stop()
        # Tasks that end before they have begun close nothing.
        self._listener.close()
        for sock in self._accepted:
            sock.close()
        self._writers.clear()
        with contextlib.suppress(OSError):
            # The next server may have one of its own there already.
            if self._path.stat().st_ino == self._place:
                self._path.unlink()

    async def _accept(self, listener: socket.socket) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(listener.fileno(), ready.set)
        try:
            while True:
                await ready.wait()
                ready.clear()
                # Not sock_accept: cancelled in the same moment, it loses the socket that it has accepted.
                with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    self._accepted.add(sock)
                    self._tasks.start("gateway", self._serve(sock))
        finally:
            loop.remove_reader(listener.fileno())

    async def _serve(self, sock: socket.socket) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=wire.LONGEST)
        self._accepted.discard(sock)
        try:
            hello = wire.from_gateway(await wire.read(reader))
            if not isinstance(hello, Hello):
                raise ValueError("it does not say who it is")
            # From here on every change goes to it as well; what it gets twice is the same twice.
            self._writers[writer] = hello
            self.changed()
            self._loads.expect(writer)
            self._begin_anew(writer)
            await self._listen(reader, writer)
        except EOFError:
            pass
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("a gateway was let go: %s", error)
        finally:
            if self._writers.pop(writer, None) is not None:
                self.changed()
            self._loads.forget(writer)
            if (telling := self._telling.pop(writer, None)) is not None:
                telling.cancel()
            writer.close()

    def _begin_anew(self, writer: asyncio.StreamWriter) -> None:
        if (before := self._telling.get(writer)) is not None:
            before.cancel()
        self._telling[writer] = asyncio.create_task(self._tell_all(writer))

    async def _tell_all(self, writer: asyncio.StreamWriter) -> None:
        """Send the whole table, letting others have their turn between its parts."""
        try:
            writer.write(wire.framed(Begin(self._routing.table.version)))
            for part in wire.parts_of(self._routing.table):
                writer.write(wire.framed(part))
                await writer.drain()
            # What changed meanwhile was sent besides, so that this is the present version.
            writer.write(wire.framed(Whole(self._routing.table.version)))
        except OSError as error:
            log.info("a gateway left while it was told the table: %s", error)

    def _changed(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        if not self._writers:
            return
        if delta is None:
            for writer in self._writers:
                self._begin_anew(writer)
            return
        change = Change(
            version=table.version,
            routes={name: table.routes[name] for name in delta.changed if name in table.routes},
            routes_removed=sorted(delta.removed),
            principals={
                each: table.principals[each] for each in delta.principals_changed if each in table.principals
            },
            principals_removed=sorted(delta.principals_removed),
            closed=sorted(delta.closed),
        )
        data = wire.framed(change)
        for writer in list(self._writers):
            if writer.transport.get_write_buffer_size() > _BEHIND:
                log.warning("gateway %d does not read and has to begin anew", self._writers[writer].pid)
                writer.transport.abort()
            else:
                writer.write(data)

    async def _listen(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            message = wire.from_gateway(await wire.read(reader))
            if isinstance(message, Metered):
                await self._kept(message)
                writer.write(wire.framed(Kept(message.number)))
            elif isinstance(message, Wake):
                self._loads.wake(message.route)
            elif isinstance(message, Load):
                self._loads.take(writer, message)

    async def _kept(self, message: Metered) -> None:
        """Have the records kept, however long the database is away: the gateway has them until then."""
        while True:
            try:
                await self._keep(message.records)
                return
            except GPUStackError as error:
                log.warning("usage cannot be written down now and is tried again: %s", error)
                await asyncio.sleep(_AGAIN)
