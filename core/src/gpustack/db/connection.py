"""Connections: waiting for the database at start, the pool, and sessions that run statements."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import asyncpg

from gpustack.db.dialect import Statement, compiled
from gpustack.db.errors import translated
from gpustack.db.url import DatabaseUrl
from gpustack.kit.backoff import Backoff
from gpustack.kit.errors import SettingsError, Unavailable

log = logging.getLogger(__name__)

#: One row as the driver gives it: a read-only mapping from column to value.
Row = Any

#: Seconds after which a statement is given up: nothing here takes long, so then the database hangs.
_STATEMENT_LIMIT = 30.0
#: Seconds to wait for a free connection.
_ACQUIRE_LIMIT = 10.0


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


class Pool:
    """The connections of one store."""

    def __init__(self, pool: Any, url: DatabaseUrl) -> None:
        self._pool = pool
        self.url = url
        self.where = url.where

    async def fetch(self, statement: Statement) -> list[Row]:
        """Run one statement on any connection."""
        sql, values = compiled(statement)
        with translated(self.where):
            async with self._pool.acquire(timeout=_ACQUIRE_LIMIT) as connection:
                rows: list[Row] = await connection.fetch(sql, *values)
                return rows

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """Lend a connection inside a transaction; an error rolls it back.

        Only what the database does is translated: an OSError out of the caller's own block stays what it is.
        """
        with translated(self.where):
            connection = await self._pool.acquire(timeout=_ACQUIRE_LIMIT)
        try:
            transaction = connection.transaction()
            with translated(self.where):
                await transaction.start()
            try:
                yield connection
            except BaseException:
                await self._roll_back(connection, transaction)
                raise
            with translated(self.where):
                await transaction.commit()
        finally:
            with translated(self.where):
                await self._pool.release(connection)

    async def _roll_back(self, connection: Any, transaction: Any) -> None:
        """Undo, if the connection still is one; without it the server has undone everything by itself."""
        try:
            if not connection.is_closed():
                await transaction.rollback()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            log.debug("%s: rolling back: %s", self.where, error)

    async def connect(self) -> Any:
        """Open a connection of its own, outside the pool. The caller closes it."""
        with translated(self.where):
            return await asyncpg.connect(**_arguments(self.url))

    async def close(self) -> None:
        """Close all, within seconds even when the database does not answer."""
        try:
            await asyncio.wait_for(self._pool.close(), 3)
        except (TimeoutError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._pool.terminate()


def _arguments(url: DatabaseUrl) -> dict[str, Any]:
    return {"dsn": url.text, "timeout": url.connect_timeout, "command_timeout": _STATEMENT_LIMIT}


async def open_pool(url: DatabaseUrl, size: tuple[int, int], wait: float) -> Pool:
    """Connect, trying for ``wait`` seconds while the database is not up yet.

    A wrong password or database name is reported at once: time does not cure it. SettingsError for these,
    Unavailable when the time is over.
    """
    deadline = time.monotonic() + wait
    # The embedded database is up within a tenth of a second, so the first tries follow each other quickly.
    backoff = Backoff(first=0.02, limit=1.0)
    while True:
        try:
            pool = asyncpg.create_pool(min_size=size[0], max_size=size[1], reset=_keep, **_arguments(url))
            await pool
            return Pool(pool, url)
        except _NEVER as error:
            raise SettingsError(_refusal(error, url)) from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            pause = backoff.next()
            if time.monotonic() + pause > deadline:
                why = " ".join(str(error).split()) or type(error).__name__
                raise Unavailable(
                    f"{url.where} cannot be reached ({why}); check --database-url and that it runs",
                    retry_after=5.0,
                ) from error
            await asyncio.sleep(pause)


async def _keep(_connection: Any) -> None:
    """Hand a connection back as it is: nothing here changes a session's state, and a reset is a round trip."""


_NEVER: tuple[type[BaseException], ...] = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    asyncpg.UndefinedObjectError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.InvalidParameterValueError,
)


def _refusal(error: BaseException, url: DatabaseUrl) -> str:
    if isinstance(error, asyncpg.InvalidPasswordError):
        return f"{url.where} refused user {url.user!r} or the password; check --database-url"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return f"{url.where} does not exist; create it (`createdb {url.database}`) or check --database-url"
    return f"{url.where} cannot be used: {' '.join(str(error).split())}"
