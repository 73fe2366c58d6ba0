"""asyncpg behind the contract of databases: its errors told apart, its connections and its pool."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import asyncpg

from gpustack.db.postgresql import CHANNEL
from gpustack.plugin.databases import (
    DatabaseAddress,
    DatabaseConnection,
    DatabaseError,
    DatabasePool,
    Row,
    Session,
    Trouble,
)

#: Classes of SQLSTATE after which the same request may well succeed: connection, rollback, resources, operator.
_PASSING = ("08", "40", "53", "55", "57")
#: A server that is now a read-only standby: the fail-over is not over yet.
_READ_ONLY = "25006"
#: SQLSTATEs of a server that goes or has crashed.
_GONE = frozenset({"57P01", "57P02", "57P05"})
#: Characters of the longest statement that is kept prepared. Those that are written by hand have 1,600 at most. Longer
#: ones were made for some number of rows, and another number makes another statement: for each 500 characters of them
#: PostgreSQL keeps some 50 KB, on every connection.
_LONGEST_KEPT = 2048
#: Of connecting: time cures none of them.
_NEVER: tuple[type[BaseException], ...] = (
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    asyncpg.ClientConfigurationError,
    asyncpg.UndefinedObjectError,
    asyncpg.CantChangeRuntimeParamError,
    asyncpg.InvalidParameterValueError,
)
_RAISED = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
_KINDS: tuple[tuple[type[asyncpg.PostgresError], Trouble], ...] = (
    (asyncpg.CannotConnectNowError, Trouble.NOT_NOW),
    (asyncpg.UniqueViolationError, Trouble.UNIQUE),
    (asyncpg.ForeignKeyViolationError, Trouble.DANGLING),
    (asyncpg.IntegrityConstraintViolationError, Trouble.BAD_VALUE),
    (asyncpg.DataError, Trouble.BAD_VALUE),
    (asyncpg.CharacterNotInRepertoireError, Trouble.BAD_VALUE),
    (asyncpg.UntranslatableCharacterError, Trouble.BAD_VALUE),
    (asyncpg.DuplicateTableError, Trouble.EXISTS),
    (asyncpg.DuplicateObjectError, Trouble.EXISTS),
    (asyncpg.InsufficientPrivilegeError, Trouble.NO_RIGHT),
)


def told(error: BaseException) -> DatabaseError:
    """Return what the driver has raised in the words of the contract."""
    line = " ".join(str(error).split()) or type(error).__name__
    if not isinstance(error, asyncpg.PostgresError):
        return DatabaseError(Trouble.LOST if isinstance(error, OSError) else Trouble.TRY_AGAIN, line)
    for kind, trouble in _KINDS:
        if isinstance(error, kind):
            return DatabaseError(trouble, line, constraint=error.constraint_name or "")
    state = error.sqlstate or ""
    if state in _GONE or state.startswith("08"):
        return DatabaseError(Trouble.LOST, line)
    if state.startswith(_PASSING) or state == _READ_ONLY:
        return DatabaseError(Trouble.TRY_AGAIN, line)
    return DatabaseError(Trouble.OTHER, line)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except _RAISED as error:
        raise told(error) from error


@contextmanager
def _connecting(address: DatabaseAddress) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise
    except _NEVER as error:
        raise DatabaseError(Trouble.REFUSED, _refusal(error, address)) from error
    except _RAISED as error:
        raise told(error) from error


def _refusal(error: BaseException, address: DatabaseAddress) -> str:
    where = address.where
    if isinstance(error, asyncpg.InvalidPasswordError):
        return f"{where} refused user {address.user!r} or the password; check --database-url"
    if isinstance(error, asyncpg.InvalidCatalogNameError):
        return f"{where} does not exist; create it (`createdb {address.database}`) or check --database-url"
    return f"{where} cannot be used: {' '.join(str(error).split())}"


async def connect(address: DatabaseAddress, session: Session) -> Connection:
    """Open a connection of its own."""
    with _connecting(address):
        return Connection(await asyncpg.connect(**_arguments(address, session)))


async def open_pool(address: DatabaseAddress, session: Session, *, least: int, most: int) -> Pool:
    """Open a pool of connections."""
    with _connecting(address):
        pool = asyncpg.create_pool(min_size=least, max_size=most, reset=_keep, **_arguments(address, session))
        await pool
        return Pool(pool, address)


def _arguments(address: DatabaseAddress, session: Session) -> dict[str, Any]:
    return {
        "dsn": address.url,
        "timeout": address.connect_timeout,
        "command_timeout": session.statement_timeout,
        "max_cacheable_statement_size": _LONGEST_KEPT,
        "server_settings": {"application_name": session.application},
    }


async def _keep(_connection: Any) -> None:
    """Hand a connection back as it is: nothing here changes a session's state, and a reset is a round trip."""


class Connection(DatabaseConnection):
    """One connection of asyncpg."""

    __slots__ = ("_transaction", "raw")

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self._transaction: Any = None

    async def fetch(self, sql: str, values: Sequence[Any] = (), *, timeout: float | None = None) -> list[Row]:
        try:
            rows: list[Row] = await self.raw.fetch(sql, *values, timeout=timeout)
            return rows
        except TimeoutError:
            raise
        except _RAISED as error:
            raise told(error) from error

    async def fetch_each(
        self, sql: str, values: Sequence[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        with _telling():
            await self.raw.executemany(sql, values, timeout=timeout)

    async def stream(self, sql: str, *, rows: int, timeout: float | None = None) -> AsyncIterator[Row]:
        with _telling():
            async for row in self.raw.cursor(sql, prefetch=rows, timeout=timeout):
                yield row

    async def begin(self, *, snapshot: bool = False, lock_timeout: float | None = None) -> None:
        options: dict[str, Any] = {"isolation": "repeatable_read", "readonly": True} if snapshot else {}
        with _telling():
            transaction = self.raw.transaction(**options)
            await transaction.start()
            self._transaction = transaction
            if lock_timeout is not None:
                await self.raw.execute(f"SET LOCAL lock_timeout = {int(lock_timeout * 1000)}")

    async def commit(self) -> None:
        transaction, self._transaction = self._transaction, None
        with _telling():
            await transaction.commit()

    async def roll_back(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is not None:
            with _telling():
                await transaction.rollback()

    async def hold(self, name: str) -> None:
        number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big", signed=True)
        await self.fetch("SELECT pg_advisory_xact_lock($1)", (number,))

    async def tables(self) -> Sequence[str]:
        rows = await self.fetch(
            "SELECT table_name FROM information_schema.tables WHERE table_schema = current_schema() "
            "ORDER BY table_name"
        )
        return [row["table_name"] for row in rows]

    async def columns(self, table: str) -> Mapping[str, str]:
        rows = await self.fetch(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = current_schema() AND table_name = $1 ORDER BY ordinal_position",
            (table,),
        )
        return {row["column_name"]: row["data_type"] for row in rows}

    async def last_id(self, table: str) -> int | None:
        if (sequence := await self._sequence(table)) is None:
            return None
        ((last, called),) = await self.fetch(f"SELECT last_value, is_called FROM {sequence}")  # noqa: S608
        return int(last) if called else 0

    async def count_on(self, table: str, last: int) -> None:
        await self.fetch("SELECT setval($1::text::regclass, $2)", (await self._sequence(table), last))

    async def _sequence(self, table: str) -> str | None:
        """Return the name of what counts the ids of ``table``, as it is written in SQL."""
        if "id" not in await self.columns(table):
            return None
        rows = await self.fetch("SELECT pg_get_serial_sequence($1, 'id') AS name", (f'"{table}"',))
        name: str | None = rows[0]["name"]
        return name

    async def others(self, application: str) -> int:
        rows = await self.fetch(
            "SELECT COUNT(*) AS n FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name = $1",
            (application,),
        )
        return int(rows[0]["n"])

    async def listen(self, woken: Callable[[], None]) -> None:
        with _telling():
            await self.raw.add_listener(CHANNEL, lambda *_: woken())
            self.raw.add_termination_listener(lambda *_: woken())

    @property
    def closed(self) -> bool:
        try:
            return bool(self.raw.is_closed())
        except asyncpg.InterfaceError:  # it was taken out of the pool already
            return True

    def terminate(self) -> None:
        with suppress(asyncpg.InterfaceError):
            self.raw.terminate()


class Pool(DatabasePool):
    """A pool of asyncpg."""

    def __init__(self, raw: Any, address: DatabaseAddress) -> None:
        self._raw = raw
        self._address = address

    async def acquire(self, *, timeout: float) -> DatabaseConnection:
        try:
            return Connection(await self._raw.acquire(timeout=timeout))
        except TimeoutError:
            raise
        except _RAISED as error:
            raise told(error) from error

    async def release(self, connection: DatabaseConnection) -> None:
        assert isinstance(connection, Connection)
        with _telling():
            await self._raw.release(connection.raw)

    async def expire(self) -> None:
        await self._raw.expire_connections()

    @property
    def size(self) -> int:
        return int(self._raw.get_size())

    async def close(self) -> None:
        with _telling():
            await self._raw.close()

    def terminate(self) -> None:
        self._raw.terminate()
