"""The store: one database, its repositories, transactions and feed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Self

from gpustack.db import migrations, outbox
from gpustack.db.connection import PATIENCE, Pool, Session, Writing, open_pool
from gpustack.db.dialect import Statement, compiled
from gpustack.db.errors import translated
from gpustack.db.feed import Feed
from gpustack.db.outbox import Change, Events
from gpustack.db.repositories.api_keys import ApiKeys
from gpustack.db.repositories.base import sql
from gpustack.db.repositories.clusters import Clusters
from gpustack.db.repositories.decisions import Decisions
from gpustack.db.repositories.history import Happening, History
from gpustack.db.repositories.inference_backends import InferenceBackends
from gpustack.db.repositories.instances import Instances
from gpustack.db.repositories.measured import Measured
from gpustack.db.repositories.model_files import ModelFiles
from gpustack.db.repositories.model_routes import ModelRoutes
from gpustack.db.repositories.models import Models
from gpustack.db.repositories.route_targets import RouteTargets
from gpustack.db.repositories.sessions import Sessions
from gpustack.db.repositories.usage import Usage
from gpustack.db.repositories.users import Users
from gpustack.db.repositories.worker_engines import WorkerEngines
from gpustack.db.repositories.workers import Workers
from gpustack.db.source import APPLICATION, source_of
from gpustack.kit.errors import GPUStackError
from gpustack.plugin.databases import Database, DatabaseConnection, Row

#: The administrator that every new database gets.
ADMIN = "admin"
DEFAULT_CLUSTER = "default"


class _Repositories:
    """All repositories over one session."""

    def __init__(self, session: Session) -> None:
        self.users = Users(session)
        self.sessions = Sessions(session)
        self.api_keys = ApiKeys(session)
        self.clusters = Clusters(session)
        self.workers = Workers(session)
        self.models = Models(session)
        self.inference_backends = InferenceBackends(session)
        self.model_routes = ModelRoutes(session)
        self.route_targets = RouteTargets(session)
        self.instances = Instances(session)
        self.model_files = ModelFiles(session)
        self.worker_engines = WorkerEngines(session)
        self.measured = Measured(session)
        self.events = Events(session)
        self.history = History(session)
        self.decisions = Decisions(session)
        self.usage = Usage(session)


class _Inside:
    """The session of what is written in one transaction. It knows no repository, so that both go as soon as nobody has them."""

    def __init__(self, connection: DatabaseConnection, where: str) -> None:
        self._connection = connection
        self._where = where
        self.changes: list[Change] = []
        self.happened: list[Happening] = []

    async def fetch(self, statement: Statement) -> list[Row]:
        text, values = compiled(statement)
        with translated(self._where):
            return await self._connection.fetch(text, values)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Writing]:
        yield self

    def emit(self, event: Change) -> None:
        self.changes.append(event)

    def remember(self, happened: Iterable[Happening]) -> None:
        self.happened += happened


class Transaction(_Repositories):
    """Writes that happen together or not at all. One task at a time may use it.

    After an error nothing more can be done in it: leave the block.
    """

    def __init__(self, connection: DatabaseConnection, pool: Pool) -> None:
        self._inside = _Inside(connection, pool.where)
        self._wake_up = pool.wake_up
        super().__init__(self._inside)

    async def fetch(self, statement: Statement) -> list[Row]:
        """Run one statement inside the transaction."""
        return await self._inside.fetch(statement)

    def writing(self) -> AbstractAsyncContextManager[Writing]:
        """Write right here: the transaction is open."""
        return self._inside.writing()

    def emit(self, event: Change) -> None:
        """Add an event; it gets its number when the transaction ends."""
        self._inside.emit(event)

    def remember(self, happened: Iterable[Happening]) -> None:
        """Add to the history of instances; it is written when the transaction ends."""
        self._inside.remember(happened)

    async def write_events(self) -> None:
        """Store the history, and number and store the events; nothing may follow but the commit."""
        inside = self._inside
        inside.changes += await self.history.write(inside.happened)
        if inside.changes:
            await outbox.write(inside, inside.changes, self._wake_up)


class _Each:
    """Runs every statement by itself, and every write in a transaction of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def fetch(self, statement: Statement) -> list[Row]:
        return await self._pool.fetch(statement)

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Transaction]:
        async with self._pool.transaction() as connection:
            transaction = Transaction(connection, self._pool)
            yield transaction
            await transaction.write_events()


class Store(_Repositories):
    """One database. Its repositories read, and write single things; what belongs together takes a transaction.

    async with await Store.open(url) as store:
        await store.migrate()
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._each = _Each(pool)
        super().__init__(self._each)

    @classmethod
    async def open(
        cls,
        database_url: str,
        database: Database[Any] | None = None,
        *,
        pool: tuple[int, int] = (1, 10),
        wait: float = 10.0,
        patience: float = PATIENCE,
        application: str = APPLICATION,
    ) -> Self:
        """Connect, as ``application``, trying for ``wait`` seconds while the database does not answer.

        ``database`` speaks the scheme of the URL, and is open longer than the store; None is PostgreSQL.
        Later, what needs the database waits ``patience`` seconds for it while it is away. SettingsError, at once, for
        a URL that cannot work, a wrong password or a database that does not exist; Unavailable when the time is
        over. Nothing is created before :meth:`migrate`.
        """
        source = source_of(database_url, database, application)
        return cls(await open_pool(source, pool, wait, patience=patience))

    async def close(self) -> None:
        """Close the connections. Feeds are closed by whoever entered them, before this."""
        await self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def where(self) -> str:
        """The database as messages name it, without its password."""
        return self._pool.where

    async def connect(self) -> DatabaseConnection:
        """Open a connection of its own, which the caller ends."""
        return await self._pool.connect()

    async def missing_steps(self) -> migrations.Missing:
        """Return what :meth:`migrate` would do. NewerData when a newer version wrote the database."""
        return await migrations.missing(self._pool)

    async def migrate(self) -> list[str]:
        """Bring the tables up to this version and return the names of the steps that were missing.

        NewerData when a newer version wrote the database.
        """
        return await migrations.migrate(self._pool)

    async def bootstrap(self, admin_password_hash: str, *, require_password_change: bool = True) -> bool:
        """Create the administrator and the default cluster; False when that was done before."""
        async with self.transaction() as tx:
            # The counter's row makes two servers that start at once take turns; nothing else is locked here yet.
            await tx.fetch(sql("SELECT value FROM event_counter WHERE id = 1 FOR UPDATE"))
            if (await tx.users.list(per_page=1)).items:
                return False
            await tx.users.create(
                ADMIN, admin_password_hash, is_admin=True, require_password_change=require_password_change
            )
            await tx.clusters.create(DEFAULT_CLUSTER, is_default=True)
            return True

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Open a transaction; leaving the block commits it, an error undoes everything, events included."""
        return self._each.writing()

    def feed(self, on_failure: Callable[[str, BaseException], None] | None = None) -> Feed:
        """Return a feed of the events; it listens while it is entered.

        ``on_failure`` is told when it cannot go on, which no trouble with the database causes.
        """
        return Feed(self._pool, on_failure)

    @property
    def away(self) -> bool:
        """Whether the database was lost and has not been found again."""
        return self._pool.presence.away

    async def returned(self) -> None:
        """Return at once while the database is there, else when it is there again, however long that takes."""
        await self._pool.presence.returned()

    async def ping(self) -> None:
        """Return when the database answers; Unavailable when it does not."""
        rows = await self._pool.fetch(sql("SELECT 1 AS one"))
        if not rows:
            raise GPUStackError(f"{self._pool.where} gave no answer to a simple question")
