"""A gateway's connection to the server: the table comes in, what was metered goes out, at least once."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

from gpustack.dataplane.metering.journal import Batch, Journal
from gpustack.dataplane.table import wire
from gpustack.dataplane.table.copy import TableCopy
from gpustack.dataplane.table.load import LoadTeller
from gpustack.dataplane.table.wire import Hello, Kept, Load, Metered, Wake, Whole
from gpustack.kit import local_sockets
from gpustack.kit.backoff import Backoff
from gpustack.plugin.routing import UsageRecord

log = logging.getLogger(__name__)

#: Records in one message.
_BATCH = 1000
#: Seconds to wait after a batch that was not full: one costs as much as some dozen requests.
_PAUSE = 0.1
#: Seconds without a server in which one that comes back may know more; after that it is away.
_BEHIND = 5.0
#: Seconds that the server has to keep a batch.
_KEPT_WITHIN = 60.0
#: Seconds between two looks at how much there is to do.
_LOAD = 0.5


class Link:
    """Keeps the connection, for ever. ``path`` is the server's local socket."""

    def __init__(
        self,
        path: Path,
        copy: TableCopy,
        journal: Journal,
        *,
        release: str,
        first: Callable[[], None],
        load: LoadTeller | None = None,
    ) -> None:
        """``first`` is called when the whole table has come for the first time; ``load`` is told on."""
        self._path = path
        self._copy = copy
        self._journal = journal
        self._release = release
        self._first: Callable[[], None] | None = first
        self._load = load
        #: Of the present connection, and the same once the whole table has come over it.
        self._connected: asyncio.StreamWriter | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._kept: asyncio.Future[int] | None = None
        self._number = 0
        self._since = time.monotonic()

    @property
    def behind(self) -> bool:
        """Whether the server, which has just begun or ended, may know of what this copy does not: a new key, say."""
        return self._writer is None and time.monotonic() - self._since < _BEHIND

    def wake(self, route: str) -> None:
        """Ask the server to start what is asleep. One that is not there is asked when it is, for who waits then."""
        if self._writer is not None:
            self._writer.write(wire.framed(Wake(route)))

    async def run(self) -> None:
        """Be connected until cancelled."""
        # The server is a process of this machine: asking often costs nothing, and a key that was made waits for it.
        backoff = Backoff(first=0.02, limit=0.25)
        while True:
            try:
                await self._converse(backoff)
            except (OSError, EOFError, ValueError, msgspec.MsgspecError) as error:
                # Said once for each loss, which may last for days.
                level = logging.INFO if self._writer is not None else logging.DEBUG
                log.log(level, "the gateway has no server: %s", str(error) or type(error).__name__)
            finally:
                if self._writer is not None:
                    self._writer, self._since = None, time.monotonic()
            await asyncio.sleep(backoff.next() * random.uniform(0.5, 1.0))

    async def _converse(self, backoff: Backoff) -> None:
        sock = await asyncio.to_thread(local_sockets.connect_local, self._path)
        sock.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=wire.LONGEST)
        writer.write(wire.framed(Hello(os.getpid(), self._release)))
        self._connected = writer
        both = {
            asyncio.create_task(self._follow(reader, backoff)),
            asyncio.create_task(self._deliver(writer)),
        }
        if self._load is not None:
            both.add(asyncio.create_task(self._tell_load(writer, self._load)))
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                each.result()
        finally:
            for each in both:
                each.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _follow(self, reader: asyncio.StreamReader, backoff: Backoff) -> None:
        while True:
            message = wire.from_server(await wire.read(reader))
            if isinstance(message, Kept):
                if self._kept is not None and not self._kept.done():
                    self._kept.set_result(message.number)
                continue
            self._copy.take(message)
            if isinstance(message, Whole):
                self._writer = self._connected
                backoff.reset()
                # The server before may have ended with what it was asked.
                for route in self._load.held() if self._load is not None else ():
                    self.wake(route)
                if self._first is not None:
                    first, self._first = self._first, None
                    first()

    async def _tell_load(self, writer: asyncio.StreamWriter, load: LoadTeller) -> None:
        """Say how much there is to do, whenever that is otherwise."""
        load.begin()
        news: Load | None = load.news() or Load()
        while True:
            if news is not None:
                writer.write(wire.framed(news))
                await writer.drain()
            await asyncio.sleep(_LOAD)
            news = load.news()

    async def _deliver(self, writer: asyncio.StreamWriter) -> None:
        """Send what was metered, batch by batch; one that nobody confirms is sent again over the next connection."""
        while True:
            batch = await self._journal.next_batch(_BATCH)
            await self._send(writer, batch)
            if len(batch.entries) < _BATCH:
                await asyncio.sleep(_PAUSE)

    async def _send(self, writer: asyncio.StreamWriter, batch: Batch) -> None:
        self._number += 1
        self._kept = asyncio.get_running_loop().create_future()
        # Encoded, entries are records.
        records = cast("tuple[UsageRecord, ...]", batch.entries)
        writer.write(wire.framed(Metered(self._number, records)))
        await writer.drain()
        async with asyncio.timeout(_KEPT_WITHIN):
            while await self._kept != self._number:
                self._kept = asyncio.get_running_loop().create_future()
        await self._journal.acknowledge(batch)
