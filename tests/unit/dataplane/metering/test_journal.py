"""What was appended is told at least once, whoever dies in between."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.metering import frames
from gpustack.dataplane.metering.journal import Batch, Journal
from gpustack.dataplane.metering.tail import USUAL, Tail, read_tail
from gpustack.plugin.routing import UsageRecord

LIMIT = 20.0


def a_record(name: str, **more: object) -> UsageRecord:
    return UsageRecord(id=name, at=1.5, model="mö\ndel", user_id=3, prompt_tokens=7, **more)  # type: ignore[arg-type]


def a_journal(tmp_path: Path, **more: int) -> Journal:
    (tmp_path / "memory").mkdir(exist_ok=True)
    return Journal(tmp_path / "journal", memory=tmp_path / "memory", **more)


async def next_batch(journal: Journal, limit: int = 500) -> Batch:
    return await asyncio.wait_for(journal.next_batch(limit), LIMIT)


async def told(journal: Journal, count: int, limit: int = 500) -> list[str]:
    ids: list[str] = []
    while len(ids) < count:
        batch = await next_batch(journal, limit)
        ids += [record.id for record in batch.records]
        await journal.acknowledge(batch)
    return ids


async def nothing_left(journal: Journal) -> bool:
    try:
        await asyncio.wait_for(journal.next_batch(), 0.2)
    except TimeoutError:
        return True
    return False


async def test_records_are_told_in_order_as_they_were_appended(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        records = [a_record(f"r{n}", queued=0.25, estimated=True) for n in range(5)]
        for record in records:
            journal.append(record)

        assert (await next_batch(journal)).records[0] == records[0]
        assert await told(journal, 5, limit=2) == ["r0", "r1", "r2", "r3", "r4"]
        assert await nothing_left(journal)
        assert journal.pending == journal.dropped == 0


async def test_what_was_not_acknowledged_is_told_again(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        journal.append(a_record("a"))
        first = await next_batch(journal)
        second = await next_batch(journal)

        assert first.records == second.records
        await journal.acknowledge(first)
        await journal.acknowledge(second)
        journal.append(a_record("b"))
        assert await told(journal, 1) == ["b"]


async def test_the_next_process_tells_what_the_last_one_could_not(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        for n in range(4):
            journal.append(a_record(f"r{n}"))
        await told(journal, 2, limit=2)
    async with a_journal(tmp_path) as journal:
        journal.append(a_record("new"))

        assert await told(journal, 3) == ["r2", "r3", "new"]
        assert await nothing_left(journal)
    assert [*tmp_path.glob("journal/*"), *tmp_path.glob("memory/*")] == []


async def test_segments_go_when_all_in_them_has_arrived(tmp_path: Path) -> None:
    async with a_journal(tmp_path, segment_bytes=500) as journal:
        ids = []
        for n in range(30):
            journal.append(a_record(f"r{n}"))
            if n % 10 == 9:
                ids += await told(journal, 10, limit=4)

        assert ids == [f"r{n}" for n in range(30)]
        assert len(list((tmp_path / "journal").glob("*.log"))) <= 1


async def test_other_users_can_read_nothing(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        journal.append(a_record("a"))
        await told(journal, 1)
        folder = tmp_path / "journal"

        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in [*folder.iterdir(), *(tmp_path / "memory").iterdir()]:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_two_living_processes_leave_each_other_alone(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as one, a_journal(tmp_path) as other:
        one.append(a_record("a"))
        other.append(a_record("b"))
        assert one.new_id() != other.new_id()

        assert await told(other, 1) == ["b"]
        assert await told(one, 1) == ["a"]


KILLED = """
import asyncio, sys, os, signal
from pathlib import Path
from gpustack.dataplane.metering.journal import Journal
from gpustack.plugin.routing import UsageRecord

async def main():
    async with Journal(Path(sys.argv[1]) / "journal", memory=Path(sys.argv[1]) / "memory") as journal:
        if sys.argv[2] == "hung":
            journal._behind._write = lambda: __import__("time").sleep(60)
        for n in range(1000):
            journal.append(UsageRecord(id=f"r{n}", at=1.0, model="m"))
            if n == 500:
                await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("disk", ["well", "hung"])
async def test_a_killed_process_loses_nothing_and_another_one_tells_it(tmp_path: Path, disk: str) -> None:
    async with a_journal(tmp_path) as journal:
        ended = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", KILLED, str(tmp_path), disk], timeout=60, check=False
        )
        assert ended.returncode == -signal.SIGKILL
        journal._adopt_at = 0

        assert await told(journal, 1000, limit=300) == [f"r{n}" for n in range(1000)]
        assert await nothing_left(journal)
        # Its own: two for the last records, one for open streams.
        assert len([*tmp_path.glob("memory/*")]) == 3


async def test_a_torn_line_is_skipped(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        for n in range(3):
            journal.append(a_record(f"r{n}"))
        await next_batch(journal)
    (segment,) = (tmp_path / "journal").glob("*.log")
    whole = segment.read_bytes()
    lines = whole.splitlines(keepends=True)
    segment.write_bytes(lines[0] + lines[1].replace(b"r1", b"rX") + lines[2] + lines[0][:20])
    async with a_journal(tmp_path) as journal:
        assert await told(journal, 2) == ["r0", "r2"]
        assert await nothing_left(journal)


async def test_the_bound_is_kept_and_the_loss_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_journal(tmp_path, segment_bytes=1000, most_bytes=5000) as journal:
        for n in range(200):
            journal.append(a_record(f"r{n}"))
            await asyncio.sleep(0.0005)
        while journal._written < 200:
            await asyncio.sleep(0.01)
        # What is written last may make more of the first ones go.
        assert await asyncio.to_thread(journal._behind.stop, 20)
        left = await told(journal, 200 - journal.dropped)

        assert 0 < journal.dropped < 200
        assert left == [f"r{n}" for n in range(journal.dropped, 200)]
        assert sum(path.stat().st_size for path in (tmp_path / "journal").glob("*.log")) < 20_000
    assert any(
        f"{journal.dropped} in all: the server takes none" in line
        for line in caplog.messages
        if "lost" in line
    )


async def test_a_full_disk_stops_nothing_and_is_over_when_it_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = True
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if full:
            raise OSError(28, "No space left on device")
        return real(fd, data[:10])  # short writes

    monkeypatch.setattr("gpustack.dataplane.metering.journal.os.write", write)
    caplog.set_level(logging.WARNING)
    async with a_journal(tmp_path) as journal:
        journal.append(a_record("a"))
        while "cannot be written" not in caplog.text:
            await asyncio.sleep(0.01)
        journal.append(a_record("b"))
        full = False

        assert await told(journal, 2) == ["a", "b"]
    assert "can be written again" in caplog.text


async def test_without_memory_the_disk_alone_has_to_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Journal(tmp_path / "journal", memory=tmp_path / "missing") as journal:
        journal.append(a_record("a"))

        assert await told(journal, 1) == ["a"]
    assert "no memory for the last records" in caplog.text


async def test_after_a_silence_the_next_record_is_waited_for_and_not_looked_for(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        for name in ("a", "b"):
            waiting = asyncio.create_task(journal.next_batch())
            async with asyncio.timeout(LIMIT):
                while journal._first is None:
                    await asyncio.sleep(0.01)
            journal.append(a_record(name))
            # Long before it looks for what dead processes left.
            async with asyncio.timeout(2.0):
                batch = await waiting
            assert [record.id for record in batch.records] == [name]
            await journal.acknowledge(batch)


async def test_a_disk_that_is_late_costs_no_record_in_memory(tmp_path: Path) -> None:
    async with a_journal(tmp_path) as journal:
        # As if the thread were in the midst of a write that takes long.
        journal._behind.awake = True
        count = 3 * USUAL // len(frames.frame(1, a_record("a")))
        for number in range(count):
            journal.append(a_record(f"{number}"))
        in_memory = [
            record.id for path in (tmp_path / "memory").glob("*.[01]") for _, record in read_tail(path)
        ]
        assert len(in_memory) == count
        # And when it has caught up, little memory is enough again.
        journal._behind.awake = False
        journal.append(a_record("last"))
        assert len(await told(journal, count + 1)) == count + 1
        journal.append(a_record("after"))
        (path,) = (path for path in (tmp_path / "memory").glob("*.[01]") if len(read_tail(path)) == 1)
        assert [record.id for _, record in read_tail(path)] == ["after"]


@given(st.lists(st.integers(1, 400), max_size=60), st.integers(0, 3000))
def test_a_tail_gives_back_what_it_took_last(lengths: list[int], torn: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tail"
        tail = Tail(path, 4096)
        kept: list[str] = []
        for number, length in enumerate(lengths):
            record = a_record("x" * length)
            if not tail.add(frames.frame(number, record)):
                tail.restart()
                kept.clear()
                assert tail.add(frames.frame(number, record))
            kept.append(record.id)
        assert [record.id for _, record in read_tail(path)] == kept
        content = path.read_bytes()
        path.write_bytes(content[:torn] + b"#" + content[torn + 1 :])
        assert [record.id for _, record in read_tail(path)] == kept[: len(read_tail(path))]
        tail.remove()


def test_a_tail_keeps_more_than_usual_only_where_the_disk_is_late(tmp_path: Path) -> None:
    line = frames.frame(0, a_record("a"))
    tail = Tail(tmp_path / "tail", size=4 * len(line) + 1, usual=2 * len(line) + 1)

    assert [tail.add(frames.frame(number, a_record("a"))) for number in range(3)] == [True, True, False]
    assert [tail.add(frames.frame(number, a_record("a")), late=True) for number in (2, 3, 4)] == [
        True,
        True,
        False,
    ]
    assert [number for number, _ in read_tail(tmp_path / "tail")] == [0, 1, 2, 3]
    tail.restart()
    assert tail.add(line)
    assert [number for number, _ in read_tail(tmp_path / "tail")] == [0]


@given(st.binary(max_size=300))
def test_any_file_can_be_read(content: bytes) -> None:
    good = frames.frame(1, a_record("a"))

    assert frames.read(content)[0] == []
    assert [record.id for _, record in frames.read(good + content)[0]] == ["a"]
    assert frames.read_run(content + good)[1:] == []


def test_an_entry_is_read_as_the_record_that_it_stands_for():
    told = {
        "id": "a-1",
        "at": 1.5,
        "model": "m",
        "status": 499,
        "cached_tokens": 3,
        "time_to_first_token": 0.25,
    }
    assert frames.Entry.__struct_fields__ == tuple(field.name for field in dataclasses.fields(UsageRecord))
    assert frames.unframe(frames.frame(7, frames.Entry(**told))) == (7, UsageRecord(**told))
    assert frames.unframe(frames.frame(8, frames.Entry("a-2", 2.0, "m"))) == (
        8,
        UsageRecord(id="a-2", at=2.0, model="m"),
    )
