"""Decisions are written together, and none is lost while the database is away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpustack.db.repositories.decisions import NewPage
from gpustack.kit.errors import Unavailable
from gpustack.scheduling import Placed
from gpustack.scheduling.records import Entry, RecordedFleet, entries, replay
from gpustack.scheduling.records import recorder as recorder_module
from gpustack.server.decisions import DecisionLog, line, unpack
from support.fleets import Odds


class PageStore:
    """Takes pages, unless it is down."""

    def __init__(self) -> None:
        self.down = False
        self.away = False
        self.written: list[NewPage] = []
        self.writes = 0
        self.back = asyncio.Event()
        self.decisions = self

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PageStore]:
        yield self

    async def write(self, pages: Sequence[NewPage]) -> None:
        self.writes += 1
        if self.down:
            raise Unavailable("the database does not answer", retry_after=1)
        known = {each.number for each in self.written}
        self.written += [each for each in pages if each.number not in known]

    async def returned(self) -> None:
        await self.back.wait()

    def entries(self) -> list[Entry]:
        return [Entry.read(line) for page in self.written for line in unpack(page.body)]


def decide(fleet: RecordedFleet, count: int) -> None:
    odds = Odds(1)
    for number in range(count):
        fleet.decide(odds.request(number + 1, 4))


async def until(holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.002)


@pytest.fixture
def fleet() -> RecordedFleet:
    return RecordedFleet(Odds(1).workers(4))


def a_log(store: PageStore, fleet: RecordedFleet, every: float = 0.01) -> DecisionLog:
    return DecisionLog(store, fleet, every=every)  # type: ignore[arg-type]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_lines_are_read_as_what_was_decided(seed: int, count: int) -> None:
    odds = Odds(seed)
    fleet = RecordedFleet(odds.workers(count))
    for number in range(1, 20):
        request = replace(odds.request(number, count), priority=number % 3)
        answer = fleet.decide(request)
        if isinstance(answer, Placed):
            for each in answer.holdings():
                fleet.hold(each)
        elif (preemption := fleet.preempt(request)) is not None:
            fleet.release(preemption.victims[0])
    taken = fleet.take(100)
    assert [Entry.read(line(each).decode()) for each in taken] == [
        Entry.read(each.write()) for each in entries(taken)
    ]


async def test_many_decisions_are_one_write(fleet: RecordedFleet) -> None:
    store = PageStore()
    async with a_log(store, fleet):
        decide(fleet, 50)
        await until(lambda: store.written)
    assert store.writes == 1
    (page,) = store.written
    assert len(page.decided) == 50
    assert page.whole
    assert all(each.same for each in replay(store.entries()))


async def test_a_full_page_does_not_wait(fleet: RecordedFleet) -> None:
    store = PageStore()
    async with a_log(store, fleet, every=60):
        decide(fleet, 600)
        await until(lambda: len(store.entries()) == 600)
    assert [len(page.decided) for page in store.written] == [500, 100]


async def test_what_could_not_be_written_is_written_later_and_once(fleet: RecordedFleet) -> None:
    store = PageStore()
    store.down = True
    async with a_log(store, fleet):
        decide(fleet, 20)
        await until(lambda: store.writes)
        decide(fleet, 20)
        store.down = False
        store.back.set()
        await until(lambda: len(store.entries()) == 40)
    assert all(each.same for each in replay(store.entries()))


async def test_the_end_writes_the_last_of_them(fleet: RecordedFleet) -> None:
    store = PageStore()
    async with a_log(store, fleet, every=60):
        decide(fleet, 3)
    assert len(store.entries()) == 3


async def test_an_end_in_the_middle_of_a_page_loses_nothing(fleet: RecordedFleet) -> None:
    for pause in (0.0, 0.001, 0.003, 0.01, 0.02):
        store = PageStore()
        fleet.gap()
        async with a_log(store, fleet, every=0.0):
            decide(fleet, 400)
            await asyncio.sleep(pause)
            decide(fleet, 400)
            await asyncio.sleep(pause)
        found = store.entries()
        assert all(each.same for each in replay(found))
        assert len(found) == 800


async def test_the_end_waits_for_no_database_that_is_away(fleet: RecordedFleet) -> None:
    store = PageStore()
    store.away = store.down = True
    async with asyncio.timeout(1):
        async with a_log(store, fleet, every=60):
            decide(fleet, 3)
    assert store.writes == 0


async def test_a_database_that_is_away_for_long_costs_a_bounded_memory(
    fleet: RecordedFleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorder_module, "MOST_WAITING", 30)
    store = PageStore()
    store.down = True
    async with a_log(store, fleet):
        decide(fleet, 5)
        await until(lambda: store.writes)
        decide(fleet, 100)
        assert fleet.waiting <= 30
        store.down = False
        store.back.set()
        await until(lambda: len(store.entries()) > 5)
    assert "decisions are lost" in caplog.text
    found = store.entries()
    assert found[5].whole, "after the gap the record begins anew"
    assert all(each.same for each in replay(found))
