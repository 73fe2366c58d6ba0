"""A database that dies, hangs or is restarted: nobody notices who was not in the middle of something."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator

import asyncpg
import psutil
import pytest

from gpustack.db import Store
from gpustack.db.errors import Undone, translated
from gpustack.db.postgresql.driver import told
from gpustack.db.repositories.base import sql
from gpustack.kit.errors import Unavailable
from gpustack.plugin import DatabaseError, Trouble
from support.postgres import PostgresServer, binaries, serving
from support.records import a_model_wanted


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server of this module's own, which it may kill."""
    with serving(binaries()) as running:
        yield running


@pytest.fixture
async def store(server: PostgresServer) -> AsyncIterator[Store]:
    name = await server.create_database()
    async with await Store.open(server.url(name), patience=20) as opened:
        await opened.migrate()
        await opened.bootstrap("hash")
        yield opened


async def fill_the_pool(store: Store) -> None:
    """Have every connection of the pool open and idle."""
    await asyncio.gather(*(store._pool.fetch(sql("SELECT pg_sleep(0.1)")) for _ in range(10)))


async def backends(store: Store) -> list[int]:
    rows = await store._pool.fetch(
        sql("SELECT pid FROM pg_stat_activity WHERE datname = {}", store._pool._source.address.database)
    )
    return [row["pid"] for row in rows]


async def test_after_a_restart_no_stale_connection_fails_anybody(
    server: PostgresServer, store: Store
) -> None:
    await fill_the_pool(store)
    server.kill()
    server.start_again()
    names = [f"m-{i}" for i in range(30)]
    await asyncio.gather(*(store.models.create(a_model_wanted(name), 1) for name in names))
    assert sorted(m.name for m in (await store.models.list(page=-1)).items) == sorted(names)


async def test_who_comes_while_it_is_away_waits_for_it(server: PostgresServer, store: Store) -> None:
    server.kill()
    asking = asyncio.gather(
        *(store.models.list() for _ in range(200)),
        *(store.models.create(a_model_wanted(f"m-{i}"), 1) for i in range(20)),
    )
    await asyncio.sleep(0.5)
    assert not asking.done()
    await asyncio.to_thread(server.start_again)
    await asking
    assert (await store.models.list()).pagination.total == 20


async def test_one_that_stops_serves_those_who_are_connected(server: PostgresServer, store: Store) -> None:
    name = await server.create_database()
    async with await Store.open(server.url(name), pool=(1, 2), patience=20) as few:
        slow = asyncio.create_task(few._pool.fetch(sql("SELECT pg_sleep(0.7)")))
        await asyncio.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        try:
            # The second connection of the pool cannot be opened any more.
            rows = await asyncio.gather(*(few._pool.fetch(sql("SELECT 1 AS one")) for _ in range(5)))
            assert [row[0]["one"] for row in rows] == [1] * 5
            assert not few.away
            await slow
        finally:
            server.kill()
            server.start_again()


async def test_a_killed_backend_fails_nobody_else(server: PostgresServer, store: Store) -> None:
    """PostgreSQL then ends all others too, and recovers."""
    await fill_the_pool(store)
    victim = (await backends(store))[0]
    asking = asyncio.gather(*(store.models.list() for _ in range(50)))
    os.kill(victim, signal.SIGKILL)
    await asking
    await asyncio.gather(*(store.models.create(a_model_wanted(f"m-{i}"), 1) for i in range(20)))


async def test_a_read_in_the_middle_is_run_again(server: PostgresServer, store: Store) -> None:
    reading = asyncio.create_task(store._pool.fetch(sql("SELECT 42 AS n, pg_sleep(0.5)")))
    await asyncio.sleep(0.2)
    server.kill()
    server.start_again()
    assert (await reading)[0]["n"] == 42


async def test_a_single_write_in_the_middle_is_run_again_and_not_twice(
    server: PostgresServer, store: Store
) -> None:
    holder = await store._pool.connect()
    await holder.begin()
    await holder.fetch("SELECT value FROM event_counter FOR UPDATE")
    # Has inserted its row, and waits for the number of its event.
    creating = asyncio.create_task(store.models.create(a_model_wanted(), 1))
    await asyncio.sleep(0.3)
    assert not creating.done()
    server.kill()
    server.start_again()
    holder.terminate()
    created = await creating
    assert [m.id for m in (await store.models.list()).items] == [created.id]


async def test_a_larger_transaction_in_the_middle_is_undone_and_says_so(
    server: PostgresServer, store: Store
) -> None:
    async def write() -> None:
        async with store.transaction() as tx:
            await tx.models.create(a_model_wanted(), 1)
            server.kill()
            server.start_again()
            await tx.models.list()

    with pytest.raises(Undone, match="does not answer now"):
        await write()
    assert (await store.models.list()).items == []


async def test_an_outage_is_answered_at_once_when_it_lasts_and_ends_by_itself(server: PostgresServer) -> None:
    name = await server.create_database()
    async with await Store.open(server.url(name), patience=1.0) as store:
        await store.migrate()
        await store.bootstrap("hash")
        async with store.feed() as feed:
            events = feed.subscribe({"models"})
            server.kill()
            with pytest.raises(Unavailable):
                await store.ping()
            began = time.monotonic()
            answers = await asyncio.gather(*(store.ping() for _ in range(3000)), return_exceptions=True)
            assert {type(each) for each in answers} == {Unavailable}
            assert time.monotonic() - began < 5
            assert not store._pool.presence._waiting
            await asyncio.to_thread(server.start_again)
            async with asyncio.timeout(20):
                await store.returned()
                created = await store.models.create(a_model_wanted(), 1)
                assert (await anext(events)).id == created.id


async def test_no_more_than_so_many_wait(server: PostgresServer, store: Store) -> None:
    server.kill()
    asking = [asyncio.create_task(store.ping()) for _ in range(3000)]
    async with asyncio.timeout(15):
        while sum(each.done() for each in asking) < 2000:
            await asyncio.sleep(0.02)
    await asyncio.to_thread(server.start_again)
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert [type(each) for each in answers if each is not None] == [Unavailable] * 2000


@contextlib.contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.resume()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes 10 seconds takes one."""
    monkeypatch.setattr("gpustack.db.source.STATEMENT_LIMIT", 1.0)
    monkeypatch.setattr("gpustack.db.connection._ACQUIRE_LIMIT", 1.0)


@pytest.mark.usefixtures("impatient")
async def test_a_database_that_hangs_is_an_outage(server: PostgresServer) -> None:
    name = await server.create_database()
    async with await Store.open(server.url(name), patience=2.0) as store:
        await store.migrate()
        await store.bootstrap("hash")
        await fill_the_pool(store)
        async with store.feed() as feed:
            events = feed.subscribe({"models"})
            with stopped(server.family()):
                began = time.monotonic()
                answers = await asyncio.gather(
                    *(store.models.list() for _ in range(100)),
                    *(store.models.create(a_model_wanted(f"lost-{i}"), 1) for i in range(100)),
                    return_exceptions=True,
                )
                assert {type(each) for each in answers} <= {Unavailable, Undone}
                assert time.monotonic() - began < 15
                began = time.monotonic()
                with pytest.raises(Unavailable):
                    await store.ping()
                assert time.monotonic() - began < 1
            async with asyncio.timeout(20):
                await store.returned()
                await asyncio.gather(*(store.models.list() for _ in range(100)))
                created = await store.models.create(a_model_wanted("after"), 1)
                async for event in events:
                    if event.id == created.id:
                        break


async def test_one_backend_that_hangs_harms_nobody_else(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpustack.db.source.STATEMENT_LIMIT", 2.0)
    name = await server.create_database()
    async with await Store.open(server.url(name), patience=20) as store:
        await store.migrate()
        await fill_the_pool(store)
        hanging = psutil.Process((await backends(store))[0])
        with stopped([hanging]):
            await asyncio.gather(*(store.models.list() for _ in range(200)))
        assert len((await store.models.list()).items) == 0


async def test_a_dropped_connection_is_no_outage_for_who_comes_next(
    server: PostgresServer, store: Store
) -> None:
    for _ in range(5):
        await fill_the_pool(store)
        await server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{store._pool._source.address.database}'"
        )
        await asyncio.gather(*(store.models.list() for _ in range(20)))
        await store.models.set_ready((await store.models.create(a_model_wanted(f"m{_}"), 1)).id, 1)


async def test_a_full_server_is_no_outage(server: PostgresServer, store: Store) -> None:
    """Connections that others took up are an error of that moment; those we have go on."""
    await store.ping()
    taken: list[asyncpg.Connection] = []
    try:
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            while True:
                taken.append(await asyncpg.connect(server.url("postgres")))
        assert (await store.models.list()).items == []
    finally:
        await asyncio.gather(*(each.close() for each in taken))


async def test_a_feed_that_a_full_server_refuses_makes_no_outage(
    server: PostgresServer, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals, losses = 0, []
    connect, lost = store._pool.connect, store._pool.lost

    async def refused_at_first() -> object:
        nonlocal refusals
        refusals += 1
        if refusals <= 3:
            with translated(store.where):
                raise told(asyncpg.TooManyConnectionsError("sorry, too many clients already"))
        return await connect()

    async def noted(error: BaseException, **since: float | None) -> None:
        losses.append(str(error))
        await lost(error, **since)

    async with store.feed() as feed, asyncio.timeout(30):
        events = feed.subscribe({"models"})
        monkeypatch.setattr(store._pool, "connect", refused_at_first)
        monkeypatch.setattr(store._pool, "lost", noted)
        await server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = '{store._pool._source.address.database}' AND query LIKE '%events%'"
        )
        while refusals <= 3:
            await asyncio.sleep(0.02)
        created = await store.models.create(a_model_wanted(), 1)
        assert (await anext(events)).id == created.id
    assert "sorry, too many clients already" not in losses


@pytest.mark.parametrize("error", [DatabaseError(Trouble.OTHER, "out of step"), RuntimeError("a defect")])
async def test_no_error_of_the_look_ends_it(
    store: Store, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe, looks = store._pool._probe, 0

    async def fails_at_first() -> None:
        nonlocal looks
        looks += 1
        if looks < 3:
            raise error
        await probe()

    monkeypatch.setattr(store._pool.presence, "_probe", fails_at_first)
    await store._pool.lost(ConnectionResetError())
    async with asyncio.timeout(20):
        assert (await store.models.list()).items == []


async def test_all_connections_busy_is_no_outage(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpustack.db.connection._ACQUIRE_LIMIT", 0.2)
    name = await server.create_database()
    async with await Store.open(server.url(name), pool=(1, 1)) as store:
        await store.migrate()
        await store.bootstrap("hash")
        async with store.transaction() as busy:
            answers = await asyncio.gather(*(store.models.list() for _ in range(20)), return_exceptions=True)
            assert {type(each) for each in answers} == {Unavailable}
            assert {str(each) for each in answers} == {f"all connections to {store.where} are busy"}
            assert not store.away
            # It is not given up either.
            await busy.models.create(a_model_wanted(), 1)
        assert (await store.models.list()).pagination.total == 1
