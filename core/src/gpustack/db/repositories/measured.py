"""The most memory that instances took, by kind: what corrects the estimate of the next one."""

from __future__ import annotations

from gpustack.db.connection import Session, Writing
from gpustack.db.repositories.base import now, sql
from gpustack.plugin.memory import Learned, MemoryKey, learn

#: Kinds that are kept, the last measured first: a digest of arguments is new whenever a number in them is.
KEEP = 20_000


class Measured:
    """What was measured, one row for each kind of instance."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def all(self) -> dict[MemoryKey, Learned]:
        """Return what is known, by kind."""
        rows = await self._session.fetch(
            sql(
                "SELECT architecture, backend, version, arguments, ram, vram, starts FROM measured_memory "
                "ORDER BY updated_at DESC LIMIT {}",
                KEEP,
            )
        )
        return {
            MemoryKey(
                architecture=row["architecture"],
                backend=row["backend"],
                version=row["version"],
                arguments=row["arguments"],
            ): Learned(ram=row["ram"], vram=row["vram"], starts=row["starts"])
            for row in rows
        }

    async def learn(self, key: MemoryKey, measured: Learned, *, new_start: bool) -> Learned:
        """Join a measurement with what is known, as :func:`gpustack.plugin.memory.learn` does, and return that."""
        async with self._session.writing() as tx:
            before = await self._locked(tx, key)
            known = learn(before, measured, new_start=new_start)
            await tx.fetch(
                sql(
                    "UPDATE measured_memory SET ram = {}, vram = {}, starts = {}, updated_at = {} "
                    "WHERE architecture = {} AND backend = {} AND version = {} AND arguments = {}",
                    *(known.ram, known.vram, known.starts, now()),
                    *(key.architecture, key.backend, key.version, key.arguments),
                )
            )
            return known

    async def prune(self, *, keep: int = KEEP) -> None:
        """Delete all but the ``keep`` kinds that were measured last."""
        await self._session.fetch(
            sql(
                "DELETE FROM measured_memory WHERE updated_at <= "
                "(SELECT updated_at FROM measured_memory ORDER BY updated_at DESC LIMIT 1 OFFSET {})",
                keep,
            )
        )

    async def _locked(self, tx: Writing, key: MemoryKey) -> Learned | None:
        """Return what is known, locked; None for a kind that is new."""
        place = (key.architecture, key.backend, key.version, key.arguments)
        # Two that are first at once: the second waits here for the first.
        await tx.fetch(
            sql(
                "INSERT INTO measured_memory (architecture, backend, version, arguments, ram, vram, starts, updated_at) "
                "VALUES ({}, {}, {}, {}, 0, 0, 0, {}) ON CONFLICT DO NOTHING",
                *place,
                now(),
            )
        )
        rows = await tx.fetch(
            sql(
                "SELECT ram, vram, starts FROM measured_memory "
                "WHERE architecture = {} AND backend = {} AND version = {} AND arguments = {} FOR UPDATE",
                *place,
            )
        )
        row = rows[0]
        return Learned(ram=row["ram"], vram=row["vram"], starts=row["starts"]) if row["starts"] else None
