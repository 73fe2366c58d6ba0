"""In a container its limits count as the machine's size."""

import asyncio
import threading
from pathlib import Path

import pytest
from gpustack_system.cgroup import Limits, read_limits
from gpustack_system.detector import PsutilDetector, cores, within

GIB = 1 << 30


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def own(root: Path, content: str) -> Path:
    path = root / "self"
    path.write_text(content)
    return path


def test_version_2_takes_the_tightest_limit_on_the_way_up(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(
        root,
        {
            "cgroup.controllers": "cpu memory",
            "a/memory.max": str(4 * GIB),
            "a/memory.current": str(3 * GIB),
            "a/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            "a/b/memory.max": "max",
            "a/b/cpu.max": "150000 100000",
            "a/cpu.max": "max 100000",
        },
    )

    assert read_limits(root, own(tmp_path, "0::/a/b\n")) == Limits(
        memory=4 * GIB, memory_used=2 * GIB, cores=1.5
    )


def test_version_1_is_read_too(tmp_path: Path) -> None:
    root = tmp_path / "cgroup"
    write(
        root,
        {
            "memory/memory.limit_in_bytes": "9223372036854771712",
            "memory/docker/x/memory.limit_in_bytes": str(2 * GIB),
            "memory/docker/x/memory.usage_in_bytes": str(GIB),
            "cpu,cpuacct/docker/x/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/docker/x/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
        },
    )
    groups = own(tmp_path, "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n")

    assert read_limits(root, groups) == Limits(memory=2 * GIB, memory_used=GIB, cores=2.0)


@pytest.mark.parametrize("content", ["", "nonsense", "0::/../..\n"])
def test_nothing_to_read_is_no_limit(tmp_path: Path, content: str) -> None:
    assert read_limits(tmp_path, own(tmp_path, content)) == Limits()


def test_memory_within_limits() -> None:
    assert within(Limits(), 8 * GIB, 3 * GIB) == (8 * GIB, 3 * GIB)
    assert within(Limits(memory=16 * GIB), 8 * GIB, 3 * GIB) == (8 * GIB, 3 * GIB)
    assert within(Limits(memory=4 * GIB, memory_used=GIB), 8 * GIB, 3 * GIB) == (4 * GIB, GIB)
    # The machine has 1 GiB left, so of the 4 GiB allowed all but one counts as used.
    assert within(Limits(memory=4 * GIB, memory_used=GIB), 8 * GIB, 7 * GIB) == (4 * GIB, 3 * GIB)


def test_a_part_of_a_core_is_a_core() -> None:
    assert cores(Limits(cores=0.2)) == 1
    assert cores(Limits(cores=1e6)) == cores(Limits()) >= 1


async def test_this_machine_is_measured(tmp_path: Path) -> None:
    from logging import getLogger

    from gpustack.plugin import Host, NoSettings

    host = Host(log=getLogger(), data_dir=tmp_path, bin_dir=tmp_path)
    async with PsutilDetector(NoSettings(), host) as detector:
        assert detector.present().ok
        reading = await detector.measure([tmp_path, tmp_path / "deeper", Path("/")])
        await asyncio.sleep(0)

    assert reading.ram_total > reading.ram_used > 0
    assert reading.cores >= 1
    mounts = [each.mount_point for each in reading.filesystems]
    assert len(mounts) == len(set(mounts)) >= 1
    for each in reading.filesystems:
        assert each.total >= each.available >= 0
        assert each.total == each.used + each.free


async def test_a_file_system_that_hangs_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from logging import getLogger

    from gpustack_system import detector as room

    from gpustack.plugin import Host, NoSettings

    door, calls = threading.Event(), []
    real = room._filesystems

    def hanging(paths: tuple[Path, ...]) -> object:
        calls.append(paths)
        if len(calls) == 2:
            door.wait()
        return real(paths)

    monkeypatch.setattr(room, "_filesystems", hanging)
    monkeypatch.setattr(room, "_PATIENCE", 0.1)
    host = Host(log=getLogger(), data_dir=tmp_path, bin_dir=tmp_path)
    async with PsutilDetector(NoSettings(), host) as detector:
        before = await detector.measure([Path("/")])
        for _ in range(3):
            reading = await detector.measure([Path("/")])
            assert reading.ram_total == before.ram_total
            assert [each.mount_point for each in reading.filesystems] == ["/"]
        assert len(calls) == 2

        door.set()
        await asyncio.sleep(0.1)
        await detector.measure([Path("/")])
        await detector.measure([Path("/")])

        assert len(calls) >= 3
