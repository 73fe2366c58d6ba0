"""What every repository does alike: rows to public objects, lists, and writes with their events."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

from piccolo.columns import Column
from piccolo.querystring import QueryString
from piccolo.table import Table
from pydantic import BaseModel
from pydantic_core import from_json, to_json

from gpustack.db import listing
from gpustack.db.connection import Session, Writing
from gpustack.db.dialect import filled
from gpustack.db.errors import Undone
from gpustack.db.outbox import Change
from gpustack.kit.errors import NotFound
from gpustack.plugin.databases import Row
from gpustack.schemas.common import EventType, Page, Pagination, Record

P = TypeVar("P", bound=Record)

_LAST_ID = 2**63 - 1
#: Most JSON columns hold nothing. Validation copies containers, so these two are never shared.
_EMPTY: Mapping[str, Any] = {"{}": {}, "[]": []}


def now() -> datetime:
    """Return the server's time; a worker's is never used."""
    return datetime.now(UTC)


def json(value: Any) -> str:
    """Return the JSON text of a value, pydantic models included."""
    return to_json(value).decode()


class Repository(Generic[P]):
    """The rows of one table as public objects.

    The class attributes say what the thing is; subclasses add the methods that differ. A public method that writes
    opens one transaction, and is run again when the database went away before the commit.
    """

    table: ClassVar[type[Table]]
    public: ClassVar[type[Record]]
    #: The name in messages: "there is no model 42".
    noun: ClassVar[str]
    #: Where events go; empty writes none.
    topic: ClassVar[str] = ""
    searched: ClassVar[str] = "name"
    sortable: ClassVar[frozenset[str]] = frozenset({"id", "name", "created_at", "updated_at"})

    _columns: ClassVar[list[Column]]
    _json: ClassVar[tuple[str, ...]]
    #: Made once: pydantic builds a new class whenever a generic one is given a type variable.
    _page_type: ClassVar[type[Page[Any]]]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name, method in list(vars(cls).items()):
            if inspect.iscoroutinefunction(method) and not name.startswith("_"):
                setattr(cls, name, _again_when_undone(method))
        # Only what is public is read: digests and tokens stay in the database.
        cls._columns = [c for c in cls.table._meta.columns if c._meta.name in cls.public.model_fields]
        json_columns = {c._meta.name for c in cls.table._meta.json_columns}
        cls._page_type = Page[cls.public]  # type: ignore[name-defined]  # known at run time
        cls._json = tuple(c._meta.name for c in cls._columns if c._meta.name in json_columns)

    def __init__(self, session: Session) -> None:
        self._session = session

    # Reading ------------------------------------------------------------------------------------------

    async def get(self, row_id: int) -> P:
        """Return one; NotFound when it does not exist."""
        return await self._get(self._session, row_id)

    async def locked(self, row_id: int) -> P:
        """Return one that nobody else changes before the transaction, in which this must be called, ends."""
        return await self._get(self._session, row_id, lock=True)

    async def _get(self, session: Session, row_id: int, *, lock: bool = False) -> P:
        found = await self._find(session, self._id() == row_id, lock=lock) if 0 < row_id <= _LAST_ID else []
        if not found:
            raise self._missing(row_id)
        return found[0]

    async def _find(self, session: Session, *where: Any, lock: bool = False) -> list[P]:
        """Return all that match, in the order of ids: whoever locks several takes them in the same order."""
        query = self.table.select(*self._columns).where(*where).order_by(self._id())
        if lock:
            query = query.lock_rows()
        return self._parse(await session.fetch(query))

    async def _page(
        self, page: int, per_page: int, search: str | None, sort_by: str | None, filters: Mapping[str, Any]
    ) -> Page[P]:
        rows, pagination = await self._rows(page, per_page, search, sort_by, filters)
        return self._page_type.model_construct(items=self._parse(rows), pagination=pagination)

    async def _rows(
        self, page: int, per_page: int, search: str | None, sort_by: str | None, filters: Mapping[str, Any]
    ) -> tuple[list[Row], Pagination]:
        """Return the rows of one page, and where it lies in the whole list."""
        listing.check_page(page, per_page)
        order = listing.order(self.table, sort_by, self.sortable)
        where = [self._condition(name, value) for name, value in filters.items() if value is not None]
        if search:
            where.append(listing.containing(self.searched, search))
        query = self.table.select(*self._columns).where(*where)
        for column, ascending in order:
            query = query.order_by(column, ascending=ascending)
        rows = await self._session.fetch(listing.limited(query, page, per_page))
        total = len(rows)
        # A page that is neither empty nor full is the last one: it tells the total by itself.
        if page != -1 and not 0 < total < per_page:
            total = (await self._session.fetch(self.table.count().where(*where)))[0]["count"]
        elif page > 1:
            total += (page - 1) * per_page
        return rows, listing.pagination(page, per_page, total)

    def _condition(self, name: str, value: Any) -> Any:
        """Return what must hold of a row for the filter ``name`` to let it pass."""
        return getattr(self.table, name) == _plain(value)

    def _parse(self, rows: Iterable[Row]) -> list[P]:
        """Turn rows into public objects."""
        validate = self.public.__pydantic_validator__.validate_python
        names = self._json
        parsed: list[Any] = []
        for row in rows:
            values = dict(row)
            for name in names:
                if (text := values[name]) is not None:
                    values[name] = _EMPTY[text] if text in _EMPTY else from_json(text)
            parsed.append(validate(values))
        return parsed

    # Writing ------------------------------------------------------------------------------------------

    async def _insert(self, tx: Writing, values: Mapping[str, Any]) -> P:
        """Insert a row, read back only its id, and emit CREATED."""
        moment = now()
        row = self._stored({"created_at": moment, "updated_at": moment, **values})
        rows = await tx.fetch(self.table.insert(self.table(**row)).returning(self._id()))
        shown = {name: value for name, value in row.items() if name in self.public.model_fields}
        created = self._parse([{**shown, "id": rows[0]["id"]}])[0]
        self._emit(tx, EventType.CREATED, created)
        return created

    async def _change(self, tx: Writing, old: P, values: Mapping[str, Any]) -> P:
        """Update the row of ``old``, which the caller has locked, and emit UPDATED if anything visible changed."""
        row = self._stored({"updated_at": now(), **values})
        assignments: dict[Column | str, Any] = {name: value for name, value in row.items()}  # noqa: C416  # widens the key
        await tx.fetch(self.table.update(assignments).where(self._id() == old.id))
        return self._changed(tx, old, row)

    async def _change_many(self, tx: Writing, changes: Sequence[tuple[P, Mapping[str, Any]]]) -> Sequence[P]:
        """Do as :meth:`_change` for each in one statement; all set the same columns, none of them to NULL."""
        if not changes:
            return []
        moment = now()
        changed = [(old, self._stored({"updated_at": moment, **values})) for old, values in changes]
        rows = filled(changed)
        parts, arguments = [], []
        for name in rows[0][1]:
            parts.append(f"{name} = CASE id {' '.join('WHEN {} THEN {}' for _ in rows)} ELSE {name} END")
            arguments += [value for old, row in rows for value in (old.id, row[name])]
        holes = ", ".join("{}" for _ in rows)
        text = f"UPDATE {self.table._meta.tablename} SET {', '.join(parts)} WHERE id IN ({holes})"  # noqa: S608  # names of columns
        await tx.fetch(sql(text, *arguments, *(old.id for old, _ in rows)))
        return [self._changed(tx, old, row) for old, row in changed]

    def _changed(self, tx: Writing, old: P, row: Mapping[str, Any]) -> P:
        before = old.model_dump()
        shown = {name: value for name, value in row.items() if name in self.public.model_fields}
        for name in self._json:
            if shown.get(name) is not None:
                shown[name] = from_json(shown[name])
        new = type(old).model_validate({**before, **shown})
        self._emit_change(tx, old, new)
        return new

    async def _remove(self, tx: Writing, gone: Iterable[P]) -> None:
        """Delete the rows of things that the caller has locked, and emit DELETED for each."""
        things = list(gone)
        if not things:
            return
        await tx.fetch(self.table.delete().where(self._id().is_in(filled([thing.id for thing in things]))))
        for thing in things:
            self._emit(tx, EventType.DELETED, thing)

    def _stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        json_columns = {c._meta.name for c in self.table._meta.json_columns}
        return {
            name: json(value) if name in json_columns and value is not None else _plain(value)
            for name, value in values.items()
        }

    def _emit_change(self, tx: Writing, old: P, new: P) -> None:
        before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
        changed = {
            name: [before[name], value]
            for name, value in after.items()
            if value != before[name] and name != "updated_at"
        }
        if changed:
            self._emit(tx, EventType.UPDATED, new, changed)

    def _emit(self, tx: Writing, kind: EventType, thing: P, changed: dict[str, Any] | None = None) -> None:
        if self.topic:
            tx.emit(Change(self.topic, kind, thing.id, thing.model_dump_json(), changed or {}))

    # Words --------------------------------------------------------------------------------------------

    @classmethod
    def _id(cls) -> Any:
        return cls.table._meta.primary_key

    def _missing(self, what: object) -> NotFound:
        return NotFound(f"there is no {self.noun} {what}")


def _again_when_undone(method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return ``method``, run a second time when the database undid the first; not inside somebody's transaction."""

    @functools.wraps(method)
    async def run(self: Repository[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return await method(self, *args, **kwargs)
        except Undone:
            return await method(self, *args, **kwargs)

    return run


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, BaseModel):
        return json(value)
    return value


def sql(text: str, *values: Any) -> QueryString:
    """Return a statement with ``{}`` for each value."""
    return QueryString(text, *values)


def narrowed(
    text: str, values: list[Any], among: tuple[str, Collection[int] | None], equal: tuple[str, int | None]
) -> QueryString:
    """Return the statement that ends in a WHERE with two more conditions, each a column and what it may be; None is any.

    Of ``among`` there may be some thousands, and has to be one.
    """
    column, numbers = among
    if numbers is not None:
        among_these = filled(sorted(numbers))
        text += f" AND {column} IN ({', '.join('{}' for _ in among_these)})"
        values = [*values, *among_these]
    column, number = equal
    if number is not None:
        text += f" AND {column} = {{}}"
        values = [*values, number]
    return sql(text, *values)
