"""A database is brought up to this version, once, whoever else tries at the same time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import pytest
from piccolo.columns import ForeignKey

from gpustack.db import Store, tables
from gpustack.db.migrations import STEPS
from gpustack.db.repositories.base import sql
from gpustack.kit.errors import NewerData, SettingsError
from support.postgres import PostgresServer

TABLES = (
    tables.User,
    tables.LoginSession,
    tables.ApiKey,
    tables.Cluster,
    tables.Worker,
    tables.Model,
    tables.ModelRoute,
    tables.ModelRouteName,
    tables.ModelRouteTarget,
    tables.ModelInstance,
    tables.ModelFile,
    tables.InstanceEvent,
    tables.EventRow,
    tables.EventCounter,
)
ALL = [name for name, _ in STEPS]


async def test_an_empty_database_is_filled_once_and_quickly(database_url: str) -> None:
    async with await Store.open(database_url) as store:
        started = time.perf_counter()
        assert await store.migrate() == ALL
        assert time.perf_counter() - started < 2.0  # 0.04 s on an idle machine
        assert await store.migrate() == []
        assert (await store.models.list()).items == []


async def test_two_servers_migrate_one_database_at_once(database_url: str) -> None:
    async with await Store.open(database_url) as one, await Store.open(database_url) as two:
        applied = await asyncio.gather(one.migrate(), two.migrate())
        assert sorted(applied) == [[], ALL]
        assert sorted(await asyncio.gather(one.bootstrap("a"), two.bootstrap("b"))) == [False, True]
        assert (await one.users.list()).pagination.total == 1


async def test_data_of_a_newer_version_is_left_alone(store: Store) -> None:
    await store._pool.fetch(sql("INSERT INTO migrations (name) VALUES ('0999_later')"))
    with pytest.raises(NewerData, match=r"newer version of GPUStack.*0999_later"):
        await store.migrate()


async def test_tables_of_something_else_are_not_touched(database_url: str) -> None:
    async with await Store.open(database_url) as store:
        await store._pool.fetch(sql("CREATE TABLE users (mine TEXT)"))
        with pytest.raises(SettingsError, match="give GPUStack a database of its own"):
            await store.migrate()
        assert await store._pool.fetch(sql("SELECT mine FROM users")) == []


async def test_piccolo_and_the_database_see_the_same_columns(store: Store) -> None:
    query = (
        "SELECT column_name, is_nullable FROM information_schema.columns "
        "WHERE table_schema = 'public' AND table_name = {}"
    )
    for table in TABLES:
        rows = await store._pool.fetch(sql(query, table._meta.tablename))
        real = {row["column_name"]: row["is_nullable"] == "YES" for row in rows}
        assert real == {column._meta.name: column._meta.null for column in table._meta.columns}


async def test_every_reference_has_an_index(store: Store) -> None:
    for table in TABLES:
        query = sql("SELECT indexdef FROM pg_indexes WHERE tablename = {}", table._meta.tablename)
        definitions = [row["indexdef"] for row in await store._pool.fetch(query)]
        for column in table._meta.columns:
            if isinstance(column, ForeignKey):
                assert any(f"({column._meta.name}" in line for line in definitions), column._meta.name


def test_the_supervisor_can_import_the_embedded_database_without_any_database_library() -> None:
    code = "import sys, gpustack.db; print(sorted({'piccolo', 'asyncpg', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


async def test_migrating_imports_no_migration_framework(
    postgres_server: PostgresServer, database_url: str
) -> None:
    code = (
        "import asyncio, sys\nfrom gpustack.db import Store\n"
        "async def main():\n    async with await Store.open(sys.argv[1]) as store: await store.migrate()\n"
        "asyncio.run(main())\n"
        "print([m for m in sys.modules if m.startswith(('piccolo.apps', 'black', 'jinja2'))])"
    )
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code, database_url], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
