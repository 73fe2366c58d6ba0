"""Piccolo writes the SQL; we run it.

Piccolo binds tables to one engine per process. Two servers in one process must share nothing, and a transaction
found through a context variable leaks into tasks that are started inside it. So the tables are bound to an engine
that only names the dialect, and a query is always run by somebody who holds a connection:
``await session.fetch(Model.select())``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, NoReturn, TypeVar

from piccolo.engine.base import BaseAtomic, BaseBatch, BaseTransaction, Engine
from piccolo.query.base import Query
from piccolo.querystring import QueryString

#: A Piccolo query, or SQL with ``{}`` for each value.
Statement = Query[Any, Any] | QueryString
_T = TypeVar("_T")

#: Lists that are longer make statements too long for a database to be worth keeping.
_LONGEST_FILLED = 64


class _Dialect(Engine[BaseTransaction]):
    """Names the dialect and refuses to run anything."""

    def __init__(self) -> None:
        # Not the base class's: that one asks a database for its version.
        self.engine_type = "postgres"
        self.min_version_number = 13
        self.log_queries = False
        self.log_responses = False
        self.query_id = 0
        self.current_transaction = ContextVar("no_transaction", default=None)

    async def get_version(self) -> float:
        return float(self.min_version_number)

    def get_version_sync(self) -> float:
        return float(self.min_version_number)

    async def prep_database(self) -> None:
        return None

    async def batch(
        self, query: Query[Any, Any], batch_size: int = 100, node: str | None = None
    ) -> BaseBatch:
        _refuse()

    async def run_querystring(self, querystring: QueryString, in_pool: bool = True) -> NoReturn:
        _refuse()

    async def run_ddl(self, ddl: str, in_pool: bool = True) -> NoReturn:
        _refuse()

    def transaction(self, *args: Any, **kwargs: Any) -> BaseTransaction:
        _refuse()

    def atomic(self) -> BaseAtomic:
        _refuse()


def _refuse() -> NoReturn:
    raise RuntimeError("run the query through a session: `await session.fetch(query)`")


#: What the tables are bound to.
DIALECT = _Dialect()


def compiled(statement: Statement) -> tuple[str, list[Any]]:
    """Return the SQL with ``$1``, ``$2``… and the values."""
    text = statement if isinstance(statement, QueryString) else statement.querystrings[0]
    return text.compile_string()


def filled(values: Sequence[_T]) -> list[_T]:
    """Return ``values``, the last one repeated until their number is a power of two.

    For lists in a statement that members which come twice change nothing of, as those after IN. A statement is prepared
    and kept by its text on every connection, so there should be few texts: seven for lists of up to 64 values.
    """
    count = len(values)
    if not 0 < count <= _LONGEST_FILLED:
        return [*values]
    return [*values, *[values[-1]] * ((1 << (count - 1).bit_length()) - count)]
