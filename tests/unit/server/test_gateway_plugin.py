"""A gateway's plugin beside the server: tables one at a time, the newest after trouble, health, and usage exactly once."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
import warnings
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.extensions import Catalogue, Registered
from gpustack.extensions.opening import _Begun
from gpustack.kit.errors import GPUStackError
from gpustack.plugin import (
    GatewayHost,
    Principal,
    Route,
    RoutingDelta,
    RoutingTable,
    TryAgain,
    UsageRecord,
    Verdict,
)
from gpustack.server import gateway_plugin
from gpustack.server.gateway_plugin import GatewayLife, merged
from gpustack.testing.fakes.gateway import URL, FakeGateway


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK", "USAGE", "AGAIN"):
        monkeypatch.setattr(gateway_plugin, name, 0.02)


class Recording(FakeGateway):
    """Hands itself to the test; ``slow`` is how long it takes to apply."""

    made: Recording
    slow = 0.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        type(self).made = self

    async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
        await asyncio.sleep(self.slow)
        await super().apply(table, delta)


class Tables:
    """What stands for the server's routing: its mappings change in place, as there."""

    def __init__(self) -> None:
        self.routes: dict[str, Route] = {}
        self.principals: dict[str, Principal] = {}
        self.table = RoutingTable(version=1, routes=self.routes, principals=self.principals)
        self.callback: Callable[[RoutingTable, RoutingDelta | None], None] | None = None

    def listen(self, callback: Callable[[RoutingTable, RoutingDelta | None], None]) -> Callable[[], None]:
        self.callback = callback
        return lambda: None

    def put(self, *names: str, closed: Sequence[int] = (), known: bool = True) -> None:
        self.routes |= {name: Route(name=name, created=1) for name in names}
        delta = RoutingDelta(since=self.table.version, changed=frozenset(names), closed=frozenset(closed))
        self.table = replace(self.table, version=self.table.version + 1)
        assert self.callback is not None
        self.callback(self.table, delta if known else None)


class Kept:
    """The database: what was kept by id, and whether it can be kept now."""

    def __init__(self) -> None:
        self.records: dict[str, UsageRecord] = {}
        self.told = 0
        self.away = False

    async def keep(self, records: Sequence[UsageRecord]) -> None:
        self.told += len(records)
        if self.away:
            raise GPUStackError("the database is away")
        self.records |= {each.id: each for each in records}


@asynccontextmanager
async def living(
    tmp_path: Path, cls: type[FakeGateway] = Recording, kept: Kept | None = None
) -> AsyncIterator[tuple[GatewayLife, Tables]]:
    tables = Tables()
    registered: Registered[Any] = Registered(cls=cls, plugin="acme", distribution="acme", version="1")
    host = GatewayHost(log=logging.getLogger("test"), data_dir=tmp_path, bin_dir=tmp_path)
    async with AsyncExitStack() as stack:
        keep = (kept or Kept()).keep
        yield await GatewayLife.begin(stack, Catalogue(), registered, host, tables, keep), tables


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


async def test_it_is_told_the_table_and_then_what_is_new(tmp_path: Path) -> None:
    async with living(tmp_path) as (life, tables):
        await until(lambda: life.seen.applied == 1)
        tables.put("a")
        await until(lambda: life.seen.applied == 2)
        (_, first), (table, delta) = Recording.made.applied
        assert first is None
        assert delta == RoutingDelta(since=1, changed=frozenset({"a"}))
        assert dict(table.routes) == tables.routes
        tables.routes["later"] = Route(name="later", created=1)
        assert "later" not in table.routes
        await until(lambda: life.seen.health.ok)
        assert life.seen.public_urls == (URL,)
    assert not Recording.made.open


async def test_what_comes_while_one_is_applied_comes_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recording, "slow", 0.05)
    async with living(tmp_path) as (life, tables):
        await until(lambda: life.seen.applied == 1)
        tables.put("a")
        await asyncio.sleep(0.01)
        tables.put("b")
        tables.put("c", closed=[7])
        await until(lambda: life.seen.applied == 4)
        assert [table.version for table, _ in Recording.made.applied] == [1, 2, 4]
        assert Recording.made.applied[-1][1] == RoutingDelta(
            since=2, changed=frozenset("bc"), closed=frozenset({7})
        )


async def test_a_load_that_may_change_everything_has_no_delta(tmp_path: Path) -> None:
    async with living(tmp_path) as (life, tables):
        await until(lambda: life.seen.applied == 1)
        tables.put("a", known=False)
        await until(lambda: life.seen.applied == 2)
        assert Recording.made.applied[-1][1] is None


async def test_after_trouble_the_newest_table_comes_whole_and_with_what_has_to_end(tmp_path: Path) -> None:
    async with living(tmp_path) as (life, tables):
        await until(lambda: life.seen.applied == 1)
        Recording.made.trouble = TryAgain("the proxy is away", after=0.01)
        tables.put("a", closed=[7])
        await until(lambda: "the proxy is away" in life.seen.health.reason)
        assert not life.seen.health.ok
        tables.put("b")
        Recording.made.trouble = None
        await until(lambda: life.seen.applied == 3)
        (whole, none), (again, delta) = Recording.made.applied[1:]
        assert (whole.version, none) == (again.version, None) == (3, None)
        assert delta == RoutingDelta(since=3, closed=frozenset({7}))
        await until(lambda: life.seen.health.ok)
        tables.put("c")
        await until(lambda: life.seen.applied == 4)
        assert Recording.made.applied[-1][1] == RoutingDelta(since=3, changed=frozenset("c"))


async def test_one_that_hangs_is_cancelled_and_told_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_plugin, "APPLY", 0.05)
    monkeypatch.setattr(Recording, "slow", 60.0)
    async with living(tmp_path) as (life, _):
        await until(lambda: "apply did not end within 0.05 s" in life.seen.health.reason)
        monkeypatch.setattr(Recording, "slow", 0.0)
        await until(lambda: life.seen.applied == 1)
        await until(lambda: life.seen.health.ok)


async def test_one_that_blocks_keeps_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_plugin, "APPLY", 0.05)

    class Blocks(Recording):
        blocks = 0.5

        async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
            time.sleep(self.blocks)
            type(self).blocks = 0.0
            await super().apply(table, delta)

    began = time.monotonic()
    async with living(tmp_path, Blocks) as (life, _):
        await asyncio.sleep(0)
        assert time.monotonic() - began < 0.4
        await until(lambda: life.seen.applied == 1)


async def test_a_defect_of_it_is_one_line_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Breaks(Recording):
        calls = 0

        async def apply(self, table: RoutingTable, delta: RoutingDelta | None) -> None:
            type(self).calls += 1
            if self.calls < 3:
                raise KeyError("suite")
            await super().apply(table, delta)

    async with living(tmp_path, Breaks) as (life, _):
        await until(lambda: life.seen.applied == 1)
    assert "plugin acme: fake: apply failed: KeyError: 'suite'" in caplog.text


async def test_its_health_is_logged_when_it_changes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with living(tmp_path) as (life, _):
        await until(lambda: life.seen.health.ok)
        Recording.made.verdict = Verdict.no("the proxy is away")
        await until(lambda: not life.seen.health.ok)
        await asyncio.sleep(0.1)
        Recording.made.verdict = None
        await until(lambda: life.seen.health.ok)
    lines = [each.message for each in caplog.records if each.name == gateway_plugin.__name__]
    assert lines[-2:] == ["gateway fake does not serve: the proxy is away", "gateway fake serves"]
    assert lines.count("gateway fake does not serve: the proxy is away") == 1


async def test_what_it_metered_is_kept_once_whatever_happens(tmp_path: Path) -> None:
    kept = Kept()
    kept.away = True
    async with living(tmp_path, kept=kept) as (life, _):
        await until(lambda: life.seen.applied == 1)
        records = [UsageRecord(id=f"r{number}", at=1.0, model="m") for number in range(3)]
        Recording.made.metered += records
        await until(lambda: kept.told >= 6)
        assert Recording.made.metered == records
        kept.away = False
        await until(lambda: not Recording.made.metered)
        Recording.made.metered += records[:1]
        await until(lambda: not Recording.made.metered)
    assert list(kept.records.values()) == records


async def test_usage_of_another_kind_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kept()
    async with living(tmp_path, kept=kept) as (life, _):
        await until(lambda: life.seen.applied == 1)
        Recording.made.metered.append({"id": "r1"})  # type: ignore[arg-type]
        await until(lambda: "usage yields dict, no UsageRecord" in caplog.text)
    assert not kept.told


NAMES = st.frozensets(st.sampled_from("abc"))


@given(st.lists(st.tuples(NAMES, NAMES, NAMES, NAMES), min_size=2, max_size=4))
def test_merged_deltas_say_what_the_deltas_one_by_one_say(
    steps: list[tuple[frozenset[str], frozenset[str], frozenset[str], frozenset[str]]],
) -> None:
    def follow(deltas: Sequence[RoutingDelta]) -> list[dict[str, int]]:
        """Return who is known after all of them, and since which version; what is not told of stays as it was."""
        routes, principals = dict.fromkeys("abc", 0), dict.fromkeys("abc", 0)
        for delta in deltas:
            for known, changed, removed in (
                (routes, delta.changed, delta.removed),
                (principals, delta.principals_changed, delta.principals_removed),
            ):
                known.update(dict.fromkeys(changed, 1))
                for name in removed:
                    known.pop(name, None)
        return [routes, principals]

    deltas = [
        RoutingDelta(
            since=number,
            changed=one - other,
            removed=other,
            principals_changed=third - fourth,
            principals_removed=fourth,
            closed=frozenset({number}),
        )
        for number, (one, other, third, fourth) in enumerate(steps)
    ]
    whole = deltas[0]
    for delta in deltas[1:]:
        whole = merged(whole, delta)
    assert follow([whole]) == follow(deltas)
    assert whole.since == 0
    assert whole.closed == frozenset(range(len(steps)))


async def test_a_call_that_is_given_up_before_it_begins_leaves_nothing_behind() -> None:
    begun = []

    async def work() -> None:
        begun.append(True)

    call = _Begun(work)
    call.cancel()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(asyncio.CancelledError):
            await call.run()
        gc.collect()
    assert [str(each.message) for each in seen] == []
    assert begun == []
