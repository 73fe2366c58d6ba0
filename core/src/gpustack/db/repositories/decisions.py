"""What the scheduler decided: pages of many decisions, and a row that finds each of them.

Pages of one run form a chain: a whole page tells of the whole fleet, those after it of what changed. They are kept from
the last whole page that is needed to read the oldest decision kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from gpustack.db.connection import Session
from gpustack.db.repositories.base import now, sql
from gpustack.db.tables import DecisionPage, DecisionRow

#: How long and how many are kept, and the bytes of the pages of all of them.
KEEP_AGE = timedelta(days=7)
KEEP = 50_000
KEEP_SIZE = 256 * 1024 * 1024
#: Rows in one statement; each has six values, and the protocol allows 32767.
_BATCH = 4000
#: Pages deleted in one statement.
_PRUNED = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """One decision as its row tells it. ``worker_id`` is None when it was refused."""

    model_id: int
    instance_id: int
    worker_id: int | None
    #: Seconds since 1970.
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPage:
    """A page to be written, with its decisions in their order."""

    run: str
    #: Counts the pages of the run, so that one whose writing was interrupted is written once.
    number: int
    whole: bool
    body: str
    decided: Sequence[Decided]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spot:
    """Where a decision is: its number, its page, and its place there from 0."""

    id: int
    page_id: int
    place: int
    instance_id: int
    decided_at: datetime


class Decisions:
    """The pages and rows of decisions."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def write(self, pages: Sequence[NewPage]) -> None:
        """Store ``pages`` after those of before, but for those that are there. Only one writes a run."""
        for page in pages:
            query = sql("SELECT id FROM decision_pages WHERE run = {} AND number = {}", page.run, page.number)
            if await self._session.fetch(query):
                continue
            row = DecisionPage(
                run=page.run,
                number=page.number,
                whole=page.whole,
                decisions=len(page.decided),
                body=page.body,
                created_at=now(),
            )
            made = await self._session.fetch(DecisionPage.insert(row).returning(DecisionPage.id))
            rows = [
                DecisionRow(
                    page_id=made[0]["id"],
                    place=place,
                    model_id=each.model_id,
                    instance_id=each.instance_id,
                    worker_id=each.worker_id,
                    decided_at=datetime.fromtimestamp(each.at, UTC),
                )
                for place, each in enumerate(page.decided)
            ]
            for start in range(0, len(rows), _BATCH):
                await self._session.fetch(DecisionRow.insert(*rows[start : start + _BATCH]))

    async def last_of_model(self, model_id: int) -> dict[int, Spot]:
        """Return by instance the last decision on each instance of a model that is kept."""
        query = sql(
            "SELECT id, page_id, place, instance_id, decided_at FROM decisions WHERE id IN "
            "(SELECT MAX(id) FROM decisions WHERE model_id = {} GROUP BY instance_id)",
            model_id,
        )
        return {row["instance_id"]: Spot(**dict(row)) for row in await self._session.fetch(query)}

    async def get(self, decision_id: int) -> Spot | None:
        """Return where a decision is, None when it is not kept."""
        query = sql(
            "SELECT id, page_id, place, instance_id, decided_at FROM decisions WHERE id = {}", decision_id
        )
        rows = await self._session.fetch(query)
        return Spot(**dict(rows[0])) if rows else None

    async def chain(self, page_id: int) -> list[str]:
        """Return the bodies of the pages that a decision in ``page_id`` is read from, in their order.

        They end with that page; none when it is not kept.
        """
        query = sql(
            "SELECT body FROM decision_pages WHERE id <= {} AND run = (SELECT run FROM decision_pages WHERE id = {}) "
            "AND id >= (SELECT MAX(p.id) FROM decision_pages p WHERE p.whole AND p.id <= {} "
            "AND p.run = (SELECT run FROM decision_pages WHERE id = {})) ORDER BY id",
            page_id,
            page_id,
            page_id,
            page_id,
        )
        return [row["body"] for row in await self._session.fetch(query)]

    async def runs(self) -> list[str]:
        """Return the runs that pages are kept of, the first to begin first."""
        query = sql("SELECT run, MIN(id) AS first FROM decision_pages GROUP BY run ORDER BY first")
        return [row["run"] for row in await self._session.fetch(query)]

    async def pages(self, run: str) -> AsyncIterator[str]:
        """Yield the bodies of a run's pages in their order, from the first whole one."""
        after, begun = 0, False
        while True:
            query = sql(
                "SELECT id, whole, body FROM decision_pages WHERE run = {} AND id > {} ORDER BY id LIMIT 20",
                run,
                after,
            )
            rows = await self._session.fetch(query)
            for row in rows:
                begun = begun or row["whole"]
                if begun:
                    yield row["body"]
                after = row["id"]
            if not rows:
                return

    async def prune(
        self, *, older_than: timedelta = KEEP_AGE, keep: int = KEEP, size: int = KEEP_SIZE
    ) -> int:
        """Delete pages that are older, or the oldest beyond ``keep`` decisions or ``size`` bytes; return how many.

        A page that one which stays is read with stays too.
        """
        first = await self._first_to_keep(now() - older_than, keep, size)
        done = 0
        while first:
            gone = await self._session.fetch(
                sql(
                    "DELETE FROM decision_pages WHERE id IN "
                    "(SELECT id FROM decision_pages WHERE id < {} ORDER BY id LIMIT {}) RETURNING id",
                    first,
                    _PRUNED,
                )
            )
            done += len(gone)
            if len(gone) < _PRUNED:
                break
        return done

    async def _first_to_keep(self, oldest: datetime, keep: int, size: int) -> int:
        """Return the page before which nothing is kept, 0 when everything is."""
        query = sql(
            "SELECT MAX(id) AS last FROM (SELECT id, created_at, "
            "SUM(decisions) OVER (ORDER BY id DESC) AS count, "
            "SUM(OCTET_LENGTH(body)) OVER (ORDER BY id DESC) AS size FROM decision_pages) AS sums "
            "WHERE created_at < {} OR count > {} OR size > {}",
            oldest,
            keep,
            size,
        )
        last = (await self._session.fetch(query))[0]["last"]
        if last is None:
            return 0
        query = sql(
            "SELECT MAX(id) AS first FROM decision_pages WHERE whole AND id <= "
            "COALESCE((SELECT MIN(id) FROM decision_pages WHERE id > {}), {})",
            last,
            last,
        )
        found = (await self._session.fetch(query))[0]["first"]
        return int(found or 0)
