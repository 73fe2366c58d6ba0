"""The contract of a database: where GPUStack keeps what it must not forget.

GPUStack writes its SQL in PostgreSQL's dialect with ``$1``, ``$2``… for the values, and keeps to what other
databases can be taught: no arrays, no DISTINCT ON, no JSON operators. A plugin for another database translates the
text; the same few hundred texts come again and again, so it remembers its translations. Values are str, int, float,
bool, aware datetimes (in UTC when they come back) and None; JSON columns are written and read as text.

Every method raises :class:`DatabaseError`, or TimeoutError when its time is over; what else comes out of it counts as
a defect of the plugin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, ClassVar

from gpustack.plugin.contracts import Extension, S
from gpustack.plugin.errors import PluginError

#: One row: from column to value, in the order of the columns.
Row = Mapping[str, Any]


class Trouble(StrEnum):
    """What kind of trouble a :class:`DatabaseError` is; GPUStack decides by it what to do."""

    #: The connection broke, or the whole database went: reads are run again when it is back.
    LOST = "lost"
    #: It takes no new connection now, because it starts or stops; those that are open may still work.
    NOT_NOW = "not now"
    #: The same may well succeed in a moment: a deadlock, a full server, a fail-over that is not over.
    TRY_AGAIN = "try again"
    #: A unique constraint said no.
    UNIQUE = "unique"
    #: A foreign key said no.
    DANGLING = "dangling"
    #: It cannot store this value.
    BAD_VALUE = "bad value"
    #: A table or another thing of this name exists already.
    EXISTS = "exists"
    #: The user has no right to do this.
    NO_RIGHT = "no right"
    #: A wrong password, a database that does not exist: waiting does not cure it. The message is for the user.
    REFUSED = "refused"
    #: Anything else.
    OTHER = "other"


class DatabaseError(PluginError):
    """Trouble with a database in one line, which never holds the password."""

    def __init__(self, trouble: Trouble, message: str, *, constraint: str = "") -> None:
        super().__init__(message)
        self.trouble = trouble
        #: Its name, for UNIQUE and DANGLING.
        self.constraint = constraint


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAddress:
    """A checked URL. ``where`` names the database in messages, as in ``the database 'gpustack' at db:5432``."""

    url: str = field(repr=False)
    where: str
    user: str = ""
    database: str = ""
    #: Seconds for opening a connection.
    connect_timeout: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """How connections are opened."""

    #: What the database shows of who is connected, and counts in :meth:`DatabaseConnection.others`.
    application: str
    #: Seconds after which a statement is given up, unless it says otherwise.
    statement_timeout: float


class DatabaseConnection(ABC):
    """One connection; one task uses it at a time."""

    @abstractmethod
    async def fetch(self, sql: str, values: Sequence[Any] = (), *, timeout: float | None = None) -> list[Row]:
        """Run one statement and return its rows; none for one without ``RETURNING``.

        ``timeout`` is in seconds; None is the session's. Outside a transaction each statement is one of its own.
        """

    @abstractmethod
    async def fetch_each(
        self, sql: str, values: Sequence[Sequence[Any]], *, timeout: float | None = None
    ) -> None:
        """Run one statement for each of ``values``; returns nothing."""

    @abstractmethod
    def stream(self, sql: str, *, rows: int, timeout: float | None = None) -> AsyncIterator[Row]:
        """Yield the rows of a large answer, holding about ``rows`` of them at a time. Inside a transaction only."""

    @abstractmethod
    async def begin(self, *, snapshot: bool = False, lock_timeout: float | None = None) -> None:
        """Begin a transaction; there is none yet.

        Each statement sees what was committed before it (read committed). With ``snapshot`` all see the same moment,
        and none writes. ``lock_timeout`` is the longest wait for a lock, in seconds, after which TRY_AGAIN is raised.
        """

    @abstractmethod
    async def commit(self) -> None:
        """Commit. When it raises LOST or TimeoutError, nobody knows whether it was done."""

    @abstractmethod
    async def roll_back(self) -> None:
        """Undo the transaction, also after an error in it."""

    @abstractmethod
    async def hold(self, name: str) -> None:
        """Wait for the lock ``name``, which one transaction of the whole database holds until it ends."""

    @abstractmethod
    async def tables(self) -> Sequence[str]:
        """Return the names of the tables, sorted; those of the database itself left out."""

    @abstractmethod
    async def columns(self, table: str) -> Mapping[str, str]:
        """Return the columns of ``table`` in their order, with their types as ``integer``, ``text``, ``timestamp``….

        The types need only be told apart where a backup needs it: ``timestamp`` is what becomes a datetime. Empty for
        a table that does not exist, which leaves a transaction usable.
        """

    @abstractmethod
    async def last_id(self, table: str) -> int | None:
        """Return the last number that the column ``id`` was given by counting, 0 for none; None when it is not counted."""

    @abstractmethod
    async def count_on(self, table: str, last: int) -> None:
        """Have the column ``id`` of ``table`` count on after ``last``."""

    @abstractmethod
    async def others(self, application: str) -> int:
        """Return how many connections to this database call themselves ``application``."""

    @abstractmethod
    async def listen(self, woken: Callable[[], None]) -> None:
        """Call ``woken`` from now on when events may have been committed by anybody, and when the connection ends.

        Calls may come late, twice, or for nothing; GPUStack looks by itself every few seconds. A database that cannot
        tell polls.
        """

    @property
    @abstractmethod
    def closed(self) -> bool:
        """Whether it has ended, for whatever reason."""

    @abstractmethod
    def terminate(self) -> None:
        """End it at once, without a word to the database; again and again does no harm."""


class DatabasePool(ABC):
    """Connections to one database."""

    @abstractmethod
    async def acquire(self, *, timeout: float) -> DatabaseConnection:
        """Return a free connection, opening one when there may be more. TimeoutError after ``timeout`` seconds."""

    @abstractmethod
    async def release(self, connection: DatabaseConnection) -> None:
        """Take a connection back, outside a transaction; one that has ended is replaced when it is needed."""

    @abstractmethod
    async def expire(self) -> None:
        """Have all connections that are open now ended when they are given back: the database was lost."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Return how many connections are open."""

    @abstractmethod
    async def close(self) -> None:
        """Wait until all were given back, and end them."""

    @abstractmethod
    def terminate(self) -> None:
        """End all at once."""


class Database(Extension[S], ABC):
    """One kind of database, chosen by the scheme of ``--database-url``. One object serves every connection to it."""

    #: As in ``postgresql`` for ``postgresql://…``; lower case.
    schemes: ClassVar[tuple[str, ...]]
    #: SQL that wakes those who listen, put behind the ``RETURNING`` of a transaction's last statement; empty when the
    #: plugin wakes them in its own way.
    wake_up: ClassVar[str] = ""

    @abstractmethod
    def address(self, url: str) -> DatabaseAddress:
        """Check ``url``, whose scheme is one of :attr:`schemes`, without asking anybody.

        Raises Refused in words that follow the name of the option, as in ``has the option 'x', which is not known``;
        never with the password.
        """

    @abstractmethod
    async def connect(self, address: DatabaseAddress, session: Session) -> DatabaseConnection:
        """Open a connection. Raises LOST or NOT_NOW when nobody answers, REFUSED when waiting does not help."""

    @abstractmethod
    async def pool(
        self, address: DatabaseAddress, session: Session, *, least: int, most: int
    ) -> DatabasePool:
        """Open ``least`` connections, of which there may be ``most`` later. Raises as :meth:`connect` does."""
