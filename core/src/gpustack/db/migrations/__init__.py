"""Brings a database up to this version.

Each step is a module with ``STATEMENTS``: plain SQL, run in order inside one transaction, and recorded by name in
the table ``migrations``. (Piccolo's own migration runner finds its engine through a process-wide setting, which two
servers in one process would share, and costs more at each start than all of this.) A step that was released is never
edited; what comes later is a new one.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from gpustack.db.connection import Pool
from gpustack.db.errors import translated
from gpustack.db.migrations import (
    m0001_initial,
    m0002_hub_and_rolling,
    m0003_bundled_models,
    m0004_model_routes,
    m0005_usage,
    m0006_worker_identity,
    m0007_model_serving,
    m0008_measured_memory,
    m0009_decisions,
    m0010_gpu_selection,
    m0011_fallback_status_codes,
    m0012_request_ids,
    m0013_engines,
    m0014_inference_backends,
    m0015_groups,
)
from gpustack.kit.errors import NewerData, SettingsError
from gpustack.plugin.databases import DatabaseConnection, DatabaseError, Trouble

#: In the order in which they are applied.
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("0001_initial", m0001_initial.STATEMENTS),
    ("0002_hub_and_rolling", m0002_hub_and_rolling.STATEMENTS),
    ("0003_bundled_models", m0003_bundled_models.STATEMENTS),
    ("0004_model_routes", m0004_model_routes.STATEMENTS),
    ("0005_usage", m0005_usage.STATEMENTS),
    ("0006_worker_identity", m0006_worker_identity.STATEMENTS),
    ("0007_model_serving", m0007_model_serving.STATEMENTS),
    ("0008_measured_memory", m0008_measured_memory.STATEMENTS),
    ("0009_decisions", m0009_decisions.STATEMENTS),
    ("0010_gpu_selection", m0010_gpu_selection.STATEMENTS),
    ("0011_fallback_status_codes", m0011_fallback_status_codes.STATEMENTS),
    ("0012_request_ids", m0012_request_ids.STATEMENTS),
    ("0013_engines", m0013_engines.STATEMENTS),
    ("0014_inference_backends", m0014_inference_backends.STATEMENTS),
    ("0015_groups", m0015_groups.STATEMENTS),
)

#: What records the steps.
LEDGER = "migrations"
#: Two servers that start on one new database at once: the second waits, then finds everything done.
_LOCK = "gpustack migrations"
_CREATE_LEDGER = (
    f"CREATE TABLE IF NOT EXISTS {LEDGER} ("
    "name VARCHAR(128) PRIMARY KEY, applied_at TIMESTAMP WITH TIME ZONE NOT NULL DEFAULT CURRENT_TIMESTAMP)"
)
_READ = f"SELECT name FROM {LEDGER}"  # noqa: S608  # a constant
#: Seconds: a step may have to write a large table anew.
_LONG = 3600.0
_TABLE = re.compile(r"\b(CREATE|DROP)\s+TABLE\s+(\w+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Missing:
    """The steps that a database lacks. ``fresh``: it has none at all yet."""

    names: tuple[str, ...]
    fresh: bool


async def missing(pool: Pool) -> Missing:
    """Return what :func:`migrate` would do; one small query. Raises NewerData as it does."""
    applied = await _applied(pool)
    return Missing(names=tuple(name for name, _ in _lacking(applied, pool.where)), fresh=not applied)


async def migrate(pool: Pool) -> list[str]:
    """Apply what is missing and return its names; on an up-to-date database that is one small query.

    NewerData when the database has steps that this version does not know, SettingsError when it holds tables that
    are not GPUStack's. Nothing is changed when it fails.
    """
    if not _lacking(await _applied(pool), pool.where):
        return []
    async with pool.transaction() as connection:
        with translated(pool.where):
            await connection.hold(_LOCK)
            await connection.fetch(_CREATE_LEDGER)
            rows = await connection.fetch(_READ)
            lacking = _lacking({row["name"] for row in rows}, pool.where)
            await apply(connection, (name for name, _ in lacking), pool.where)
    return [name for name, _ in lacking]


async def apply(connection: DatabaseConnection, names: Iterable[str], where: str) -> None:
    """Run the steps ``names`` and record them. Must be inside a transaction; a database's errors come out as they are."""
    wanted = set(names)
    await connection.fetch(_CREATE_LEDGER)
    try:
        for name, statements in STEPS:
            if name in wanted:
                for statement in statements:
                    await connection.fetch(statement, timeout=_LONG)
                await connection.fetch(f"INSERT INTO {LEDGER} (name) VALUES ($1)", (name,))  # noqa: S608
    except DatabaseError as error:
        if error.trouble is not Trouble.EXISTS:
            raise
        raise SettingsError(
            f"{where} holds tables of something else ({error.message}); give GPUStack a database of its own"
        ) from error


async def applied_steps(connection: DatabaseConnection) -> set[str]:
    """Return the steps that are recorded; none when there is no record. Leaves a transaction usable."""
    if not await connection.columns(LEDGER):
        return set()
    return {row["name"] for row in await connection.fetch(_READ)}


def tables_after(steps: Collection[str]) -> list[str]:
    """Return the tables that exist after ``steps``; whatever refers to another comes after it."""
    tables: list[str] = []
    for name, statements in STEPS:
        if name not in steps:
            continue
        for verb, table in _TABLE.findall("\n".join(statements)):
            if verb == "CREATE":
                tables.append(table)
            else:
                tables.remove(table)
    return tables


def refuse_newer(steps: Collection[str], what: str) -> None:
    """Raise NewerData when ``what`` has steps that this version does not know."""
    if unknown := sorted(set(steps) - {name for name, _ in STEPS}):
        raise NewerData(
            f"{what} was written by a newer version of GPUStack (it has {', '.join(unknown)}); "
            "install that version, or restore a backup made before the upgrade"
        )


async def _applied(pool: Pool) -> set[str]:
    async with pool.transaction() as connection:
        with translated(pool.where):
            return await applied_steps(connection)


def _lacking(applied: set[str], where: str) -> list[tuple[str, tuple[str, ...]]]:
    refuse_newer(applied, where)
    return [step for step in STEPS if step[0] not in applied]
