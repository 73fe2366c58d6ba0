"""What happened to instances: a row for whatever somebody may later ask the reason of.

The rows are written with the change itself, all of one transaction in one statement. They outlive the instance, its
model and its worker, until they are too old or too many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from gpustack.db.connection import Session
from gpustack.db.outbox import Change
from gpustack.db.repositories.base import Repository, now, sql
from gpustack.db.tables import InstanceEvent
from gpustack.schemas.common import EventType, Page
from gpustack.schemas.instances import InstanceEventPublic, InstanceState, ModelInstancePublic

#: How long and how many are kept.
KEEP_AGE = timedelta(days=30)
KEEP = 100_000
#: Characters of a message that are kept: the reason comes first, an engine's very last words at the end.
_MESSAGE = 4096
#: Rows in one statement; each has ten values, and the protocol allows 32767.
_BATCH = 2000
#: Rows deleted in one statement.
_PRUNED = 5000

#: A row without its id.
Happening = Mapping[str, Any]


def happenings(old: ModelInstancePublic | None, new: ModelInstancePublic | None) -> list[Happening]:
    """Return what is to be remembered of a change from ``old`` to ``new``; None: it was not, or is not any more.

    Messages that change within a state are no events: a download alone would bring thousands.
    """
    if new is None:
        return [] if old is None else [_row(old, "removed", "")]
    if old is None:
        return [_row(new, "created", "")]
    found = []
    if new.restart_count > old.restart_count:
        why = old.state_message if old.state is InstanceState.ERROR else new.state_message
        found.append(_row(new, "restarted", why))
    if new.draining_since is not None and old.draining_since is None:
        found.append(_row(new, "draining", new.state_message))
    if new.state is not old.state:
        found.append(_row(new, new.state.value, new.state_message))
    return found


def _row(instance: ModelInstancePublic, what: str, message: str) -> Happening:
    moment = now()
    return {
        "model_id": instance.model_id,
        "model_name": instance.model_name,
        "instance_id": instance.id,
        "instance_name": instance.name,
        "worker_name": instance.worker_name,
        "what": what,
        "message": _shortened(message),
        "restart_count": instance.restart_count,
        "created_at": moment,
        "updated_at": moment,
    }


def _shortened(message: str) -> str:
    if len(message) <= _MESSAGE:
        return message
    half = _MESSAGE // 2 - 2
    return f"{message[:half]}\n…\n{message[-half:]}"


class History(Repository[InstanceEventPublic]):
    """What happened to instances, oldest first by id."""

    table = InstanceEvent
    public = InstanceEventPublic
    noun = "instance event"
    topic = "model-instance-events"
    searched = "instance_name"
    sortable = frozenset({"id", "created_at", "model_name", "instance_name", "worker_name", "what"})

    async def list(
        self,
        page: int = 1,
        per_page: int = 100,
        *,
        search: str | None = None,
        sort_by: str | None = None,
        model_id: int | None = None,
        model_name: str | None = None,
        instance_id: int | None = None,
        instance_name: str | None = None,
    ) -> Page[InstanceEventPublic]:
        """Return one page, the newest first unless ``sort_by`` says otherwise; ``page`` -1 is everything."""
        filters = {
            "model_id": model_id,
            "model_name": model_name,
            "instance_id": instance_id,
            "instance_name": instance_name,
        }
        return await self._page(page, per_page, search, sort_by or "-id", filters)

    async def newest(self, count: int, **filters: Any) -> Page[InstanceEventPublic]:
        """Return the last ``count`` in the order in which they happened."""
        found = await self.list(per_page=count, **filters)
        return found.model_copy(update={"items": found.items[::-1]})

    async def write(self, happened: Iterable[Happening]) -> tuple[Change, ...]:
        """Store what happened and return the events that tell of it. Part of the transaction of the change."""
        rows = [*happened]
        changes: tuple[Change, ...] = ()
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            insert = self.table.insert(*(self.table(**row) for row in part)).returning(self._id())
            numbers = [found["id"] for found in await self._session.fetch(insert)]
            changes += tuple(
                self._told({**row, "id": number}) for row, number in zip(part, numbers, strict=True)
            )
        return changes

    def _told(self, row: Happening) -> Change:
        event = InstanceEventPublic.model_validate(row)
        return Change(self.topic, EventType.CREATED, event.id, event.model_dump_json(), {})


async def prune(session: Session, *, older_than: timedelta = KEEP_AGE, keep: int = KEEP) -> int:
    """Delete what is older, and the oldest beyond ``keep``, a bounded batch at a time; return how many."""
    last = await _first_to_keep(session, now() - older_than, keep)
    done = 0
    while last:
        gone = await session.fetch(
            sql(
                "DELETE FROM instance_events WHERE id IN "
                "(SELECT id FROM instance_events WHERE id < {} ORDER BY id LIMIT {}) RETURNING id",
                last,
                _PRUNED,
            )
        )
        done += len(gone)
        if len(gone) < _PRUNED:
            break
    return done


async def _first_to_keep(session: Session, oldest: datetime, keep: int) -> int:
    """Return the id below which nothing is kept, 0 when everything is. Ids grow with time."""
    rows = await session.fetch(
        sql(
            "SELECT (SELECT id FROM instance_events ORDER BY id DESC LIMIT 1 OFFSET {}) AS surplus, "
            "(SELECT MAX(id) FROM instance_events WHERE created_at < {}) AS old",
            keep,
            oldest,
        )
    )
    found = [int(rows[0][name]) for name in ("surplus", "old") if rows[0][name] is not None]
    return max(found) + 1 if found else 0
