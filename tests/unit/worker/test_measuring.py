"""What an engine with everything it started takes, and when that is news."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gpustack.kit.process import tree
from gpustack.schemas import MeasuredPeak, WorkerStatus
from gpustack.schemas.workers import GpuProcessStatus, GpuStatus
from gpustack.worker.measuring import Peak, Taken, gpu_memory, taken_by

MIB = 1 << 20

#: Takes memory of its own, maps a file, and has a child that does the same.
_HUNGRY = """
import mmap, subprocess, sys
own, path, depth = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
mine = b"x" * own
with open(path, "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
touched = sum(mapped[at] for at in range(0, len(mapped), 4096))
if depth:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[4], str(own), path, "0", ""], stdout=subprocess.PIPE)
    child.stdout.readline()
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def hungry(tmp_path: Path) -> Iterator[int]:
    """A process of 64 MiB with a child of 64 MiB; both map the same 128 MiB."""
    path = tmp_path / "weights"
    path.write_bytes(b"w" * 128 * MIB)
    command = [sys.executable, "-c", _HUNGRY, str(64 * MIB), str(path), "1", _HUNGRY]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def test_a_tree_is_counted_whole_and_what_it_shares_once(hungry: int) -> None:
    taken = taken_by(tree(hungry))

    assert taken.own == pytest.approx(128 * MIB, abs=32 * MIB)
    assert taken.files == pytest.approx(128 * MIB, abs=32 * MIB)


def test_a_process_that_has_ended_takes_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    peak = Peak()
    peak.measure(process.pid, 0, mapped=0)
    assert peak.news() is None


def test_shares_are_looked_at_only_when_there_is_more(hungry: int, monkeypatch: pytest.MonkeyPatch) -> None:
    peak, counted = Peak(), []

    def count(processes: list[psutil.Process], *, shares: bool = True) -> Taken:
        if shares:
            counted.append(len(processes))
        return taken_by(processes, shares=shares)

    monkeypatch.setattr("gpustack.worker.measuring.taken_by", count)
    for _ in range(3):
        peak.measure(hungry, 0, mapped=0)

    assert counted == [2]
    # What is shared, and counted as often, is the upper bound.
    whole = taken_by(tree(hungry), shares=False)
    assert whole.files == pytest.approx(256 * MIB, abs=32 * MIB)
    assert whole.own >= taken_by(tree(hungry)).own
    told = peak.news()
    assert told is not None
    assert told.ram == pytest.approx(128 * MIB, abs=32 * MIB)


def test_pages_of_files_count_as_far_as_the_engine_uses_them() -> None:
    taken = Taken(own=100, files=500)

    assert [taken.counted(mapped) for mapped in (0, 300, 900)] == [100, 400, 600]


def test_a_peak_only_rises_and_small_steps_are_no_news() -> None:
    peak = Peak()
    peak.take(Taken(own=100 * MIB), 0, mapped=0)
    assert peak.news() == MeasuredPeak(ram=100 * MIB)
    assert peak.news() is None

    for less in (50, 110):
        peak.take(Taken(own=less * MIB), 0, mapped=0)
        assert peak.news() is None

    peak.take(Taken(own=120 * MIB), 7 * MIB, mapped=0)
    assert peak.news() == MeasuredPeak(ram=120 * MIB, vram=7 * MIB)


def test_gpu_memory_is_summed_up_over_processes_and_gpus() -> None:
    def gpu(*processes: tuple[int | None, int | None]) -> GpuStatus:
        found = [GpuProcessStatus(pid=1, instance_id=number, memory=memory) for number, memory in processes]
        return GpuStatus(uuid="a", index=0, vendor="nvidia", name="H100", processes=found)

    silent = GpuStatus(uuid="b", index=1, vendor="nvidia", name="H100")
    gpus = [gpu((1, 10), (1, 5), (2, 7), (None, 99)), gpu((1, 20), (2, None)), silent]

    assert gpu_memory(WorkerStatus(gpu_devices=gpus)) == {1: 35, 2: 7}
    assert gpu_memory(None) == {}
