"""Databases that break their contract, each in one way; ``caught_by`` is the test that is to say so.

They are PostgreSQL but for one thing, in the empty database that BROKEN_DATABASE_URL names.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from gpustack.db.postgresql import PostgreSQL
from gpustack.db.postgresql.driver import Connection, Pool
from gpustack.plugin import DatabaseError, Trouble
from gpustack.testing import DatabaseSuite

URL = os.environ.get("BROKEN_DATABASE_URL", "")


class TestGoodDatabase(DatabaseSuite):
    extension = PostgreSQL
    database_url = URL
    caught_by = ""


def broken(
    test: str, connection: type[Connection] = Connection, pool: type[Pool] = Pool, **members: Any
) -> type[DatabaseSuite]:
    """Return the suite of a PostgreSQL but for the methods of its connections or pools, or for ``members``."""

    class Broken(PostgreSQL):
        async def connect(self, address, session):
            return connection((await super().connect(address, session)).raw)

        async def pool(self, address, session, *, least, most):
            opened = await super().pool(address, session, least=least, most=most)
            return pool(opened._raw, address)

    for name, member in members.items():
        setattr(Broken, name, member)
    about = {"extension": Broken, "database_url": URL, "caught_by": test, "__module__": __name__}
    return type("Broken", (DatabaseSuite,), about)


def shows_all(self, url):
    return replace(PostgreSQL.address(self, url), where=f"the database of {url}")


def takes_ports_apart(self, url):
    int(url.rpartition(":")[2].partition("/")[0])
    return PostgreSQL.address(self, url)


async def lets_system_errors_out(self, address, session):
    raise ConnectionRefusedError("nobody there")


class ForgetsZones(Connection):
    async def fetch(self, sql, values=(), *, timeout=None):
        rows = [dict(row) for row in await super().fetch(sql, values, timeout=timeout)]
        return [
            {
                name: each.replace(tzinfo=None) if hasattr(each, "tzinfo") else each
                for name, each in row.items()
            }
            for row in rows
        ]


class WritesOne(Connection):
    async def fetch_each(self, sql, values, *, timeout=None):
        await super().fetch(sql, values[0])


class RaisesItsOwn(Connection):
    async def fetch(self, sql, values=(), *, timeout=None):
        try:
            return await super().fetch(sql, values, timeout=timeout)
        except TimeoutError as error:
            raise DatabaseError(Trouble.OTHER, "too slow") from error


class TellsNoConstraint(Connection):
    async def fetch(self, sql, values=(), *, timeout=None):
        try:
            return await super().fetch(sql, values, timeout=timeout)
        except DatabaseError as error:
            raise DatabaseError(error.trouble, error.message) from error


class KnowsOneTrouble(Connection):
    async def fetch(self, sql, values=(), *, timeout=None):
        try:
            return await super().fetch(sql, values, timeout=timeout)
        except DatabaseError as error:
            raise DatabaseError(Trouble.OTHER, error.message) from error


class NeverEnds(Connection):
    closed = False


class KeepsAll(Connection):
    async def roll_back(self):
        await self.raw.execute("ROLLBACK")
        await self.raw.execute("INSERT INTO suite_numbers (n) VALUES (9)")


class SeesAll(Connection):
    async def begin(self, *, snapshot=False, lock_timeout=None):
        await super().begin(lock_timeout=lock_timeout)


class HoldsNothing(Connection):
    async def hold(self, name):
        return None


class KnowsNoAbsence(Connection):
    async def columns(self, table):
        return await super().columns(table) or {"id": "bigint"}


class CountsAnew(Connection):
    async def count_on(self, table, last):
        return None


class SeesNobody(Connection):
    async def others(self, application):
        return 0


class SeesSomebody(Connection):
    async def others(self, application):
        return 1


class LendsNoMore(Pool):
    async def acquire(self, *, timeout):
        try:
            return await super().acquire(timeout=timeout)
        except TimeoutError as error:
            raise DatabaseError(Trouble.TRY_AGAIN, "all are lent") from error


class LendsWhatBroke(Pool):
    broken: Any = None

    async def acquire(self, *, timeout):
        return self.broken or await super().acquire(timeout=timeout)

    async def release(self, connection):
        self.broken = connection if connection.closed else None
        await super().release(connection)


TestShowsThePassword = broken("test_an_address_never_shows_the_password", address=shows_all)
TestRaisesValueError = broken("test_a_wrong_url_is_refused_in_words", address=takes_ports_apart)
TestRaisesOSError = broken("test_nobody_there_is_told", connect=lets_system_errors_out)
TestForgetsZones = broken("test_values_come_back_as_they_were", ForgetsZones)
TestWritesOne = broken("test_a_statement_runs_for_each_of_many", WritesOne)
TestRaisesItsOwn = broken("test_a_slow_statement_is_given_up", RaisesItsOwn)
TestTellsNoConstraint = broken("test_constraints_are_told_apart_by_name", TellsNoConstraint)
TestKnowsOneTrouble = broken("test_other_trouble_has_its_kind", KnowsOneTrouble)
TestNeverEnds = broken("test_an_ended_connection_says_so", NeverEnds)
TestKeepsAll = broken("test_a_transaction_is_whole_or_nothing", KeepsAll)
TestSeesAll = broken("test_a_snapshot_sees_one_moment", SeesAll)
TestLocksAreOther = broken("test_a_lock_is_waited_for_no_longer_than_asked", KnowsOneTrouble)
TestHoldsNothing = broken("test_one_holds_a_named_lock", HoldsNothing)
TestKnowsNoAbsence = broken("test_it_knows_its_tables", KnowsNoAbsence)
TestCountsAnew = broken("test_ids_count_on_from_where_they_are_told", CountsAnew)
TestSeesNobody = broken("test_it_counts_who_is_connected", SeesNobody)
TestLendsNoMore = broken("test_a_pool_lends_no_more_than_it_may", pool=LendsNoMore)
TestLendsWhatBroke = broken("test_a_pool_replaces_what_has_ended", pool=LendsWhatBroke)
TestIsInUse = broken("test_gpustack_lives_in_it", SeesSomebody)
