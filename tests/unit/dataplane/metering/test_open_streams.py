"""What a process leaves of the streams that it answered when it was killed."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpustack.dataplane.metering.frames import Entry
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.metering.open_streams import SLOT, SLOTS, OpenStreams, read_open
from gpustack.dataplane.metering.usage import Tally
from gpustack.plugin.routing import UsageRecord

KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from gpustack.dataplane.metering.frames import Entry
from gpustack.dataplane.metering.journal import Journal
from gpustack.dataplane.metering.usage import Tally

def entry(name):
    return Entry(name, 100.0, "m", status=499, prompt_tokens=32, estimated=True, request_id="asked")

async def main():
    async with Journal(Path(sys.argv[1]) / "journal", memory=Path(sys.argv[1]) / "memory") as journal:
        told = Tally()
        streams = [journal.begin(entry(f"s{n}"), 50.0, told if n == 2 else Tally()) for n in range(4)]
        told.take_usage(b'{"input_tokens": 12, "cache_read_input_tokens": 3}')
        for chunks in range(1, 35):
            for n in (1, 2, 3):
                streams[n].note(chunks, 50.0 + chunks / 2)
        journal.append(entry("s3"))
        if sys.argv[2] == "ended":
            streams[3].end()
        os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""


@pytest.mark.parametrize("last", ["ended", "about to end"])
async def test_a_killed_process_accounts_for_its_open_streams_once(tmp_path: Path, last: str) -> None:
    (tmp_path / "memory").mkdir()
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", KILLED, str(tmp_path), last], timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    async with Journal(tmp_path / "journal", memory=tmp_path / "memory") as journal:
        batch = await asyncio.wait_for(journal.next_batch(), 20)
        await journal.acknowledge(batch)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(journal.next_batch(), 0.2)
    found = {each.id: each for each in batch.records}
    assert len(batch.records) == 4
    asked = {"model": "m", "status": 499, "request_id": "asked"}
    assert found["s0"] == UsageRecord(id="s0", at=100.0, prompt_tokens=32, estimated=True, **asked)
    assert found["s1"] == UsageRecord(
        id="s1", at=117.0, duration=17.0, prompt_tokens=32, completion_tokens=34, estimated=True,
        time_to_first_token=0.5, between_tokens=0.5, **asked,
    )  # fmt: skip
    assert (found["s2"].prompt_tokens, found["s2"].cached_tokens, found["s2"].completion_tokens) == (
        15,
        3,
        34,
    )
    assert found["s3"].completion_tokens == 0, "its own record counts"
    assert [*tmp_path.glob("memory/*")] == []


async def test_what_is_open_when_the_journal_ends_in_order_is_told_by_the_next(tmp_path: Path) -> None:
    async with Journal(tmp_path / "journal", memory=tmp_path) as journal:
        streams = [journal.begin(Entry(name, 1.0, "m", estimated=True), 0.0, Tally()) for name in "ab"]
        for stream in streams:
            assert stream is not None
            stream.note(7, 1.0)
        assert streams[0] is not None
        streams[0].end()
    assert [*tmp_path.glob("*.open.*")] == []
    async with Journal(tmp_path / "journal", memory=tmp_path) as journal:
        batch = await asyncio.wait_for(journal.next_batch(), 20)
    assert [(each.id, each.completion_tokens) for each in batch.records] == [("b", 7)]


async def test_more_streams_than_one_file_holds_get_another(tmp_path: Path) -> None:
    count = 2 * SLOTS
    async with Journal(tmp_path / "journal", memory=tmp_path) as journal:
        streams = []
        for number in range(count):
            stream = None
            while stream is None:
                stream = journal.begin(Entry(f"s{number}", 1.0, "m", estimated=True), 0.0, Tally())
                await asyncio.sleep(0 if stream else 0.005)
            stream.note(number, 1.0)
            streams.append(stream)
        paths = sorted(tmp_path.glob("*.open.*"))
        assert len(paths) >= 2
        kept = {each.id: each.completion_tokens for path in paths for each in read_open(path)}
        assert kept == {f"s{number}": number for number in range(count)}
        for stream in streams:
            stream.end()
        assert [each for path in paths for each in read_open(path)] == []


def test_without_memory_streams_are_answered_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    streams = OpenStreams([tmp_path / "missing" / "file"])
    streams.grow()
    assert streams.begin(Entry("s", 1.0, "m"), 0.0, Tally()) is None
    assert not streams.scarce
    assert "no memory for more than 0 open streams" in caplog.text


def test_what_is_too_long_for_a_slot_takes_none(tmp_path: Path) -> None:
    streams = OpenStreams([tmp_path / "file"])
    streams.grow()
    assert streams.begin(Entry("s", 1.0, "m" * SLOT), 0.0, Tally()) is None
    assert streams.begin(Entry("s", 1.0, "m"), 0.0, Tally()) is not None
    assert [each.id for each in streams.left()] == ["s"]


def test_the_files_are_for_this_user_only_and_go_at_the_end(tmp_path: Path) -> None:
    streams = OpenStreams([tmp_path / "file"])
    streams.grow()
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    streams.remove()
    assert not (tmp_path / "file").exists()


@given(st.binary(max_size=4 * SLOT), st.integers(0, 2 * SLOT), st.integers(0, 10**6))
def test_any_file_can_be_read(junk: bytes, at: int, chunks: int) -> None:
    assert all(isinstance(each, UsageRecord) for each in _read(junk))
    with tempfile.TemporaryDirectory() as folder:
        streams = OpenStreams([Path(folder) / "file"])
        streams.grow()
        stream = streams.begin(Entry("s", 1.0, "m", estimated=True), 0.0, Tally())
        assert stream is not None
        stream.note(chunks, 1.0)
        content = (Path(folder) / "file").read_bytes()
    torn = content[:at] + b"#" + content[at + 1 :]
    assert [each.id for each in _read(torn)] in (["s"], [])
    assert [each.completion_tokens for each in _read(content)] == [chunks]


def _read(content: bytes) -> list[UsageRecord]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        path.write_bytes(content)
        return read_open(path)
