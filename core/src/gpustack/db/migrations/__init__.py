"""Brings a database up to this version.

Each step is a module with ``STATEMENTS``: plain SQL, run in order inside one transaction, and recorded by name in
the table ``migrations``. (Piccolo's own migration runner finds its engine through a process-wide setting, which two
servers in one process would share, and costs more at each start than all of this.) A step that was released is never
edited; what comes later is a new one.
"""

from __future__ import annotations

import asyncpg

from gpustack.db.connection import Pool
from gpustack.db.errors import translated
from gpustack.db.migrations import m0001_initial, m0002_hub_and_rolling
from gpustack.kit.errors import NewerData, SettingsError

#: In the order in which they are applied.
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0001_initial", m0001_initial.STATEMENTS),
    ("0002_hub_and_rolling", m0002_hub_and_rolling.STATEMENTS),
)

#: Two servers that start on one new database at once: the second waits, then finds everything done.
_LOCK = 0x67707573
_LEDGER = (
    "CREATE TABLE IF NOT EXISTS migrations ("
    "name VARCHAR(128) PRIMARY KEY, applied_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP)"
)
_READ = "SELECT name FROM migrations"


async def migrate(pool: Pool) -> list[str]:
    """Apply what is missing and return its names; on an up-to-date database that is one small query.

    NewerData when the database has steps that this version does not know, SettingsError when it holds tables that
    are not GPUStack's.
    """
    missing = _missing(await _applied(pool), pool.where)
    if not missing:
        return []
    async with pool.transaction() as connection:
        with translated(pool.where):
            await connection.execute(f"SELECT pg_advisory_xact_lock({_LOCK})")
            await connection.execute(_LEDGER)
            rows = await connection.fetch(_READ)
            missing = _missing({row["name"] for row in rows}, pool.where)
            try:
                for name, statements in missing:
                    await connection.execute(";\n".join(statements))
                    await connection.execute("INSERT INTO migrations (name) VALUES ($1)", name)
            except (asyncpg.DuplicateTableError, asyncpg.DuplicateObjectError) as error:
                raise SettingsError(
                    f"{pool.where} holds tables of something else ({error}); give GPUStack a database of its own"
                ) from error
    return [name for name, _ in missing]


async def _applied(pool: Pool) -> set[str]:
    async with pool.transaction() as connection:
        with translated(pool.where):
            try:
                return {row["name"] for row in await connection.fetch(_READ)}
            except (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError):
                return set()


def _missing(applied: set[str], where: str) -> list[tuple[str, tuple[str, ...]]]:
    unknown = sorted(applied - {name for name, _ in STEPS})
    if unknown:
        raise NewerData(
            f"{where} was written by a newer version of GPUStack (it has {', '.join(unknown)}); "
            "install that version, or restore a backup made before the upgrade"
        )
    return [step for step in STEPS if step[0] not in applied]
