"""What NVML says becomes devices and their use; what it cannot say costs no more than that."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from gpustack_gpu_nvidia import NvidiaDetector, detector

from gpustack.plugin import DeviceRequest, GpuDevice, GpuUsage, Host, NoSettings, TryAgain
from gpustack.testing.fakes.nvml import fake_nvml

GIB = 1 << 30

Make = Callable[[str], NvidiaDetector]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Make]:
    """A detector on the machine that a YAML text describes; another text changes that machine."""
    file = tmp_path / "nvml.yaml"
    with ExitStack() as stack:

        def make(text: str) -> NvidiaDetector:
            fresh = not file.exists()
            file.write_text(text)
            if fresh:
                stack.enter_context(fake_nvml(file))
            host = Host(log=logging.getLogger("plugin"), data_dir=tmp_path, bin_dir=tmp_path)
            return NvidiaDetector(NoSettings(), host)

        yield make


async def both(of: NvidiaDetector) -> tuple[list[GpuDevice], dict[str, GpuUsage]]:
    async with of:
        return list(await of.devices()), dict(await of.usage())


async def test_a_gpu_is_described(machine: Make) -> None:
    [gpu], usage = await both(
        machine("""
driver: 550.90.07
cuda: "12.4"
devices:
  - {name: NVIDIA H100 80GB HBM3, memory: 80GiB, used: 2GiB, uuid: GPU-5, utilization: 73, temperature: 61,
     power: 412.5, power_limit: 700, numa: 1, ecc: 3,
     processes: [{pid: 10, memory: 1GiB}, {pid: 9, memory: 3MiB, draws: true}, {pid: 10, memory: 2MiB, draws: true}]}
""")
    )

    assert gpu == GpuDevice(
        uuid="GPU-5",
        index=0,
        vendor="nvidia",
        name="NVIDIA H100 80GB HBM3",
        memory_total=80 * GIB,
        type="cuda",
        driver_version="550.90.07",
        runtime_version="12.4",
        compute_capability="9.0",
        architecture="Hopper",
        device_index=0,
        cores=16896,
        power_limit_watts=700,
        numa_node=1,
        topology=("node0", "bridge0", "switches0", "switch0", "board0"),
    )
    assert usage.keys() == {"GPU-5"}
    used = usage["GPU-5"]
    assert (used.memory_used, used.utilization, used.temperature, used.power_watts) == (
        2 * GIB,
        73,
        61,
        412.5,
    )
    assert [(each.pid, each.memory_used) for each in used.processes or ()] == [(9, 3 << 20), (10, GIB)]
    assert (used.faults, used.memory_errors) == ((), 3)


async def test_slices_stand_in_the_place_of_their_gpu(machine: Make) -> None:
    devices, usage = await both(
        machine("""
nvlink: [[0, 1, 2]]
devices:
  - {name: A100, memory: 40GiB}
  - {name: A100, memory: 40GiB, temperature: 50, mig: [
      {name: 1g.5gb, memory: 5GiB, used: 1GiB, processes: [{pid: 3, memory: 1GiB}]}, {name: 2g.10gb, memory: 10GiB}]}
  - {name: A100, memory: 40GiB}
""")
    )

    assert [
        (each.uuid, each.index, each.name, each.memory_total // GIB, each.parent_uuid) for each in devices
    ] == [
        ("GPU-fake-0", 0, "A100", 40, ""),
        ("GPU-fake-2", 2, "A100", 40, ""),
        ("MIG-fake-1-0", 200, "A100 MIG 1g.5gb", 5, "GPU-fake-1"),
        ("MIG-fake-1-1", 201, "A100 MIG 2g.10gb", 10, "GPU-fake-1"),
    ]
    assert [each.device_index for each in devices] == [0, 2, 1, 1]
    assert [each.link_group for each in devices] == ["nvlink0", "nvlink0", "", ""]
    first = usage["MIG-fake-1-0"]
    assert (first.memory_used, first.temperature) == (GIB, 50)
    assert [each.pid for each in first.processes or ()] == [3]
    assert usage["MIG-fake-1-1"].processes == ()


async def test_a_gpu_in_mig_mode_without_slices_is_none(
    machine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    devices, _ = await both(machine("devices: [{name: A100, memory: 40GiB, mig: []}]"))

    assert devices == []
    assert "GPU 0 is in MIG mode and has no instance, so nothing can run on it" in caplog.messages


async def test_a_lost_gpu_is_left_out_and_the_others_keep_their_numbers(
    machine: Make, caplog: pytest.LogCaptureFixture
) -> None:
    text = """
devices:
  - {name: A, memory: 1GiB}
  - {name: B, memory: 1GiB, lost: LOST}
  - {name: C, memory: 1GiB}
"""
    made = machine(text.replace("LOST", "false"))
    before = [(each.uuid, each.index) for each in await made.devices()]
    machine(text.replace("LOST", "true"))
    after = [(each.uuid, each.index) for each in await made.devices()]
    usage = await made.usage()

    assert after == [before[0], before[2]]
    assert usage.keys() == {"GPU-fake-0", "GPU-fake-2"}
    assert caplog.messages == ["GPU 1 is left out: GPU is lost"]


async def test_what_a_gpu_does_not_tell_is_left_open(machine: Make) -> None:
    calls = [
        "TotalEccErrors",
        "RemappedRows",
        "Temperature",
        "PowerUsage",
        "UtilizationRates",
        "EnforcedPowerLimit",
        "NumGpuCores",
        "Architecture",
        "MemoryAffinity",
        "TopologyCommonAncestor",
        "P2PStatus",
        "ComputeRunningProcesses",
        "MPSComputeRunningProcesses",
        "MigMode",
        "CudaComputeCapability",
    ]
    fails = ", ".join(f"nvmlDeviceGet{each}: NotSupported" for each in calls)
    [one, _], usage = await both(
        machine(f"devices: [{{name: T, memory: 1GiB, used: 1MiB, count: 2, fails: {{{fails}}}}}]")
    )

    assert (one.memory_total, one.topology, one.link_group, one.numa_node) == (GIB, (), "", None)
    assert (one.compute_capability, one.architecture, one.cores) == ("", "", 0)
    assert usage[one.uuid] == GpuUsage(memory_used=1 << 20)
    assert usage[one.uuid].processes is None


async def test_one_that_shares_the_memory_of_the_processor(machine: Make) -> None:
    [gpu], usage = await both(
        machine("devices: [{name: GB10, memory: 1GiB, unified: true, processes: [{pid: 1, memory: 2MiB}]}]")
    )

    assert gpu.unified_memory
    assert gpu.memory_total > 100 << 20
    assert usage[gpu.uuid].memory_used == 2 << 20


async def test_events_that_break_a_gpu_stay_those_of_applications_do_not(machine: Make) -> None:
    text = "devices: [{name: A, memory: 1GiB, xids: XIDS, remapped: [0, 1, PENDING, 0]}, {name: B, memory: 1GiB}]"
    made = machine(text.replace("XIDS", "[31, 13]").replace("PENDING", "0"))
    well = (await made.usage())["GPU-fake-0"].faults
    machine(text.replace("XIDS", "[31, 79, 48]").replace("PENDING", "1"))
    broken = await made.usage()
    machine(text.replace("XIDS", "[]").replace("PENDING", "0"))
    later = await made.usage()

    assert well == ()
    assert broken["GPU-fake-0"].faults == (
        "it has fallen off the bus (Xid 79); it has to be reset",
        "its memory has an error that cannot be corrected (Xid 48); it has to be reset",
        "defective memory is replaced at its next reset",
    )
    assert later["GPU-fake-0"].faults == broken["GPU-fake-0"].faults[:2]
    assert later["GPU-fake-1"].faults == ()


async def test_a_driver_that_is_exchanged_is_found_again(machine: Make) -> None:
    made = machine("devices: [{name: A, memory: 1GiB}]")
    assert len(await made.devices()) == 1
    machine("{devices: [{name: A, memory: 1GiB}], fails: {nvmlDeviceGetCount: LibRmVersionMismatch}}")
    with pytest.raises(TryAgain, match=r"driver was updated .*; restart the machine"):
        await made.devices()
    machine("{driver: '580.1', devices: [{name: A, memory: 1GiB}]}")

    assert [each.driver_version for each in await made.devices()] == ["580.1"]


@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        ("nvmlInit: LibraryNotFound", "the NVIDIA driver is not installed: there is no libnvidia-ml.so.1"),
        ("nvmlInit: DriverNotLoaded", "the NVIDIA driver is installed and not loaded"),
        ("nvmlInit: Unknown", "NVML does not work: Unknown Error"),
        ("", "the NVIDIA driver finds no GPU"),
    ],
)
def test_a_machine_without_says_why_at_once(machine: Make, fails: str, reason: str) -> None:
    made = machine(f"fails: {{{fails}}}")
    began = time.monotonic()

    verdict = made.present()

    assert (verdict.ok, verdict.reason) == (False, reason)
    assert time.monotonic() - began < 0.5


async def test_a_call_that_hangs_holds_nobody_up(machine: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "_LIMIT", 0.1)
    monkeypatch.setattr(detector, "_LOOK", 0.1)
    made = machine("{devices: [{name: A, memory: 1GiB}], fails: {nvmlDeviceGetCount: hang}}")
    began = time.monotonic()
    assert made.present().ok  # there is a driver, and it takes its time
    async with made:
        for _ in range(3):
            with pytest.raises(TryAgain, match="the NVIDIA driver has not answered for 0 s"):
                await made.devices()
        assert time.monotonic() - began < 1

        machine("devices: [{name: A, memory: 1GiB}]")
        await asyncio.sleep(0.1)
        assert [each.name for each in await made.devices()] == ["A"]

        machine("{devices: [{name: A, memory: 1GiB, fails: {nvmlDeviceGetPowerUsage: hang}}]}")
        assert [each.name for each in await made.devices()] == ["A"]
        with pytest.raises(TryAgain):
            await made.usage()
    assert time.monotonic() - began < 2
    machine("devices: []")


def a_device(uuid: str, index: int = 0) -> GpuDevice:
    return GpuDevice(uuid=uuid, index=index, vendor="nvidia", name="A", memory_total=1)


def test_devices_are_shown_by_uuid_to_processes_and_containers(machine: Make) -> None:
    made = machine("")
    chosen = made.expose([a_device("GPU-b", 1), a_device("MIG-a", 200)])

    assert chosen.env == {"CUDA_VISIBLE_DEVICES": "GPU-b,MIG-a", "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    assert chosen.requests == (DeviceRequest(driver="nvidia", ids=("GPU-b", "MIG-a")),)
    assert made.expose([]).env["CUDA_VISIBLE_DEVICES"] == ""
    assert made.expose([]).requests == ()


def test_devices_without_a_uuid_of_cudas_are_shown_by_number(machine: Make) -> None:
    shown = machine("").expose([a_device("GPU-b", 1), a_device("card 3", 3)])

    assert shown.env["CUDA_VISIBLE_DEVICES"] == "1,3"
