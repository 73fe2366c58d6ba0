"""Whose memory is used on the GPUs, and what the settings say there is in their place."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gpustack_gpu_nvidia import NvidiaDetector
from hypothesis import assume, given
from hypothesis import strategies as st

from gpustack.extensions import Catalogue, Registered
from gpustack.kit.process import identify
from gpustack.plugin import GpuDevice, GpuProcess, GpuUsage, Host
from gpustack.scheduling import others_use
from gpustack.schemas import MemoryStatus, WorkerStatus
from gpustack.settings.resources import Resources
from gpustack.testing.fakes.nvml import fake_nvml
from gpustack.worker import described, gpus
from gpustack.worker.gpus import Shares
from gpustack.worker.runners.ending import owners
from gpustack.worker.runners.environment import RECORD_MARKER
from gpustack.worker.runners.records import EngineRecord, record_path, write_record
from gpustack.worker.status import Machine

MIB, GIB = 1 << 20, 1 << 30

DEVICE = GpuDevice(uuid="GPU-0", index=0, vendor="nvidia", name="L4", memory_total=24 * GIB)


def shares(pids: dict[int, int], *, told: bool = True) -> Shares:
    made = Shares(lambda asked: {pid: pids[pid] for pid in asked if pid in pids})
    made._proved = told
    return made


def of(usage: GpuUsage, pids: dict[int, int], **how: bool) -> int | None:
    [status] = asyncio.run(shares(pids, **how).statuses([(DEVICE, usage)]))
    return status.memory.others


@pytest.fixture(autouse=True)
def in_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "numbers_are_the_machines", lambda: False)


# Whose memory ---------------------------------------------------------------------------------------------------


@given(
    st.dictionaries(st.integers(1, 9), st.integers(0, 4 * GIB), max_size=6),
    st.sets(st.integers(1, 9)),
    st.integers(0, 2 * GIB),
)
def test_others_is_what_is_used_and_not_ours(sizes: dict[int, int], ours: set[int], rest: int) -> None:
    """Whatever nobody is known to have, as the driver itself, counts as others'."""
    processes = tuple(GpuProcess(pid=pid, memory_used=size) for pid, size in sizes.items())
    usage = GpuUsage(memory_used=sum(sizes.values()) + rest, processes=processes)

    assert of(usage, dict.fromkeys(ours, 7)) == rest + sum(
        size for pid, size in sizes.items() if pid not in ours
    )


@pytest.mark.parametrize(
    "processes",
    [None, (GpuProcess(pid=1, memory_used=None), GpuProcess(pid=2, memory_used=5))],
    ids=["the driver tells of no process", "the driver tells no size of ours"],
)
def test_where_the_driver_does_not_tell_nothing_is_made_up(processes: tuple[GpuProcess, ...] | None) -> None:
    assert of(GpuUsage(memory_used=GIB, processes=processes), {1: 7}) is None


def test_ours_never_make_others_negative() -> None:
    # The driver reads one figure after the other.
    usage = GpuUsage(memory_used=5, processes=(GpuProcess(pid=1, memory_used=6),))
    assert of(usage, {1: 7}) == 0


async def test_in_a_container_others_are_told_once_a_process_of_ours_was_seen() -> None:
    ours: dict[int, int] = {}
    made = Shares(lambda asked: {pid: ours[pid] for pid in asked if pid in ours})
    usage = GpuUsage(memory_used=GIB, processes=(GpuProcess(pid=4711, memory_used=GIB),))

    async def others() -> int | None:
        [status] = await made.statuses([(DEVICE, usage)])
        return status.memory.others

    assert await others() is None  # ours may be among them under another number
    ours[4711] = 7
    assert await others() == 0
    ours.clear()
    assert await others() == GIB


async def test_on_the_machine_itself_they_are_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "numbers_are_the_machines", lambda: True)
    usage = GpuUsage(memory_used=GIB, processes=())
    [status] = await Shares(lambda _: {}).statuses([(DEVICE, usage)])
    assert status.memory.others == GIB


async def test_the_server_is_told_of_ours_and_of_the_largest_processes() -> None:
    processes = tuple(GpuProcess(pid=pid, memory_used=pid) for pid in range(1, 40))
    usage = GpuUsage(memory_used=GIB, processes=processes)
    [status] = await shares({1: 7}).statuses([(DEVICE, usage)])
    assert status.processes is not None
    assert [each.pid for each in status.processes] == [1, *range(39, 24, -1)]
    assert [each.instance_id for each in status.processes[:2]] == [7, None]


# Which processes are ours -----------------------------------------------------------------------------------------

SLEEP = "import time; time.sleep(60)"
CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={{}}); " + SLEEP


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """An engine in a session of its own with a child, which has lost the marker."""
    path = record_path(tmp_path, 7)
    record = EngineRecord(instance_id=7, instance_name="m-1", port=1, log_path="", argv_digest="")
    write_record(tmp_path, record)
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], env={RECORD_MARKER: str(path)}, start_new_session=True
    )
    who = identify(process.pid)
    assert who is not None
    done = EngineRecord(
        instance_id=7,
        instance_name="m-1",
        port=1,
        log_path="",
        argv_digest="",
        pid=who.pid,
        started=who.started,
    )
    write_record(tmp_path, done)
    yield process
    os.killpg(process.pid, 9)
    process.wait()


async def test_an_engine_and_what_it_started_are_ours(
    engine: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    children: list[int] = []
    while not children:
        children = [int(each) for each in _children(engine.pid)]
        await asyncio.sleep(0.01)

    asked = {engine.pid, *children, os.getpid(), 1, 4_000_000}
    assert owners(tmp_path, asked) == dict.fromkeys((engine.pid, *children), 7)
    assert owners(tmp_path / "another", asked) == {}


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# With a driver, and settings --------------------------------------------------------------------------------------

TWO = """
driver: '570.1'
devices:
  - {name: NVIDIA L4, memory: 24GiB, used: 9GiB, uuid: GPU-a, numa: 1,
     processes: [{pid: 10, memory: 6GiB}, {pid: 11, memory: 2GiB}]}
  - {name: NVIDIA L4, memory: 24GiB, used: 1GiB, uuid: GPU-b}
"""


async def measured(tmp_path: Path, resources: Any = None, pids: dict[int, int] | None = None) -> Any:
    """Return the status, devices and a way to show them, of a machine with two GPUs and these settings."""
    file = tmp_path / "nvml.yaml"
    file.write_text(TWO)
    host = Host(log=logging.getLogger(), data_dir=tmp_path, bin_dir=tmp_path)
    catalogue = Catalogue(
        gpu_detectors={
            "nvidia": Registered(cls=NvidiaDetector, plugin="gpu-nvidia", distribution="g", version="1")
        }
    )
    ours = pids or {}
    machine = Machine(
        catalogue,
        host,
        (),
        owners=lambda asked: {pid: ours[pid] for pid in asked if pid in ours},
        resources=Resources.model_validate(resources or {}),
    )
    with fake_nvml(file):
        async with machine:
            status = await machine.measure()
            return status, machine.devices, await machine.expose(machine.devices[:1])


async def test_what_nvml_says_reaches_the_status(tmp_path: Path) -> None:
    status, devices, shown = await measured(tmp_path, pids={10: 7})

    first, second = WorkerStatus.model_validate_json(status.model_dump_json()).gpu_devices
    assert (first.uuid, first.name, first.driver_version) == ("GPU-a", "NVIDIA L4", "570.1")
    assert (first.memory.total, first.memory.used, first.memory.others) == (24 * GIB, 9 * GIB, 3 * GIB)
    assert (first.numa_node, first.arch_family, first.core.total, first.power) == (1, "Hopper", 16896, 700)
    assert first.topology[:2] == ["node0", "bridge0"]
    assert [each.instance_id for each in first.processes or ()] == [7, None]
    assert second.memory.others == GIB
    assert [each.uuid for each in devices] == ["GPU-a", "GPU-b"]
    assert shown.env["CUDA_VISIBLE_DEVICES"] == "GPU-a"


def a_gpu(**fields: Any) -> dict[str, Any]:
    return {"name": "L4", "vendor": "nvidia", "index": 0, "memory": {"total": "20GiB"}, **fields}


async def test_described_gpus_replace_the_detected_ones(tmp_path: Path) -> None:
    said = {"gpu_devices": [a_gpu(), a_gpu(index=5, name="X", core={"total": 3})]}
    status, devices, shown = await measured(tmp_path, said, {10: 7})

    first, second = status.gpu_devices
    # Its use and its uuid are those of the detected one.
    assert (first.name, first.uuid, first.memory.total) == ("L4", "GPU-a", 20 * GIB)
    # 9 of its 24 GiB are used; 4 of these are not described, so that much is used of those first.
    assert (first.memory.used, first.memory.others, first.driver_version) == (5 * GIB, 0, "570.1")
    # Nobody has detected the other.
    assert (second.name, second.uuid, second.type, second.memory.used) == ("X", "nvidia-5", "cuda", 0)
    assert second.core.total == 3
    assert [each.index for each in devices] == [0, 5]
    assert shown.env["CUDA_VISIBLE_DEVICES"] == "GPU-a"


async def test_a_use_that_is_described_is_others_whatever_we_run(tmp_path: Path) -> None:
    said = {
        "memory": {"total": "64GiB", "used": "3GiB"},
        "gpu_devices": [
            a_gpu(memory={"total": "24GiB"}),
            a_gpu(index=1, memory={"total": "20GiB", "used": "2GiB"}),
        ],
    }
    status, *_ = await measured(tmp_path, said, {10: 7})

    first, second = status.gpu_devices
    assert (first.memory.used, first.memory.others) == (9 * GIB, 3 * GIB)  # measured
    assert (second.memory.used, second.memory.others, second.processes) == (2 * GIB, 2 * GIB, None)
    assert (status.memory.used, status.memory.others) == (3 * GIB, 3 * GIB)


@given(
    total=st.integers(1, 64),
    real=st.integers(1, 64),
    ours=st.integers(0, 64),
    others=st.integers(0, 64),
)
def test_what_is_free_is_what_is_described_or_what_is_there_when_that_is_less(
    total: int, real: int, ours: int, others: int
) -> None:
    assume(ours + others <= real and ours <= total)
    found = WorkerStatus(memory=MemoryStatus(total=real * GIB, used=(ours + others) * GIB))
    said = Resources.model_validate({"memory": {"total": f"{total}GiB"}})

    memory = described.machine(said, found).memory

    claimed = ours * GIB
    free = max(0, memory.total - others_use(memory.used, claimed) - claimed)
    # Whoever describes more than is found knows it better.
    available = max(real, total) - ours - others
    assert memory.total == total * GIB
    assert free == max(0, min(total - ours, available)) * GIB


@given(st.lists(st.tuples(st.sampled_from(["nvidia", "amd"]), st.sampled_from(["", "a", "b"])), max_size=4))
def test_no_detected_gpu_is_described_twice(said: list[tuple[str, str]]) -> None:
    found = [(replace(DEVICE, uuid=uuid, index=index), None) for index, uuid in enumerate("ab")]
    names = [uuid for _, uuid in said if uuid]
    assume(len(names) == len(set(names)))
    listed = [a_gpu(vendor=vendor, index=n, uuid=uuid) for n, (vendor, uuid) in enumerate(said)]

    uuids = [
        device.uuid for device, _ in described.gpus(Resources.model_validate({"gpu_devices": listed}), found)
    ]

    assert len(set(uuids)) == len(uuids) == len(said)
    assert all(uuids[n] == uuid for n, (_, uuid) in enumerate(said) if uuid)


async def test_a_uuid_finds_the_detected_gpu_whatever_its_index(tmp_path: Path) -> None:
    status, *_ = await measured(tmp_path, {"gpu_devices": [a_gpu(uuid="GPU-b", memory={"total": "24GiB"})]})

    [gpu] = status.gpu_devices
    assert (gpu.uuid, gpu.memory.used) == ("GPU-b", GIB)


async def test_a_machine_whose_gpus_are_not_to_be_used(tmp_path: Path) -> None:
    status, devices, shown = await measured(tmp_path, {"gpu_devices": []})

    assert (status.gpu_devices, devices) == ([], ())
    assert shown.env["CUDA_VISIBLE_DEVICES"] == ""


async def test_processor_and_memory_are_described_too(tmp_path: Path) -> None:
    status, *_ = await measured(
        tmp_path,
        {
            "cpu": {"total": 3},
            "memory": {"total": "2GiB", "used": 1 << 30, "is_unified_memory": True},
            "swap": {"total": 0},
        },
    )

    assert status.cpu.total == 3
    assert (status.memory.total, status.memory.utilization_rate, status.memory.is_unified_memory) == (
        2 * GIB,
        50.0,
        True,
    )
    assert status.swap.total == 0
    assert len(status.gpu_devices) == 2


async def test_a_described_vendor_without_a_driver_is_shown_by_number_one_without_a_detector_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = Resources.model_validate({"gpu_devices": [a_gpu(), a_gpu(vendor="acme", index=1)]})
    file = tmp_path / "nvml.yaml"
    file.write_text("fails: {nvmlInit: LibraryNotFound}")
    host = Host(log=logging.getLogger(), data_dir=tmp_path, bin_dir=tmp_path)
    registered = Registered(cls=NvidiaDetector, plugin="gpu-nvidia", distribution="g", version="1")
    machine = Machine(Catalogue(gpu_detectors={"nvidia": registered}), host, (), resources=said)
    with fake_nvml(file):
        async with machine:
            status = await machine.measure()
            shown = await machine.expose(machine.devices)

    assert [each.uuid for each in status.gpu_devices] == ["nvidia-0", "acme-1"]
    assert shown.env["CUDA_VISIBLE_DEVICES"] == "0"
    assert (
        "resources: no installed detector is for GPUs of acme, so engines there see all of them"
        in caplog.messages
    )
