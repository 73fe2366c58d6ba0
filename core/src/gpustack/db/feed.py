"""The feed: one listening connection per store, fanned out in memory.

It reads what came after the last number whenever it is woken, and every few seconds in case a wake-up got lost.
When its connection breaks it opens another one and goes on where it was. Subscribers have bounded queues; whoever
is too slow for theirs reads on from the database by number, and misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Collection, Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from gpustack.db import outbox
from gpustack.db.connection import Pool
from gpustack.db.dialect import Statement, compiled
from gpustack.db.errors import is_loss, translated
from gpustack.db.outbox import Events, StoredEvent
from gpustack.db.repositories import history
from gpustack.db.repositories.decisions import Decisions
from gpustack.db.repositories.measured import Measured
from gpustack.db.repositories.usage import Usage
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import GPUStackError, NotFound, Unavailable
from gpustack.kit.tasks import Tasks
from gpustack.plugin.databases import DatabaseConnection, Row

log = logging.getLogger(__name__)

#: Seconds after which it looks by itself; also how long a dead connection may stay unnoticed.
_POLL = 15.0
_BATCH = 500
#: Events that wait for one subscriber in memory.
_QUEUE = 1000
#: What is kept, and how often the rest is deleted, in seconds.
_KEEP = 100_000
_KEEP_AGE = timedelta(hours=24)
_PRUNE_EVERY = 300.0


class Subscription:
    """Events for one reader, as an asynchronous iterator. It ends when it, or the feed, is closed.

    NotFound comes out of it when events that it has not seen were pruned: read the list again, then subscribe anew.
    """

    def __init__(self, feed: Feed, topics: Collection[str], cursor: int, *, live: bool) -> None:
        self._feed = feed
        self._topics = frozenset(topics)
        self._cursor = cursor
        self._queue: deque[StoredEvent] = deque()
        self._live = live
        self._ready = asyncio.Event()
        self._closed = False
        if not live:
            self._ready.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StoredEvent:
        while True:
            while self._queue:
                event = self._queue.popleft()
                if event.number > self._cursor:
                    self._cursor = event.number
                    return event
            if self._closed:
                raise StopAsyncIteration
            if not self._live:
                await self._catch_up()
                continue
            self._ready.clear()
            await self._ready.wait()

    async def _catch_up(self) -> None:
        """Read from the database up to where the feed is, and have the feed push from there on."""
        until = self._feed.position
        self._live = True
        try:
            events = await self._feed.read(self._cursor, until, self._topics, _BATCH)
        except BaseException:
            self._fall_behind()
            raise
        if len(events) == _BATCH:
            self._fall_behind()
        self._queue.extendleft(reversed(events))

    def _fall_behind(self) -> None:
        self._live = False
        self._queue.clear()

    def push(self, events: Iterable[StoredEvent]) -> None:
        """Take in what the feed has read."""
        if not self._live or self._closed:
            return
        wanted = [event for event in events if event.topic in self._topics]
        if not wanted:
            return
        if len(self._queue) + len(wanted) > _QUEUE:
            self._fall_behind()
        else:
            self._queue.extend(wanted)
        self._ready.set()

    def lost(self) -> None:
        """Learn that the feed itself missed events: ask the database from the last number on."""
        self._fall_behind()
        self._ready.set()

    def close(self) -> None:
        """End the iteration after what is queued."""
        self._closed = True
        self._feed.forget(self)
        self._ready.set()

    async def aclose(self) -> None:
        """Close it, for ``contextlib.aclosing``."""
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Feed:
    """The events of one store as they are committed.

    async with store.feed() as feed:
        async for event in feed.subscribe({"models"}):
            ...
    """

    def __init__(self, pool: Pool, on_failure: Callable[[str, BaseException], None] | None = None) -> None:
        self._pool = pool
        self._events = Events(_Reading(pool))
        self._tasks = Tasks("feed", on_failure)
        self._subscriptions: set[Subscription] = set()
        self._woken = asyncio.Event()
        self._entered = False
        #: The number up to which events were handed out.
        self.position = 0

    async def __aenter__(self) -> Self:
        connection = await self._listen()
        self.position = await outbox.last_number(_On(connection, self._pool.where))
        self._entered = True
        self._tasks.start("listen", self._run(connection))
        self._tasks.start("prune", self._prune())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered = False
        for subscription in list(self._subscriptions):
            subscription.close()
        await self._tasks.stop()

    def subscribe(self, topics: Collection[str], since: int | None = None) -> Subscription:
        """Return the events of ``topics`` after number ``since``, or from now on.

        The subscription holds from this call on, not from its first use. NotFound comes out of it when ``since`` is
        older than what is kept.
        """
        if not self._entered:
            raise RuntimeError("the feed is not open: use `async with feed`")
        live = since is None or since == self.position
        cursor = self.position if since is None else since
        subscription = Subscription(self, topics, cursor, live=live)
        self._subscriptions.add(subscription)
        return subscription

    def forget(self, subscription: Subscription) -> None:
        """Stop feeding a subscription."""
        self._subscriptions.discard(subscription)

    async def read(self, cursor: int, until: int, topics: Collection[str], limit: int) -> list[StoredEvent]:
        """Read kept events after ``cursor``; NotFound when some are gone. Waits while the database is away."""
        backoff = Backoff(first=0.05, limit=5.0)
        while True:
            try:
                return await self._events.after(cursor, until=until, topics=topics, limit=limit)
            except Unavailable:
                if not self._entered:
                    return []
                await asyncio.sleep(backoff.next())

    # Listening ----------------------------------------------------------------------------------------

    async def _listen(self) -> DatabaseConnection:
        connection = await self._pool.connect()
        try:
            with translated(self._pool.where):
                await connection.listen(self._woken.set)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _run(self, connection: DatabaseConnection | None) -> None:
        backoff = Backoff(first=0.05, limit=5.0)
        while True:
            try:
                if connection is None:
                    connection = await self._listen()
                    log.info("the event feed is connected again, at number %s", self.position)
                await self._follow(connection, backoff)
            except GPUStackError as error:
                log.info("the event feed cannot read and tries again: %s", error)
                # A server that is full, say, is there for all whose connections go on.
                if error.__cause__ is not None and is_loss(error.__cause__):
                    await self._pool.lost(error.__cause__)
            finally:
                if connection is not None:
                    connection.terminate()
                    connection = None
            await self._pool.presence.returned()
            # Many servers lose one database at the same moment.
            await asyncio.sleep(backoff.next() * random.uniform(0.5, 1.0))

    async def _follow(self, connection: DatabaseConnection, backoff: Backoff) -> None:
        session = _On(connection, self._pool.where)
        while True:
            self._woken.clear()
            events = await outbox.read_after(session, self.position, until=None, topics=None, limit=_BATCH)
            backoff.reset()
            if events:
                self._hand_out(events)
            if len(events) < _BATCH:
                await self._wait()

    async def _wait(self) -> None:
        try:
            # Not wait_for: until Python 3.12 that drops a cancellation which comes in the moment of the wake-up.
            async with asyncio.timeout(_POLL):
                await self._woken.wait()
        except TimeoutError:
            return

    def _hand_out(self, events: list[StoredEvent]) -> None:
        # Numbers have no gaps, so a gap here means that events were pruned while the database was out of reach.
        complete = events[0].number == self.position + 1
        self.position = events[-1].number
        for subscription in list(self._subscriptions):
            if complete:
                subscription.push(events)
            else:
                subscription.lost()

    async def _prune(self) -> None:
        while True:
            await asyncio.sleep(_PRUNE_EVERY * random.uniform(0.5, 1.0))
            try:
                await self._events.prune(older_than=_KEEP_AGE, keep=_KEEP)
                await history.prune(_Reading(self._pool))
                await Usage(_Reading(self._pool)).prune()
                await Measured(_Reading(self._pool)).prune()
                await Decisions(_Reading(self._pool)).prune()
            except GPUStackError as error:
                log.warning("old events could not be deleted and will be next time: %s", error)


class _Reading:
    """A session on any connection of the pool; nothing here writes events."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def fetch(self, statement: Statement) -> list[Row]:
        return await self._pool.fetch(statement)

    def writing(self) -> Any:
        raise NotFound("the feed only reads")


class _On:
    """A session on the listening connection."""

    def __init__(self, connection: DatabaseConnection, where: str) -> None:
        self._connection = connection
        self._where = where

    async def fetch(self, statement: Statement) -> list[Row]:
        text, values = compiled(statement)
        with translated(self._where):
            return await self._connection.fetch(text, values)

    def writing(self) -> Any:
        raise NotFound("the feed only reads")
