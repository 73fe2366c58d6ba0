"""What requests took: one row each, kept once however often a gateway tells it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from gpustack.db.connection import Session
from gpustack.db.dialect import filled
from gpustack.db.repositories.base import now, sql
from gpustack.db.tables import UsageRow
from gpustack.plugin.routing import UsageRecord

#: How long rows are kept.
KEEP = timedelta(days=400)
#: Rows in one statement at most: few enough that the database keeps it prepared.
_ROWS = 16
#: Characters that the columns hold.
_NAME, _OPERATION, _REQUEST_ID = 255, 64, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What a number of requests took together; tokens."""

    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int


class Usage:
    """The records of usage."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def keep(self, records: Sequence[UsageRecord]) -> None:
        """Store ``records``; those that are there already stay as they are."""
        async with self._session.writing() as tx:
            for start in range(0, len(records), _ROWS):
                rows = filled([_row(each) for each in records[start : start + _ROWS]])
                await tx.fetch(UsageRow.insert(*rows).on_conflict(action="DO NOTHING"))

    async def totals(self, *, since: datetime | None = None, **filters: Any) -> Totals:
        """Return what was taken since a moment, of the rows in which each column named in ``filters`` has that value."""
        wheres, values = ["ended_at >= {}"], [since or datetime.fromtimestamp(0, UTC)]
        for name, value in filters.items():
            if name not in (
                "route",
                "model",
                "user_id",
                "key_id",
                "instance_id",
                "status",
                "operation",
                "request_id",
            ):
                raise ValueError(f"usage is not filtered by {name}")
            wheres.append(f"{name} = {{}}")
            values.append(value)
        query = (
            "SELECT COUNT(*) AS requests, COALESCE(SUM(prompt_tokens), 0) AS prompt_tokens, "  # noqa: S608
            "COALESCE(SUM(cached_tokens), 0) AS cached_tokens, "
            f"COALESCE(SUM(completion_tokens), 0) AS completion_tokens FROM usage_records WHERE {' AND '.join(wheres)}"
        )
        row = (await self._session.fetch(sql(query, *values)))[0]
        return Totals(**{name: int(value) for name, value in dict(row).items()})

    async def prune(self, older_than: timedelta = KEEP) -> None:
        """Delete what is too old."""
        await self._session.fetch(UsageRow.delete().where(UsageRow.ended_at < now() - older_than))


def _row(record: UsageRecord) -> UsageRow:
    return UsageRow(
        id=record.id,
        ended_at=datetime.fromtimestamp(record.at, UTC),
        route=(record.route or record.model)[:_NAME],
        model=record.model[:_NAME],
        instance_id=record.instance_id,
        user_id=record.user_id,
        key_id=record.key_id,
        operation=record.operation[:_OPERATION],
        status=record.status,
        prompt_tokens=record.prompt_tokens,
        cached_tokens=record.cached_tokens,
        completion_tokens=record.completion_tokens,
        time_to_first_token=record.time_to_first_token,
        between_tokens=record.between_tokens,
        duration=record.duration,
        queued=record.queued,
        estimated=record.estimated,
        request_id=record.request_id[:_REQUEST_ID],
    )
