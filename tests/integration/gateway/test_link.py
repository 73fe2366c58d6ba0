"""Server and gateways over a real local socket: the table arrives whole and in time, records arrive once, whoever ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import random
import signal
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.table import wire
from gpustack.dataplane.table.copy import TableCopy
from gpustack.dataplane.table.link import Link
from gpustack.dataplane.table.wire import Hello
from gpustack.kit import local_sockets
from gpustack.kit.errors import Unavailable
from gpustack.plugin.routing import Principal, Route, RoutingDelta, RoutingTable, UsageRecord
from gpustack.server import gateways
from gpustack.server.gateways import Gateways
from gpustack.server.loads import Loads

SOON = 20.0
Listener = Callable[[RoutingTable, RoutingDelta | None], None]


class Routing:
    """Stands for the server's: a table that changes in place."""

    def __init__(self, keys: int = 0, routes: int = 2) -> None:
        self.routes = {f"m{number}": Route(name=f"m{number}", created=1) for number in range(routes)}
        self.principals = {f"k{number:09}": _key(number) for number in range(keys)}
        self.version = 1
        self.listeners: list[Listener] = []

    @property
    def table(self) -> RoutingTable:
        return RoutingTable(version=self.version, routes=self.routes, principals=self.principals)

    def listen(self, callback: Listener) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def change(
        self, *, add: Sequence[int] = (), remove: Sequence[int] = (), routes: Sequence[str] = ()
    ) -> None:
        """Make keys, revoke others, change routes."""
        added = {f"k{number:09}": replace(_key(number), username="new") for number in add}
        removed = [f"k{number:09}" for number in remove]
        self.principals |= added
        for each in removed:
            self.principals.pop(each, None)
        self.version += 1
        self.routes |= {name: Route(name=name, created=self.version) for name in routes}
        delta = RoutingDelta(
            since=self.version - 1,
            changed=frozenset(routes),
            principals_changed=frozenset(added),
            principals_removed=frozenset(removed),
        )
        for each in self.listeners:
            each(self.table, delta)

    def reload(self) -> None:
        """Read everything anew, as after a loss of the database."""
        self.routes, self.principals = dict(self.routes), dict(self.principals)
        self.version += 1
        for each in self.listeners:
            each(self.table, None)


def _key(number: int) -> Principal:
    return Principal(user_id=number, username=f"u{number}", key_id=number, allowed=frozenset({"m0"}))


class Keep:
    """Stands for the database: fails when told, and knows what it has been given."""

    def __init__(self) -> None:
        self.fails: Callable[[], bool] = lambda: False
        self.error: Exception = Unavailable("the database is away", retry_after=1)
        self.kept: dict[str, UsageRecord] = {}
        self.calls = 0

    async def __call__(self, records: Sequence[UsageRecord]) -> None:
        self.calls += 1
        await asyncio.sleep(0)
        if self.fails():
            raise self.error
        for record in records:
            assert self.kept.setdefault(record.id, record) == record, "one id, two records"


class Side:
    """A gateway's side, without the gateway."""

    def __init__(self, path: Path, journal: Journal) -> None:
        self.applied = 0
        self.copy = TableCopy(self._apply)
        self.told = asyncio.Event()
        self.journal = journal
        self.link = Link(path, self.copy, journal, release="1.0", first=self.told.set)

    def _apply(self, table: RoutingTable, changed: object) -> None:
        self.applied += 1


@contextlib.asynccontextmanager
async def a_side(path: Path, folder: Path) -> AsyncIterator[Side]:
    async with Journal(folder, memory=folder.parent) as journal:
        side = Side(path, journal)
        task = asyncio.create_task(side.link.run())
        try:
            yield side
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def soon(check: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON):
        while not check():
            await asyncio.sleep(0.005)


def a_server(
    tmp_path: Path, routing: Routing, keep: Keep | None = None, loads: Loads | None = None
) -> Gateways:
    return Gateways(
        tmp_path / "gateway.sock",
        routing,  # type: ignore[arg-type]  # as much of it as is used
        keep or Keep(),
        loads or Loads(lambda _route: {}),
    )


def same(side: Side, routing: Routing) -> bool:
    return side.copy.table == routing.table


async def test_a_gateway_gets_the_table_and_then_every_change(tmp_path: Path) -> None:
    routing = Routing(keys=1300, routes=700)
    woken: list[int] = []
    loads = Loads({"m1": {41: 1.0, 42: 0.0}}.__getitem__)
    loads.woken = woken.extend
    async with a_server(tmp_path, routing, loads=loads) as server:
        async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
            await soon(side.told.is_set)
            assert same(side, routing)
            assert server.pids == [os.getpid()]
            assert side.applied == 1
            routing.change(add=[5000], remove=[1, 2], routes=["m1", "new"])
            await soon(lambda: same(side, routing))
            routing.principals.pop("k000000003")
            routing.reload()
            await soon(lambda: same(side, routing))
            side.link.wake("m1")
            await soon(lambda: woken == [41])
        await soon(lambda: server.pids == [])
        assert stat.S_IMODE((tmp_path / "gateway.sock").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "usage").stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (tmp_path / "usage").iterdir())


async def test_what_changes_while_the_table_is_told_is_not_lost_and_what_is_revoked_does_not_come_back(
    tmp_path: Path,
) -> None:
    routing = Routing(keys=6000)
    chance = random.Random(5)
    async with a_server(tmp_path, routing):
        async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
            numbers = itertools.count(10_000)
            while not side.told.is_set() or next(numbers) < 10_050:
                gone = chance.sample(range(6000), 3)
                routing.change(add=[next(numbers), chance.randrange(6000)], remove=gone)
                if chance.random() < 0.05:
                    routing.reload()
                await asyncio.sleep(0)
            await soon(lambda: same(side, routing))


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Python's collector looks at all objects now and then, which is a matter of whoever has so many of them."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
async def test_a_hundred_thousand_keys_arrive_in_seconds_and_nobody_stands_still(
    tmp_path: Path, no_collector: None
) -> None:
    """Both sides are on this loop, so that it stands still for the sum of theirs."""
    routing = Routing(keys=100_000, routes=2000)
    gaps: list[float] = []

    async def tick() -> None:
        # This thread's own time: what others do on the machine is not ours.
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            gaps.append(now - before)
            before = now

    async with a_server(tmp_path, routing):
        ticking = asyncio.create_task(tick())
        async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
            began = time.perf_counter()
            await soon(side.told.is_set)
            took = time.perf_counter() - began
            ticking.cancel()
            assert same(side, routing)
            changed = time.perf_counter()
            routing.change(add=[200_000], remove=[5])
            await soon(lambda: "k000200000" in side.copy.table.principals)
            assert time.perf_counter() - changed < 1.0
    gaps.sort()
    assert took < 15
    assert gaps[-1] < 0.03, [round(each, 3) for each in gaps[-5:]]


async def test_a_gateway_that_does_not_read_begins_anew_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gateways, "_BEHIND", 1 << 16)
    routing = Routing(keys=3000)
    async with a_server(tmp_path, routing) as server:
        deaf = await asyncio.to_thread(local_sockets.connect_local, tmp_path / "gateway.sock")
        with deaf:
            deaf.sendall(wire.framed(Hello(4711, "1.0")))
            await soon(lambda: server.pids == [4711])
            async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
                await soon(side.told.is_set)
                for number in range(400):
                    routing.change(add=range(number * 100, number * 100 + 20))
                    await asyncio.sleep(0)
                    if 4711 not in server.pids:
                        break
                await soon(lambda: server.pids == [os.getpid()])
                await soon(lambda: same(side, routing))
    assert "gateway 4711 does not read and has to begin anew" in caplog.text


_NESTED = b"\x84\xa4type\xa5Hello\xa3pid\x01\xa7release\xa1x\xa1y" + b"\x91" * 4000 + b"\xc0"


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        wire.framed(wire.Wake("m0")),
        wire.framed(Hello(1, "x"))[:-2],
        wire.framed(Hello(1, "x")) + b"\0\0\0\1\xc1",
        len(_NESTED).to_bytes(4, "big") + _NESTED,
    ],
    ids=["too long", "HTTP", "no hello", "half", "garbage after it", "nested"],
)
async def test_whoever_speaks_otherwise_is_let_go_and_the_others_stay(
    tmp_path: Path, said: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    routing = Routing()
    async with a_server(tmp_path, routing) as server:
        async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
            await soon(side.told.is_set)
            reader, writer = await asyncio.open_unix_connection(tmp_path / "gateway.sock")
            writer.write(said)
            writer.write_eof()
            async with asyncio.timeout(SOON):
                await reader.read()
            writer.close()
            routing.change(add=[1])
            await soon(lambda: same(side, routing))
            await soon(lambda: server.pids == [os.getpid()])
    assert "Traceback" not in caplog.text


async def test_a_server_that_ends_and_comes_back_is_found_again_with_all_that_changed(tmp_path: Path) -> None:
    routing = Routing(keys=10)
    async with contextlib.AsyncExitStack() as stack:
        async with a_server(tmp_path, routing):
            side = await stack.enter_async_context(a_side(tmp_path / "gateway.sock", tmp_path / "usage"))
            await soon(side.told.is_set)
            assert not side.link.behind
        served = dict(side.copy.table.principals)
        routing.change(add=[77], remove=[1])
        await soon(lambda: side.link.behind)
        side.link.wake("m0")
        assert side.copy.table.principals == served, "it serves on by what it has"
        async with a_server(tmp_path, routing):
            await soon(lambda: same(side, routing))
            await soon(lambda: not side.link.behind)


# Records --------------------------------------------------------------------------------------------------


def a_record(number: str, tokens: int) -> UsageRecord:
    return UsageRecord(id=number, at=1.5, model="m", completion_tokens=tokens)


async def test_records_wait_for_a_database_that_is_away_and_each_counts_once(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(gateways, "_AGAIN", 0.01)
    keep, chance = Keep(), random.Random(3)
    keep.fails = lambda: chance.random() < 0.5
    routing = Routing()
    expected = {}
    async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
        for turn in range(4):
            async with a_server(tmp_path, routing, keep):
                for number in range(700):
                    record = a_record(side.journal.new_id(), turn * 1000 + number)
                    expected[record.id] = record
                    side.journal.append(record)
                before = keep.calls
                await soon(lambda before=before: keep.calls > before)
        keep.fails = lambda: False
        async with a_server(tmp_path, routing, keep):
            await soon(lambda: len(keep.kept) == len(expected))
    assert keep.kept == expected


async def test_a_server_that_fails_to_keep_for_another_reason_gets_the_records_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep = Keep()
    keep.error, keep.fails = RuntimeError("a bug"), lambda: keep.calls < 3
    async with a_server(tmp_path, Routing(), keep):
        async with a_side(tmp_path / "gateway.sock", tmp_path / "usage") as side:
            side.journal.append(a_record("a-1", 5))
            await soon(lambda: keep.kept)
    assert keep.calls >= 3


#: A gateway's process, as far as records go: it writes one every millisecond and says which it has written.
_CHILD = """
import asyncio, sys
from pathlib import Path
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.table.copy import TableCopy
from gpustack.dataplane.table.link import Link
from gpustack.plugin.routing import UsageRecord

async def main():
    folder, path = Path(sys.argv[1]), Path(sys.argv[2])
    async with Journal(folder / "usage", memory=folder) as journal:
        link = Link(path, TableCopy(lambda table, changed: None), journal, release="1.0", first=lambda: None)
        task = asyncio.create_task(link.run())
        for number in range(1_000_000):
            record = UsageRecord(id=journal.new_id(), at=1.5, model="m", completion_tokens=number)
            journal.append(record)
            sys.stdout.write(f"{record.id} {number}\\n")
            sys.stdout.flush()
            await asyncio.sleep(0.001)

asyncio.run(main())
"""


async def test_a_gateway_that_is_killed_again_and_again_loses_no_record_and_none_counts_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "_AGAIN", 0.01)
    keep, chance = Keep(), random.Random(11)
    keep.fails = lambda: chance.random() < 0.3
    routing = Routing()
    written: dict[str, int] = {}
    async with a_server(tmp_path, routing, keep):
        for _ in range(3):
            child = await asyncio.create_subprocess_exec(
                *(sys.executable, "-c", _CHILD, str(tmp_path), str(tmp_path / "gateway.sock")),
                stdout=asyncio.subprocess.PIPE,
            )
            assert child.stdout is not None
            for _ in range(chance.randrange(60, 150)):
                number, tokens = (await asyncio.wait_for(child.stdout.readline(), SOON)).split()
                written[number.decode()] = int(tokens)
            child.send_signal(signal.SIGKILL)
            rest = await child.stdout.read()
            written |= {
                line.split()[0].decode(): int(line.split()[1])
                for line in rest.splitlines(keepends=True)
                if line.endswith(b"\n")
            }
            await child.wait()
        keep.fails = lambda: False
        # Whoever comes next delivers what the dead have left.
        async with a_side(tmp_path / "gateway.sock", tmp_path / "usage"):
            await soon(lambda: written.keys() <= keep.kept.keys())
            await soon(
                lambda: len({path.name.partition(".")[0] for path in (tmp_path / "usage").glob("*.log")}) <= 1
            )
    assert {number: keep.kept[number].completion_tokens for number in written} == written
    # One that was killed between writing a record and saying so has at most that one more.
    assert len(keep.kept) - len(written) <= 3
