"""Opening a store waits for a database that comes up, and for nothing else."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from gpustack.db import Store
from gpustack.kit.errors import NotFound, SettingsError, Unavailable
from support.postgres import PostgresServer
from support.records import a_model_wanted


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("te%24t", "wrong"), "refused user 'tester' or the password"),
        (("/test_", "/absent_"), "does not exist; create it"),
        (("sslmode=disable", "sslmode=sometimes"), "sslmode='sometimes'; it is one of disable"),
        (("sslmode=disable", "sslmod=require"), "the option 'sslmod', which is not known"),
        (("postgresql:", "mysql:"), "it must start with postgresql://"),
        (("sslmode=disable", "sslmode=require"), "cannot be"),
    ],
)
async def test_what_time_cannot_cure_is_said_at_once(
    database_url: str, change: tuple[str, str], line: str
) -> None:
    started = time.monotonic()
    with pytest.raises((SettingsError, Unavailable), match=line) as caught:
        await Store.open(database_url.replace(*change), wait=0 if "require" in change[1] else 20)
    assert time.monotonic() - started < 5
    assert "p@ss" not in str(caught.value)
    assert "p%40ss" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_nobody_there_is_said_with_host_and_port_when_the_time_is_over() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
        with pytest.raises(Unavailable, match=f"'x' at 127.0.0.1:{port} cannot be reached"):
            await Store.open(f"postgresql://me:secret@127.0.0.1:{port}/x", wait=0.2)


async def test_it_waits_for_a_database_that_comes_up(
    postgres_server: PostgresServer, migrated_url: str
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = migrated_url.replace(f":{postgres_server.port}/", f":{port}/")
    opening = asyncio.create_task(Store.open(url, wait=20))
    await asyncio.sleep(0.1)
    assert not opening.done()

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind = await asyncio.open_connection("127.0.0.1", postgres_server.port)
        await asyncio.gather(pipe(reader, behind[1]), pipe(behind[0], writer))

    server = await asyncio.start_server(forward, "127.0.0.1", port)
    async with await opening as store:
        await store.ping()
    server.close()


async def test_a_killed_connection_is_an_outage_not_a_traceback(
    store: Store, postgres_server: PostgresServer
) -> None:
    database = store._pool._source.address.database

    async def write() -> None:
        async with store.transaction() as tx:
            await tx.models.create(a_model_wanted(), 1)
            await postgres_server.execute(
                f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
            )
            await tx.models.list()

    with pytest.raises(Unavailable):
        await write()
    await store.ping()
    with pytest.raises(NotFound):
        await store.models.by_name("tiny")


async def test_an_error_of_the_caller_stays_what_it_is(store: Store) -> None:
    with pytest.raises(FileNotFoundError):
        async with store.transaction():
            raise FileNotFoundError("mine")


async def test_two_stores_in_one_process_do_not_mix(
    store: Store, postgres_server: PostgresServer, migrated_template: str
) -> None:
    other_name = await postgres_server.create_database(migrated_template)
    async with await Store.open(postgres_server.url(other_name)) as other:
        async with store.transaction() as tx, other.transaction() as other_tx:
            await tx.models.create(a_model_wanted("here"), 1)
            await other_tx.models.create(a_model_wanted("there"), 1)
        assert [m.name for m in (await store.models.list()).items] == ["here"]
        assert [m.name for m in (await other.models.list()).items] == ["there"]
    await postgres_server.drop_database(other_name)
