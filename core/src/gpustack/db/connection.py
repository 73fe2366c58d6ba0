"""Connections: waiting for the database at start, the pool, and sessions that run statements."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, Protocol

from gpustack.db.dialect import Statement, compiled
from gpustack.db.errors import OF_THE_DATABASE, Undone, is_loss, translated
from gpustack.db.presence import Presence
from gpustack.db.source import Source
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import SettingsError, Unavailable
from gpustack.kit.logs import TELL
from gpustack.plugin.databases import (
    DatabaseConnection,
    DatabaseError,
    DatabasePool,
    Row,
    Trouble,
)

log = logging.getLogger(__name__)

#: Seconds to wait for a free connection.
_ACQUIRE_LIMIT = 10.0
#: Seconds for the look whether a database that was lost is there again.
_PROBE_LIMIT = 3.0
#: Times that a read is tried; one that breaks its connection each time may be the reason for it.
_TRIES = 3
#: Seconds for which the answer to one look counts for all who want to look.
_FRESH = 1.0
#: Seconds for which a database that takes no new connections is taken for one that stops, and serves those it has.
_STOPPING = 4.0
#: Seconds that whoever needs the database waits for it while it is away.
PATIENCE = 15.0
#: Seconds of waiting for the database after which a start says so.
_SILENT = 2.5


class Session(Protocol):
    """Where repositories run their statements: the store (each by itself) or one transaction."""

    async def fetch(self, statement: Statement) -> list[Row]:
        """Run one statement and return its rows."""

    def writing(self) -> AbstractAsyncContextManager[Writing]:
        """Return the transaction to write in: a new one that commits at the end, or the one that is open."""


class Writing(Session, Protocol):
    """A session inside a transaction."""

    def emit(self, event: Any) -> None:
        """Add an event; all are numbered and written when the transaction ends."""

    def remember(self, happened: Iterable[Any]) -> None:
        """Add to the history of instances; all is written in one statement when the transaction ends."""


class Pool:
    """The connections of one store.

    A connection that broke takes all others of its time with it, before each of them fails somebody. Then reads are
    run again and new transactions wait, for ``patience`` seconds. What had begun to write is undone, and says so.
    """

    def __init__(self, source: Source, pool: DatabasePool, patience: float = PATIENCE) -> None:
        self._source = source
        self._pool = pool
        self._patience = patience
        self._asking = asyncio.Lock()
        self._answered = float("-inf")
        self.where = source.where
        self.wake_up = source.database.wake_up
        self.presence = Presence(source.where, patience, self._probe)

    async def fetch(self, statement: Statement) -> list[Row]:
        """Run one statement on any connection; one that only reads is run again when its connection broke."""
        sql, values = compiled(statement)
        tries = _TRIES if sql.lstrip()[:6].upper() == "SELECT" else 1
        with translated(self.where):
            while True:
                connection = await self._take()
                began = time.monotonic()
                try:
                    return await connection.fetch(sql, values)
                except OF_THE_DATABASE as error:
                    tries -= 1
                    if not await self._broke(connection, error, since=began) or not tries:
                        raise
                finally:
                    await self._pool.release(connection)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DatabaseConnection]:
        """Lend a connection inside a transaction; an error rolls it back.

        Only what the database does is translated: an OSError out of the caller's own block stays what it is. Undone
        when the connection broke before the commit was asked for.
        """
        with translated(self.where):
            connection = await self._begin()
        try:
            try:
                yield connection
            except Unavailable as error:
                if await self._broke(connection, error.__cause__):
                    raise Undone(error.message, retry_after=error.retry_after) from error
                await self._roll_back(connection)
                raise
            except BaseException:
                await self._roll_back(connection)
                raise
            with translated(self.where):
                await self._commit(connection)
        finally:
            with translated(self.where):
                await self._pool.release(connection)

    async def _begin(self) -> DatabaseConnection:
        """Return a connection inside a transaction. That it could begin one shows that the connection lives."""
        tries = _TRIES
        while True:
            connection = await self._take()
            began = time.monotonic()
            try:
                await connection.begin()
            except BaseException as error:
                tries -= 1
                broke = await self._broke(connection, error, since=began)
                await self._pool.release(connection)
                if not broke or not tries:
                    raise
            else:
                return connection

    async def _commit(self, connection: DatabaseConnection) -> None:
        began = time.monotonic()
        try:
            await connection.commit()
        except OF_THE_DATABASE as error:
            await self._broke(connection, error, since=began)
            raise

    async def _take(self) -> DatabaseConnection:
        """Return a connection of the pool, waiting while the database is away."""
        entered = time.monotonic()
        backoff = Backoff(first=0.02, limit=0.25)
        while True:
            await self.presence.wait()
            began = time.monotonic()
            try:
                return await self._pool.acquire(timeout=_ACQUIRE_LIMIT)
            except OF_THE_DATABASE as error:
                if not is_loss(error):
                    raise
                not_now = isinstance(error, DatabaseError) and error.trouble is Trouble.NOT_NOW
                if not_now and began < entered + _STOPPING and self._pool.size:
                    await asyncio.sleep(backoff.next())  # one of the pool's own may be free then
                    continue
                if isinstance(error, TimeoutError) and await self._answers():
                    raise Unavailable(f"all connections to {self.where} are busy", retry_after=1.0) from error
                await self.lost(error, since=began)
                if isinstance(error, TimeoutError) or time.monotonic() > entered + self._patience:
                    raise

    async def _answers(self) -> bool:
        """Tell whether the database answers; one looks, for all who ask at once."""
        async with self._asking:
            if self.presence.away:
                return False
            if time.monotonic() - self._answered > _FRESH:
                try:
                    await self._probe()
                except OF_THE_DATABASE as error:
                    if is_loss(error):
                        self.presence.lost(error)
                        return False
                self._answered = time.monotonic()
            return True

    async def _broke(
        self, connection: DatabaseConnection, error: BaseException | None, since: float | None = None
    ) -> bool:
        """Tell whether ``connection`` is lost; then it and the others of its time are given up."""
        if not is_loss(error) and not connection.closed:
            return False
        await self.lost(error or ConnectionError("the connection broke"), since=since)
        connection.terminate()
        return True

    async def lost(self, error: BaseException, *, since: float | None = None) -> None:
        """Give up all connections of this time and find out whether the database is there."""
        # Only of a statement that hung is known for how long nobody has answered.
        self.presence.lost(error, since=since if isinstance(error, TimeoutError) else None)
        await self._pool.expire()

    async def _probe(self) -> None:
        async with asyncio.timeout(_PROBE_LIMIT):
            connection = await self._source.open()
            try:
                await connection.fetch("SELECT 1")
            finally:
                connection.terminate()

    async def _roll_back(self, connection: DatabaseConnection) -> None:
        """Undo, if the connection still is one; without it the server has undone everything by itself."""
        try:
            if not connection.closed:
                await connection.roll_back()
        except OF_THE_DATABASE as error:
            await self._broke(connection, error)
            log.debug("%s: rolling back: %s", self.where, error)

    async def connect(self) -> DatabaseConnection:
        """Open a connection of its own, outside the pool. The caller ends it."""
        with translated(self.where):
            return await self._source.open()

    async def close(self) -> None:
        """Close all, within seconds even when the database does not answer."""
        await self.presence.close()
        try:
            await asyncio.wait_for(self._pool.close(), 3)
        except OF_THE_DATABASE:
            self._pool.terminate()


@asynccontextmanager
async def inside(
    connection: DatabaseConnection, *, snapshot: bool = False, lock_timeout: float | None = None
) -> AsyncIterator[None]:
    """A transaction on a connection of one's own; leaving the block commits it, an error undoes it."""
    await connection.begin(snapshot=snapshot, lock_timeout=lock_timeout)
    try:
        yield
    except BaseException:
        with suppress(*OF_THE_DATABASE):
            await connection.roll_back()
        raise
    await connection.commit()


async def open_pool(
    source: Source, size: tuple[int, int], wait: float, *, patience: float = PATIENCE
) -> Pool:
    """Connect, trying for ``wait`` seconds while the database is not up yet.

    The person who started this is told when it takes longer than one watches in silence. A wrong password or
    database name is reported at once: time does not cure it. SettingsError for these, Unavailable when the time is
    over.
    """
    began = time.monotonic()
    # The embedded database is up within a tenth of a second, so the first tries follow each other quickly.
    backoff = Backoff(first=0.02, limit=1.0)
    told = False
    while True:
        left = wait - (time.monotonic() - began)
        try:
            # A packet that nobody answers must not keep us from saying that we wait.
            async with asyncio.timeout(max(1.0, left if told else min(left, _SILENT))):
                pool = await source.database.pool(source.address, source.session, least=size[0], most=size[1])
                return Pool(source, pool, patience)
        except OF_THE_DATABASE as error:
            if isinstance(error, DatabaseError) and error.trouble is Trouble.REFUSED:
                raise SettingsError(error.message) from error
            pause, waited = backoff.next(), time.monotonic() - began
            why = " ".join(str(error).split()) or "no answer"
            if waited + pause > wait:
                raise Unavailable(
                    f"{source.where} cannot be reached ({why}); check --database-url and that it runs",
                    retry_after=5.0,
                ) from error
            if waited + pause > _SILENT and not told:
                told = True
                log.warning("waiting up to %.0f s for %s (%s)", wait, source.where, why, extra=TELL)
            await asyncio.sleep(pause)
