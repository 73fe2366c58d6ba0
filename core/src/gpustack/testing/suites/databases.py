"""The contract of databases. Most of it needs an empty one to work in: see :attr:`DatabaseSuite.database_url`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gpustack.db import Store, backup, migrations
from gpustack.plugin import Database, DatabaseConnection, DatabaseError, PluginError, Refused, Trouble
from gpustack.plugin.databases import DatabaseAddress, DatabasePool, Session
from gpustack.testing.suites.base import ExtensionSuite, error_line

_SECRET = "v3rysecret"  # noqa: S105  # nobody's
_SESSION = Session(application="gpustack contract", statement_timeout=10.0)
#: Seconds within which something must have happened.
_SOON = 10.0

_Use = Callable[[DatabaseConnection], Awaitable[None]]


class DatabaseSuite(ExtensionSuite[Database[Any]]):
    """Holds what :class:`gpustack.plugin.Database` promises."""

    kind = "databases"

    #: The URL of an empty database that the suite may fill and empties again; without one, what needs it is skipped.
    database_url: ClassVar[str] = ""

    @pytest.fixture
    def url(self) -> str:
        """The URL of an empty database; override it to make one for each test."""
        if not self.database_url:
            pytest.skip("needs an empty database: give its URL in the test class, or to `plugins check`")
        return self.database_url

    # URLs -----------------------------------------------------------------------------------------------------------

    def test_an_address_never_shows_the_password(self, made: Database[Any]) -> None:
        """``where`` and what is printed of an address go into messages and logs."""
        for scheme in made.schemes:
            address = made.address(f"{scheme}://somebody:{_SECRET}@127.0.0.1:1/name")
            assert isinstance(address, DatabaseAddress), f"address returned {address!r}"
            assert _SECRET not in f"{address} {address!r} {address.where}", "the password is shown"
            self.one_line(address.where, "where")
            assert address.connect_timeout > 0, "connect_timeout must be more than 0 seconds"

    def test_a_wrong_url_is_refused_in_words(self, made: Database[Any]) -> None:
        """Refused, in one line without the password; nothing else is raised, whatever is written there."""
        for scheme in made.schemes:
            for rest in (
                "",
                "[",
                f"a:{_SECRET}@h:x/n",
                f"a:{_SECRET}@h:99999/n",
                f"a:{_SECRET}@h/n?no-such=1",
            ):
                try:
                    made.address(f"{scheme}://{rest}")
                except Refused as error:
                    self._says(error, f"the refusal of {scheme}://{rest}")
                except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
                    pytest.fail(f"address raised {error_line(error)} for {scheme}://{rest}; raise Refused")

    def test_nobody_there_is_told(self, made: Database[Any]) -> None:
        """A port where nobody listens is LOST or NOT_NOW, or TimeoutError: GPUStack waits and tries again."""

        async def ask(entered: Database[Any]) -> None:
            address = entered.address(f"{entered.schemes[0]}://somebody:{_SECRET}@127.0.0.1:1/name")
            for opening in (
                entered.connect(address, _SESSION),
                entered.pool(address, _SESSION, least=1, most=1),
            ):
                try:
                    await opening
                except TimeoutError:
                    continue
                except DatabaseError as error:
                    told = error
                else:
                    pytest.fail("it connected to a port where nobody listens")
                self._says(told, "the error")
                assert told.trouble in (Trouble.LOST, Trouble.NOT_NOW), f"it is told as {told.trouble}"

        self.used(made, ask)

    # Statements -----------------------------------------------------------------------------------------------------

    def test_values_come_back_as_they_were(self, made: Database[Any], url: str) -> None:
        """Text of any script, 64-bit numbers, times to the microsecond in UTC, JSON as text, and nothing."""
        moment = datetime(2026, 2, 3, 4, 5, 6, 789012, UTC)
        given = (
            "na\u00efve \u4f60\u597d \U0001f600 'quoted' $1 ?%s",
            2**62,
            0.1,
            True,
            moment,
            '{"a": [1]}',
            None,
        )

        async def use(connection: DatabaseConnection) -> None:
            await connection.fetch(
                "CREATE TABLE suite_values (id BIGSERIAL PRIMARY KEY, t TEXT NOT NULL, n BIGINT NOT NULL, "
                "f DOUBLE PRECISION NOT NULL, b BOOLEAN NOT NULL, at TIMESTAMP WITH TIME ZONE NOT NULL, "
                "j JSON NOT NULL, nothing TEXT)"
            )
            rows = await connection.fetch(
                'INSERT INTO "suite_values" (t, n, f, b, at, j, nothing) '
                "VALUES ($1, $2, $3, $4, $5, $6, $7) RETURNING id, t",
                given,
            )
            assert [row["id"] for row in rows] == [1], "RETURNING did not give the new id"
            (row,) = await connection.fetch(
                "SELECT t, n, f, b, at, j, nothing FROM suite_values WHERE t = $1", given[:1]
            )
            assert tuple(row.values()) == given, f"{given!r} came back as {tuple(row.values())!r}"
            assert row["at"].utcoffset() is not None, "a time came back without its zone"

        self._connected(made, url, use, "suite_values")

    def test_a_statement_runs_for_each_of_many(self, made: Database[Any], url: str) -> None:
        """``fetch_each`` writes all; ``stream`` reads them without holding all."""

        async def use(connection: DatabaseConnection) -> None:
            await _make_numbers(connection)
            await connection.begin()
            await connection.fetch_each(
                "INSERT INTO suite_numbers (n) VALUES ($1)", [(n,) for n in range(1000)]
            )
            seen = [
                row["n"] async for row in connection.stream("SELECT n FROM suite_numbers ORDER BY n", rows=50)
            ]
            await connection.commit()
            assert seen == list(range(1000))

        self._connected(made, url, use, "suite_numbers")

    def test_a_slow_statement_is_given_up(self, made: Database[Any], url: str) -> None:
        """After ``timeout`` seconds TimeoutError is raised; nobody waits for ever."""

        async def use(connection: DatabaseConnection, other: DatabaseConnection) -> None:
            await _make_numbers(connection)
            await connection.fetch("INSERT INTO suite_numbers (n) VALUES (1)")
            await connection.begin()
            await connection.fetch("UPDATE suite_numbers SET n = 2 WHERE n = 1")
            with pytest.raises(TimeoutError):
                await other.fetch("UPDATE suite_numbers SET n = 3 WHERE n = 1", timeout=0.2)
            await connection.roll_back()

        self._two(made, url, use, "suite_numbers")

    # Trouble --------------------------------------------------------------------------------------------------------

    def test_constraints_are_told_apart_by_name(self, made: Database[Any], url: str) -> None:
        """UNIQUE and DANGLING carry the constraint's name, by which people are told what exists or is missing."""

        async def use(connection: DatabaseConnection) -> None:
            await _make_numbers(connection)
            await connection.fetch(
                "CREATE TABLE suite_others (id BIGSERIAL PRIMARY KEY, number BIGINT NOT NULL, "
                "CONSTRAINT suite_others_number_fkey FOREIGN KEY (number) REFERENCES suite_numbers (id))"
            )
            await connection.fetch("INSERT INTO suite_numbers (n) VALUES (1)")
            unique = await _trouble(connection, "INSERT INTO suite_numbers (n) VALUES (1)")
            assert (unique.trouble, unique.constraint) == (Trouble.UNIQUE, "suite_numbers_n_key"), (
                unique.constraint
            )
            dangling = await _trouble(connection, "INSERT INTO suite_others (number) VALUES (77)")
            assert (dangling.trouble, dangling.constraint) == (Trouble.DANGLING, "suite_others_number_fkey")

        self._connected(made, url, use, "suite_others", "suite_numbers")

    def test_other_trouble_has_its_kind(self, made: Database[Any], url: str) -> None:
        """A value that does not fit is BAD_VALUE, a table that is there EXISTS, nonsense OTHER; each in one line."""

        async def use(connection: DatabaseConnection) -> None:
            await _make_numbers(connection)
            await connection.fetch("CREATE TABLE suite_short (t VARCHAR(3) NOT NULL)")
            told = {
                "INSERT INTO suite_short (t) VALUES ('four')": Trouble.BAD_VALUE,
                "INSERT INTO suite_short (t) VALUES (NULL)": Trouble.BAD_VALUE,
                "CREATE TABLE suite_short (t VARCHAR(3) NOT NULL)": Trouble.EXISTS,
                "SELECT nonsense FROM suite_short": Trouble.OTHER,
            }
            for statement, trouble in told.items():
                error = await _trouble(connection, statement)
                assert error.trouble is trouble, (
                    f"{statement}: {error.trouble} ({error.message}), not {trouble}"
                )
                self.one_line(error.message, f"the error of {statement}")

        self._connected(made, url, use, "suite_short", "suite_numbers")

    def test_an_ended_connection_says_so(self, made: Database[Any], url: str) -> None:
        """``terminate`` may be called twice; afterwards it is ``closed``, and its use is a DatabaseError."""

        async def use(connection: DatabaseConnection) -> None:
            states = [connection.closed]
            for _ in range(2):
                connection.terminate()
                states.append(connection.closed)
            assert states == [False, True, True], f"before and after terminate, closed was {states}"
            await _trouble(connection, "SELECT 1")

        self._connected(made, url, use)

    # Transactions ---------------------------------------------------------------------------------------------------

    def test_a_transaction_is_whole_or_nothing(self, made: Database[Any], url: str) -> None:
        """Others see it after the commit; rolled back, also after an error in it, nothing of it was."""

        async def use(connection: DatabaseConnection, other: DatabaseConnection) -> None:
            await _make_numbers(connection)
            await connection.begin()
            await connection.fetch("INSERT INTO suite_numbers (n) VALUES (1)")
            assert await _numbers(other) == [], "what is not committed is seen by others"
            await connection.commit()
            assert await _numbers(other) == [1]
            await connection.begin()
            await connection.fetch("INSERT INTO suite_numbers (n) VALUES (2)")
            await _trouble(connection, "INSERT INTO suite_numbers (n) VALUES (1)")
            await connection.roll_back()
            assert await _numbers(connection) == [1], "a rolled back transaction left something"

        self._two(made, url, use, "suite_numbers")

    def test_a_snapshot_sees_one_moment(self, made: Database[Any], url: str) -> None:
        """With ``snapshot`` what others commit meanwhile is not seen; without, each statement sees it."""

        async def use(connection: DatabaseConnection, other: DatabaseConnection) -> None:
            await _make_numbers(connection)
            for snapshot, expected in ((True, [[], []]), (False, [[1], [1, 2]])):
                await connection.begin(snapshot=snapshot)
                seen = [await _numbers(connection)]
                await other.fetch("INSERT INTO suite_numbers (n) VALUES ($1)", (1 if snapshot else 2,))
                seen.append(await _numbers(connection))
                await connection.roll_back()
                assert seen == expected, f"with snapshot={snapshot} it saw {seen}"

        self._two(made, url, use, "suite_numbers")

    def test_a_lock_is_waited_for_no_longer_than_asked(self, made: Database[Any], url: str) -> None:
        """``lock_timeout`` over is TRY_AGAIN."""

        async def use(connection: DatabaseConnection, other: DatabaseConnection) -> None:
            await _make_numbers(connection)
            await connection.fetch("INSERT INTO suite_numbers (n) VALUES (1)")
            await connection.begin()
            await connection.fetch("UPDATE suite_numbers SET n = 2")
            await other.begin(lock_timeout=1.0)
            error = await _trouble(other, "UPDATE suite_numbers SET n = 3")
            assert error.trouble is Trouble.TRY_AGAIN, f"it is told as {error.trouble}"
            await other.roll_back()
            await connection.roll_back()

        self._two(made, url, use, "suite_numbers")

    def test_one_holds_a_named_lock(self, made: Database[Any], url: str) -> None:
        """Until its transaction ends; another name is another lock."""

        async def use(connection: DatabaseConnection, other: DatabaseConnection) -> None:
            await connection.begin()
            await connection.hold("one")
            await other.begin()
            await other.hold("two")
            waiting = asyncio.create_task(other.hold("one"))
            done, _ = await asyncio.wait([waiting], timeout=0.2)
            assert not done, "two transactions hold one lock"
            await connection.commit()
            await asyncio.wait_for(waiting, _SOON)
            await other.commit()

        self._two(made, url, use)

    # What it knows of itself ----------------------------------------------------------------------------------------

    def test_it_knows_its_tables(self, made: Database[Any], url: str) -> None:
        """Names and columns as they were made; a table that is not there has none, also inside a transaction."""

        async def use(connection: DatabaseConnection) -> None:
            await connection.begin()
            assert dict(await connection.columns("suite_numbers")) == {}
            assert await connection.last_id("suite_numbers") is None
            await connection.commit()
            await _make_numbers(connection)
            await connection.fetch("CREATE TABLE suite_times (at TIMESTAMP WITH TIME ZONE NOT NULL)")
            tables = [each for each in await connection.tables() if each.startswith("suite_")]
            assert tables == ["suite_numbers", "suite_times"]
            assert list(await connection.columns("suite_numbers")) == ["id", "n"]
            kind = (await connection.columns("suite_times"))["at"]
            assert kind.startswith("timestamp"), f"a time's column is told as {kind!r}, not as timestamp"

        self._connected(made, url, use, "suite_numbers", "suite_times")

    def test_ids_count_on_from_where_they_are_told(self, made: Database[Any], url: str) -> None:
        """``count_on`` keeps an id from being given twice after a restore."""

        async def use(connection: DatabaseConnection) -> None:
            await _make_numbers(connection)
            assert await connection.last_id("suite_numbers") == 0
            await connection.fetch("INSERT INTO suite_numbers (n) VALUES (1)")
            assert await connection.last_id("suite_numbers") == 1
            await connection.count_on("suite_numbers", 1000)
            rows = await connection.fetch("INSERT INTO suite_numbers (n) VALUES (2) RETURNING id")
            assert rows[0]["id"] == 1001

        self._connected(made, url, use, "suite_numbers")

    def test_it_counts_who_is_connected(self, made: Database[Any], url: str) -> None:
        """By the name in Session: a restore refuses to work under a running server."""

        async def ask(entered: Database[Any]) -> None:
            address = entered.address(url)
            one = await entered.connect(address, _SESSION)
            other = await entered.connect(address, Session(application="another", statement_timeout=10.0))
            try:
                assert await other.others("gpustack contract") == 1
                assert await other.others("nobody") == 0
            finally:
                one.terminate()
                other.terminate()

        self.used(made, ask)

    # Pool -----------------------------------------------------------------------------------------------------------

    def test_a_pool_lends_no_more_than_it_may(self, made: Database[Any], url: str) -> None:
        """Who comes then waits, TimeoutError after the given time, and gets what is given back."""

        async def use(pool: DatabasePool) -> None:
            first, second = await pool.acquire(timeout=_SOON), await pool.acquire(timeout=_SOON)
            assert pool.size == 2
            with pytest.raises(TimeoutError):
                await pool.acquire(timeout=0.1)
            waiting = asyncio.create_task(pool.acquire(timeout=_SOON))
            await asyncio.sleep(0)
            await pool.release(first)
            third = await waiting
            assert [dict(row) for row in await third.fetch("SELECT 1 AS one")] == [{"one": 1}]
            await pool.release(second)
            await pool.release(third)

        self._pooled(made, url, use)

    def test_a_pool_replaces_what_has_ended(self, made: Database[Any], url: str) -> None:
        """A connection that broke, or that is older than ``expire``, is lent to nobody."""

        async def use(pool: DatabasePool) -> None:
            broken = await pool.acquire(timeout=_SOON)
            broken.terminate()
            await pool.release(broken)
            lent = await pool.acquire(timeout=_SOON)
            await pool.expire()
            await pool.release(lent)
            for _ in range(3):
                connection = await pool.acquire(timeout=_SOON)
                await connection.fetch("SELECT 1")
                await pool.release(connection)

        self._pooled(made, url, use)

    # What GPUStack does with it ---------------------------------------------------------------------------------------

    def test_gpustack_lives_in_it(self, made: Database[Any], url: str, tmp_path: Path) -> None:
        """All steps are applied, writes make events that wake who listens, and a backup restores into it."""

        async def ask(entered: Database[Any]) -> None:
            try:
                async with await Store.open(url, entered) as store:
                    await store.migrate()
                    assert await store.bootstrap("hash")
                    async with store.feed() as feed, feed.subscribe({"users"}) as events:
                        made_here = await store.users.create("suite", "hash")
                        async with asyncio.timeout(_SOON):
                            assert (await anext(aiter(events))).id == made_here.id
                    written = await backup.write(store, tmp_path, tmp_path / "backup.tar.gz")
                    assert written.rows > 0
                connection = await entered.connect(
                    entered.address(url), Session(application="a restore", statement_timeout=60.0)
                )
                try:
                    await backup.load(connection, "it", tmp_path, written.path, replace=True)
                finally:
                    connection.terminate()
                async with await Store.open(url, entered) as store:
                    names = {each.username for each in (await store.users.list()).items}
                    assert names == {"admin", "suite"}
            finally:
                await _empty(entered, url)

        self.used(made, ask)

    # Tools ------------------------------------------------------------------------------------------------------------

    def _says(self, error: PluginError, what: str) -> None:
        self.one_line(error.message, what)
        assert _SECRET not in error.message, "the password is shown"

    def _connected(self, made: Database[Any], url: str, use: _Use, *tables: str) -> None:
        async def ask(entered: Database[Any]) -> None:
            async with _open(entered, url, tables) as connection:
                await use(connection)

        self.used(made, ask)

    def _two(
        self,
        made: Database[Any],
        url: str,
        use: Callable[[DatabaseConnection, DatabaseConnection], Awaitable[None]],
        *tables: str,
    ) -> None:
        async def ask(entered: Database[Any]) -> None:
            async with _open(entered, url, tables) as connection, _open(entered, url, ()) as other:
                await use(connection, other)

        self.used(made, ask)

    def _pooled(self, made: Database[Any], url: str, use: Callable[[DatabasePool], Awaitable[None]]) -> None:
        async def ask(entered: Database[Any]) -> None:
            pool = await entered.pool(entered.address(url), _SESSION, least=1, most=2)
            try:
                await use(pool)
                await asyncio.wait_for(pool.close(), _SOON)
            finally:
                pool.terminate()

        self.used(made, ask)


@asynccontextmanager
async def _open(entered: Database[Any], url: str, tables: Sequence[str]) -> AsyncIterator[DatabaseConnection]:
    """A connection; ``tables`` are not there before, nor after."""
    connection = await entered.connect(entered.address(url), _SESSION)
    try:
        await _drop(connection, tables)
        yield connection
    finally:
        connection.terminate()
        if tables:
            again = await entered.connect(entered.address(url), _SESSION)
            await _drop(again, tables)
            again.terminate()


async def _drop(connection: DatabaseConnection, tables: Sequence[str]) -> None:
    for table in tables:
        await connection.fetch(f'DROP TABLE IF EXISTS "{table}"')


async def _empty(entered: Database[Any], url: str) -> None:
    ours = migrations.tables_after({name for name, _ in migrations.STEPS})
    async with _open(entered, url, [*reversed(ours), migrations.LEDGER]):
        pass


async def _make_numbers(connection: DatabaseConnection) -> None:
    await connection.fetch(
        "CREATE TABLE suite_numbers (id BIGSERIAL PRIMARY KEY, n BIGINT NOT NULL, "
        "CONSTRAINT suite_numbers_n_key UNIQUE (n))"
    )


async def _numbers(connection: DatabaseConnection) -> list[int]:
    return [row["n"] for row in await connection.fetch("SELECT n FROM suite_numbers ORDER BY n")]


async def _trouble(connection: DatabaseConnection, statement: str) -> DatabaseError:
    try:
        await connection.fetch(statement)
    except DatabaseError as error:
        return error
    except Exception as error:  # noqa: BLE001  # whatever it is, it is the plugin's
        pytest.fail(f"{statement} raised {error_line(error)}; raise DatabaseError")
    pytest.fail(f"{statement} raised nothing")
