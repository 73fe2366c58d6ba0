"""The gateway's plugin beside the server: it is told the table, asked how it is, and what it metered is kept.

async with AsyncExitStack() as stack:
    gateway = await GatewayLife.begin(stack, catalogue, registered, host, routing, store.usage.keep)
    gateway.seen

It lives on an event loop of its own, and has time limits: one that blocks, hangs or fails keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from gpustack.dataplane.gateway.asgi import GatewayApp
from gpustack.extensions import Catalogue, Inside, Registered, inside
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError
from gpustack.kit.tasks import Tasks
from gpustack.plugin import Gateway, GatewayHost, PluginError, TryAgain, Verdict
from gpustack.plugin.routing import RoutingDelta, RoutingTable, UsageRecord
from gpustack.server.gateways import Gateways, Keep, Tables

log = logging.getLogger(__name__)

#: Seconds that a table has to be applied, and the longest wait before one that could not be is tried again.
APPLY, AGAIN = 30.0, 15.0
#: Seconds between two looks at its health and its addresses, and that one has.
LOOK, LOOKING = 5.0, 5.0
#: Seconds between two questions for what was metered, and that one batch has.
USAGE, ASKING = 2.0, 30.0


_NOT_YET = Verdict.no("it has not been asked yet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was last seen of a gateway."""

    public_urls: tuple[str, ...] = ()
    health: Verdict = _NOT_YET
    #: The version of the table that it serves; None before the first one.
    applied: int | None = None


class GatewayLife:
    """One gateway while it lives."""

    def __init__(self, gateway: Inside[Gateway[Any]], tables: Tables, keep: Keep) -> None:
        self._gateway = gateway
        self._what = f"gateway {gateway.registered.name}"
        self._tables = tables
        self._keep = keep
        self._news = _News()
        self._look_now = asyncio.Event()
        #: Why the newest table is not applied; empty when it is.
        self._trouble = ""
        self.seen = Seen()

    @classmethod
    async def begin(
        cls,
        stack: AsyncExitStack,
        catalogue: Catalogue,
        registered: Registered[Gateway[Any]],
        host: GatewayHost,
        tables: Tables,
        keep: Keep,
    ) -> GatewayLife:
        """Enter the gateway and begin to tell it the table, until ``stack`` ends. Raises PluginError in one line."""
        life = cls(await inside(stack, catalogue, registered, host), tables, keep)
        tasks = await stack.enter_async_context(Tasks(life._what))
        stack.callback(tables.listen(life._news.add))
        tasks.start("tables", life._tell())
        tasks.start("health", life._watch())
        if type(life._gateway.extension).usage is not Gateway.usage:
            tasks.start("usage", life._collect())
        return life

    # The table ------------------------------------------------------------------------------------------

    async def _tell(self) -> NoReturn:
        """Have it apply the newest table whenever there is one that it has not."""
        backoff = Backoff(first=0.1, limit=AGAIN)
        applied: int | None = None
        #: Keys whose requests have to end, of tables that were not applied.
        owed: frozenset[int] = frozenset()
        while True:
            if applied == self._tables.table.version:
                await self._news.come.wait()
            delta, closed = self._news.take(since=applied)
            owed |= closed
            # A copy: the server's own mappings change in place.
            table = self._tables.table
            table = replace(table, routes=dict(table.routes), principals=dict(table.principals))
            try:
                await self._apply(table, None if delta is None else replace(delta, closed=owed))
                if owed and delta is None:
                    # Who cannot be told what is new has to hear of this all the same.
                    await self._apply(table, RoutingDelta(since=table.version, closed=owed))
            except PluginError as error:
                # It may be half done, so that what is new since then means nothing.
                applied = None
                least = min(error.after, AGAIN) if isinstance(error, TryAgain) else 0.0
                self._is_in_trouble(error.message)
                await asyncio.sleep(max(backoff.next(), least))
            else:
                backoff.reset()
                applied, owed = table.version, frozenset()
                self.seen = replace(self.seen, applied=applied)
                self._is_in_trouble("")

    async def _apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        gateway = self._gateway.extension
        await self._gateway.call(lambda: gateway.apply(table, delta), "apply", limit=APPLY)

    def _is_in_trouble(self, trouble: str) -> None:
        if trouble and not self._trouble:
            log.warning("%s: the routing table is not applied and is told again: %s", self._what, trouble)
        if trouble != self._trouble:
            self._trouble = trouble
            self._look_now.set()

    # Its health -----------------------------------------------------------------------------------------

    async def _watch(self) -> NoReturn:
        while True:
            self._look_now.clear()
            health, urls = await self._look()
            if self._trouble:
                health = Verdict.no(f"the newest routing table is not applied: {self._trouble}")
            before = self.seen.health
            self.seen = replace(self.seen, health=health, public_urls=urls)
            if health != before:
                self._tell_people(health, first=before is _NOT_YET)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    await self._look_now.wait()

    def _tell_people(self, health: Verdict, *, first: bool) -> None:
        # What is just being started does not serve, and that is nothing to be warned of.
        level = logging.INFO if health.ok or first else logging.WARNING
        words = "serves" if health.ok else "does not serve"
        log.log(level, "%s %s%s", self._what, words, f": {health.reason}" if health.reason else "")

    def look(self) -> None:
        """Look at it now: something has happened."""
        self._look_now.set()

    async def _look(self) -> tuple[Verdict, tuple[str, ...]]:
        gateway = self._gateway.extension

        async def look() -> tuple[Verdict, tuple[str, ...]]:
            return await gateway.health(), tuple(str(each) for each in gateway.public_urls)

        try:
            health, urls = await self._gateway.call(look, "health", limit=LOOKING)
        except PluginError as error:
            return Verdict.no(error.message), self.seen.public_urls
        if not _is(health, Verdict):
            return Verdict.no("its health is no Verdict"), urls
        return health, urls

    # What it metered ------------------------------------------------------------------------------------

    async def _collect(self) -> NoReturn:
        """Keep what it metered; a batch that cannot be kept comes again."""
        backoff = Backoff(first=USAGE, limit=60.0)
        while True:
            try:
                await self._collect_once()
                backoff.reset()
            except GPUStackError as error:
                log.warning("%s: usage cannot be written down now and is tried again: %s", self._what, error)
            await asyncio.sleep(backoff.next() if backoff.failures else USAGE)

    async def _collect_once(self) -> None:
        batches = self._gateway.extension.usage()
        try:
            while batch := await self._gateway.call(lambda: _next(batches), "usage", limit=ASKING):
                await self._keep(batch)
        finally:
            # Closing one that has come to its end does nothing.
            close = getattr(batches, "aclose", None)
            if close is not None:
                await self._gateway.call(close, "the end of usage", limit=ASKING)


@dataclass(slots=True)
class Front:
    """What carries the requests: the processes of the data path, and the gateway's plugin; None where there is none."""

    data_path: Gateways | None = None
    life: GatewayLife | None = None
    #: The data path of the server's own process.
    inference: GatewayApp | None = None


async def _next(batches: AsyncIterator[Sequence[UsageRecord]]) -> tuple[UsageRecord, ...]:
    """Return the next batch that is not empty; nothing at the end."""
    async for batch in batches:
        found = tuple(batch)
        for each in found:
            if not _is(each, UsageRecord):
                raise PluginError(f"usage yields {type(each).__name__}, no UsageRecord")
        if found:
            return found
    return ()


def _is(answer: object, kind: type) -> bool:
    """Tell whether a plugin has kept to what it declares."""
    return isinstance(answer, kind)


class _News:
    """What has changed since the last table that was told."""

    def __init__(self) -> None:
        self.come = asyncio.Event()
        self._delta: RoutingDelta | None = None
        self._unknown = False
        self._closed: frozenset[int] = frozenset()

    def add(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        """Note a new table."""
        del table
        if delta is None:
            self._unknown = True
        else:
            self._delta = delta if self._delta is None else merged(self._delta, delta)
            self._closed |= delta.closed
        self.come.set()

    def take(self, *, since: int | None) -> tuple[RoutingDelta | None, frozenset[int]]:
        """Return what is new since the table ``since``, None when that is not known, and what has to end for good.

        From now on other news are collected.
        """
        delta, closed = self._delta, self._closed
        if self._unknown or (delta is not None and delta.since != since):
            delta = None
        self._delta, self._unknown, self._closed = None, False, frozenset()
        self.come.clear()
        return delta, closed


def merged(first: RoutingDelta, then: RoutingDelta) -> RoutingDelta:
    """Return what differs after both."""
    return RoutingDelta(
        since=first.since,
        changed=(first.changed - then.removed) | then.changed,
        removed=(first.removed - then.changed) | then.removed,
        principals_changed=(first.principals_changed - then.principals_removed) | then.principals_changed,
        principals_removed=(first.principals_removed - then.principals_changed) | then.principals_removed,
        closed=first.closed | then.closed,
    )
