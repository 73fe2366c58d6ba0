"""Events: rows written in the transaction of the change itself, numbered in the order of commits.

The number comes from one counter row that is incremented last. Its lock is held until the commit, so whoever gets
the next number commits later, and ``number > last`` misses nothing. (A sequence hands out numbers before the commit:
a reader passes by a number that becomes visible only afterwards.) Because the counter rolls back with its
transaction, the numbers have no gaps either: a gap means that events were pruned.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from piccolo.querystring import QueryString
from pydantic_core import from_json, to_json

from gpustack.db.connection import Session
from gpustack.db.tables import EventRow
from gpustack.kit.errors import NotFound
from gpustack.plugin.databases import Row
from gpustack.schemas.common import EventType


@dataclass(frozen=True, slots=True)
class Change:
    """An event that has no number yet. ``document`` is the thing's public JSON."""

    topic: str
    type: EventType
    id: int
    document: str
    changed_fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """What happened to one thing. ``changed_fields`` holds ``[old, new]`` by field, for UPDATED only."""

    number: int
    topic: str
    type: EventType
    id: int
    data: dict[str, Any]
    changed_fields: dict[str, Any]


async def write(session: Session, changes: Sequence[Change], wake_up: str) -> int:
    """Number and store ``changes``, and wake the listeners at the commit. Must be the transaction's last act.

    ``wake_up`` is the database's own SQL for that, empty when it needs none.
    """
    returned = f"value, {wake_up}" if wake_up else "value"
    bump = QueryString(
        f"UPDATE event_counter SET value = value + {{}} WHERE id = 1 RETURNING {returned}",  # noqa: S608
        len(changes),
    )
    last: int = (await session.fetch(bump))[0]["value"]
    now = datetime.now(UTC)
    rows = [
        EventRow(
            number=number,
            topic=change.topic,
            type=int(change.type),
            object_id=change.id,
            data=change.document,
            changed_fields=to_json(change.changed_fields).decode(),
            created_at=now,
        )
        for number, change in enumerate(changes, last - len(changes) + 1)
    ]
    # The protocol allows 32767 values in one statement.
    for start in range(0, len(rows), 2000):
        await session.fetch(EventRow.insert(*rows[start : start + 2000]))
    return last


class Events:
    """The events that are kept."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def last_number(self) -> int:
        """Return the number of the last committed event, 0 when there was none yet."""
        return await last_number(self._session)

    async def after(
        self,
        number: int,
        *,
        until: int | None = None,
        topics: Collection[str] | None = None,
        limit: int = 500,
    ) -> list[StoredEvent]:
        """Return the events after ``number`` in order, at most ``limit``.

        NotFound when some of them were pruned already, or when ``number`` was never given (another database).
        """
        events = await read_after(self._session, number, until=until, topics=topics, limit=limit)
        # Asked after the reading: what was pruned meanwhile must not look complete.
        first, last = await bounds(self._session)
        if not first - 1 <= number <= last:
            raise NotFound(f"the events after number {number} are no longer kept; read the list again")
        return events

    async def some(self, topic: str, *, after: int, until: int) -> bool:
        """Tell whether there were events of the topic after the number ``after``, up to ``until``."""
        return bool(await read_after(self._session, after, until=until, topics={topic}, limit=1))

    async def prune(self, *, older_than: timedelta, keep: int, batch: int = 1000) -> int:
        """Delete events beyond the age and the count, a bounded batch at a time; return how many."""
        first, last = await bounds(self._session)
        up_to = max(last - keep, await self._older(older_than, last))
        done = 0
        while first + done <= up_to:
            end = min(first + done + batch - 1, up_to)
            await self._session.fetch(EventRow.delete().where(EventRow.number <= end))
            done = end - first + 1
        return done

    async def _older(self, age: timedelta, last: int) -> int:
        """Return the last number that is older than ``age``: the one before the first younger event."""
        young = (
            EventRow.select(EventRow.number)
            .where(EventRow.created_at >= datetime.now(UTC) - age)
            .order_by(EventRow.number)
            .limit(1)
        )
        rows = await self._session.fetch(young)
        return int(rows[0]["number"]) - 1 if rows else last


async def last_number(session: Session) -> int:
    """Return the number of the last committed event."""
    rows = await session.fetch(QueryString("SELECT value FROM event_counter WHERE id = 1"))
    return int(rows[0]["value"])


async def bounds(session: Session) -> tuple[int, int]:
    """Return the first number that is kept and the last that was given; the first is one more when none is kept."""
    rows = await session.fetch(
        QueryString(
            "SELECT value AS last, (SELECT MIN(number) FROM events) AS first FROM event_counter WHERE id = 1"
        )
    )
    last = int(rows[0]["last"])
    return int(rows[0]["first"] or last + 1), last


async def read_after(
    session: Session, number: int, *, until: int | None, topics: Collection[str] | None, limit: int
) -> list[StoredEvent]:
    """Return events after ``number`` without asking whether some are gone."""
    query = EventRow.select(
        EventRow.number,
        EventRow.topic,
        EventRow.type,
        EventRow.object_id,
        EventRow.data,
        EventRow.changed_fields,
    ).where(EventRow.number > number)
    if until is not None:
        query = query.where(EventRow.number <= until)
    if topics is not None:
        query = query.where(EventRow.topic.is_in(sorted(topics)))
    return [_event(row) for row in await session.fetch(query.order_by(EventRow.number).limit(limit))]


def _event(row: Row) -> StoredEvent:
    return StoredEvent(
        number=row["number"],
        topic=row["topic"],
        type=EventType(row["type"]),
        id=row["object_id"],
        data=from_json(row["data"]),
        changed_fields=from_json(row["changed_fields"]),
    )
