"""A gateway's own copy of the routing table: brought up to date between two requests, kept on disk for the next start."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from pathlib import Path

import msgspec

from gpustack.dataplane.table import wire
from gpustack.dataplane.table.wire import Begin, Change, FromServer, Part, Whole
from gpustack.kit.errors import GPUStackError, system_line
from gpustack.kit.paths import make_dir, write_atomic
from gpustack.plugin.routing import Principal, Route, RoutingTable

log = logging.getLogger(__name__)

#: Begins the file; another number is another form, which nobody reads.
_FORM = b"gpustack routing table 1\n"
#: Seconds between two writings, while there are changes.
_EVERY = 5.0

#: Told of each new table, and which routes differ; None may be all.
Applied = Callable[[RoutingTable, Collection[str] | None], None]


class TableCopy:
    """One copy. ``apply`` is called with each new table, on the event loop."""

    def __init__(self, apply: Applied, close: Callable[[Collection[int]], None] = lambda _: None) -> None:
        """``close`` is told of keys whose requests are to end."""
        self._apply = apply
        self._close = close
        self._routes: dict[str, Route] = {}
        self._principals: dict[str, Principal] = {}
        self._coming_routes: dict[str, Route] | None = None
        self._coming_principals: dict[str, Principal] = {}
        self.version = 0
        #: Whether a server has told the whole of it since this process began.
        self.fresh = False

    @property
    def table(self) -> RoutingTable:
        """The present table. It shares its mappings with the copy, which changes them."""
        return RoutingTable(version=self.version, routes=self._routes, principals=self._principals)

    def take(self, message: FromServer) -> None:
        """Follow one message; those that are about nothing here are left alone."""
        if isinstance(message, Begin):
            self._coming_routes, self._coming_principals = {}, {}
        elif isinstance(message, Part):
            if self._coming_routes is not None:
                self._coming_routes |= {
                    name: self._same(name, route) for name, route in message.routes.items()
                }
                self._coming_principals |= message.principals
        elif isinstance(message, Whole):
            if self._coming_routes is not None:
                self.replace(message.version, self._coming_routes, self._coming_principals)
                self._coming_routes, self._coming_principals = None, {}
                self.fresh = True
        elif isinstance(message, Change):
            self._change(message)

    def replace(self, version: int, routes: dict[str, Route], principals: dict[str, Principal]) -> None:
        """Have another table at once."""
        self._routes, self._principals, self.version = routes, principals, version
        self._apply(self.table, None)

    def _same(self, name: str, route: Route) -> Route:
        """Return the object that is known for what has not changed: whoever compares is done at once."""
        known = self._routes.get(name)
        return known if known == route and known is not None else route

    def _change(self, change: Change) -> None:
        # While a whole table comes, what is told to be new belongs to it, too.
        for routes, principals in self._targets():
            for name in change.routes_removed:
                routes.pop(name, None)
            routes.update(change.routes)
            for digest in change.principals_removed:
                principals.pop(digest, None)
            principals.update(change.principals)
        self.version = change.version
        self._apply(self.table, [*change.routes, *change.routes_removed])
        if change.closed:
            self._close(change.closed)

    def _targets(self) -> list[tuple[dict[str, Route], dict[str, Principal]]]:
        present = [(self._routes, self._principals)]
        if self._coming_routes is not None:
            present.append((self._coming_routes, self._coming_principals))
        return present


class TableFile:
    """The copy on disk (0600): what a gateway serves by until a server is there."""

    def __init__(self, path: Path, copy: TableCopy) -> None:
        self._path = path
        self._copy = copy
        self._written = -1

    def load(self) -> bool:
        """Have the copy begin with what is on disk; tell whether there was anything that could be read. Blocks."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return False
        except OSError as error:
            log.warning("the routing table on disk cannot be read: %s", system_line(error))
            return False
        if not data.startswith(_FORM):
            log.warning("%s is of another version and is not used", self._path)
            return False
        try:
            whole = msgspec.msgpack.decode(data[len(_FORM) :], type=Change)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            log.warning("%s is damaged and is not used: %s", self._path, error)
            return False
        self._copy.replace(whole.version, dict(whole.routes), dict(whole.principals))
        self._written = whole.version
        return True

    async def keep(self) -> None:
        """Write the copy whenever it has changed, until cancelled; a disk that takes nothing is tried again."""
        while True:
            await asyncio.sleep(_EVERY)
            await self.write()

    async def write(self) -> None:
        """Write the copy, if it has changed and a server has told it."""
        version = self._copy.version
        if version == self._written or not self._copy.fresh:
            return
        began = time.monotonic()
        parts = []
        table = self._copy.table
        for part in wire.parts_of(table):
            parts.append(part)
            await asyncio.sleep(0)
        try:
            await asyncio.to_thread(self._write, version, parts)
        except (OSError, GPUStackError) as error:
            log.warning("the routing table cannot be written to %s: %s", self._path, error)
            return
        self._written = version
        log.debug("the routing table %d was written in %.3f s", version, time.monotonic() - began)

    def _write(self, version: int, parts: list[Part]) -> None:
        routes: dict[str, Route] = {}
        principals: dict[str, Principal] = {}
        for part in parts:
            routes |= part.routes
            principals |= part.principals
        make_dir(self._path.parent, what="gateway's directory", mode=0o700)
        whole = Change(version=version, routes=routes, principals=principals)
        write_atomic(self._path, _FORM + wire.encode(whole), mode=0o600)
